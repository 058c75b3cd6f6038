"""The forward and backward pass of a training step, as it is or recorded once and replayed.

    differentiate = GraphedPass(record)
    carry, metrics = differentiate(model, carry, batch, min_halt_steps, rows=768)

A recursive model's pass is thousands of kernels, which a GPU may finish sooner than the host can name them. A CUDA
graph names them all at once. It computes the same kernels in the same order, so the same numbers to the bit.
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

    For one carry, of rows of one shape, and gradients that stay where they are. The carry that it returns is then
    always the same, changed in place, and so are the rows that the puzzle table remembers. `InputError` where the pass
    cannot be recorded.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] = record):
        self.record = record
        self.depth: object = None
        self._forget()

    def _forget(self) -> None:
        """Let go of a graph and of the memory that is its own."""
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
            self._record(model, carry, batch, min_halt_steps, rows)
        for held, value in zip(self.inputs, (*batch.values(), min_halt_steps), strict=True):
            held.copy_(value)
        assert self.replay is not None
        self.replay()
        if (table := model.model.puzzle_emb) is not None:
            table.touched += self.touched
        return self.carry, {name: value.clone() for name, value in self.metrics.items()}

    def _record(
        self, model: ACTLossHead, carry: ACTCarry, batch: dict[str, Tensor], min_halt_steps: Tensor, rows: int
    ) -> None:
        """Everything that a replay reads and writes exists from here on."""
        self.carry = carry.clone()
        held = {name: value.clone() for name, value in batch.items()}
        earliest = min_halt_steps.clone()
        self.inputs = (*held.values(), earliest)

        def step() -> None:
            after, self.metrics = differentiate(model, self.carry, held, earliest, rows)
            new = after.named_tensors()
            for name, value in self.carry.named_tensors().items():
                value.copy_(new[name])

        try:
            self.replay = self.record(step)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"the step cannot be recorded as a CUDA graph ({said}): start with cuda_graph=false"
            ) from error
        if (table := model.model.puzzle_emb) is not None:
            self.touched, table.touched = table.touched, []
