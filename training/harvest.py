"""From a frozen teacher to its latents: what one ACT step leaves behind, which puzzle is where, how steps are weighted.

An *entry* is one ACT step of one puzzle, [K, P, D]: x, the latents z_H and z_L that the step began with, and then what
each H-cycle went through, its L_cycles values of z_L and its z_H. Every tensor is in it once; training rows are indices
into it (`EntryLayout`).

    entries = harvest_entries(teacher, batch, act_steps=[1, 16])        # [B, 2, K, P, D], for held-out puzzles
    conditions_and_target = entries[:, 0, EntryLayout(3, 6).layer_rows[0]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.row_stream import random_words
from models.trajectory import Trajectory
from training.distributed import Distributed
from training.teacher import Teacher, draw_test_rows

Ints = NDArray[np.int64]

DEPTHS, ROWS, PHASES = 201, 202, 203  # purposes of random words
PHASE_SPAN = 16  # puzzles' length of productions over which lanes start
WEIGHT_PUZZLES = 256  # that the copy-previous error is measured on
WEIGHT_CHUNK = 32  # so many of them at once
WEIGHT_DIGITS = 3  # so that rounding in the teacher does not change what is drawn
X, Z_H, Z_L = 0, 1, 2  # the first three latents of an entry


@dataclass(frozen=True)
class EntryLayout:
    """Where an entry [K, P, D] holds which latent. Types: 0 = z_L update, 1 = z_H update."""

    H_cycles: int
    L_cycles: int

    @property
    def blocks(self) -> int:
        """Updates of an H-cycle: L_cycles of z_L and one of z_H."""
        return self.L_cycles + 1

    @property
    def tensors(self) -> int:
        """K."""
        return 3 + self.H_cycles * self.blocks

    def update(self, h_cycle: int, position: int) -> int:
        """What the update at `position` of `h_cycle`, both from 0, made; position L_cycles is z_H."""
        return 3 + h_cycle * self.blocks + position

    def before(self, h_cycle: int) -> tuple[int, int]:
        """z_H and z_L at the beginning of `h_cycle`."""
        if h_cycle == 0:
            return Z_H, Z_L
        return self.update(h_cycle - 1, self.L_cycles), self.update(h_cycle - 1, self.L_cycles - 1)

    @cached_property
    def layer_rows(self) -> Ints:
        """Previous, other, x and target of every update [H_cycles * blocks, 4]. A z_H update does not read its x."""
        rows = []
        for h_cycle in range(self.H_cycles):
            z_H, z_L = self.before(h_cycle)
            for position in range(self.L_cycles):
                rows.append((z_L, z_H, X, z_L := self.update(h_cycle, position)))
            rows.append((z_H, z_L, X, self.update(h_cycle, self.L_cycles)))
        return np.array(rows)

    @cached_property
    def positions(self) -> Ints:
        """Position of every update in its H-cycle [H_cycles * blocks]."""
        return np.tile(np.arange(self.blocks), self.H_cycles)

    @cached_property
    def types(self) -> Ints:
        """Type of every update [H_cycles * blocks]."""
        return (self.positions == self.L_cycles).astype(np.int64)

    @cached_property
    def h_cycle_rows(self) -> Ints:
        """x, z_H and z_L before, and then the latents after each update, for every H-cycle [H_cycles, 3 + blocks]."""
        updates = [[self.update(h, j) for j in range(self.blocks)] for h in range(self.H_cycles)]
        return np.array([[X, *self.before(h), *updates[h]] for h in range(self.H_cycles)])


@dataclass(frozen=True)
class EntryPlan:
    """What a streamer makes of an entry.

    `tensors`: K, its latents; `rows` [rows of an entry, b]: the places of the b latents of each row; `targets`: the
    types of the latents that are targets, by place; `warm_up`: productions ahead of the oldest entry of the ring from
    which lanes must run for it to be right.
    """

    tensors: int
    rows: Ints
    targets: dict[int, int]
    warm_up: int


def layout_of(teacher: Teacher) -> EntryLayout:
    return EntryLayout(teacher.H_cycles, teacher.L_cycles)


def entry_tensors(trajectory: Trajectory) -> list[Tensor]:
    """The K latents of an entry for every row of the batch, each [batch, P, D], in the order of `EntryLayout`."""
    cycles = trajectory["all_h_cycles"]
    found = [cycles[0]["input_embeddings"], trajectory["initial_z_H"], trajectory["initial_z_L"]]
    return found + [z for cycle in cycles for z in (*cycle["z_L_list"], cycle["z_H"])]


def survival_of(weights: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How to run puzzles so that ACT steps 1, 2, ... come in the proportions `weights`.

    Step k is reached with probability S_k, the largest weight from k on over the largest of all, and an entry of step
    k is drawn with the relative weight w_k / max_{j >= k} w_j: 1 wherever the weights do not rise, so that no ACT step
    is computed in vain. Returns S and the weights of drawing, [n] each, n being the last step with a weight.
    """
    given = np.asarray(weights, dtype=np.float64)
    envelope = np.maximum.accumulate(given[::-1])[::-1]
    envelope = envelope[envelope > 0]
    return envelope / envelope[0], given[: envelope.size] / envelope


