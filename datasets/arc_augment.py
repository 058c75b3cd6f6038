"""Augmented ARC puzzles: which symmetries and colour permutations a task gets, and the splits they form.

A task and its augmentations are one group; every augmentation is a puzzle with its own identifier, the same
in both splits. The draws for a task depend on the seed and its id alone, not on the other tasks of the build.

Usage: ``identifiers, splits = plan_splits(subsets, "evaluation", num_aug=1000, seed=42)``
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

from datasets.arc import Pair, Task
from datasets.augment import Integer, counter_below, counter_hash, counter_shuffle, dihedral_source
from datasets.common import ARC_COLOURS, BLANK_NAME, DIHEDRAL_TRANSFORMS, InputError, augmented_name
from datasets.storage import SplitPlan

TRIES_PER_AUGMENTATION = 5


@dataclass(frozen=True)
class Augmentations:
    """The puzzles of one task, K of them; the first is the task itself."""

    tid: np.ndarray  # uint8 [K]
    colours: np.ndarray  # uint8 [K, 10]; colours[k, c] is the new colour of colour c

    def names(self, task_id: str) -> list[str]:
        """Names of the puzzles; the unaugmented one keeps the task's id."""
        pairs = zip(self.tid[1:], self.colours[1:], strict=True)
        return [task_id, *(augmented_name(task_id, tid, colours) for tid, colours in pairs)]


def plan_splits(
    subsets: Mapping[str, Sequence[Task]], test_subset: str, num_aug: int, seed: int
) -> tuple[list[str], dict[str, SplitPlan]]:
    """Identifiers (index 0 is the blank) and the "train" and "test" splits.

    All pairs are for training but the test pairs of ``test_subset``, which make the test split. Training
    rows are translated, test rows are not. Raises `InputError` if two tasks have the same id.
    """
    subset_of: dict[str, str] = {}
    for name, subset in subsets.items():
        for task in subset:
            if subset_of.setdefault(task.task_id, name) != name:
                raise InputError(
                    f"task {task.task_id} is in subset {subset_of[task.task_id]} and in subset {name}; "
                    "leave one subset out, or solutions may be trained on and tested"
                )
    tasks = sorted((task for subset in subsets.values() for task in subset), key=lambda task: task.task_id)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chosen = list(pool.map(lambda task: choose_augmentations(task, num_aug, seed), tasks))
    identifiers, first_identifier = [BLANK_NAME], {}
    for task, augmentations in zip(tasks, chosen, strict=True):
        first_identifier[task.task_id] = len(identifiers)
        identifiers += augmentations.names(task.task_id)

    def plan(members: list[tuple[Task, Augmentations, tuple[Pair, ...]]], translate: bool) -> SplitPlan:
        first = [first_identifier[task.task_id] for task, _, _ in members]
        return _split_plan([(pairs, aug) for _, aug, pairs in members], first, seed if translate else None)

    held_out = {task_id for task_id, name in subset_of.items() if name == test_subset}
    training = [
        (task, aug, task.train if task.task_id in held_out else task.train + task.test)
        for task, aug in zip(tasks, chosen, strict=True)
    ]
    testing = [(task, aug, task.test) for task, aug in zip(tasks, chosen, strict=True) if task.task_id in held_out]
    return identifiers, {"train": plan(training, translate=True), "test": plan(testing, translate=False)}


def choose_augmentations(task: Task, num_aug: int, seed: int) -> Augmentations:
    """Up to ``num_aug`` augmentations with different contents, none equal to the task itself.

    Gives fewer if `TRIES_PER_AUGMENTATION` * ``num_aug`` draws find no more, as for very symmetric tasks.
    """
    base = _pack(task.train + task.test)
    key = int.from_bytes(hashlib.blake2b(task.task_id.encode(), digest_size=8).digest(), "big")
    tid = np.zeros(num_aug + 1, np.uint8)
    colours = np.tile(np.arange(ARC_COLOURS, dtype=np.uint8), (num_aug + 1, 1))
    count = _draw_distinct(
        np.uint64(seed), np.uint64(key), base["cells"], base["offsets"], base["shapes"], len(task.train),
        tid, colours,
    )  # fmt: skip
    return Augmentations(tid[:count], colours[:count])


