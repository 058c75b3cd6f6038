"""What a head is asked in an evaluation: rows cut out of harvested trajectories, by indices.

A row names places in the entries of a puzzle (see `training.harvest`): those of its conditions, of its targets, and of
what a predictor that copies its conditions would say. A batch of rows is one gather.

    layout = RowLayout.of("h_cycle", layout_of(teacher), act_steps=(1, 16))
    entries = harvest_entries(teacher, batch, layout.harvested)       # [B, steps, K, P, D]
    for rows in layout.batches(entries, keys, rows_at_once=512): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.student import KEY_STRIDE, HeadRows
from training.harvest import Z_H, Z_L, EntryLayout, X


@dataclass(frozen=True)
class RowBatch:
    """b rows on the device.

    `conditions`: 3 x [b, P, D]; `target` and `copied` [b, n, P, D], raw latents; `types`, `cells` int64 [b, n]; `key`
    int64 [b] names the row's noise; `puzzle` int64 [b], its place in the harvested batch; `answers` int64 [m], the rows
    whose block `answer_block` is a z_H, which can be read out.
    """

    conditions: tuple[Tensor, ...]
    target: Tensor
    copied: Tensor
    types: Tensor
    cells: Tensor
    key: Tensor
    puzzle: Tensor
    answers: Tensor
    answer_block: int

    @property
    def answer_cells(self) -> Tensor:
        return self.cells[self.answers, self.answer_block]


@dataclass(frozen=True)
class RowLayout:
    """The R rows of one puzzle. Indices point into its entries, laid one after another.

    `harvested`: the ACT steps of the entries; `act_steps`, `h_cycles`, `position_types`: what the cells stand for (of a
    jump: the ACT step that it replaces first); `conditions` [R, 3]; `targets`, `copies`, `types`, `cells` [R, n];
    `answers` bool [R], the rows with a z_H at block `answer_block`.
    """

    rows: HeadRows
    harvested: tuple[int, ...]
    act_steps: tuple[int, ...]
    h_cycles: int
    position_types: tuple[int, ...]
    conditions: NDArray[np.int64]
    targets: NDArray[np.int64]
    copies: NDArray[np.int64]
    types: NDArray[np.int64]
    cells: NDArray[np.int64]
    answers: NDArray[np.bool_]
    answer_block: int

    @classmethod
    def of(
        cls,
        rows: HeadRows,
        entry: EntryLayout,
        *,
        act_steps: Sequence[int],
        jump_from: Sequence[int] = (0,),
        jump_to: int = 1,
    ) -> RowLayout:
        """`act_steps` (from 1) say where the rows of updates and of H-cycles are taken from; a jump's are given by its
        ends: the state before ACT step a + 1 for every a in `jump_from`, and the end of ACT step `jump_to`."""
        if rows == "jump":
            return _jump_layout(entry, sorted(jump_from), jump_to)
        chosen, blocks = tuple(sorted(set(act_steps))), entry.blocks
        position_types = entry.types[:blocks]
        table = entry.layer_rows if rows == "layer" else entry.h_cycle_rows
        table = np.concatenate([table + index * entry.tensors for index in range(len(chosen))])
        conditions, targets = table[:, :3], table[:, 3:]
        cells = np.arange(len(chosen) * entry.H_cycles * blocks).reshape(targets.shape)
        if rows == "layer":
            copies, types = conditions[:, :1], np.tile(entry.types, len(chosen)).reshape(-1, 1)
        else:
            types = np.broadcast_to(position_types, targets.shape)
            copies = np.where(types == 1, conditions[:, 1:2], conditions[:, 2:3])
        return cls(
            rows=rows,
            harvested=chosen,
            act_steps=chosen,
            h_cycles=entry.H_cycles,
            position_types=tuple(position_types.tolist()),
            conditions=conditions,
            targets=targets,
            copies=copies,
            types=types,
            cells=cells,
            answers=types[:, -1] == 1,
            answer_block=targets.shape[1] - 1,
        )

    def only(self, rows: NDArray[np.int64]) -> RowLayout:
        """The same with these of the R rows."""
        names = ("conditions", "targets", "copies", "types", "cells", "answers")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def batches(self, entries: Tensor, keys: Tensor, rows_at_once: int) -> Iterator[RowBatch]:
        """All rows of the puzzles in `entries` [B, steps, K, P, D], in batches of at most `rows_at_once`.

        `keys` int64 [B]: a number for each puzzle, see `models.student.row_keys`.
        """
        flat, device = entries.flatten(1, 2), entries.device
        puzzles, rows = len(flat), len(self.targets)
        tables = [
            torch.tensor(t, device=device) for t in (self.conditions, self.targets, self.copies, self.types, self.cells)
        ]
        for start in range(0, puzzles * rows, rows_at_once):
            # Puzzles vary fastest. Which rows hold an answer is known here, so that the device need not be asked.
            number = np.arange(start, min(start + rows_at_once, puzzles * rows))
            answers = torch.from_numpy(np.flatnonzero(self.answers[number // puzzles])).to(device)
            on_device = torch.from_numpy(number).to(device)
            puzzle, row = on_device % puzzles, on_device // puzzles
            conditions, targets, copies, types, cells = (table[row] for table in tables)
            gathered = [flat[puzzle, conditions[:, slot]] for slot in range(conditions.shape[1])]
            if self.rows == "layer":  # an update of z_H does not see x
                gathered[2] = torch.where((types == 0).unsqueeze(-1), gathered[2], 0)
            yield RowBatch(
                conditions=tuple(gathered),
                target=flat[puzzle.unsqueeze(1), targets],
                copied=flat[puzzle.unsqueeze(1), copies],
                types=types,
                cells=cells,
                key=keys[puzzle] + row * KEY_STRIDE,
                puzzle=puzzle,
                answers=answers,
                answer_block=self.answer_block,
            )  # fmt: skip


def early_answers(act_steps: Sequence[int], entry: EntryLayout) -> list[tuple[int, int]]:
    """Where the teacher could stop in these harvested ACT steps: (H-cycles done, place of its z_H in the entries)."""
    return [
        ((step - 1) * entry.H_cycles + cycle + 1, index * entry.tensors + entry.update(cycle, entry.L_cycles))
        for index, step in enumerate(act_steps)
        for cycle in range(entry.H_cycles)
    ]


def _jump_layout(entry: EntryLayout, jump_from: Sequence[int], jump_to: int) -> RowLayout:
    starts = tuple(step + 1 for step in jump_from)
    harvested = tuple(sorted({*starts, jump_to}))
    conditions = np.array([[X, Z_H, Z_L]]) + np.array([[harvested.index(step)] for step in starts]) * entry.tensors
    z_H = harvested.index(jump_to) * entry.tensors + entry.update(entry.H_cycles - 1, entry.L_cycles)
    shape = (len(starts), 2)
    return RowLayout(
        rows="jump",
        harvested=harvested,
        act_steps=starts,
        h_cycles=1,
        position_types=(1, 0),
        conditions=conditions,
        targets=np.broadcast_to([z_H, z_H - 1], shape),
        copies=conditions[:, 1:],
        types=np.broadcast_to([1, 0], shape),
        cells=np.arange(2 * len(starts)).reshape(shape),
        answers=np.ones(len(starts), bool),
        answer_block=0,
    )
