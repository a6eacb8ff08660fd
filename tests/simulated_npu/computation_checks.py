"""The simulated device computes, rounds and saves what the CPU does."""

import copy
import io

import pytest
import torch
from torch import nn


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
