"""Which Sudoku are the same puzzle in disguise: keys of equivalence classes under the symmetries of the
rules.

The symmetries are those of the augmentation: relabelled digits, permuted bands, rows within bands, stacks and
columns within stacks and, where boxes are square, transposition. A split that keeps equal keys on one side
has therefore no test puzzle that is a training puzzle or one of its augmentations.

For 4x4 and 6x6 the key is that of the *puzzle*: its smallest form over all symmetries. For 9x9 that takes too
long and is not needed, as solution grids hardly ever recur: the key is that of the *solution*, from cycle
lengths that no symmetry changes. It tells classes apart in practice, not by proof; an accident only costs a
puzzle.

Usage: ``keys = class_keys(puzzles, solutions, board(9))``
"""

from __future__ import annotations

from itertools import permutations, product

import numba
import numpy as np

from datasets.augment import counter_hash
from datasets.sudoku_solver import Board


def class_keys(puzzles: np.ndarray, solutions: np.ndarray, rules: Board) -> np.ndarray:
    """Keys, uint64 [n], of puzzles and their solutions, uint8 [n, cells]: equal for equivalent puzzles."""
    keys = np.empty(len(puzzles), np.uint64)
    if rules.size == 9:
        _solution_keys(solutions, keys)
    else:
        _puzzle_keys(puzzles, _line_orders(rules.size, rules.box_rows), _line_orders(rules.size, rules.box_cols), keys)
    return keys


def _line_orders(size: int, lines_per_band: int) -> np.ndarray:
    """All permutations of the rows (or columns) that keep bands together, int64 [k, size]."""
    within = list(permutations(range(lines_per_band)))
    return np.array(
        [
            [band * lines_per_band + line for band, inner in zip(bands, inners, strict=True) for line in inner]
            for bands in permutations(range(size // lines_per_band))
            for inners in product(within, repeat=size // lines_per_band)
        ]
    )


@numba.njit(cache=True, nogil=True)
def _puzzle_keys(puzzles: np.ndarray, row_orders: np.ndarray, col_orders: np.ndarray, keys: np.ndarray) -> None:
    size = row_orders.shape[1]
    smallest = np.empty(size * size, np.uint8)
    relabel = np.empty(size + 1, np.uint8)
    transposes = 2 if row_orders.shape == col_orders.shape else 1
    for n in range(len(puzzles)):
        smallest[:] = 255
        for transposed in range(transposes):
            row_step, col_step = (1, size) if transposed else (size, 1)
            for r in range(len(row_orders)):
                for c in range(len(col_orders)):
                    _keep_smaller(puzzles[n], row_orders[r], row_step, col_orders[c], col_step, relabel, smallest)
        key = counter_hash(size, 0, 0, 0)
        for value in smallest:
            key = counter_hash(key, value, 0, 0)
        keys[n] = key


@numba.njit(cache=True, nogil=True)
def _keep_smaller(
    puzzle: np.ndarray,
    row_order: np.ndarray,
    row_step: int,
    col_order: np.ndarray,
    col_step: int,
    relabel: np.ndarray,
    smallest: np.ndarray,
) -> None:
    """Overwrites ``smallest`` if the reordered puzzle, digits relabelled as they appear, comes before it."""
    relabel[:] = 0
    digits = 0
    smaller = False
    for cell in range(puzzle.size):
        row, col = divmod(cell, row_order.size)
        digit = puzzle[row_order[row] * row_step + col_order[col] * col_step]
        if digit and relabel[digit] == 0:
            digits += 1
            relabel[digit] = digits
        value = relabel[digit]
        if not smaller and value > smallest[cell]:
            return
        smaller = smaller or value < smallest[cell]
        smallest[cell] = value


@numba.njit(cache=True, nogil=True)
def _solution_keys(solutions: np.ndarray, keys: np.ndarray) -> None:
    """A row turns into another by a permutation of the digits; no symmetry changes its cycle lengths."""
    lines = np.empty((9, 9), np.int64)
    for n in range(len(solutions)):
        key = np.uint64(0)
        for transposed in range(2):
            for cell in range(81):
                row, col = divmod(cell, 9)
                lines[row, col] = solutions[n, col * 9 + row if transposed else cell] - 1
            key += counter_hash(_lines_key(lines), 3, 0, 0)
        keys[n] = key


@numba.njit(cache=True, nogil=True)
def _lines_key(lines: np.ndarray) -> np.uint64:
    """Key of the rows of a 9x9 grid, each refined by how the others look; sums are blind to their order."""
    cycles = np.empty((9, 9), np.int64)
    for row in range(9):
        for other in range(row):
            cycles[row, other] = cycles[other, row] = _cycle_key(lines[row], lines[other])
    row_keys = np.zeros(9, np.uint64)
    for _ in range(3):
        refined = np.zeros(9, np.uint64)
        for row in range(9):
            for other in range(9):
                if other != row:
                    refined[row] += counter_hash(row_keys[other], cycles[row, other], row // 3 == other // 3, 0)
            refined[row] += counter_hash(row_keys[row], 0, 2, 0)
        row_keys = refined
    return row_keys.sum()


@numba.njit(cache=True, nogil=True)
def _cycle_key(line: np.ndarray, other: np.ndarray) -> int:
    """Cycle lengths of the permutation that takes ``line`` to ``other``, as their number of each length."""
    image = np.empty(9, np.int64)
    for i in range(9):
        image[line[i]] = other[i]
    key = 0
    unseen = (1 << 9) - 1
    while unseen:
        start = 0
        while not unseen >> start & 1:
            start += 1
        length, digit = 0, start
        while unseen >> digit & 1:
            unseen ^= 1 << digit
            digit = image[digit]
            length += 1
        key += 1 << (3 * length)
    return key
