"""The teacher with its recursion replaced by a diffusion head: what accuracy is left when the head does the work.

Embeddings, `lm_head`, `q_head`, halting and data swapping stay the teacher's, so that a student runs wherever an ACT
model does: under `ACTLossHead`, in a rollout, before every evaluator.

    student = Student(teacher, "layer", sample)       # a head call for every latent update
    student = Student(teacher, "h_cycle", sample)     # ... for every H-cycle
    student = Student(teacher, "jump", sample)        # ... for many ACT steps; then the teacher goes on
    carry, outputs = student(carry=student.initial_carry(batch), batch=batch)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from models.act import ACTCarry, ACTModel
from models.trajectory import check_recordable

HeadRows = Literal["layer", "h_cycle", "jump"]

# Odd, so that multiples of it visit every member of a pool whose size is a power of two.
KEY_STRIDE = 0x9E3779B1
_HASH_STEP = 0x85EBCA6B
_HASH_MASK = 2**31 - 1


class Sample(Protocol):
    """``sample(conditions, types, key) -> [B, n, P, D]``: the head's latents, each token of RMS 1 as the teacher's are.

    `conditions`: (prev, other, x) for rows of one update, with x zero where its type is 1, else (x, y, z); each
    [B, P, D]. `types` int64 [B] for rows of one update, else None. `key` int64 [B] names the noise: a function of the
    puzzle and of the place of the update, so that batching does not change what is drawn.
    """

    def __call__(self, conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor) -> Tensor: ...


def row_keys(inputs: Tensor) -> Tensor:
    """A number for every puzzle, int64 [B] in 0 .. 2^31 - 1, from its tokens [B, seq_len]."""
    places = torch.arange(1, inputs.shape[-1] + 1, device=inputs.device)
    # Scattered (the finaliser of MurmurHash3): weights in proportion to the place would give like puzzles like sums.
    weights = (places * KEY_STRIDE) & _HASH_MASK
    weights = ((weights ^ (weights >> 15)) * _HASH_STEP) & _HASH_MASK
    weights = weights ^ (weights >> 13)
    return (inputs.to(torch.int64) * weights).sum(-1) & _HASH_MASK


class StudentInner(nn.Module):
    """`RecursiveInner` as the ACT wrapper uses it, with another way from one latent to the next."""

    def __init__(self, teacher: Any, rows: HeadRows, sample: Sample, jump_at: int):
        super().__init__()
        self.teacher, self.rows, self.sample, self.jump_at = teacher, rows, sample, jump_at

    def empty_carry(self, batch_size: int) -> Any:
        return self.teacher.empty_carry(batch_size)

    def reset_carry(self, reset_flag: Tensor, carry: Any) -> Any:
        return self.teacher.reset_carry(reset_flag, carry)

    def forward(self, carry: Any, batch: dict[str, Tensor], all_h_cycles: None = None) -> tuple[Any, dict[str, Tensor]]:
        """One ACT step; `batch` holds ``steps`` int32 [B] too, the ACT steps that each row has behind it."""
        if self.rows == "jump":
            carry = self._jump_or_step(carry, batch)
        else:
            carry, x, _ = self.teacher.prepare(carry, batch)
            key = row_keys(batch["inputs"])
            cycle = self._cycle_of_updates if self.rows == "layer" else self._cycle
            for h_cycle in range(self.teacher.config.H_cycles):
                carry = cycle(carry, x, key, h_cycle)
        return carry, self.teacher.read_out(carry)

    def _cycle_of_updates(self, carry: Any, x: Tensor, key: Tensor, h_cycle: int) -> Any:
        updates = self.teacher.config.L_cycles
        z_H, z_L = carry.z_H, carry.z_L
        key = key + h_cycle * (updates + 1) * KEY_STRIDE
        for position in range(updates):
            z_L = self._updated((z_L, z_H, x), 0, key + position * KEY_STRIDE)
        z_H = self._updated((z_H, z_L, torch.zeros_like(x)), 1, key + updates * KEY_STRIDE)
        return replace(carry, z_H=z_H, z_L=z_L)

    def _updated(self, conditions: tuple[Tensor, ...], kind: int, key: Tensor) -> Tensor:
        return self.sample(conditions, torch.full_like(key, kind), key)[:, 0].to(conditions[0].dtype)

    def _cycle(self, carry: Any, x: Tensor, key: Tensor, h_cycle: int) -> Any:
        blocks = self.sample((x, carry.z_H, carry.z_L), None, key + h_cycle * KEY_STRIDE).to(x.dtype)
        return replace(carry, z_H=blocks[:, -1], z_L=blocks[:, -2])

    def _jump_or_step(self, carry: Any, batch: dict[str, Tensor]) -> Any:
        """Rows that have `jump_at` ACT steps behind them jump, the others take the teacher's step."""
        jumping = batch["steps"] == self.jump_at
        if not jumping.any():
            return self._step(carry, batch)
        before, x, _ = self.teacher.prepare(carry, batch)
        blocks = self.sample((x, before.z_H, before.z_L), None, row_keys(batch["inputs"])).to(x.dtype)
        jumped = replace(before, z_H=blocks[:, 0], z_L=blocks[:, 1])
        if jumping.all():
            return jumped
        stepped = vars(self._step(carry, batch))
        return replace(
            jumped,
            **{
                name: torch.where(jumping.view(-1, *[1] * (value.ndim - 1)), value, stepped[name])
                for name, value in vars(jumped).items()
            },
        )

    def _step(self, carry: Any, batch: dict[str, Tensor]) -> Any:
        return self.teacher(carry, batch)[0]


class Student(ACTModel):
    """An ACT model around `StudentInner`; it shares the teacher's modules and must not be trained.

    A jumping student's ACT step `jump_at` + 1 is the jump, read out as it is; all other steps are the teacher's. Raises
    ValueError for a teacher without z_H and z_L and for unknown `rows`.
    """

    def __init__(self, teacher: ACTModel, rows: HeadRows, sample: Sample, *, jump_at: int = 0):
        nn.Module.__init__(self)
        if rows not in get_args(HeadRows):
            raise ValueError(f"rows={rows!r} is unknown; choose one of {', '.join(get_args(HeadRows))}")
        check_recordable(teacher)
        self.config = teacher.config
        self.inner = StudentInner(teacher.inner, rows, sample, jump_at)
        self.eval()

    @torch.no_grad()
    def forward(
        self,
        carry: ACTCarry,
        batch: dict[str, Tensor],
        min_halt_steps: Tensor | None = None,
        store_diffusion_trajectory: bool | Collection[int] = False,
    ) -> tuple[ACTCarry, dict[str, Any]]:
        """One ACT step, as `ACTModel.forward`. ValueError in training mode, and where a trajectory is asked for."""
        if store_diffusion_trajectory is not False:
            raise ValueError("a student's latents are samples: store the trajectory of its teacher")
        if self.training:
            raise ValueError("a student cannot be trained: call eval() first")
        # The wrapper hands `current_data` to the inner module, with the batch's values in the rows that start anew.
        aged = replace(carry, current_data=carry.current_data | {"steps": carry.steps})
        after, outputs = super().forward(aged, batch | {"steps": torch.zeros_like(carry.steps)})
        data = {key: value for key, value in after.current_data.items() if key != "steps"}
        return replace(after, current_data=data), outputs
