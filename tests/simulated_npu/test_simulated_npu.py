"""The stand-in for an Ascend is honest: it refuses what a device refuses and computes what the CPU
computes.
"""

import copy
import gc
import importlib.util
import io
import os
import sys

import pytest
import torch
from torch import nn

import simulated_npu

reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_everything():
    check_module()
    check_memory()
    check_guards()
    check_recorder()
    check_gradients()
    check_mixed_precision()
    check_saved_files()


def test_one_device():
    """In one process: starting torch takes longer than most checks."""
    simulated_npu.run(check_everything, SIMULATED_NPU_COUNT="3")


def check_module():
    assert importlib.util.find_spec("torch_npu") is not None
    assert "torch_npu" not in sys.modules
    import torch_npu

    assert torch_npu.__version__ == torch.__version__
    assert torch_npu.npu is torch.npu is sys.modules["torch.npu"]
    simulated_npu.load()  # a second time

    assert torch.npu.is_available()
    assert torch.npu.device_count() == torch.accelerator.device_count() == 3, "SIMULATED_NPU_COUNT"
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    torch.npu.set_device("npu:2")
    assert torch.npu.current_device() == torch.accelerator.current_device_index() == 2
    assert torch.ones(1, device="npu").device == torch.ones(1).npu().device == torch.device("npu:2")
    with torch.npu.device(1):
        assert torch.ones(1, device="npu").get_device() == 1
    torch.npu.set_device(torch.device("npu", 0))
    with pytest.raises(RuntimeError, match=r"was asked for, there are 3"):
        torch.npu.set_device("npu:7")

    x = torch.ones(4, device="npu")
    assert repr(x * 1.5) == "tensor([1.5000, 1.5000, 1.5000, 1.5000], device='npu:0')"
    assert torch.npu.is_bf16_supported()
    assert "NPU" in torch.npu.get_device_name(1)

    assert simulated_npu.settings() == {}
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    assert (torch.npu.matmul.allow_hf32, torch.npu.conv.allow_hf32) == (False, True)
    torch.npu.conv.allow_hf32 = False
    assert not torch.npu.conv.allow_hf32
    settings = {"jit_compile": False, "allow_internal_format": False, "conv.allow_hf32": False}
    assert simulated_npu.settings() == settings
    with pytest.raises(AttributeError):
        torch.npu.matmul.allow_tf32 = 1


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "no C++ compiler (no-such-compiler)" in simulated_npu.missing_compiler()


