"""Updates from where the head's own recursion leads: it runs ahead in lanes, and the teacher answers for where it is.

A head that replaces the recursion errs a little in every update, and then meets latents that the teacher never visits.
Training on the states that the learner itself gets to, with the teacher's answers, is DAgger (Ross et al. 2011, "A
Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning"). A lane takes one update of the
head for every step of the training, so that a path of hundreds of updates costs no more than one forward pass of its
row a step; every now and then it starts anew from a harvested state.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from datasets.common import InputError
from models.diffusion_blocks import DiffusionHead
from models.student import KEY_STRIDE
from training.diffusion_sampling import HeadSampler
from training.distributed import Distributed
from training.harvest_batches import LayerBatch
from training.teacher import Teacher

RESTART_STREAM = 222  # tells these draws from all others
# Rows of a batch for each one that is of a lane: enough on the teacher's own path, and lanes cost a forward pass each.
ROWS_PER_LANE = 4


@dataclass
class Lanes:
    """Where n lanes are: latents [n, P, D]; int64 [n]: the row of the ACT step that comes next, the ACT step from 1,
    and the puzzle's place in the training stream."""

    z_L: Tensor
    z_H: Tensor
    x: Tensor
    row: Tensor
    act_step: Tensor
    puzzle: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def where(self, chosen: Tensor, other: Lanes) -> Lanes:
        """`other` in the lanes that are `chosen`, bool [n]."""
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        return Lanes(*(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs))


class OwnPath:
    """Puts states of the head's own path, with the teacher's updates from there, in place of every fourth row.

    There is a lane for every four slots of the global batch; its row takes the place of each by turns, so that no
    puzzles are left out of the path itself. A lane starts anew from the row that it replaces after `updates` updates on
    average, and at the latest after the teacher's last ACT step. `InputError` where the slots cannot be shared out.
    """

    def __init__(
        self, teacher: Teacher, head: DiffusionHead, updates: float, seed: int, slots: range, dist: Distributed
    ):
        self.teacher, self.updates, self.seed, self.dist = teacher, updates, seed, dist
        if len(slots) % ROWS_PER_LANE:
            raise InputError(
                f"harvest.own_path={updates:g} takes every {ROWS_PER_LANE}th of the {len(slots)} rows of a process: "
                f"make global_batch_size a multiple of {ROWS_PER_LANE} times the number of processes, or set "
                "harvest.own_path=0"
            )
        self.places = range(slots.start // ROWS_PER_LANE, slots.stop // ROWS_PER_LANE)
        self.blocks = teacher.L_cycles + 1
        self.lanes: Lanes | None = None
        self._sampler = HeadSampler(head, "layer", "ddim", 1, device=dist.device, seed=seed)

    @torch.no_grad()
    def __call__(self, step: int, batch: LayerBatch, x: Tensor, row: Tensor) -> LayerBatch:
        """`batch` of step `step`, in whose tensors every fourth row is replaced. `x` [B, P, D]: that of rows of type 1
        as well; `row` int64 [B]: which updates of their ACT steps they are."""
        own = slice(step % ROWS_PER_LANE, None, ROWS_PER_LANE)
        harvested = self._of_rows(batch, x, row, own)
        if self.lanes is None:
            self.lanes = harvested
        else:
            ahead = self._advanced(self.lanes, step)
            self.lanes = ahead.where(self._restarts(step) | self._at_end(ahead), harvested)
        return self._replaced(batch, own, self.lanes)

    def saved(self) -> tuple[range, dict[str, Tensor]]:
        """The lanes by their place among all, for a checkpoint."""
        assert self.lanes is not None, "lanes begin with the first batch"
        return self.places, self.lanes.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the `tensors` of lanes that were saved."""
        self.lanes = Lanes(**{name: self.dist.send(tensor) for name, tensor in tensors.items()})

    @staticmethod
    def _of_rows(batch: LayerBatch, x: Tensor, row: Tensor, own: slice) -> Lanes:
        """Lanes at the states that the rows `own` start from."""
        prev, other, is_answer = batch.prev[own], batch.other[own], (batch.types[own] == 1).view(-1, 1, 1)
        return Lanes(
            z_L=torch.where(is_answer, other, prev),
            z_H=torch.where(is_answer, prev, other),
            x=x[own],
            row=row[own],
            act_step=batch.act_step[own],
            puzzle=batch.puzzle[own],
        )

    def _conditions(self, lanes: Lanes) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Types int64 [n] of the lanes' next updates, and what these are made from."""
        types = (lanes.row % self.blocks == self.blocks - 1).to(torch.int64)
        is_answer = types.view(-1, 1, 1) == 1
        prev, other = torch.where(is_answer, lanes.z_H, lanes.z_L), torch.where(is_answer, lanes.z_L, lanes.z_H)
        return types, (prev, other, torch.where(is_answer, 0, lanes.x))

    def _advanced(self, lanes: Lanes, step: int) -> Lanes:
        """The lanes after one more update by the head as it is now, from pure noise as in a rollout."""
        types, conditions = self._conditions(lanes)
        key = torch.arange(self.places.start, self.places.stop, device=self.dist.device) + step * KEY_STRIDE
        updated = self._sampler(conditions, types, key)[:, 0].to(lanes.z_L.dtype)
        is_answer = types.view(-1, 1, 1) == 1
        row = (lanes.row + 1) % (self.teacher.H_cycles * self.blocks)
        return Lanes(
            z_L=torch.where(is_answer, lanes.z_L, updated),
            z_H=torch.where(is_answer, updated, lanes.z_H),
            x=lanes.x,
            row=row,
            act_step=lanes.act_step + (row == 0),
            puzzle=lanes.puzzle,
        )

    def _at_end(self, lanes: Lanes) -> Tensor:
        """Which lanes have nowhere to go: after the last ACT step, and after any where the next one's x is another."""
        if not self.teacher.model.model.inner.fixed_x:
            return lanes.row == 0
        return lanes.act_step > self.teacher.halt_max_steps

    def _restarts(self, step: int) -> Tensor:
        """Which lanes start anew instead of going on, bool [n]."""
        draws = np.random.Generator(np.random.Philox(key=[self.seed, RESTART_STREAM], counter=[0, 0, 0, step]))
        chosen = draws.random(self.places.stop)[self.places.start :] * (self.updates + 1) < 1
        return self.dist.send(torch.from_numpy(chosen))

    def _replaced(self, batch: LayerBatch, own: slice, lanes: Lanes) -> LayerBatch:
        types, (prev, other, x) = self._conditions(lanes)
        rows = {
            "prev": prev,
            "other": other,
            "x": x,
            "target": self.teacher.update(prev, other + x, types),
            "types": types,
            "act_step": lanes.act_step,
            "position": lanes.row % self.blocks,
            "puzzle": lanes.puzzle,
        }
        for name, values in rows.items():
            getattr(batch, name)[own] = values
        return batch
