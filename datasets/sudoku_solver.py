"""A Sudoku solver over candidate bit masks: naked and hidden singles, then a guess in a cell with fewest
candidates.

It counts solutions up to a limit and the values it had to assume on the way ("guesses", our measure of
difficulty: 0 means that singles alone solve the puzzle). With limit 2 the search also proves uniqueness, so
its guesses do not depend on luck in finding the solution early; they do depend a little on how the puzzle is
turned and relabelled, and they are not the ratings of other solvers.

Usage: ``solved = solve(puzzles, board(9)); unique = solved.counts == 1``
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

from datasets.augment import counter_below
from datasets.sudoku import BOXES

_PUZZLES_PER_TASK = 512

_BIT_COUNT = np.array([mask.bit_count() for mask in range(1 << 9)], np.uint8)
# 2 is a primitive root modulo 37, so a power of two is known by its remainder.
_BIT_INDEX = np.zeros(37, np.uint8)
_BIT_INDEX[[(1 << index) % 37 for index in range(32)]] = range(32)


class Board(NamedTuple):
    """The constraints of one size; cells are numbered row by row, a unit is a row, a column or a box."""

    size: int
    box_rows: int
    box_cols: int
    units: np.ndarray  # uint8 [3 * size, size] cells of each unit
    peers: np.ndarray  # uint8 [cells, p] cells that share a unit with a cell
    units_of: np.ndarray  # uint32 [cells] bit u is set if the cell lies in unit u


class Solved(NamedTuple):
    """What `solve` found for n puzzles."""

    solutions: np.ndarray  # uint8 [n, cells]; zeros where there is none
    counts: np.ndarray  # int64 [n] solutions, counted up to 2
    guesses: np.ndarray  # int64 [n] values assumed by the search


@lru_cache
def board(size: int) -> Board:
    """The board of a size in `BOXES`."""
    box_rows, box_cols = BOXES[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // box_rows, box_rows, size // box_cols, box_cols).swapaxes(1, 2)
    units = np.concatenate([cells, cells.T, boxes.reshape(size, size)])
    belongs = (units[:, :, None] == np.arange(size * size)).any(axis=1)
    shared = belongs.T.astype(np.int64) @ belongs - np.diag(np.full(size * size, 3))
    peers = np.array([np.flatnonzero(row) for row in shared], np.uint8)
    units_of = (belongs * (1 << np.arange(3 * size, dtype=np.uint32))[:, None]).sum(axis=0)
    return Board(size, box_rows, box_cols, units.astype(np.uint8), peers, units_of.astype(np.uint32))


@numba.njit(cache=True, nogil=True)
def _propagate(candidates: np.ndarray, queue: np.ndarray, queued: int, dirty: np.uint32, rules: Board) -> bool:
    """Applies singles until nothing changes; False if some cell or digit has no place left.

    ``queue`` holds ``queued`` cells with one candidate whose peers do not know it yet; ``dirty`` marks the
    units to search for digits with one place. A cell enters the queue once, when it gets its last candidate.
    """
    one = np.uint16(1)
    every_digit = np.uint16((1 << rules.size) - 1)
    next_cell = 0
    while True:
        while next_cell < queued:
            cell = queue[next_cell]
            next_cell += 1
            digit = candidates[cell]
            for k in range(rules.peers.shape[1]):
                peer = rules.peers[cell, k]
                left = candidates[peer]
                if left & digit:
                    left ^= digit
                    if left == 0:
                        return False
                    candidates[peer] = left
                    dirty |= rules.units_of[peer]
                    if left & (left - one) == 0:
                        queue[queued] = peer
                        queued += 1
        if dirty == 0:
            return True
        lowest = dirty & (np.uint32(0) - dirty)
        dirty ^= lowest
        unit = rules.units[_BIT_INDEX[lowest % np.uint32(37)]]
        seen = twice = solved = np.uint16(0)
        for k in range(rules.size):
            left = candidates[unit[k]]
            twice |= seen & left
            seen |= left
            if left & (left - one) == 0:
                solved |= left
        if seen != every_digit:
            return False
        hidden = seen & ~twice & ~solved
        if hidden == 0:
            continue
        for k in range(rules.size):
            cell = unit[k]
            digit = candidates[cell] & hidden
            if digit:
                if digit & (digit - one):
                    return False
                candidates[cell] = digit
                dirty |= rules.units_of[cell]
                queue[queued] = cell
                queued += 1


@numba.njit(cache=True, nogil=True)
def _fewest_candidates(candidates: np.ndarray) -> int:
    """An undecided cell with fewest candidates, -1 if there is none."""
    fewest, found = 99, -1
    for cell in range(candidates.size):
        count = _BIT_COUNT[candidates[cell]]
        if 1 < count < fewest:
            fewest, found = count, cell
            if count == 2:
                break
    return found


@numba.njit(cache=True, nogil=True)
def draw_below(stream: np.ndarray, bound: int) -> int:
    """The next number in [0, bound) of a stream, int64 [4]: seed, two counters, and the draws made so far."""
    stream[3] += 1
    return counter_below(stream[0], stream[1], stream[2], stream[3], bound)


@numba.njit(cache=True, nogil=True)
def _pick(values: np.uint16, stream: np.ndarray) -> np.uint16:
    """One bit of ``values``: a random one, or the lowest if there is no stream to draw from (size 0)."""
    if stream.size:
        for _ in range(draw_below(stream, _BIT_COUNT[values])):
            values &= values - np.uint16(1)
    return values & (np.uint16(0) - values)


@numba.njit(cache=True, nogil=True)
def search(
    candidates: np.ndarray, rules: Board, limit: int, stream: np.ndarray, solution: np.ndarray
) -> tuple[int, int]:
    """Depth-first search from ``candidates``, uint16 [cells] (bit d: digit d + 1 is possible).

    Returns the number of solutions, counted up to ``limit``, and the values assumed. The first solution goes
    to ``solution``, uint8 [cells]. A ``stream`` of size 4 makes the order of the values random, one of size 0
    rising.
    """
    cells = candidates.size
    frames = np.empty((cells + 1, cells), np.uint16)
    untried = np.empty(cells + 1, np.uint16)
    guessed = np.empty(cells + 1, np.int64)
    queue = np.empty(cells, np.uint8)
    found = guesses = queued = 0
    for cell in range(cells):
        frames[0, cell] = candidates[cell]
        if _BIT_COUNT[candidates[cell]] == 1:
            queue[queued] = cell
            queued += 1
    depth = 0
    consistent = _propagate(frames[0], queue, queued, np.uint32((1 << 3 * rules.size) - 1), rules)
    while True:
        if consistent:
            guessed[depth] = _fewest_candidates(frames[depth])
            if guessed[depth] < 0:
                if found == 0:
                    for cell in range(cells):
                        solution[cell] = _digit(frames[depth, cell])
                found += 1
                if found == limit:
                    return found, guesses
                consistent = False
            else:
                untried[depth] = frames[depth, guessed[depth]]
        if not consistent:
            depth -= 1
            while depth >= 0 and untried[depth] == 0:
                depth -= 1
            if depth < 0:
                return found, guesses
        value = _pick(untried[depth], stream)
        untried[depth] ^= value
        guesses += 1
        frames[depth + 1] = frames[depth]
        frames[depth + 1, guessed[depth]] = value
        queue[0] = guessed[depth]
        depth += 1
        consistent = _propagate(frames[depth], queue, 1, rules.units_of[guessed[depth - 1]], rules)


@numba.njit(cache=True, nogil=True)
def _digit(value: np.uint16) -> int:
    digit = 0
    while value:
        value >>= np.uint16(1)
        digit += 1
    return digit


@numba.njit(cache=True, nogil=True)
def set_candidates(puzzle: np.ndarray, rules: Board, candidates: np.ndarray) -> None:
    """Writes the ``candidates``, uint16 [cells], of a puzzle, uint8 [cells]; deduces nothing."""
    for cell in range(puzzle.size):
        if puzzle[cell]:
            candidates[cell] = 1 << (puzzle[cell] - 1)
        else:
            candidates[cell] = (1 << rules.size) - 1


@numba.njit(cache=True, nogil=True)
def _solve_rows(
    puzzles: np.ndarray, rules: Board, solutions: np.ndarray, counts: np.ndarray, guesses: np.ndarray
) -> None:
    candidates = np.empty(puzzles.shape[1], np.uint16)
    rising = np.empty(0, np.int64)
    for row in range(puzzles.shape[0]):
        set_candidates(puzzles[row], rules, candidates)
        counts[row], guesses[row] = search(candidates, rules, 2, rising, solutions[row])


def solve(puzzles: np.ndarray, rules: Board) -> Solved:
    """Solves puzzles, uint8 [n, cells] with 0 for a blank, on all cores."""
    n = len(puzzles)
    solved = Solved(np.zeros_like(puzzles), np.zeros(n, np.int64), np.zeros(n, np.int64))

    def solve_slice(start: int) -> None:
        part = slice(start, start + _PUZZLES_PER_TASK)
        _solve_rows(puzzles[part], rules, *(array[part] for array in solved))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(solve_slice, range(0, n, _PUZZLES_PER_TASK)))
    return solved