def check_memory():
    gc.collect()
    before = torch.npu.memory_allocated()
    fresh = torch.empty(1000, dtype=torch.uint8, device="npu")
    assert (fresh.cpu() == 0x7F).all(), "memory that nobody wrote shows"
    large = torch.zeros(10_000, dtype=torch.uint8, device="npu")
    del large
    gc.collect()
    assert torch.npu.memory_allocated() == before + 1000
    assert torch.npu.max_memory_allocated() >= before + 11_000
    free, total = torch.npu.mem_get_info("npu:0")
    assert total - free == before + 1000
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(total, dtype=torch.uint8, device="npu")

    # views share the memory, set_ and resize_ move it
    x = torch.arange(24.0, device="npu").view(4, 6)
    x[1:3, ::2].mul_(10)
    x.t()[5] = 0
    x.unfold(0, 2, 2)[0, 0] += 1
    y = torch.arange(24.0).view(4, 6)
    y[1:3, ::2] *= 10
    y[:, 5] = 0
    y.unfold(0, 2, 2)[0, 0] += 1
    assert torch.equal(x.cpu(), y)
    assert x.transpose(0, 1).data_ptr() == x.data_ptr()
    z = torch.empty(0, device="npu").set_(x)
    assert z.data_ptr() == x.data_ptr()
    assert torch.equal(z.resize_(5, 6)[:4].cpu(), y)
    out = torch.empty(0, device="npu")
    assert torch.add(x, 1, out=out) is out
    assert torch.equal(out.cpu(), y + 1)
    page_locked = torch.ones(3).pin_memory()
    assert page_locked[1:].is_pinned()
    assert not torch.ones(3).is_pinned()
    assert torch.equal(page_locked.to("npu", non_blocking=True).cpu(), torch.ones(3))

    pid = os.fork()  # as a DataLoader's worker is
    if pid == 0:
        try:
            torch.manual_seed(0)  # leaves the device alone
            torch.ones(1, device="npu")
        except RuntimeError as error:
            os._exit(0 if "forked subprocess" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def check_guards():
    here, there, other = torch.ones(3, device="npu"), torch.ones(3), torch.ones(3, device="npu:1")
    mask = torch.tensor([True, False, True])
    conv = nn.Conv1d(1, 1, 1).npu()
    for operation in (
        lambda: here + there,
        lambda: here.add_(there),
        lambda: torch.cat([here, there]),
        lambda: torch.where(mask, here, here),
        lambda: here.index_select(0, torch.tensor([0])),
        lambda: nn.functional.cross_entropy(here[None], torch.tensor([0])),
        lambda: conv(torch.ones(1, 1, 3)),
        lambda: here + other,
        lambda: here.copy_(torch.ones(3, device="npu:5")),
    ):
        with pytest.raises(RuntimeError, match=r"device|npu:5"):
            operation()

    # numbers on the host are welcome, as core has it, and so are indices, which indexing itself moves
    assert (
        (here + torch.tensor(2.0)).device
        == (torch.tensor(2.0, dtype=torch.float64) * here).device
        == here.device
    )
    assert (torch.tensor(2.0) * here).dtype == torch.float32
    assert here[mask].device == here[torch.tensor([0])].device == here.device
    here[torch.tensor([1])] = 5.0
    here.fill_(torch.tensor(1.0))
    assert torch.where(here > 0, here, torch.tensor(0.0)).device == here.device
    assert here.copy_(there).device == torch.device("npu:0")
    assert there.copy_(here).device == torch.device("cpu")
    assert torch.equal(other.to("npu:0"), here)

    for operation in (
        lambda: torch.ones(3, dtype=torch.float64, device="npu"),
        lambda: torch.ones(3, dtype=torch.float64).to("npu"),
        lambda: here.sum(0, keepdim=True, dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError, match="the npu has no"):
            operation()
    assert torch.ones(3, dtype=torch.float64).to("npu", torch.float32).dtype == torch.float32
    assert here.to("cpu", torch.float64).dtype == torch.float64

    # the device's random numbers are the CPU's, but a generator must be of the device
    torch.manual_seed(3)
    drawn = torch.rand(5, device="npu")
    torch.manual_seed(3)
    assert torch.equal(drawn.cpu(), torch.rand(5))
    generator = torch.Generator("npu:0").manual_seed(4)
    drawn = torch.rand(5, device="npu", generator=generator)
    assert torch.equal(drawn.cpu(), torch.rand(5, generator=torch.Generator().manual_seed(4)))
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(5, device="npu", generator=torch.Generator())


def check_recorder():
    weight = torch.ones(3, 3, device="npu", requires_grad=True)
    with simulated_npu.recording() as operators:
        x = torch.zeros(2, 3, device="npu")
        y = (x.view(3, 2)[1:] * 2).relu_()
        (x @ weight).sum().backward()  # backward runs in a thread of its own
        y.copy_(torch.ones(1, 2))
        (x + torch.tensor(1.0)).sum(0).cpu()
        nn.functional.conv1d(torch.ones(1, 1, 4, device="npu"), torch.ones(1, 1, 2, device="npu"))
        nn.functional.batch_norm(x, None, None, training=True)
    assert operators == sorted(set(operators))
    expected = """
        aten::empty.memory_format aten::zero_ aten::view aten::as_strided aten::mul.Tensor aten::relu_ aten::mm
        aten::sum.dim_IntList aten::add.Tensor aten::copy_ aten::convolution_overrideable
        aten::native_batch_norm
    """
    assert set(expected.split()) <= set(operators), operators
    assert not [name for name in operators if name.startswith("aten::_copy_from")], (
        "what kernels do is not recorded"
    )
    _ = x + x
    with simulated_npu.recording() as operators:
        pass
    assert operators == []


def test_operators_that_a_device_lacks():
    there = [
        "aten::add.Tensor",
        "aten::index_add.out",
        "aten::scatter.src_out",
        "aten::no_such_operator.out",
    ]
    taken = [
        "aten::add.Tensor",
        "aten::index_add_",
        "aten::index_add",
        "aten::scatter_.src",
        "aten::scatter.value",
    ]
    assert simulated_npu.missing(taken, there) == ["aten::scatter.value"]
    assert simulated_npu.missing(
        ["aten::embedding_dense_backward", "aten::add_.Tensor"], there
    ) == [
        "aten::add_.Tensor",
        "aten::embedding_dense_backward",
    ]


def same_as_cpu(module, *inputs, tolerance=1e-6):
    """Outputs, gradients of inputs and of parameters, and buffers agree on both devices."""
    results = []
    for device in ("cpu", "npu"):
        ours = copy.deepcopy(module).to(device)
        given = [x.clone().to(device).requires_grad_() for x in inputs]
        torch.manual_seed(0)
        output = ours(*given)
        outputs = [output] if isinstance(output, torch.Tensor) else [output[0], *output[1]]
        sum(
            (out * torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)).sum()
            for out in outputs
        ).backward()
        tensors = [
            *outputs,
            *(x.grad for x in given),
            *(p.grad for p in ours.parameters()),
            *ours.buffers(),
        ]
        assert all(tensor.device.type == device for tensor in tensors)
        results.append([tensor.detach().cpu() for tensor in tensors])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), (
            module,
            (found - expected).abs().max(),
        )


