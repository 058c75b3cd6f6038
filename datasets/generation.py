"""What the generators share: numbered attempts on all cores, dealt out to splits with no class in common.

An attempt is a function of (seed, number), and results are taken in the order of the numbers, so what is
generated depends neither on the number of cores nor on their speed.

Usage: ``splits = generate_splits(attempt_range, {"train": 1000, "test": 1000}, per_task=128, ...)``
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from datasets.common import InputError

_SECONDS_BETWEEN_REPORTS = 10.0


class Puzzles(NamedTuple):
    """The successes of a range of attempts, in order."""

    questions: np.ndarray  # uint8 [n, cells]
    answers: np.ndarray  # uint8 [n, cells]
    keys: np.ndarray  # uint64 [n] class keys: equivalent puzzles have equal keys
    difficulty: np.ndarray  # int64 [n]


class _Split:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.rows: list[tuple[np.ndarray, np.ndarray, np.uint64, np.int64]] = []

    @property
    def fullness(self) -> float:
        return len(self.rows) / self.wanted if self.wanted else 1.0

    def puzzles(self) -> Puzzles:
        questions, answers, keys, difficulty = zip(*self.rows, strict=True)
        return Puzzles(np.stack(questions), np.stack(answers), np.array(keys), np.array(difficulty))


def generate_splits(
    attempt_range: Callable[[int, int], Puzzles],
    wanted: Mapping[str, int],
    *,
    per_task: int,
    patience: int,
    remedy: str,
) -> dict[str, Puzzles]:
    """Distinct puzzles for each split, no class in two of them.

    ``attempt_range(start, stop)`` makes the attempts of these numbers; it is called from threads. A class
    goes whole to the split that was emptiest when it first appeared. Raises `InputError` with the ``remedy``
    if ``patience`` attempts in a row give nothing that a split still wants.
    """
    splits = {name: _Split(count) for name, count in wanted.items()}
    split_of: dict[int, _Split] = {}
    seen: set[bytes] = set()
    fruitless = 0
    reported = time.monotonic()
    for puzzles in _attempts_in_order(attempt_range, per_task):
        fruitless += per_task
        for row in zip(*puzzles, strict=True):
            question, key = row[0].tobytes(), int(row[2])
            split = split_of.get(key) or min(splits.values(), key=lambda candidate: candidate.fullness)
            if split.fullness >= 1 or question in seen:
                continue
            split_of[key] = split
            seen.add(question)
            split.rows.append(row)
            fruitless = 0
        if all(split.fullness >= 1 for split in splits.values()):
            return {name: split.puzzles() for name, split in splits.items()}
        state = ", ".join(f"{name} {len(split.rows)}/{split.wanted}" for name, split in splits.items())
        if fruitless >= patience:
            raise InputError(f"no new puzzle in {fruitless:,} attempts ({state}); {remedy}")
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            print(f"generating: {state}", file=sys.stderr, flush=True)
    raise AssertionError("the attempts never end")


def _attempts_in_order(attempt_range: Callable[[int, int], Puzzles], per_task: int) -> Iterator[Puzzles]:
    workers = os.cpu_count() or 1
    running: deque[Future[Puzzles]] = deque()
    start = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(running) < 2 * workers:
                    running.append(pool.submit(attempt_range, start, start + per_task))
                    start += per_task
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
