"""What is measured of a solve, on courses made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trajectories.measures import Course, answers, drift, drifts, reliability
from trajectories.report import figure_text
from trajectories.store import open_capture


def course(preds: list[list[list[int]]], labels: list[list[int]], **fields: object) -> Course:
    """Two cells a row, the first given where ``given`` says so."""
    tokens = np.array(preds)
    rows, steps, _ = tokens.shape
    blank: dict[str, object] = {
        "given": np.zeros(np.shape(labels), bool),
        "confidence": np.ones(tokens.shape),
        "q_halt": np.zeros((rows, steps)),
        "wants_to_halt": np.zeros((rows, steps), bool),
        "steps": np.full(rows, steps),
    }
    return Course(preds=tokens, labels=np.array(labels), **{**blank, **fields})  # type: ignore[arg-type]


# Solved at step 2 and staying so; solved at step 1 and lost; never solved; without labels.
FOUR = course(
    [[[1, 3], [1, 2], [1, 2]], [[1, 2], [1, 2], [4, 2]], [[5, 5], [4, 4], [4, 4]], [[1, 1], [1, 1], [1, 1]]],
    [[1, 2], [1, 2], [1, 2], [-100, -100]],
    wants_to_halt=np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]], bool),
)


def test_when_a_puzzle_is_solved_settled_and_lost() -> None:
    assert FOUR.solved_at.tolist() == [2, 1, 0, 0]
    assert FOUR.settled_at.tolist() == [2, 3, 2, 1]
    assert FOUR.halts_at.tolist() == [2, 0, 1, 1]
    assert FOUR.lost.tolist() == [False, True, False, False]
    assert FOUR.changes.sum((1, 2)).tolist() == [1, 1, 2, 0]


def test_given_cells_are_not_asked_for() -> None:
    one = course([[[1, 3], [1, 2]]], [[1, 2]], given=np.array([[True, False]]))
    assert one.share_right().tolist() == [[0.0, 1.0]]
    assert course([[[1, 3], [1, 2]]], [[1, 2]]).share_right().tolist() == [[0.5, 1.0]]


def test_halting_table_counts_steps_that_were_run_and_rows_with_labels() -> None:
    assert FOUR.halting_table().tolist() == [[2, 2], [2, 3]]
    assert FOUR.halting_table(3).tolist() == [[1, 1], [0, 1]]
    short = course([[[1, 2], [1, 2]]], [[1, 2]], steps=np.array([1]))
    assert short.halting_table().sum() == 1


def test_reliability_by_bin() -> None:
    found = reliability(np.array([0.0, 0.05, 0.55, 1.0, 0.97]), np.array([False, True, True, True, False]))
    assert found.count.tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found.probability[[0, 5, 9]] == pytest.approx([0.025, 0.55, 0.985])
    assert found.share[[0, 5, 9]].tolist() == [0.5, 1.0, 0.5]
    assert found.calibration_error == pytest.approx((2 * 0.475 + 0.45 + 2 * 0.485) / 5)


TURNED = np.array([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 3.0]]]])  # by a right angle, then lengthened


def test_drift_of_known_vectors() -> None:
    found = drift(TURNED, np.array([3]))
    assert found.change == pytest.approx([np.sqrt(2), 2])
    assert found.cosine == pytest.approx([0, 1])


def test_a_row_that_halted_early_does_not_stand_still() -> None:
    """What is repeated after its last step counts for nothing, and a step that nobody ran has no drift."""
    halted = np.array([[[[2.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]]])
    both = drift(np.concatenate([TURNED, halted]), np.array([3, 2]))
    assert both.change == pytest.approx([np.sqrt(2), 2]) and both.cosine == pytest.approx([0, 1])
    alone = drift(halted, np.array([2]))
    assert alone.change == pytest.approx([np.sqrt(2), np.nan], nan_ok=True)
    assert alone.cosine == pytest.approx([0, np.nan], nan_ok=True)


def test_drift_is_that_of_the_latents_that_a_step_ended_with(captured: Path) -> None:
    """The last of the H-cycles and, at depth layer, of the L-cycles; of the rows asked for."""
    capture = open_capture(captured / "seen-sudoku")
    rows = np.array([9, 2, 5])
    found = drifts(capture, rows, most=2)
    for name in ("z_H", "z_L"):
        ended = capture.array(name)[rows[:2], :, -1].astype(np.float64)
        moved = np.linalg.norm(np.diff(ended, axis=1), axis=-1) / np.linalg.norm(ended[:, :-1], axis=-1)
        np.testing.assert_allclose(found[name].change, moved.mean((0, 2)))
        assert found[name].rows == 2


def test_answers_in_numbers() -> None:
    found = answers(FOUR)
    assert found["puzzles"] == 3 and found["solved in the end"] == pytest.approx(1 / 3)
    assert found["solved after the first ACT step"] == pytest.approx(1 / 3)
    assert found["ACT steps until first solved, mean of those ever solved"] == 1.5
    assert found["ACT steps until the answer settles, mean"] == pytest.approx(7 / 3)
    assert found["right after some step, wrong in the end"] == pytest.approx(1 / 3)
    assert found["cells changed after the first step, mean of solved puzzles"] == 1
    assert found["cells changed after the first step, mean of unsolved puzzles"] == 1.5
    assert found["says it is done and is"] == found["is solved and says it is done"] == 0.5
    # Full confidence at every cell: the error is the share of wrong ones, 3 and 3 of 6.
    assert found["calibration error of cells, first step"] == pytest.approx(3 / 6)
    assert found["calibration error of halting, last step"] == pytest.approx(0.5 - 1 / 3)
    assert answers(course([[[1, 1]]], [[-100, -100]])) == {}


def test_a_share_of_nothing_is_no_nought() -> None:
    silent = answers(course([[[1, 2]]], [[1, 2]]))
    assert silent["is solved and says it is done"] == 0
    nothing = ("says it is done and is", "cells changed after the first step, mean of unsolved puzzles")
    assert [figure_text(silent[name]) for name in nothing] == ["–", "–"]
    assert figure_text(silent["solved in the end"]) == "1"
