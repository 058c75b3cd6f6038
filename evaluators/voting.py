"""Votes for grids: counts and confidences that add up to the same bits in any order, on any number of ranks.

Confidences are summed as integers in fixed point, which no order of the rows can change. Candidates rank by
(votes, mean confidence), then by the grid's own bytes, so that no tie is left to chance.

Usage: votes = Votes(); votes.add(question, key, confidence); votes.ranked(question)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

FIXED_POINT_BITS = 48


@dataclass(frozen=True)
class Candidate:
    """One distinct answer: the grid's key, how many rows gave it, their mean confidence in [0, 1]."""

    key: bytes
    votes: int
    confidence: float


def as_fixed_point(confidence: np.ndarray) -> list[int]:
    """Confidences in [0, 1] as integers, in units of 2**-48."""
    return np.rint(np.asarray(confidence, np.float64) * 2**FIXED_POINT_BITS).astype(np.int64).tolist()


@dataclass
class Votes:
    """Per question, per grid key: (number of votes, sum of confidences in fixed point)."""

    by_question: dict[Hashable, dict[bytes, tuple[int, int]]] = field(default_factory=dict)

    def add(self, question: Hashable, key: bytes, confidence: int) -> None:
        """One vote; `confidence` from `as_fixed_point`."""
        answers = self.by_question.setdefault(question, {})
        count, total = answers.get(key, (0, 0))
        answers[key] = count + 1, total + confidence

    @staticmethod
    def merged(parts: Iterable[Votes]) -> Votes:
        """The sum of several ballots, which are left as they are."""
        whole = Votes()
        for part in parts:
            for question, answers in part.by_question.items():
                target = whole.by_question.setdefault(question, {})
                for key, (votes, confidence) in answers.items():
                    count, total = target.get(key, (0, 0))
                    target[key] = count + votes, total + confidence
        return whole

    def ranked(self, question: Hashable) -> list[Candidate]:
        """Distinct answers, best first; empty if nobody voted."""
        answers = self.by_question.get(question, {})
        best_first = sorted(answers.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
        return [Candidate(key, count, total / (count << FIXED_POINT_BITS)) for key, (count, total) in best_first]