def check_gradients():
    torch.manual_seed(0)
    sequence = torch.randn(5, 4, 6)
    for options in ({"bidirectional": True, "num_layers": 2}, {"bias": False}):
        same_as_cpu(nn.LSTM(6, 3, **options), sequence)
    images = torch.randn(2, 4, 9, 7)
    same_as_cpu(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), images)
    same_as_cpu(nn.BatchNorm2d(4), images)
    same_as_cpu(nn.BatchNorm2d(4, affine=False).eval(), images)
    same_as_cpu(
        nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Dropout(0.5), nn.Softmax(-1)), images
    )
    same_as_cpu(
        nn.Sequential(nn.MaxPool2d(2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images
    )

    for name in ("SGD", "Adam"):
        weights = []
        for device in ("cpu", "npu"):
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).to(device)
            optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, weight_decay=0.1)
            for step in range(4):
                optimizer.zero_grad()
                (model(torch.full((2, 4), step + 1.0, device=device)) ** 2).sum().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().cpu())
        assert torch.allclose(*weights, atol=1e-6), name


def check_mixed_precision():
    x = torch.randn(4, 6, device="npu")
    assert torch.amp.is_autocast_available("npu")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("npu", dtype):
            assert (x @ x.t()).dtype == nn.Linear(6, 2).npu()(x).dtype == dtype
            assert nn.Conv1d(4, 2, 3).npu()(x[None]).dtype == dtype
            assert nn.LSTM(6, 2, bidirectional=True).npu()(x)[0].dtype == dtype
            half = x @ x.t()
            for full in (half.softmax(0), half.norm(), half.sum(), half.log_softmax(1)):
                assert full.dtype == torch.float32
            assert (half + half).dtype == dtype
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                nn.functional.binary_cross_entropy(half.sigmoid(), half.sigmoid())
        assert (x @ x.t()).dtype == torch.float32
        with torch.autocast("npu", dtype):
            ours = nn.functional.conv1d(x[None], torch.ones(2, 4, 3, device="npu"))
        exact = nn.functional.conv1d(x[None].cpu().to(dtype).float(), torch.ones(2, 4, 3))
        assert torch.equal(ours.cpu(), exact.to(dtype)), "rounded once"

    check_scaler(torch.npu.amp.GradScaler(init_scale=1024.0), x)


