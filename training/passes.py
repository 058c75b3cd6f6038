"""The forward and backward pass of a training step, as it is or recorded once and replayed.

    differentiate = GraphedPass(record)
    carry, metrics = differentiate(model, carry, batch, min_halt_steps, rows=768)

A recursive model's pass is thousands of kernels, which a GPU may finish sooner than the host can name them. A CUDA
graph names them all at once: the same kernels in the same order, on memory of its own, which no evaluation can use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from datasets.common import InputError
from models.act import ACTCarry
from models.losses import ACTLossHead
from training.curriculum import depth_of

# Calls at a new depth before one is recorded: graphs are compiled and kernels are tuned in the first.
WARM_UP = 3


class Pass(Protocol):
    """The carry after an ACT step on `batch` and sums of its metrics; gradients of the loss over `rows`, the step's
    on all ranks, are added to those that the parameters have."""

    def __call__(
        self, model: ACTLossHead, carry: ACTCarry, batch: dict[str, Tensor], min_halt_steps: Tensor, rows: int
    ) -> tuple[ACTCarry, dict[str, Tensor]]: ...


def differentiate(
    model: ACTLossHead, carry: ACTCarry, batch: dict[str, Tensor], min_halt_steps: Tensor, rows: int
) -> tuple[ACTCarry, dict[str, Tensor]]:
    """The pass as PyTorch runs it: see `Pass`."""
    carry, loss, metrics, _, _ = model(carry=carry, batch=batch, min_halt_steps=min_halt_steps)
    (loss / rows).backward()
    return carry, {"loss": loss.detach(), **metrics}


def record(call: Callable[[], None]) -> Callable[[], None]:
    """What does on the GPU again what `call` does there, on the same memory."""
    graph = torch.cuda.CUDAGraph()
    # Other threads load data and watch over collectives meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def check_can_record(device: torch.device, micro_batches: int) -> None:
    """`InputError` where a step of so many micro-batches on `device` is not to be recorded."""
    if device.type != "cuda":
        raise InputError(f"cuda_graph=true is for CUDA devices, and this is {device}: leave it out")
    if micro_batches > 1:
        raise InputError(
            f"cuda_graph=true records one pass over all rows of a process, and micro_batch_size makes {micro_batches} "
            "of them: leave one of the two out"
        )


class GraphedPass:
    """`differentiate`, replayed from the fourth call at a depth on.

    For one carry, rows of one shape, and weights and gradients that stay where they are. The carry that it returns is
    then always the same, changed in place, and so are the rows that the puzzle table remembers. `InputError` where the
    pass cannot be recorded, RuntimeError for another carry or shape than was recorded.
    """

    carry: ACTCarry
    batch: dict[str, Tensor]
    earliest: Tensor
    addresses: list[int]

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] = record):
        self.record = record
        self.depth: object = None
        self._forget()

    def _forget(self) -> None:
        """Let go of a graph and of what it has computed."""
        self.calls = 0
        self.replay: Callable[[], None] | None = None
        self.metrics: dict[str, Tensor] = {}
        self.touched: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self, model: ACTLossHead, carry: ACTCarry, batch: dict[str, Tensor], min_halt_steps: Tensor, rows: int
    ) -> tuple[ACTCarry, dict[str, Tensor]]:
        if (depth := depth_of(model.model.inner)) != self.depth:
            self._forget()
            self.depth = depth
        self.calls += 1
        if self.calls <= WARM_UP:
            return differentiate(model, carry, batch, min_halt_steps, rows)
        if self.replay is None:
            self.replay = self._record(model, carry, batch, min_halt_steps, rows)
        elif _addresses(carry) != self.addresses:
            raise RuntimeError("a recorded step goes on from the carry that it returned, and from no other")
        _copy({"min_halt_steps": min_halt_steps, **batch}, {"min_halt_steps": self.earliest, **self.batch})
        self.replay()
        if (table := model.model.puzzle_emb) is not None:
            table.touched += self.touched
        return self.carry, {name: value.clone() for name, value in self.metrics.items()}

    def _record(
        self, model: ACTLossHead, carry: ACTCarry, batch: dict[str, Tensor], min_halt_steps: Tensor, rows: int
    ) -> Callable[[], None]:
        """Everything that a replay reads and writes exists from here on."""
        self.carry, self.earliest = carry.clone(), min_halt_steps.clone()
        self.batch = {name: value.clone() for name, value in batch.items()}
        self.addresses = _addresses(self.carry)

        def step() -> None:
            after, self.metrics = differentiate(model, self.carry, self.batch, self.earliest, rows)
            _copy(after.named_tensors(), self.carry.named_tensors())

        try:
            replay = self.record(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"the step cannot be recorded as a CUDA graph ({said}): start with cuda_graph=false"
            ) from error
        if (table := model.model.puzzle_emb) is not None:
            self.touched, table.touched = table.touched, []
        return replay


def _addresses(carry: ACTCarry) -> list[int]:
    return [value.data_ptr() for value in carry.named_tensors().values()]


def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    for name, held in into.items():
        if held.shape != values[name].shape:
            raise RuntimeError(
                f"{name} has shape {tuple(values[name].shape)}, and {tuple(held.shape)} where the step was recorded"
            )
        held.copy_(values[name])
