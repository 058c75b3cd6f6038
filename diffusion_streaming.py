"""The harvester: a frozen teacher's latents as training batches, through a ring in memory and never through the disk.

    streamer = LayerUpdateStreamer(teacher, dist, options, global_batch_size=256, seed=0)
    streamer.fill()
    for step in range(max_steps):
        streamer.advance(step)          # lets the teacher go on where the ring needs it
        batch = streamer.batch(step)    # this rank's rows of global batch `step`

The teacher works on `lanes_per_row` puzzles, lanes, for every row of the batch. A production is one ACT step of all
lanes (all of them up to the target, for jumps); each lane writes one entry over the oldest of its stratum of the ring
and, once done with its puzzle, takes the next. Row s of a batch comes from stratum s, so no two harvested rows are of
one trajectory. Every draw is a function of (seed, step or position, slot), and what the ring holds is one of (seed,
step): a run that was stopped harvests its ring again, and a checksum tells that it is the same. Where a head leads to
some of the rows (`LayerUpdateStreamer.follow`), every batch takes its lanes an update further: batches are then asked
for once each and in order, and a resumed run gets its lanes from the checkpoint.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.common import InputError
from models.diffusion_blocks import DiffusionHead
from training.diffusion_schema import HarvestConfig
from training.distributed import Distributed
from training.harvest import (
    EntryLayout,
    EntryPlan,
    Ints,
    LaneSchedule,
    act_step_weights,
    draw_rows,
    entry_tensors,
    survival_of,
)
from training.harvest_batches import (
    HCycleBatch,
    HCycleExample,
    LayerBatch,
    LayerExample,
    collate_hcycle_examples,
    collate_layer_examples,
)
from training.own_path import ROWS_PER_LANE, OwnPath
from training.teacher import Teacher
from training.trajectory_ring import TrajectoryRing, affordable_entries, decimal_size

__all__ = [
    "HCycleBatch",
    "HCycleExample",
    "HCycleStreamer",
    "JumpStreamer",
    "LayerBatch",
    "LayerExample",
    "LayerUpdateStreamer",
    "collate_hcycle_examples",
    "collate_layer_examples",
]


class Drawn(NamedTuple):
    """Latents [b, B, P, D] of the rows drawn for a batch; ACT step, puzzle and row of the entry, int64 [B]."""

    latents: Tensor
    act_step: Tensor
    puzzle: Tensor
    row: Tensor


class _BaseTrajectoryStreamer(ABC):
    """The ring and what is drawn from it; a subclass says what an entry is and which rows it gives.

    Attributes: `slots`, rows of the global batch that are this rank's; `lanes`, its lanes; `depth`, entries of each
    stratum; `productions` made; `rows_per_entry`; `ring_bytes` of this process. Raises `InputError` where the options
    do not fit the teacher, the processes or the memory.
    """

    def __init__(
        self, teacher: Teacher, dist: Distributed, options: HarvestConfig, *, global_batch_size: int, seed: int
    ):
        if global_batch_size % dist.world_size:
            raise InputError(
                f"global_batch_size={global_batch_size} cannot be shared out over {dist.world_size} processes: "
                f"use a multiple of {dist.world_size}"
            )
        self.teacher, self.dist, self.options = teacher, dist, options
        self.global_batch_size, self.seed = global_batch_size, seed
        self.layout = EntryLayout(teacher.H_cycles, teacher.L_cycles)
        self.plan = self._plan()
        local, per_row = global_batch_size // dist.world_size, options.lanes_per_row
        self.slots = range(dist.rank * local, (dist.rank + 1) * local)
        self.lanes = range(self.slots.start * per_row, self.slots.stop * per_row)
        entry = (self.plan.tensors, teacher.latent_length, teacher.hidden_size)
        self.depth = per_row * affordable_entries(
            options, dist.device, len(self.lanes), math.prod(entry) * teacher.dtype.itemsize
        )
        self.ring = TrajectoryRing(local, self.depth, entry, teacher.dtype, dist, options.buffer_device == "host")
        self.productions = 0
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def rows_per_entry(self) -> int:
        return len(self.plan.rows)

    @property
    def ring_bytes(self) -> int:
        return self.ring.nbytes

    @property
    def act_step_weights(self) -> list[float]:
        """Weight of each ACT step in the rows [halt_max_steps]."""
        return [1.0] * self.teacher.halt_max_steps

    @property
    def steps_per_production(self) -> float:
        """Training steps between productions, so that a harvested row is used `replay` times on average."""
        return self.options.replay * self.rows_per_entry * self.options.lanes_per_row

    def needed(self, step: int) -> int:
        """Productions before the batch of `step`: as many as fill the ring rightly, and what was used up since."""
        full = self.plan.warm_up + self.depth // self.options.lanes_per_row
        return full + int(step // self.steps_per_production)

    def fill(self) -> None:
        """Fill the ring, before step 0."""
        self._produce_until(self.needed(0))

    def advance(self, step: int) -> None:
        """Bring the ring to where the batch of `step` needs it. Steps may be left out, but not gone back to."""
        if self.productions > self.needed(step):
            raise ValueError(f"the ring is past step {step}: restore({step}) harvests it again")
        self._produce_until(self.needed(step))

    def restore(self, step: int) -> None:
        """Harvest again what the ring holds at `step`, bit for bit, whatever it holds now."""
        self.productions = self.needed(step) - self.needed(0)
        self._restart()
        self._produce_until(self.needed(step))

    @abstractmethod
    def batch(self, step: int) -> LayerBatch | HCycleBatch:
        """This rank's rows of global batch `step`, on its device."""

    def latents(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All targets in this rank's ring, some at a time: latents [n, P, D] and their types int64 [n], on the device.

        For the statistics that normalise them; every latent comes once.
        """
        types = self.dist.send(torch.tensor(list(self.plan.targets.values())))
        for latents in self.ring.parts(np.array(list(self.plan.targets))):
            yield latents, types

    def checksum(self) -> str:
        """Tells the rings of two runs apart; the same for any number of processes."""
        return self.ring.checksum()

    def describe(self) -> list[str]:
        """The size of what is never stored, and that of the ring, for the log."""
        teacher = self.teacher
        latent = teacher.latent_length * teacher.hidden_size * teacher.dtype.itemsize
        updates = teacher.halt_max_steps * teacher.H_cycles * (teacher.L_cycles + 1)
        rows = teacher.train_set.num_rows
        return [
            f"all trajectories: {rows} rows x {updates} latents of {teacher.latent_length} x {teacher.hidden_size} "
            f"would take {decimal_size(rows * updates * latent)}; nothing is written to disk",
            f"ring: {decimal_size(self.ring_bytes)} of {self.ring.place} in each of {self.dist.world_size} processes, "
            f"{len(self.slots)} strata x {self.depth} entries x {self.plan.tensors} latents, from {len(self.lanes)} "
            f"lanes: {self.needed(0)} productions before the first step, then one every "
            f"{self.steps_per_production:g} steps",
            f"expected uses of a harvested row: {self.options.replay:g}",
        ]

    def __iter__(self) -> Iterator[Any]:
        """The rows of this rank's batches from step 0 on, one by one on the CPU; endless."""
        if self.productions != self.needed(0):
            self.restore(0)
        for step in itertools.count():
            self.advance(step)
            yield from self.batch(step).examples()

    def fetch_examples(self, count: int) -> list[Any]:
        """The first `count` of them."""
        return list(itertools.islice(self, count))

    def _draw(self, step: int) -> Drawn:
        if self.productions != self.needed(step):
            raise ValueError(f"the ring is not that of step {step}: advance({step}) comes first")
        entry, row = draw_rows(
            self.seed, step, self.global_batch_size, self.slots, self._entry_weights(), self.rows_per_entry
        )
        slot = np.arange(entry.size)
        labels = np.stack((self.ring.act_step[slot, entry], self.ring.puzzle[slot, entry], row))
        latents = self.ring.take(entry, self.plan.rows[row])
        return Drawn(latents, *self.dist.send(torch.from_numpy(labels)).unbind(0))

    def _produce_until(self, productions: int) -> None:
        with torch.no_grad():
            while self.productions < productions:
                self.ring.write(self.productions, *self._produce())
                self.productions += 1

    def _load(self, lanes: NDArray[np.bool_], puzzle: Ints) -> dict[str, Tensor]:
        """The teacher's batch, in which the given `lanes` now have the puzzles at the positions `puzzle` [n]."""
        for key, value in self.teacher.train_set.train_rows(puzzle).items():
            if key not in self._arrays:
                self._arrays[key] = np.zeros((len(self.lanes), *value.shape[1:]), value.dtype)
            self._arrays[key][lanes] = value
        # Copies, because later puzzles overwrite the arrays.
        return {key: self.dist.send(torch.from_numpy(value.copy())) for key, value in self._arrays.items()}

    def _entry_weights(self) -> NDArray[np.float64]:
        """By which entries are drawn within their stratum [slots, depth]."""
        return np.ones((len(self.slots), self.depth))

    @abstractmethod
    def _plan(self) -> EntryPlan:
        """What becomes of an entry."""

    def _restart(self) -> None:
        """Prepare the lanes for the production `productions`, without any latents to go on from."""
        self._arrays.clear()

    @abstractmethod
    def _produce(self) -> tuple[Sequence[Tensor], Ints, Ints]:
        """The next entry of every lane, as `TrajectoryRing.write` takes it: latents, puzzles and ACT steps."""


class _ActStepStreamer(_BaseTrajectoryStreamer):
    """Entries are ACT steps, and a lane runs its puzzle for as many as the weights of the ACT steps give it."""

    def __init__(
        self, teacher: Teacher, dist: Distributed, options: HarvestConfig, *, global_batch_size: int, seed: int
    ):
        given = options.act_step_weights
        if isinstance(given, list) and len(given) != teacher.halt_max_steps:
            raise InputError(
                f"harvest.act_step_weights has {len(given)} numbers for the teacher's {teacher.halt_max_steps} ACT "
                "steps: give one for each, or copy_error"
            )
        super().__init__(teacher, dist, options, global_batch_size=global_batch_size, seed=seed)
        self._restarted = True
        self._carry: Any = None
        self._rows: dict[str, Tensor] = {}

    @cached_property
    def act_step_weights(self) -> list[float]:
        """Weight of each ACT step in the rows [halt_max_steps], measured when first asked for where it is to be."""
        options = self.options
        return act_step_weights(self.teacher, self.dist, options.act_step_weights, options.act_step_floor)

    @cached_property
    def _schedule(self) -> LaneSchedule:
        survival, _ = survival_of(self.act_step_weights)
        return LaneSchedule(self.seed, self.global_batch_size * self.options.lanes_per_row, self.lanes, survival)

    def describe(self) -> list[str]:
        weights = ", ".join(f"{weight:g}" for weight in self.act_step_weights)
        return [*super().describe(), f"weights of the ACT steps: {weights}"]

    def _h_cycle_plan(self, rows: Ints) -> EntryPlan:
        layout = self.layout
        targets = dict(zip(layout.layer_rows[:, -1].tolist(), layout.types.tolist(), strict=True))
        return EntryPlan(layout.tensors, rows, targets, warm_up=self.teacher.halt_max_steps)

    def _entry_weights(self) -> NDArray[np.float64]:
        _, drawing = survival_of(self.act_step_weights)
        return drawing[self.ring.act_step - 1]

    def _restart(self) -> None:
        # A lane that is in the midst of a puzzle begins it anew. What it writes until the next one is wrong, and is
        # overwritten: no puzzle takes more productions than the warm-up has.
        super()._restart()
        self._schedule.seek(self.productions)
        self._restarted = True

    def _produce(self) -> tuple[Sequence[Tensor], Ints, Ints]:
        puzzle, act_step = self._schedule.state
        fresh = (act_step == 1) | self._restarted
        model = self.teacher.model.model
        if fresh.any():
            self._rows = self._load(fresh, puzzle[fresh])
        if self._carry is None:
            self._carry = model.initial_carry(self._rows)
        # The wrapper's own logic resets the slots of rows that have halted and refills them.
        self._carry.halted = self.dist.send(torch.from_numpy(fresh))
        self._carry, outputs = model(carry=self._carry, batch=self._rows, store_diffusion_trajectory=True)
        self._schedule.advance()
        self._restarted = False
        return entry_tensors(outputs["trajectory"]), puzzle, act_step


class LayerUpdateStreamer(_ActStepStreamer):
    """Rows are single updates, H_cycles * (L_cycles + 1) of them in an entry."""

    own_path: OwnPath | None = None

    def _plan(self) -> EntryPlan:
        return self._h_cycle_plan(self.layout.layer_rows)

    def follow(self, head: DiffusionHead) -> None:
        """Let `head`, as it is at every step, lead to some of the rows, unless ``harvest.own_path=0``."""
        updates = self.options.own_path
        if updates is None:  # a quarter of the whole recursion
            updates = self.teacher.halt_max_steps * len(self.layout.layer_rows) / 4
        if updates > 0:
            self.own_path = OwnPath(self.teacher, head, updates, self.seed, self.slots, self.dist)

    def _restart(self) -> None:
        super()._restart()
        if self.own_path is not None:
            self.own_path.lanes = None

    def describe(self) -> list[str]:
        path = self.own_path
        own = "every {}th row is on the head's own path, which starts anew after {:g} updates on average"
        return super().describe() + ([] if path is None else [own.format(ROWS_PER_LANE, path.updates)])

    def batch(self, step: int) -> LayerBatch:
        drawn = self._draw(step)
        prev, other, x, target = drawn.latents
        position = drawn.row % self.layout.blocks
        types = (position == self.layout.L_cycles).to(torch.int64)
        x_read = torch.where(types.view(-1, 1, 1) == 0, x, 0)
        batch = LayerBatch(prev, other, x_read, target, types, drawn.act_step, position, drawn.puzzle)
        return batch if self.own_path is None else self.own_path(step, batch, x, drawn.row)


class HCycleStreamer(_ActStepStreamer):
    """Rows are whole H-cycles, H_cycles of them in an entry."""

    def _plan(self) -> EntryPlan:
        return self._h_cycle_plan(self.layout.h_cycle_rows)

    def batch(self, step: int) -> HCycleBatch:
        drawn = self._draw(step)
        x, y_init, z_init, *targets = drawn.latents
        target = torch.stack(targets, dim=1)
        return HCycleBatch(x, y_init, z_init, target, drawn.act_step, drawn.row, drawn.puzzle)


class JumpStreamer(_BaseTrajectoryStreamer):
    """Rows lead from the latents after ACT step a, for a in `jump_from`, to y and z after ACT step `jump_to`.

    An entry is a puzzle: x, then y and z for each a in ascending order, then the y and z aimed at.
    """

    @property
    def jump_to(self) -> int:
        return self.options.jump_to or self.teacher.halt_max_steps

    def _plan(self) -> EntryPlan:
        sources, last = sorted(self.options.jump_from), self.teacher.halt_max_steps
        if not sources[-1] < self.jump_to <= last:
            raise InputError(
                f"harvest.jump_from={self.options.jump_from} and harvest.jump_to={self.jump_to} do not fit the "
                f"teacher's {last} ACT steps: a jump goes forward, to {last} at most"
            )
        if sources != [0] and not self.teacher.model.model.inner.fixed_x:
            raise InputError(
                f"harvest.jump_from={self.options.jump_from}: this teacher's x changes from one ACT step to the next: "
                "use [0]"
            )
        goal = 1 + 2 * len(sources)
        rows = np.array([[0, 1 + 2 * i, 2 + 2 * i, goal, goal + 1] for i in range(len(sources))])
        return EntryPlan(goal + 2, rows, {goal: 1, goal + 1: 0}, warm_up=0)

    def batch(self, step: int) -> HCycleBatch:
        drawn = self._draw(step)
        x, y_init, z_init, *targets = drawn.latents
        first = torch.zeros_like(drawn.act_step)
        for i, source in enumerate(sorted(self.options.jump_from)):
            first = torch.where(drawn.row == i, source + 1, first)
        return HCycleBatch(x, y_init, z_init, torch.stack(targets, dim=1), first, torch.zeros_like(first), drawn.puzzle)

    def _produce(self) -> tuple[Sequence[Tensor], Ints, Ints]:
        total = self.global_batch_size * self.options.lanes_per_row
        puzzle = self.productions * total + np.arange(self.lanes.start, self.lanes.stop)
        batch = self._load(np.full(puzzle.shape, True), puzzle)
        model = self.teacher.model.model
        carry, latents = model.initial_carry(batch), []
        for done in range(self.jump_to):
            carry, outputs = model(carry=carry, batch=batch, store_diffusion_trajectory=True)
            trajectory = outputs["trajectory"]
            if done == 0:
                latents.append(trajectory["all_h_cycles"][0]["input_embeddings"])
            if done in self.options.jump_from:
                latents += [trajectory["initial_z_H"], trajectory["initial_z_L"]]
        latents += [carry.inner_carry.z_H, carry.inner_carry.z_L]
        return latents, puzzle, np.full_like(puzzle, self.jump_to)