class LaneState(NamedTuple):
    """Lanes [n] before a production: the stream position of their puzzle, and the ACT step that is next, from 1."""

    position: Ints
    act_step: Ints


class LaneSchedule:
    """Which puzzle every lane works on: a pure function of the seed and the production, for `lanes` of `total`.

    Lane g takes the puzzles at positions g, total + g, 2 * total + g, ... of the training stream, one after the other.
    Each is run for as many ACT steps as a draw of (seed, position) says, distributed as `survival` [n] demands. Lanes
    begin at random points of this history, as in step they would all fill a batch with the same few ACT steps.
    """

    def __init__(self, seed: int, total: int, lanes: range, survival: NDArray[np.float64]):
        self._total, self._lanes = total, np.arange(lanes.start, lanes.stop)

        @lru_cache(maxsize=4096)
        def depths(visit: int) -> Ints:
            """ACT steps of the puzzle that each of this process's lanes takes as its `visit`-th."""
            words = random_words(seed, DEPTHS, visit, total)[lanes.start : lanes.stop]
            uniform = (words >> np.uint64(11)) * 2.0**-53
            return (uniform[:, None] < survival).sum(1)

        self._depths = depths
        words = random_words(seed, PHASES, 0, total)[lanes.start : lanes.stop]
        self._phase = (words % np.uint64(PHASE_SPAN * survival.size)).astype(np.int64)
        self.seek(0)

    def seek(self, production: int) -> None:
        """Go to the state before `production`."""
        self._visit, self._done = np.zeros_like(self._lanes), production + self._phase
        visit, behind = 0, np.ones(self._lanes.size, bool)
        while behind.any():  # `_done` counts down to the productions spent on the puzzle in hand
            depth = self._depths(visit)
            behind &= self._done >= depth
            self._done[behind] -= depth[behind]
            self._visit[behind] += 1
            visit += 1

    @property
    def state(self) -> LaneState:
        return LaneState(self._visit * self._total + self._lanes, self._done + 1)

    def advance(self) -> None:
        """Count one ACT step of every lane."""
        self._done += 1
        finished = np.zeros(self._lanes.size, bool)
        for visit in np.unique(self._visit):
            of_visit = self._visit == visit
            finished[of_visit] = self._done[of_visit] >= self._depths(int(visit))[of_visit]
        self._visit[finished] += 1
        self._done[finished] = 0


def draw_rows(
    seed: int, step: int, global_batch_size: int, slots: range, weights: NDArray[np.float64], rows: int
) -> tuple[Ints, Ints]:
    """For each slot an entry of its part of the ring, by the `weights` [slots, depth], and one of its `rows`.

    Where no entry has any weight, which takes a ring shorter than a puzzle's ACT steps, all are alike.
    """
    words = random_words(seed, ROWS, step, 2 * global_batch_size).reshape(2, -1)[:, slots.start : slots.stop]
    uniform, row_words = (words[0] >> np.uint64(11)) * 2.0**-53, words[1]
    ends = np.cumsum(np.where(weights.any(axis=1, keepdims=True), weights, 1.0), axis=1)
    entry = (ends <= uniform[:, None] * ends[:, -1:]).sum(1)
    row = ((row_words >> np.uint64(32)) * np.uint64(rows)) >> np.uint64(32)
    return np.minimum(entry, weights.shape[1] - 1), row.astype(np.int64)