def check_scaler(scaler, x):
    model = nn.Linear(6, 1).npu()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(factor):
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        with torch.autocast("npu", torch.float16):
            loss = model(x).mean() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return (model.weight - before).detach().cpu(), x.mean(0).cpu()

    moved, gradient = step(1.0)
    assert torch.allclose(moved[0], -0.1 * gradient, atol=1e-3)
    assert scaler.get_scale() == 1024
    moved, _ = step(1e30)
    assert not moved.any(), "an overflow leaves the weights alone"
    assert scaler.get_scale() == 512
    scaler.load_state_dict(scaler.state_dict())
    assert step(1.0)[0].any()


def check_saved_files():
    def through_file(thing, **options):
        file = io.BytesIO()
        torch.save(thing, file)
        file.seek(0)
        return torch.load(file, **options)

    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state = model.state_dict()
    device_state = copy.deepcopy(model).npu().state_dict()
    for source in (state, device_state):
        for target in ("cpu", "npu:0", "npu:1", torch.device("npu:0")):
            found = through_file(source, map_location=target, weights_only=True)
            assert list(found) == list(state)
            assert all(tensor.device == torch.device(target) for tensor in found.values())
            assert all(torch.equal(found[name].cpu(), state[name]) for name in state)
    assert through_file(device_state)["0.weight"].device == torch.device("npu:0"), "where it was"
    shared = torch.ones(4, device="npu")
    a, b = through_file([shared, shared[1:]])
    a[1] = 7
    assert b[0] == 7, "views stay views"
    model.npu().load_state_dict(state)
    assert model[0].weight.is_npu
    assert torch.equal(model[0].weight.cpu(), state["0.weight"])
    assert copy.deepcopy(shared).data_ptr() != shared.data_ptr()


def check_collectives():
    import torch.distributed as dist
    import torch_npu  # noqa: F401
    from torch.nn.parallel import DistributedDataParallel

    rank = int(os.environ["RANK"])
    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    dist.init_process_group("hccl")
    assert dist.get_backend() == "hccl"
    mine = torch.full((2,), rank + 1.0, device=device)

    total = mine.clone()
    dist.all_reduce(total)
    assert total.tolist() == [3, 3]
    dist.all_reduce(total.fill_(rank), op=dist.ReduceOp.MAX, async_op=True).wait()
    assert total.tolist() == [1, 1]
    sent = mine.clone()
    dist.broadcast(sent, 1)
    assert sent.tolist() == [2, 2]
    parts = [torch.empty(2, device=device) for _ in range(2)]
    dist.all_gather(parts, mine)
    assert [part.tolist() for part in parts] == [[1, 1], [2, 2]]
    whole = torch.empty(4, device=device)
    dist.all_gather_into_tensor(whole, mine)
    assert whole.tolist() == [1, 1, 2, 2]
    dist.barrier()
    gloo = dist.new_group(backend="gloo")
    host = torch.ones(1)
    dist.all_reduce(host, group=gloo)
    assert host.item() == 2
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(host)

    torch.manual_seed(rank)  # DDP shares rank 0's weights
    model = DistributedDataParallel(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(
            device
        ),
        device_ids=[rank],
        find_unused_parameters=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(10 + rank)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4)).pow(
            2
        ).mean().backward()  # DDP brings the batch to the device
        optimizer.step()
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    assert torch.equal(both[0].cpu(), both[1].cpu())
    del model, optimizer, gloo  # a group's threads end with its last reference
    gc.collect()
    dist.destroy_process_group()


def test_collectives_and_ddp():
    simulated_npu.run(check_collectives, processes=2)


def test_a_failure_is_shown_and_ends_the_others():
    body = "import os, sys, time; sys.exit('no such luck') if os.environ['RANK'] == '1' else time.sleep(100)"
    with pytest.raises(AssertionError, match=r"process 1 ended with 1:\nno such luck"):
        simulated_npu.run(body, processes=2)
