"""Random Sudoku with one solution: fill a grid, then take clues away while the solution stays the only one.

Where a difficulty is asked for, a puzzle climbs to it: a few clues are dropped, what is left is completed to
another grid at random, clues are taken away again (the kept ones last), and the new puzzle replaces the old
one unless it is easier. Difficulty is the number of guesses of `datasets.sudoku_solver`.

Usage: ``puzzles = generate(board(9), seed=0, start=0, stop=256, clues=(0, 0), min_guesses=0)``
"""

from __future__ import annotations

import numba
import numpy as np

from datasets.augment import counter_shuffle
from datasets.generation import Puzzles
from datasets.sudoku_classes import class_keys
from datasets.sudoku_solver import Board, draw_below, search, set_candidates

_CLIMB_STEPS = 500
_MOST_DROPPED = 2
_STREAM = -1  # the draws of the generator; augmentations use the counters from 0


def generate(rules: Board, *, seed: int, start: int, stop: int, clues: tuple[int, int], min_guesses: int) -> Puzzles:
    """The puzzles of attempts start to stop - 1; an attempt that misses ``min_guesses`` gives none.

    Each puzzle keeps at least a number of clues drawn from ``clues`` (lowest, highest); 0 makes it minimal.
    """
    cells = rules.size * rules.size
    puzzles = np.zeros((stop - start, cells), np.uint8)
    solutions = np.zeros_like(puzzles)
    guesses = np.zeros(stop - start, np.int64)
    _make_rows(rules, seed, start, clues[0], clues[1], min_guesses, puzzles, solutions, guesses)
    made = guesses >= min_guesses
    puzzles, solutions = puzzles[made], solutions[made]
    return Puzzles(puzzles, solutions, class_keys(puzzles, solutions, rules), guesses[made])


@numba.njit(cache=True, nogil=True)
def _make_rows(
    rules: Board,
    seed: int,
    start: int,
    fewest_clues: int,
    most_clues: int,
    min_guesses: int,
    puzzles: np.ndarray,
    solutions: np.ndarray,
    guesses: np.ndarray,
) -> None:
    stream = np.empty(4, np.int64)
    blank = np.zeros(puzzles.shape[1], np.uint8)
    for row in range(puzzles.shape[0]):
        stream[:] = (seed, start + row, _STREAM, 0)
        clues = fewest_clues + draw_below(stream, most_clues - fewest_clues + 1)
        guesses[row] = _reduce(blank, clues, rules, stream, puzzles[row], solutions[row])
        _climb(clues, min_guesses, rules, stream, puzzles[row], solutions[row], guesses[row : row + 1])


@numba.njit(cache=True, nogil=True)
def _climb(
    clues: int,
    min_guesses: int,
    rules: Board,
    stream: np.ndarray,
    puzzle: np.ndarray,
    solution: np.ndarray,
    guesses: np.ndarray,
) -> None:
    """Moves to harder neighbours, in place, until ``guesses`` [1] reaches the minimum or steps run out."""
    kept = np.empty_like(puzzle)
    neighbour = np.empty_like(puzzle)
    neighbour_solution = np.empty_like(solution)
    for _ in range(_CLIMB_STEPS):
        if guesses[0] >= min_guesses:
            return
        kept[:] = puzzle
        given = np.flatnonzero(puzzle)
        for _ in range(1 + draw_below(stream, _MOST_DROPPED)):
            kept[given[draw_below(stream, given.size)]] = 0
        harder = _reduce(kept, clues, rules, stream, neighbour, neighbour_solution)
        if harder >= guesses[0]:
            guesses[0] = harder
            puzzle[:] = neighbour
            solution[:] = neighbour_solution


@numba.njit(cache=True, nogil=True)
def _reduce(
    kept: np.ndarray, clues: int, rules: Board, stream: np.ndarray, puzzle: np.ndarray, solution: np.ndarray
) -> int:
    """Completes ``kept`` at random to ``solution`` and takes clues away down to ``puzzle``; returns its
    guesses.

    Clues of ``kept`` are tried last, so most of them stay. A clue can go if the search finds no solution with
    another digit in its cell.
    """
    candidates = np.empty(kept.size, np.uint16)
    other = np.empty_like(solution)
    rising = np.empty(0, np.int64)
    set_candidates(kept, rules, candidates)
    search(candidates, rules, 1, stream, solution)
    puzzle[:] = solution
    set_candidates(puzzle, rules, candidates)
    left = puzzle.size
    for cell in _removal_order(kept, stream):
        if left <= clues:
            break
        digit = candidates[cell]
        candidates[cell] = ((1 << rules.size) - 1) ^ digit
        if search(candidates, rules, 1, rising, other)[0]:
            candidates[cell] = digit
        else:
            candidates[cell] = (1 << rules.size) - 1
            puzzle[cell] = 0
            left -= 1
    return search(candidates, rules, 2, rising, other)[1]


@numba.njit(cache=True, nogil=True)
def _removal_order(kept: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """All cells in random order, those of ``kept`` after the others."""
    order = np.arange(kept.size)
    stream[3] = counter_shuffle(order, stream[0], stream[1], stream[2], stream[3] + 1)
    late = kept[order] != 0
    return np.concatenate((order[~late], order[late]))
