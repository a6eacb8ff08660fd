"""The process group backend ``hccl`` for tensors of the simulated device: gloo over copies on the host."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist


def register() -> None:
    """Make ``init_process_group('hccl')`` and ``new_group(backend='hccl')`` work in this process."""
    dist.Backend.register_backend("hccl", SimulatedHccl, devices=["npu"])


class SimulatedHccl(dist.ProcessGroup):
    """A process group that takes tensors of the npu and no others.

    Args:
        store: where the processes meet.
        rank, size: this process and how many there are.
        timeout: of each collective.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        # core asks a group for its devices to choose where objects travel
        self._register_backend(torch.device("npu"), dist.ProcessGroup.BackendType.CUSTOM)

    def getBackendName(self) -> str:
        return "hccl"

    def allreduce(self, tensors, opts):
        return self._collect("allreduce", tensors, tensors, opts)

    def allreduce_coalesced(self, tensors, opts):
        return self._collect("allreduce_coalesced", tensors, tensors, opts)

    def broadcast(self, tensors, opts):
        return self._collect("broadcast", tensors, tensors, opts)

    def allgather(self, outputs, inputs, opts):
        return self._collect("allgather", outputs, outputs, inputs, opts)

    def all_gather_single(self, output, input, opts):
        return self._collect("_allgather_base", output, output, input, opts)

    def barrier(self, opts):
        return self._collect("barrier", [], opts)

    def _collect(self, name: str, written, *arguments) -> dist.Work:
        """A collective, finished: who asks for its future must find the result in it."""
        work = self._start(name, written, *arguments)
        work.wait()
        return work

    def _start(self, name: str, written, *arguments) -> dist.Work:
        copies: dict[int, torch.Tensor] = {}

        def on_host(value):
            if isinstance(value, (list, tuple)):
                return [on_host(item) for item in value]
            if not isinstance(value, torch.Tensor):
                return value
            if value.device.type != "npu":
                raise RuntimeError(
                    f"No backend type associated with device type {value.device.type}"
                )
            return copies.setdefault(id(value), value.detach().cpu().contiguous())

        work = getattr(self._gloo, name)(*(on_host(value) for value in arguments))
        tensors = list(_leaves(written))
        return _Work(work, [(tensor, copies[id(tensor)]) for tensor in tensors])


class _Work(dist.Work):
    def __init__(self, work: dist.Work, results: list[tuple[torch.Tensor, torch.Tensor]]):
        super().__init__()
        self._work, self._results = work, results
        self._tensors = [tensor for tensor, _ in results]

    def wait(self, timeout: timedelta | None = None) -> bool:
        if self._work is not None:
            self._work.wait()
            for tensor, copy in self._results:
                tensor.detach().copy_(copy)
            self._work = None
        return True

    def is_completed(self) -> bool:
        return self._work is None or self._work.is_completed()

    def is_success(self) -> bool:
        return self._work is None

    def get_future(self) -> torch.futures.Future:
        self.wait()
        future = torch.futures.Future(devices=list({tensor.device for tensor in self._tensors}))
        future.set_result(self._tensors)
        return future


def _leaves(value):
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value:
            yield from _leaves(item)
