"""ARC rows: a pair of colour grids, augmented and placed on the square canvas of the model.

Base arrays: ``cells`` uint8, all grids one after the other; ``offsets`` int64 [2 * pairs] and ``shapes``
uint8 [2 * pairs, 2], where pair k has its input at 2k and its output at 2k + 1 (0 x 0 when the output is not
known); ``group_pairs`` int64 [G + 1], first pair of each group. Plan arrays: ``tid`` uint8 [P], ``colours``
uint8 [P, 10], and for translated splits ``translation_seed`` uint64 [1].

A cell's token is its colour + 2. An end token follows every grid row on its right and every grid column below
it, as far as it fits on the canvas; the rest is padding.

Usage: ``datasets.storage`` finds `make_rows` under the kind "arc".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np

from datasets.augment import Integer, counter_below, dihedral_source
from datasets.common import ARC_COLOUR_0, ARC_COLOURS, ARC_EOS, ARC_PAD
from datasets.storage import RowIndex

_TRANSPOSING = np.array([False, True, False, True, False, False, True, True])
_ANCHOR_DRAW, _ROW_DRAW, _COL_DRAW = 0, 1, 2


def make_rows(
    base: Mapping[str, np.ndarray],
    plan: Mapping[str, np.ndarray],
    index: RowIndex,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Fills uint8 [n, G * G]. See `datasets.storage.RowMaker`.

    In a translated split one example of each puzzle, drawn, stays in the corner and every other one is moved
    by uniform offsets that keep both of its grids on the canvas.
    """
    translated = "translation_seed" in plan
    seed = plan["translation_seed"][0] if translated else np.uint64(0)
    _fill(
        base["cells"], base["offsets"], base["shapes"], base["group_pairs"], plan["tid"], plan["colours"],
        translated, seed, index.group, index.puzzle, index.example,
        math.isqrt(inputs.shape[1]), inputs, labels,
    )  # fmt: skip


def tokens_of(grid: np.ndarray, side: int) -> np.ndarray:
    """One colour grid, uint8 [rows, cols] of at most `side` each, as tokens uint8 [side * side], neither turned nor
    moved."""
    canvas = np.empty(side * side, np.uint8)
    colours = np.arange(ARC_COLOURS, dtype=np.uint8)
    rows, cols = grid.shape
    _place(np.ascontiguousarray(grid).ravel(), rows, cols, 0, colours, 0, 0, side, canvas)
    return canvas


@numba.njit(cache=True, nogil=True)
def _fill(
    cells: np.ndarray, offsets: np.ndarray, shapes: np.ndarray, group_pairs: np.ndarray,
    tids: np.ndarray, colours: np.ndarray, translated: bool, seed: Integer,
    groups: np.ndarray, puzzles: np.ndarray, examples: np.ndarray,
    side: int, inputs: np.ndarray, labels: np.ndarray,
) -> None:  # fmt: skip
    for n in range(puzzles.size):
        puzzle, example = puzzles[n], examples[n]
        first_pair, end_pair = group_pairs[groups[n]], group_pairs[groups[n] + 1]
        tid, given = tids[puzzle], 2 * (first_pair + example)
        top, left = 0, 0
        if translated and counter_below(seed, puzzle, 0, _ANCHOR_DRAW, end_pair - first_pair) != example:
            rows = np.int64(max(shapes[given, 0], shapes[given + 1, 0]))
            cols = np.int64(max(shapes[given, 1], shapes[given + 1, 1]))
            if _TRANSPOSING[tid]:
                rows, cols = cols, rows
            top = counter_below(seed, puzzle, example, _ROW_DRAW, side - rows + 1)
            left = counter_below(seed, puzzle, example, _COL_DRAW, side - cols + 1)
        for grid, canvas in ((given, inputs[n]), (given + 1, labels[n])):
            rows, cols = np.int64(shapes[grid, 0]), np.int64(shapes[grid, 1])
            source = cells[offsets[grid] : offsets[grid] + rows * cols]
            _place(source, rows, cols, tid, colours[puzzle], top, left, side, canvas)


@numba.njit(cache=True, nogil=True)
def _place(
    source: np.ndarray, source_rows: Integer, source_cols: Integer, tid: Integer,
    colours: np.ndarray, top: int, left: int, side: int, canvas: np.ndarray,
) -> None:  # fmt: skip
    canvas[:] = ARC_PAD
    rows, cols = source_rows, source_cols
    if _TRANSPOSING[tid]:
        rows, cols = cols, rows
    for row in range(rows):
        start = (top + row) * side + left
        for col in range(cols):
            r, c = dihedral_source(tid, row, col, source_rows, source_cols)
            canvas[start + col] = ARC_COLOUR_0 + colours[source[r * source_cols + c]]
        if left + cols < side:
            canvas[start + cols] = ARC_EOS
    if top + rows < side:
        below = (top + rows) * side + left
        canvas[below : below + cols] = ARC_EOS
