"""Sudoku as tokens: the encoding and the row maker, which augments puzzles by the symmetries of the rules.

Digit d is token d + 1, a blank is 1, 0 is padding. Augmentation 0 of a puzzle is the puzzle itself;
augmentation k > 0 relabels the digits and permutes bands, rows within bands, stacks, columns within stacks
and, where boxes are square, transposes: all drawn from (seed, group, k).

Usage: ``plan = puzzle_plan(puzzles, solutions, box=(3, 3), num_aug=1000, seed=0)``
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np

from datasets.augment import counter_below, counter_shuffle
from datasets.common import InputError
from datasets.storage import RowIndex, SplitPlan

BLANK_TOKEN = 1
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size of the grid: rows and columns of a box


def board_size(seq_len: int) -> int:
    """Size of the grid with ``seq_len`` cells; `InputError` if that is no Sudoku we know."""
    size = math.isqrt(seq_len)
    if size * size != seq_len or size not in BOXES:
        raise InputError(f"{seq_len} cells are no Sudoku; sizes are {', '.join(f'{s}x{s}' for s in BOXES)}")
    return size


def vocab_size(size: int) -> int:
    """Padding, blank and the digits."""
    return size + 2


def puzzle_plan(
    puzzles: np.ndarray, solutions: np.ndarray, *, box: tuple[int, int], num_aug: int, seed: int
) -> SplitPlan:
    """The split of puzzles and solutions, uint8 [groups, cells], 0 for a blank, in 1 + num_aug forms each."""
    groups = len(puzzles)
    total = groups * (1 + num_aug)
    if total >= 2**31:
        raise InputError(f"{groups:,} puzzles x (1 + --num-aug {num_aug}) exceed 2**31 rows; lower one of them")
    return SplitPlan(
        puzzle_identifiers=np.zeros(total, np.int32),
        puzzle_indices=np.arange(total + 1),
        group_indices=np.arange(groups + 1) * (1 + num_aug),
        base={"inputs": puzzles + np.uint8(BLANK_TOKEN), "labels": solutions + np.uint8(BLANK_TOKEN)},
        plan={"seed": np.array([seed], np.uint64), "box": np.array(box, np.int64)},
    )


@numba.njit(cache=True, nogil=True)
def _draw_line_order(order: np.ndarray, lines_per_band: int, seed: int, group: int, variant: int, draw: int) -> int:
    """Fills ``order`` [size] with a permutation of lines that keeps bands together; returns the next draw."""
    size = order.size
    bands = np.arange(size // lines_per_band)
    draw = counter_shuffle(bands, seed, group, variant, draw)
    for band in range(bands.size):
        within = order[band * lines_per_band : (band + 1) * lines_per_band]
        for line in range(lines_per_band):
            within[line] = bands[band] * lines_per_band + line
        draw = counter_shuffle(within, seed, group, variant, draw)
    return draw


@numba.njit(cache=True, nogil=True)
def _augment_rows(
    base_inputs: np.ndarray,
    base_labels: np.ndarray,
    seed: int,
    box: np.ndarray,
    group: np.ndarray,
    variant: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> None:
    size = box[0] * box[1]
    row_order = np.empty(size, np.int64)
    col_order = np.empty(size, np.int64)
    token_map = np.arange(size + 2)
    for i in range(group.size):
        g, v = group[i], variant[i]
        if v == 0:
            inputs[i] = base_inputs[g]
            labels[i] = base_labels[g]
            continue
        digit_tokens = token_map[2:]
        for digit in range(size):
            digit_tokens[digit] = digit + 2
        draw = counter_shuffle(digit_tokens, seed, g, v, 0)
        draw = _draw_line_order(row_order, box[0], seed, g, v, draw)
        draw = _draw_line_order(col_order, box[1], seed, g, v, draw)
        transposed = box[0] == box[1] and counter_below(seed, g, v, draw, 2) == 1
        for row in range(size):
            for col in range(size):
                source = row_order[row] * size + col_order[col]
                cell = col * size + row if transposed else row * size + col
                inputs[i, cell] = token_map[base_inputs[g, source]]
                labels[i, cell] = token_map[base_labels[g, source]]


def make_rows(
    base: Mapping[str, np.ndarray],
    plan: Mapping[str, np.ndarray],
    index: RowIndex,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> None:
    """The row maker of `datasets.storage.RowMaker` for plans of `puzzle_plan`."""
    base_inputs, base_labels, box = (np.asarray(a) for a in (base["inputs"], base["labels"], plan["box"]))
    seed = int(plan["seed"][0])
    _augment_rows(base_inputs, base_labels, seed, box, index.group, index.variant, inputs, labels)
