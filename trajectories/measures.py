"""What captured solves say: when puzzles are solved, which cells are revised, whether confidence can be trusted.

Pure functions of arrays with n rows, T ACT steps and L cells. Usage: ``course = Course.of(capture); course.solved_at``
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datasets.common import IGNORE_LABEL_ID
from evaluators.render import given_cells
from trajectories.store import Capture

BINS = 10


@dataclass(frozen=True)
class Course:
    """`preds` [n, T, L] tokens; `labels`, `given` [n, L]; `confidence` [n, T, L]; `q_halt` float [n, T];
    `wants_to_halt` bool [n, T]; `steps` [n], ACT steps that each row ran, after which its arrays repeat."""

    preds: NDArray
    labels: NDArray
    given: NDArray[np.bool_]
    confidence: NDArray
    q_halt: NDArray
    wants_to_halt: NDArray[np.bool_]
    steps: NDArray

    @staticmethod
    def of(capture: Capture, positions: NDArray[np.int64] | None = None) -> Course:
        """The captured rows, or those at `positions`."""

        def read(name: str) -> NDArray:
            return capture.array(name, positions)

        return Course(
            preds=read("step_preds"),
            labels=read("labels"),
            given=given_cells(capture.header.kind, read("inputs")),
            confidence=read("step_confidence"),
            q_halt=read("step_q_halt_logits").astype(np.float64),
            wants_to_halt=read("step_wants_to_halt"),
            steps=read("steps"),
        )

    @property
    def max_steps(self) -> int:
        return self.preds.shape[1]

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """[n, L]: the cells whose answer is known."""
        return self.labels != IGNORE_LABEL_ID

    @cached_property
    def asked(self) -> NDArray[np.bool_]:
        """[n, L]: those of them that the puzzle does not give."""
        return self.labelled & ~self.given

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """[n, T, L]"""
        return self.labelled[:, None] & (self.preds == self.labels[:, None])

    @cached_property
    def solved(self) -> NDArray[np.bool_]:
        """[n, T]: whether every labelled cell is right; never for a row without labels."""
        return (self.right.sum(2) == self.labelled.sum(1)[:, None]) & np.any(self.labelled, axis=1)[:, None]

    @property
    def solved_at(self) -> NDArray[np.int64]:
        """[n]: the first ACT step, from 1, after which the whole answer is right; 0: none."""
        return _first(self.solved)

    @property
    def halts_at(self) -> NDArray[np.int64]:
        """[n]: the first ACT step at which the halting head says that it is done; 0: none."""
        return _first(self.wants_to_halt)

    @cached_property
    def changes(self) -> NDArray[np.bool_]:
        """[n, T - 1, L]: the cells whose token is not that of the step before."""
        return self.preds[:, 1:] != self.preds[:, :-1]

    @property
    def settled_at(self) -> NDArray[np.int64]:
        """[n]: the ACT step after which the answer does not change any more."""
        came = np.pad(np.any(self.changes, axis=2), ((0, 0), (1, 0)), constant_values=True)
        return self.max_steps - came[:, ::-1].argmax(1)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """[n]: rows whose answer was right after some step and is not in the end."""
        return np.any(self.solved, axis=1) & ~self.solved[:, -1]

    @property
    def halt_probability(self) -> NDArray[np.float64]:
        """[n, T]"""
        return 1 / (1 + np.exp(-self.q_halt))

    def share_right(self) -> NDArray[np.float64]:
        """[n, T]: of the cells asked for."""
        right = (self.right & self.asked[:, None]).sum(2)
        return right / np.maximum(self.asked.sum(1), 1)[:, None]

    def halting_table(self, step: int | None = None) -> NDArray[np.int64]:
        """Rows [says it is done, does not] by columns [solved, not solved], counted after ACT step `step`, or after
        every step that a row ran."""
        ran = np.arange(1, self.max_steps + 1) <= self.steps[:, None]
        counted = ran & np.any(self.labelled, axis=1)[:, None]
        if step is not None:
            counted &= np.arange(1, self.max_steps + 1) == step
        wants, solved = self.wants_to_halt[counted], self.solved[counted]
        return np.array([[(w & s).sum() for s in (solved, ~solved)] for w in (wants, ~wants)])


def _first(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(np.any(flags, axis=1), flags.argmax(1) + 1, 0)


@dataclass(frozen=True)
class Reliability:
    """By bin of equal width in [0, 1]: how many, their mean probability, and how many of them came true [BINS]."""

    count: NDArray[np.int64]
    probability: NDArray[np.float64]
    share: NDArray[np.float64]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean distance of probability and outcome over the bins, by their size."""
        return float((np.abs(self.probability - self.share) * self.count).sum() / max(1, self.count.sum()))