@torch.no_grad()
def harvest_entries(teacher: Teacher, batch: dict[str, Tensor], act_steps: Sequence[int]) -> Tensor:
    """Entries [batch, len(act_steps), K, P, D] of the given ACT steps, from 1, in the forward dtype."""
    layout, inner = layout_of(teacher), teacher.model.model
    shape = (layout.tensors, teacher.latent_length, teacher.hidden_size)
    rows = len(batch["inputs"])
    entries = torch.empty((rows, len(act_steps), *shape), dtype=teacher.dtype, device=batch["inputs"].device)
    for step, trajectory in _act_steps(inner, batch, max(act_steps)):
        for place in (i for i, wanted in enumerate(act_steps) if wanted == step):
            for k, latent in enumerate(entry_tensors(trajectory)):
                entries[:, place, k] = latent
    return entries


def _act_steps(model: Any, batch: dict[str, Tensor], count: int) -> Iterator[tuple[int, Trajectory]]:
    carry = model.initial_carry(batch)
    for step in range(1, count + 1):
        carry, outputs = model(carry=carry, batch=batch, store_diffusion_trajectory=True)
        yield step, outputs["trajectory"]


class EvalBatch(NamedTuple):
    """`entries` [n, steps, K, P, D] of the puzzles `batch` (on the device), whose rows in the test set are `rows`."""

    entries: Tensor
    batch: dict[str, Tensor]
    rows: Ints


def eval_batches(
    teacher: Teacher, dist: Distributed, *, rows: int, act_steps: Sequence[int], batch_size: int = 64, seed: int = 0
) -> Iterator[EvalBatch]:
    """This rank's share of `rows` drawn held-out rows, `batch_size` at a time; none is padding."""
    own = draw_test_rows(teacher, rows, seed)[dist.rank :: dist.world_size]
    for start in range(0, own.size, batch_size):
        index = own[start : start + batch_size]
        batch = {key: dist.send(torch.from_numpy(value)) for key, value in teacher.test_set.test_rows(index).items()}
        yield EvalBatch(harvest_entries(teacher, batch, act_steps), batch, index)


@torch.no_grad()
def copy_error(teacher: Teacher, dist: Distributed, puzzles: int = WEIGHT_PUZZLES) -> NDArray[np.float64]:
    """By ACT step [halt_max_steps], how much of it is new: the relative error of a latent that is copied.

    Copied from before its update, or from the same update one ACT step earlier, whichever is closer:
    ``||z - copy|| / ||z||``, its root mean square over the updates of training puzzles. A recursion may go round in a
    circle, with large moves and nothing new. Rank 0 measures it and tells the others.
    """
    squares = np.zeros((3, teacher.halt_max_steps))  # copied from before, from the last ACT step, and the norm
    if dist.is_main:
        rows = layout_of(teacher).layer_rows.tolist()
        for start in range(0, puzzles, WEIGHT_CHUNK):
            positions = np.arange(start, min(start + WEIGHT_CHUNK, puzzles))
            arrays = teacher.train_set.train_rows(positions)
            batch = {key: dist.send(torch.from_numpy(value)) for key, value in arrays.items()}
            earlier: list[Tensor] = []
            for step, trajectory in _act_steps(teacher.model.model, batch, teacher.halt_max_steps):
                latents = [latent.float() for latent in entry_tensors(trajectory)]
                for previous, _, _, place in rows:
                    new, old = latents[place], latents[previous]
                    moved = (new - old).square().sum()
                    repeated = (new - earlier[place]).square().sum() if earlier else moved
                    found = torch.stack((moved, repeated, new.square().sum()))
                    squares[:, step - 1] += found.double().cpu().numpy()
                earlier = latents
    squares = dist.broadcast_object(squares)
    return np.sqrt(squares[:2].min(axis=0) / squares[2])


def act_step_weights(teacher: Teacher, dist: Distributed, choice: str | Sequence[float], floor: float) -> list[float]:
    """Weight of each ACT step, relative to the largest: measured (``"copy_error"``), all equal, or as given."""
    if choice == "uniform":
        return [1.0] * teacher.halt_max_steps
    if choice != "copy_error":
        return [float(weight) for weight in choice]
    error = copy_error(teacher, dist)
    return [round(float(weight), WEIGHT_DIGITS) for weight in np.maximum(error / error.max(), floor)]
