import pytest
import torch

from fastreid_star.benchmark.networks import BARE, CONFIGS, Setting, TrainingStep, config
from fastreid_star.benchmark.parts import step
from fastreid_star.modeling.linear import Linear


@pytest.fixture
def figures(options, small_loader, monkeypatch):
    monkeypatch.setattr(step, "ON_CPU", 64)
    return {figure.name: figure for figure in step.figures(options)}


def test_figures(figures):
    bare = figures["backbone_step_frames_per_s"].value
    assert figures["star_step_frames_per_s"].limit == bare
    for name in (*CONFIGS, "star_float32_channels_last"):
        network, _, setting = name.partition("_float32")
        suffix = setting and f"_float32{setting}"
        figure = figures[f"{network}_step_frames_per_s{suffix}"]
        assert figure.limit == figures[f"backbone_step_frames_per_s{suffix}"].value
        assert figure.ratio == pytest.approx(figure.value / figure.limit)
    share = figures["star_step_outside_share"].value
    assert share == pytest.approx(1 - figures["star_step_frames_per_s"].ratio)
    turned = figures["star_step_channels_last_frames_per_s"]
    assert turned.limit not in (bare, figures["backbone_step_frames_per_s_float32_channels_last"].value)
    assert turned.value != figures["star_step_frames_per_s_float32_channels_last"].value, "in a process of its own"
    assert figures["star_step_fastest_frames_per_s"].value >= turned.value
    assert figures["star_step_fastest_frames_per_s"].limit == turned.limit
    assert figures["star_step_tflops"].value > 0
    assert 0 < figures["star_step_convolution_share"].value < 1
    assert figures["star_step_loader_processes"].value > 0


def test_formats_run_apart_beside_torch_as_it_is(options, monkeypatch):
    class Recorded:
        built, closed = [], 0

        def __init__(self, build, network, work, given, setting):
            kept = config(network, work, given, setting).MODEL.CPU.KEEP_MEMORY
            self.built.append((build, network, str(setting), kept))

        def __call__(self):
            pass

        def close(self):
            Recorded.closed += 1

    monkeypatch.setattr(step, "Apart", Recorded)
    times = step._apart(options, [Setting(channels_last=True)])
    assert Recorded.built == [
        (TrainingStep, BARE, "float32_memory_handed_back", False),
        (TrainingStep, "star", "float32_channels_last", True),
    ]
    assert list(times) == [f"{BARE} float32_memory_handed_back", "star float32_channels_last"]
    assert Recorded.closed == 2


def test_a_step_for_each_network_and_setting(options):
    chosen = {Setting(): (BARE, "star"), Setting(amp="bfloat16"): (BARE,), Setting(channels_last=True): (BARE,)}
    steps = step.build_steps(options, chosen)
    assert list(steps) == [
        f"{BARE} float32",
        "star float32",
        f"{BARE} bfloat16",
        f"{BARE} float32_channels_last",
    ]
    first, same, other = (steps[f"{BARE} {name}"].model for name in ("float32", "bfloat16", "float32_channels_last"))
    assert first is same, "one memory format, one set of weights"
    assert first is not other


def test_operations_are_counted():
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6)
    assert step.flops(lambda: (a @ b).sum().backward()) == {"aten.mm": 2 * 2 * 4 * 5 * 6}  # forward, and for a
    layer = Linear(3, 5)
    found = step.flops(lambda: layer(torch.randn(2, 4, 3)).sum().backward())  # and the gradients of input and weight
    assert found.total() == 3 * 2 * (2 * 4) * 3 * 5
    product, operations = step.matrix_product(torch.device("cpu"), None, 16)
    assert step.flops(product) == {"aten.mm": operations}
    assert step.matrix_product(torch.device("cpu"), "bfloat16", 16)[0]().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::native_batch_norm_backward", "batch normalisation"),
        ("aten::addmm", "matrix products, LSTM"),
        ("mkldnn::_linear_pointwise", "matrix products, LSTM"),
        ("aten::linalg_vector_norm", "the rest"),
        ("aten::_cudnn_rnn", "matrix products, LSTM"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "matrix products, LSTM"),
        ("aten::_fused_sgd_", "optimizer"),
        ("aten::_foreach_add_", "optimizer"),
        ("aten::threshold_backward", "the rest"),
    ],
)
def test_kinds_of_operators(operator, kind):
    assert step.kind_of(operator) == kind


def test_shares_of_a_profile():
    class Multiply:
        device = torch.device("cpu")
        a = torch.randn(800, 800)

        def __call__(self):
            return (self.a @ self.a).add_(1)

    shares = step.profile_step(Multiply())
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matrix products, LSTM"] > 0.5
    assert shares["convolutions"] == 0