def reliability(probability: NDArray, outcome: NDArray[np.bool_]) -> Reliability:
    """Of predictions [m] in [0, 1] and what came true [m]."""
    probability = probability.astype(np.float64)
    where = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(where, minlength=BINS)
    divisor = np.maximum(count, 1)
    return Reliability(
        count,
        np.bincount(where, probability, minlength=BINS) / divisor,
        np.bincount(where, outcome.astype(np.float64), minlength=BINS) / divisor,
    )


@dataclass(frozen=True)
class Drift:
    """How a latent moves from one ACT step to the next, a mean over rows and positions [T - 1]; nan where no row did.

    `change` is ‖z_t − z_(t−1)‖ / ‖z_(t−1)‖, `cosine` that between z_t and z_(t−1); `rows` were measured.
    """

    change: NDArray[np.float64]
    cosine: NDArray[np.float64]
    rows: int


def drift(latents: NDArray, ran: NDArray) -> Drift:
    """Of latents [n, T, length, hidden_size], those that each ACT step ended with, over the steps that a row `ran`
    [n]: thereafter its arrays repeat, which is no standing still."""
    before, after = latents[:, :-1].astype(np.float64), latents[:, 1:].astype(np.float64)
    norms = np.linalg.norm(latents.astype(np.float64), axis=-1)
    moved = np.arange(2, latents.shape[1] + 1) <= ran[:, None]
    change = np.linalg.norm(after - before, axis=-1) / np.maximum(norms[:, :-1], 1e-12)
    cosine = (before * after).sum(-1) / np.maximum(norms[:, :-1] * norms[:, 1:], 1e-12)
    return Drift(_mean_of_moved(change, moved), _mean_of_moved(cosine, moved), len(latents))


def _mean_of_moved(values: NDArray, moved: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of values [n, T - 1, length] over the rows that moved [n, T - 1]."""
    total, count = np.where(moved, values.mean(2), 0).sum(0), moved.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def drifts(capture: Capture, positions: NDArray[np.int64], most: int = 64) -> dict[str, Drift]:
    """Of z_H and z_L, over the first rows at `positions`, `most` of them at most; nothing where latents were not
    captured."""
    found: dict[str, Drift] = {}
    measured = positions[:most]
    for name in ("z_H", "z_L"):
        if name in capture.names:
            latents = capture.array(name, measured)[:, :, -1]  # of the last H-cycle
            last = latents[:, :, -1] if capture.header.depth == "layer" and name == "z_L" else latents
            found[name] = drift(last, capture.array("steps", measured))
    return found


def answers(course: Course) -> dict[str, float]:
    """The questions of the guide to captured results, in numbers, over the rows with labels; empty without any.

    nan is a mean or a share of nothing, as of what a halting head that never speaks says.
    """
    known = np.any(course.labelled, axis=1)
    if not known.any():
        return {}
    solved_at, right, asked = course.solved_at[known], course.right[:, [0, -1]], course.asked
    in_the_end = course.solved[known, -1]
    changes = course.changes.sum((1, 2))[known]
    (done_right, done_wrong), (on_right, _) = course.halting_table()
    first, last = (reliability(course.confidence[:, t][asked], right[:, t][asked]) for t in (0, -1))
    halting = reliability(course.halt_probability[known, -1], in_the_end)
    found = {
        "puzzles": float(known.sum()),
        "solved in the end": float(in_the_end.mean()),
        "solved after the first ACT step": float((solved_at == 1).mean()),
        "ACT steps until first solved, mean of those ever solved": _mean(solved_at[solved_at > 0]),
        "ACT steps until the answer settles, mean": _mean(course.settled_at[known]),
        "right after some step, wrong in the end": float(course.lost[known].mean()),
        "cells changed after the first step, mean of solved puzzles": _mean(changes[in_the_end]),
        "cells changed after the first step, mean of unsolved puzzles": _mean(changes[~in_the_end]),
        "says it is done and is": _share(done_right, done_right + done_wrong),
        "is solved and says it is done": _share(done_right, done_right + on_right),
        "calibration error of cells, first step": first.calibration_error,
        "calibration error of cells, last step": last.calibration_error,
        "calibration error of halting, last step": halting.calibration_error,
    }
    return {name: float(value) for name, value in found.items()}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")
