"""Several processes under torchrun, or one: every call here does nothing when there is one.

    with distributed.init(config.device) as dist:      # torchrun's environment decides
        model.to(dist.device)
        dist.broadcast_module(model)

Tensors on a GPU travel by NCCL. Objects, flags and barriers travel by Gloo in host memory, so that they
neither wait for the GPU nor depend on which GPU is current.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from datasets.common import InputError

# Longer than any step, checkpoint or vote count that ranks wait for; a hang ends the job after it.
TIMEOUT = timedelta(minutes=30)

# Long on a thread's scale, nothing on a run's.
GLOO_RELEASE_SECONDS = 0.5

# Below this, tensors share one message; above it, a copy costs more than a message of their own.
_SMALL_BYTES = 1 << 24

# In elements: every gradient starts where vectorised kernels like memory to start. The gaps stay zero.
_ALIGNMENT = 64


# torch 2.13 gives it a new name and warns of the old one.
_all_gather = getattr(torch_dist, "all_gather_single", torch_dist.all_gather_into_tensor)


@dataclass(frozen=True)
class Distributed:
    """This process among ``world_size``; it computes on ``device``. The default is one CPU process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Distributed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world_size > 1 and torch_dist.is_initialized():
            torch_dist.destroy_process_group()
            # Gloo's thread frees the tensor of the last call a moment after the call returns, and needs the interpreter
            # for it: if that is already shutting down, the process aborts.
            time.sleep(GLOO_RELEASE_SECONDS)

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on `device`; through pinned memory, or the host would wait for the GPU to be idle."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def barrier(self) -> None:
        """Return once every rank has called it."""
        self.any_true(False)

    def any_true(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank: the same answer everywhere."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(int(flag), dtype=torch.int32)
        torch_dist.all_reduce(votes)
        return bool(votes.item())

    def all_reduce_flat(self, tensors: Iterable[Tensor]) -> None:
        """Sum every tensor over the ranks in place, in one message a device and dtype."""
        if self.world_size == 1:
            return
        for alike in _by_kind(tensors).values():
            flat = _flattened(alike)
            torch_dist.all_reduce(flat)
            pieces = flat.split([tensor.numel() for tensor in alike])
            for tensor, piece in zip(alike, pieces, strict=True):
                tensor.detach().copy_(piece.view_as(tensor))

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank rank 0's parameters and buffers, the non-persistent ones too, bit for bit."""
        if self.world_size == 1:
            return
        tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
        small = [tensor for tensor in tensors if tensor.nbytes < _SMALL_BYTES]
        large = [tensor for tensor in tensors if tensor.nbytes >= _SMALL_BYTES]
        for together in (*_by_kind(small).values(), *([tensor] for tensor in large)):
            flat = _flattened(together)
            torch_dist.broadcast(flat.view(torch.uint8), src=0)
            pieces = flat.split([tensor.numel() for tensor in together])
            for tensor, piece in zip(together, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """All ranks' ``rows`` [n, ...] in rank order: [world_size * n, ...]; n must be equal everywhere."""
        if self.world_size == 1:
            return rows
        gathered = rows.new_empty((self.world_size * rows.shape[0], *rows.shape[1:]))
        # As bytes: Gloo does not know every dtype (bool, bfloat16), and nothing is added up.
        _all_gather(gathered.view(-1).view(torch.uint8), _flattened([rows]).view(torch.uint8))
        return gathered

    def gather_objects(self, item: object) -> list[Any] | None:
        """Every rank's ``item`` in rank order on rank 0, None on the others."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] | None = [None] * self.world_size if self.is_main else None
        torch_dist.gather_object(item, gathered, dst=0)
        return gathered

    def all_gather_objects(self, item: object) -> list[Any]:
        """Every rank's ``item`` in rank order, on every rank."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] = [None] * self.world_size
        torch_dist.all_gather_object(gathered, item)
        return gathered

    def broadcast_object(self, item: object) -> Any:
        """Rank 0's ``item``, on every rank."""
        if self.world_size == 1:
            return item
        box = [item]
        torch_dist.broadcast_object_list(box, src=0)
        return box[0]


class FlatGradients:
    """Makes each parameter's ``grad`` a view into one flat buffer a device and dtype.

    Parameters without ``requires_grad`` and repeated ones are skipped. `tensors` are the buffers (1-D); the
    padding between gradients is zero, so norms and sums over a buffer are those of the gradients.
    """

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        unique = dict.fromkeys(param for param in params if param.requires_grad)
        self._views: list[tuple[Tensor, Tensor]] = []
        buffers = []
        for (device, dtype), alike in _by_kind(unique).items():
            padded = [-(-param.numel() // _ALIGNMENT) * _ALIGNMENT for param in alike]
            flat = torch.zeros(sum(padded), device=device, dtype=dtype)
            buffers.append(flat)
            for param, piece in zip(alike, flat.split(padded), strict=True):
                self._views.append((param, piece[: param.numel()].view_as(param)))
        self.tensors: tuple[Tensor, ...] = tuple(buffers)
        self.zero()

    def zero(self) -> None:
        """Set every gradient to zero and put back the views that someone's ``zero_grad()`` took away."""
        for param, view in self._views:
            param.grad = view
        for flat in self.tensors:
            flat.zero_()

    def norm(self) -> Tensor:
        """Norm of all gradients together, 0-D fp32; 0 if there are none."""
        norms = [torch.linalg.vector_norm(flat) for flat in self.tensors]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def all_reduce(self, dist: Distributed) -> None:
        """Sum the gradients over the ranks. RuntimeError if one no longer lives in its buffer."""
        for param, view in self._views:
            if param.grad is None or param.grad.data_ptr() != view.data_ptr():
                raise RuntimeError(
                    f"the gradient of a {tuple(param.shape)} parameter left the flat buffer; "
                    "call FlatGradients.zero() before backward instead of zero_grad()"
                )
        if dist.world_size > 1:
            for flat in self.tensors:
                torch_dist.all_reduce(flat)


def init(device: str) -> Distributed:
    """Join the processes that torchrun started, or stand alone without it.

    ``device``: "auto" (CUDA, else MPS when alone, else the CPU), "cpu", "cuda" or "mps". Raises `InputError`
    for a device that is not there and for an environment that torchrun did not write.
    """
    rank = _from_environment("RANK", default=0)
    world_size = _from_environment("WORLD_SIZE", default=1)
    local_rank = _from_environment("LOCAL_RANK", default=0)
    chosen = _choose_device(device, local_rank, world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        torch_dist.init_process_group(backend, timeout=TIMEOUT)
    return Distributed(rank, world_size, local_rank, chosen)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) == 0):
        raise InputError(f"environment variable {name}={text!r} is not a process number; start with torchrun")
    return int(text)


def _choose_device(name: str, local_rank: int, world_size: int) -> torch.device:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps and world_size == 1 else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError("device=cuda: PyTorch finds no CUDA device here; use device=cpu")
        if local_rank >= count:
            raise InputError(f"LOCAL_RANK={local_rank}, but there are {count} GPUs; lower --nproc-per-node")
        return torch.device("cuda", local_rank)
    if name == "mps":
        if not has_mps:
            raise InputError("device=mps: PyTorch finds no Apple GPU here; use device=cpu")
        if world_size > 1:
            raise InputError("device=mps works in one process only; start without torchrun or use device=cpu")
        return torch.device("mps")
    raise InputError(f"device={name}: choose auto, cpu, cuda or mps")


def _by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return kinds


def _flattened(tensors: list[Tensor]) -> Tensor:
    """One contiguous 1-D tensor of all elements; a single tensor is not copied if it need not be."""
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
