from dataclasses import replace

import pytest
import torch

from fastreid_star.benchmark.networks import BARE, CONFIGS, Setting, config
from fastreid_star.benchmark.parts import step
from fastreid_star.benchmark.timing import Timing
from fastreid_star.modeling.linear import Linear


@pytest.fixture
def figures(options, small_loader, monkeypatch):
    monkeypatch.setattr(step, "ON_CPU", 64)
    monkeypatch.setattr(
        step, "apart", lambda function, *args: function(*args)
    )  # a process takes seconds to start
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
    assert turned.limit == figures["backbone_step_frames_per_s_float32_memory_handed_back"].value
    assert turned.value == figures["star_step_frames_per_s_float32_channels_last"].value
    assert figures["star_step_fastest_frames_per_s"].value >= turned.value
    assert figures["star_step_fastest_frames_per_s"].limit == turned.limit
    assert figures["star_step_tflops"].value > 0
    assert 0 < figures["star_step_convolution_share"].value < 1
    assert figures["star_step_loader_processes"].value > 0


def test_each_setting_has_processes_of_its_own_in_turns(options, monkeypatch):
    calls = []

    def apart(function, networks, setting, given, with_product, title):
        assert function is step.time_in_turns
        assert given in (full, options)
        calls.append((networks, str(setting), with_product))
        return {
            side: Timing((float(len(calls)),))
            for side in (*networks, *[step.PRODUCT] * with_product)
        }

    monkeypatch.setattr(step, "apart", apart)
    full = replace(options, quick=False)
    times = step.measure(full, step.settings(full))
    one_round = [
        ((BARE, *CONFIGS), "float32", True),
        ((BARE, "star"), "float32_channels_last", False),
        ((BARE,), "float32_memory_handed_back", False),
        ((BARE, "star"), "bfloat16_channels_last", False),
    ]
    assert calls == one_round * 3
    assert times[Setting()][step.PRODUCT] == times[Setting()]["star"] == Timing((1.0, 5.0, 9.0), 3)
    assert times[step.AS_TORCH_RUNS_IT] == {BARE: Timing((3.0, 7.0, 11.0), 3)}

    calls.clear()
    step.measure(options, step.settings(options))
    assert calls == one_round[:3]


def test_a_process_times_the_networks_of_its_setting(options, monkeypatch):
    kept = []
    monkeypatch.setattr(
        step, "TrainingStep", lambda *args: kept.append(config(*args).MODEL.CPU.KEEP_MEMORY) or list
    )
    monkeypatch.setattr(step, "ON_CPU", 8)
    times = step.time_in_turns(
        (BARE,), step.AS_TORCH_RUNS_IT, replace(options, repeats=3), True, ""
    )
    assert {side: len(timing.seconds) for side, timing in times.items()} == {
        BARE: 3,
        step.PRODUCT: 3,
    }
    step.time_in_turns((BARE, "star"), Setting(channels_last=True), options, False, "")
    assert kept == [False, True, True]


def test_operations_are_counted(options, monkeypatch):
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6)
    assert step.flops(lambda: (a @ b).sum().backward()) == {
        "aten.mm": 2 * 2 * 4 * 5 * 6
    }  # forward, and for a
    layer = Linear(3, 5)
    found = step.flops(
        lambda: layer(torch.randn(2, 4, 3)).sum().backward()
    )  # and the gradients of input and weight
    assert found.total() == 3 * 2 * (2 * 4) * 3 * 5
    monkeypatch.setattr(step, "ON_CPU", 16)
    product, operations = step.matrix_product(options, None)
    assert step.flops(product) == {"aten.mm": operations}
    assert step.matrix_product(options, "bfloat16")[0]().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::native_batch_norm_backward", "batch normalization"),
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