def _pack(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Grids in the layout of `datasets.arc_rows`, without the groups."""
    none = np.zeros((0, 0), np.uint8)
    grids = [none if grid is None else grid for pair in pairs for grid in pair]
    sizes = np.array([grid.size for grid in grids], np.int64)
    return {
        "cells": np.concatenate([grid.ravel() for grid in grids]),
        "offsets": np.cumsum(sizes) - sizes,
        "shapes": np.array([grid.shape for grid in grids], np.uint8),
    }


def _split_plan(
    members: Sequence[tuple[tuple[Pair, ...], Augmentations]], first_identifier: list[int], seed: int | None
) -> SplitPlan:
    pairs = np.array([len(pairs) for pairs, _ in members], np.int64)
    puzzles = np.array([len(augmentations.tid) for _, augmentations in members], np.int64)
    group_indices = _offsets(puzzles)
    variant = np.arange(group_indices[-1]) - np.repeat(group_indices[:-1], puzzles)
    plan = {
        "tid": np.concatenate([augmentations.tid for _, augmentations in members]),
        "colours": np.concatenate([augmentations.colours for _, augmentations in members]),
    }
    if seed is not None:
        plan["translation_seed"] = np.array([seed], np.uint64)
    return SplitPlan(
        puzzle_identifiers=np.repeat(np.array(first_identifier), puzzles) + variant,
        puzzle_indices=_offsets(np.repeat(pairs, puzzles)),
        group_indices=group_indices,
        base=_pack([pair for pairs, _ in members for pair in pairs]) | {"group_pairs": _offsets(pairs)},
        plan=plan,
    )


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


@numba.njit(cache=True, nogil=True)
def _draw_distinct(
    seed: Integer, key: Integer, cells: np.ndarray, offsets: np.ndarray, shapes: np.ndarray,
    num_train: int, tid: np.ndarray, colours: np.ndarray,
) -> int:  # fmt: skip
    """Overwrites ``tid`` and ``colours`` from index 1 on; returns the number of puzzles with the first."""
    wanted = tid.size
    seen = {_content_hash(cells, offsets, shapes, num_train, tid[0], colours[0])}
    count, trial = 1, 0
    while count < wanted and trial < TRIES_PER_AUGMENTATION * (wanted - 1):
        tid[count] = counter_below(seed, key, trial, 0, DIHEDRAL_TRANSFORMS)
        colours[count] = np.arange(ARC_COLOURS)
        counter_shuffle(colours[count, 1:], seed, key, trial, 1)
        content = _content_hash(cells, offsets, shapes, num_train, tid[count], colours[count])
        if content not in seen:
            seen.add(content)
            count += 1
        trial += 1
    return count


@numba.njit(cache=True, nogil=True)
def _content_hash(
    cells: np.ndarray, offsets: np.ndarray, shapes: np.ndarray, num_train: int,
    tid: Integer, colours: np.ndarray,
) -> Integer:  # fmt: skip
    """Hash of the augmented task as two multisets of pairs: equal whatever the order of the pairs."""
    total = np.uint64(0)
    for pair in range(shapes.shape[0] // 2):
        given = _grid_hash(cells, offsets, shapes, 2 * pair, tid, colours)
        output = _grid_hash(cells, offsets, shapes, 2 * pair + 1, tid, colours)
        total += counter_hash(given, output, np.int64(pair < num_train), 0)
    return total


@numba.njit(cache=True, nogil=True)
def _grid_hash(
    cells: np.ndarray, offsets: np.ndarray, shapes: np.ndarray, grid: int, tid: Integer, colours: np.ndarray
) -> Integer:
    source_rows, source_cols = np.int64(shapes[grid, 0]), np.int64(shapes[grid, 1])
    rows, cols = source_rows, source_cols
    if tid == 1 or tid == 3 or tid >= 6:
        rows, cols = cols, rows
    state = np.uint64(rows * 256 + cols)
    start = offsets[grid]
    for row in range(rows):
        for col in range(cols):
            r, c = dihedral_source(tid, row, col, source_rows, source_cols)
            colour = np.uint64(colours[cells[start + r * source_cols + c]])
            state = (state ^ colour) * np.uint64(0x100000001B3)
            state ^= state >> np.uint64(32)
    return state
