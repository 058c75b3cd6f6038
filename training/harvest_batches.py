"""Batches of harvested latents: named fields, unpacked as the tuples that the harness began with.

inputs, targets, types = collate_layer_examples(examples)
(x, y_init, z_init), targets = collate_hcycle_examples(examples)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerBatch:
    """Rows of single updates: ``target = level(prev, other, x)``, latents [B, P, D], the others int64 [B].

    `types`: 0, a z_L update from (z_L, z_H, x); 1, a z_H update from (z_H, z_L), whose `x` is zero. `act_step` counts
    from 1; `position` of the update in its H-cycle, from 0; `puzzle`: where in the training stream the puzzle is.
    """

    prev: Tensor
    other: Tensor
    x: Tensor
    target: Tensor
    types: Tensor
    act_step: Tensor
    position: Tensor
    puzzle: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.prev, self.other, self.x

    @property
    def conditions(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs

    @property
    def loss_types(self) -> Tensor:
        return self.types

    def __iter__(self) -> Iterator[Any]:
        """``inputs, targets, types = batch``."""
        return iter((self.inputs, self.target, self.types))

    def examples(self) -> Iterator[LayerExample]:
        """The rows one by one, on the CPU."""
        latents = torch.stack((self.target, *self.inputs), dim=1).cpu()
        labels = torch.stack((self.types, self.act_step, self.position, self.puzzle), dim=1).tolist()
        for (target, *inputs), (kind, *more) in zip(latents, labels, strict=True):
            yield LayerExample(tuple(inputs[: 3 if kind == 0 else 2]), target, kind, *more)


@dataclass(frozen=True)
class HCycleBatch:
    """Rows of whole H-cycles, or of jumps: conditions [B, P, D], `target` [B, blocks, P, D], the others int64 [B].

    The targets are z_1, ..., z_L, y_next of H-cycle `h_cycle`, from 0, of ACT step `act_step`, from 1. Of a jump they
    are y and z after a later ACT step, `act_step` being the first of those jumped over, and `h_cycle` is 0.
    """

    x: Tensor
    y_init: Tensor
    z_init: Tensor
    target: Tensor
    act_step: Tensor
    h_cycle: Tensor
    puzzle: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.y_init, self.z_init

    @property
    def conditions(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs

    def __iter__(self) -> Iterator[Any]:
        """``(x, y_init, z_init), targets = batch``."""
        return iter((self.inputs, self.target))

    def examples(self) -> Iterator[HCycleExample]:
        """The rows one by one, on the CPU."""
        latents = torch.cat((torch.stack(self.inputs, dim=1), self.target), dim=1).cpu()
        labels = torch.stack((self.act_step, self.h_cycle, self.puzzle), dim=1).tolist()
        for row, label in zip(latents, labels, strict=True):
            yield HCycleExample(tuple(row[:3]), row[3:], *label)


class LayerExample(NamedTuple):
    """One row of a `LayerBatch` on the CPU. `inputs`: (z_L, z_H, x) for type 0, (z_H, z_L) for type 1."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    type: int
    act_step: int = 0
    position: int = 0
    puzzle: int = 0


class HCycleExample(NamedTuple):
    """One row of an `HCycleBatch` on the CPU. `inputs`: (x, y_init, z_init)."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    act_step: int = 0
    h_cycle: int = 0
    puzzle: int = 0


def collate_layer_examples(examples: Sequence[LayerExample]) -> LayerBatch:
    """One dense batch of both types: a z_H update, which has no x, gets zeros for it."""
    inputs = [(*example.inputs, torch.zeros_like(example.target))[:3] for example in examples]
    latents = [torch.stack(list(column)) for column in (*zip(*inputs, strict=True), [e.target for e in examples])]
    numbers = torch.tensor([(e.type, e.act_step, e.position, e.puzzle) for e in examples])
    return LayerBatch(*latents, *numbers.unbind(1))


def collate_hcycle_examples(examples: Sequence[HCycleExample]) -> HCycleBatch:
    inputs = zip(*(example.inputs for example in examples), strict=True)
    latents = [torch.stack(list(column)) for column in (*inputs, [e.target for e in examples])]
    numbers = torch.tensor([(e.act_step, e.h_cycle, e.puzzle) for e in examples])
    return HCycleBatch(*latents, *numbers.unbind(1))
