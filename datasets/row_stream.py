"""The endless stream of training rows, a pure function of the seed: what row is at position r?

Epoch e visits every group once, in an order drawn for (seed, e). A visit takes one drawn puzzle of the group
and all its examples, in drawn order. Epochs follow each other without a gap, so a batch may span several.

Usage: ``puzzle, example = RowStream(first_puzzle, num_puzzles, puzzle_sizes, seed=0).rows(positions)``
"""

from __future__ import annotations

import bisect
import threading
from typing import NamedTuple

import numpy as np

VISITS, EXAMPLES, SUBSET = 1, 2, 3  # purposes of random words


def random_words(seed: int, purpose: int, index: int, count: int) -> np.ndarray:
    """``count`` random uint64, a function of the arguments alone (Philox; raw words, alike in all NumPys)."""
    return np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, index]).random_raw(count)


class _Epoch(NamedTuple):
    number: int
    puzzle: np.ndarray
    example: np.ndarray


class RowStream:
    """Rows of G groups: group g has puzzles ``first_puzzle[g]`` to ``first_puzzle[g] + num_puzzles[g] - 1``.

    ``puzzle_sizes`` [P] is the number of examples of every puzzle, ``first_puzzle`` and ``num_puzzles`` are
    [G], all int64. Every group needs a puzzle with an example. Where all puzzles of a group have equally
    many, any position is found at once; otherwise the epochs before it are measured, once.
    """

    def __init__(self, first_puzzle: np.ndarray, num_puzzles: np.ndarray, puzzle_sizes: np.ndarray, seed: int):
        self._first = first_puzzle
        self._count = num_puzzles.astype(np.uint64)
        self._sizes = puzzle_sizes
        self._seed = seed
        offset = first_puzzle - (np.cumsum(num_puzzles) - num_puzzles)
        sizes = puzzle_sizes[np.arange(num_puzzles.sum()) + np.repeat(offset, num_puzzles)]
        uniform = bool((sizes == np.repeat(puzzle_sizes[first_puzzle], num_puzzles)).all())
        self._epoch_rows = int(puzzle_sizes[first_puzzle].sum()) if uniform else None
        self._starts = [0]
        self._current: _Epoch | None = None
        self._lock = threading.Lock()

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Puzzle and example, int64 [n], at ascending positions of the stream, int64 [n]. Thread-safe."""
        puzzle, example = np.empty_like(positions), np.empty_like(positions)
        done = 0
        while done < positions.size:
            with self._lock:
                number, start = self._find(int(positions[done]))
                epoch = self._epoch(number)
            end = int(np.searchsorted(positions, start + epoch.puzzle.size))
            within = positions[done:end] - start
            puzzle[done:end], example[done:end] = epoch.puzzle[within], epoch.example[within]
            done = end
        return puzzle, example

    def _find(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and the epoch's first position."""
        if self._epoch_rows is not None:
            number = position // self._epoch_rows
            return number, number * self._epoch_rows
        while self._starts[-1] <= position:
            puzzles = self._choose(len(self._starts) - 1)
            self._starts.append(self._starts[-1] + int(self._sizes[puzzles].sum()))
        number = bisect.bisect_right(self._starts, position) - 1
        return number, self._starts[number]

    def _choose(self, number: int) -> np.ndarray:
        """The puzzle of every visit of an epoch, in order."""
        groups = self._first.size
        words = random_words(self._seed, VISITS, number, 2 * groups)
        variant = ((words[groups:] >> np.uint64(32)) * self._count) >> np.uint64(32)
        return (self._first + variant.astype(np.int64))[np.argsort(words[:groups], kind="stable")]

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            puzzles = self._choose(number)
            sizes = self._sizes[puzzles]
            visit = np.repeat(np.arange(puzzles.size), sizes)
            example = np.arange(visit.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            if sizes.max() > 1:
                keys = random_words(self._seed, EXAMPLES, number, visit.size)
                example = example[np.lexsort((keys, visit))]
            self._current = _Epoch(number, puzzles[visit], example)
        return self._current
