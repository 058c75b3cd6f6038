"""ARC after the vote: scores of tasks, and the files written from them.

Usage: write_text(save_dir / "submission.json", submission_json(tasks, attempts=2))
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluators.arc_rows import key_to_grid
from evaluators.voting import Candidate

# The answer handed in where nobody voted: a submission must name a grid for every test pair.
FALLBACK_GRID = [[0]]


@dataclass(frozen=True)
class ScoredPair:
    """One test pair: its answers, best first, and the key of its solution (None if that is not known)."""

    candidates: list[Candidate]
    solution: bytes | None

    @cached_property
    def rank(self) -> int | None:
        """1-based rank of the solution among the answers; None if nobody gave it or it is not known."""
        ranks = (rank for rank, answer in enumerate(self.candidates, 1) if answer.key == self.solution)
        return next(ranks, None)


@dataclass(frozen=True)
class ScoredTask:
    """One task and its test pairs, at least one."""

    name: str
    pairs: list[ScoredPair]

    @property
    def has_solutions(self) -> bool:
        """Whether every test pair's solution is known; only then can the task be scored."""
        return all(pair.solution is not None for pair in self.pairs)

    def score(self, k: int) -> float:
        """Fraction of the test pairs solved by one of the first k answers."""
        return sum(pair.rank is not None and pair.rank <= k for pair in self.pairs) / len(self.pairs)


def submission_json(tasks: Sequence[ScoredTask], attempts: int) -> str:
    """The competition's form: {task: [{"attempt_1": grid, ...}, ...]}, one entry for every test pair.

    Too few distinct answers repeat the best one; a pair without any gets `FALLBACK_GRID`.
    """
    return json.dumps({task.name: [_attempt_grids(pair, attempts) for pair in task.pairs] for task in tasks})


def _attempt_grids(pair: ScoredPair, attempts: int) -> dict[str, list[list[int]]]:
    grids = [key_to_grid(answer.key) for answer in pair.candidates[:attempts]] or [FALLBACK_GRID]
    grids += grids[:1] * (attempts - len(grids))
    return {f"attempt_{number}": grid for number, grid in enumerate(grids, 1)}


def attempts_json(tasks: Sequence[ScoredTask], attempts: int) -> str:
    """{task: [[{"grid", "votes", "confidence", "correct"}, ...] for each test pair]}, for people to see.

    "correct" is null where the solution is not known.
    """
    return json.dumps(
        {
            task.name: [[_attempt(pair, answer) for answer in pair.candidates[:attempts]] for pair in task.pairs]
            for task in tasks
        }
    )


def _attempt(pair: ScoredPair, candidate: Candidate) -> dict[str, Any]:
    return {
        "grid": key_to_grid(candidate.key),
        "votes": candidate.votes,
        "confidence": round(candidate.confidence, 6),
        "correct": None if pair.solution is None else candidate.key == pair.solution,
    }


def tasks_csv(tasks: Sequence[ScoredTask], pass_Ks: Sequence[int]) -> str:
    """One line a task; `rank` is the solution's for each test pair: "-" not among the answers, "?" unknown.

    The pass@K of a task without solutions are left empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "test_pairs", "votes", "distinct", "rank", *(f"pass@{k}" for k in pass_Ks)])
    for task in tasks:
        answers = [answer for pair in task.pairs for answer in pair.candidates]
        ranks = " ".join("?" if pair.solution is None else str(pair.rank or "-") for pair in task.pairs)
        scores = [f"{task.score(k):.6g}" if task.has_solutions else "" for k in pass_Ks]
        votes = sum(answer.votes for answer in answers)
        writer.writerow([task.name, len(task.pairs), votes, len(answers), ranks, *scores])
    return text.getvalue()
