"""The values that are drawn in the charts of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluators.render import Sheet
from tests.trajectories.test_measures import FOUR, TURNED
from trajectories.charts import write_charts
from trajectories.measures import drift
from trajectories.store import Header

COURSE = replace(FOUR, wants_to_halt=np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]], bool))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The charts of `COURSE`, two cells beside each other, and of the latents `TURNED`."""
    figures: dict[str, Figure] = {}

    def keep(sheet: Sheet, path: Path) -> Path:
        figures[path.stem] = sheet.figure
        return path

    monkeypatch.setattr(Sheet, "save", keep)
    header = Header.model_construct(grid=(1, 2))
    drifts = {"z_H": drift(TURNED, np.array([3])), "z_L": drift(TURNED[..., ::-1] * [2, 1], np.array([3]))}
    titles = {path.stem: title for path, title in write_charts(COURSE, drifts, header, Path())}
    assert titles["drift"].endswith("first 1 rows")
    return figures


def curves(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), float).tolist() for line in axes.lines}


def bars(axes: Axes) -> dict[str, list[float]]:
    containers: Any = axes.containers
    return {found.get_label(): [bar.get_height() for bar in found.patches] for found in containers}


def test_what_is_right_after_each_step(drawn: dict[str, Figure]) -> None:
    found = curves(drawn["accuracy"].axes[0])
    assert found["puzzles solved"] == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert found["cells right"] == pytest.approx([3 / 6, 4 / 6, 3 / 6])
    assert found["halting probability"] == [0.5, 0.5, 0.5]


def test_when_puzzles_are_solved_settled_and_done(drawn: dict[str, Figure]) -> None:
    """How many never, and after steps 1, 2 and 3; of the three rows with labels."""
    assert bars(drawn["steps"].axes[0]) == {
        "first solved": [1, 1, 1, 0],
        "answer settled": [0, 0, 2, 1],
        "says it is done": [0, 2, 0, 1],
    }


def test_which_cells_are_revised(drawn: dict[str, Figure]) -> None:
    places, _, cells = drawn["flips"].axes
    assert np.asarray(places.images[0].get_array()).tolist() == [[2 / 4, 2 / 4]]
    assert [*bars(cells).values()] == [[4 / 8, 4 / 8]]  # unchanged, changed once


def test_probabilities_beside_outcomes(drawn: dict[str, Figure]) -> None:
    cells, puzzles = (curves(axes) for axes in drawn["reliability"].axes)
    shares = [values for label, values in cells.items() if label.startswith("_")]
    assert shares[1:] == [[3 / 6], [3 / 6]]  # after the diagonal; all confidence is 1
    assert [values for label, values in puzzles.items() if label.startswith("_")][1:] == [[pytest.approx(1 / 3)]]


def test_halting_beside_being_solved(drawn: dict[str, Figure]) -> None:
    tables = [np.asarray(axes.images[0].get_array()).tolist() for axes in drawn["halting"].axes]
    assert tables == [COURSE.halting_table().tolist(), COURSE.halting_table(3).tolist()]
    assert [text.get_text().split("\n")[0] for text in drawn["halting"].axes[1].texts] == ["1", "2", "0", "0"]


def test_a_model_of_one_step(tmp_path: Path) -> None:
    once = replace(
        COURSE, preds=COURSE.preds[:, :1], confidence=COURSE.confidence[:, :1], q_halt=COURSE.q_halt[:, :1],
        wants_to_halt=COURSE.wants_to_halt[:, :1], steps=np.ones(4, int),
    )  # fmt: skip
    assert once.settled_at.tolist() == [1, 1, 1, 1]
    drifts = {"z_H": drift(TURNED[:, :1], np.array([1]))}
    assert len(write_charts(once, drifts, Header.model_construct(grid=(1, 2)), tmp_path)) == 6


def test_how_far_latents_move(drawn: dict[str, Figure]) -> None:
    change, cosine = drawn["drift"].axes
    assert curves(change)["z_H"] == pytest.approx([np.sqrt(2), 2]) != curves(change)["z_L"]
    assert curves(cosine)["z_H"] == pytest.approx([0, 1])
    assert all(tick == int(tick) for axes in (change, cosine) for tick in axes.get_xticks())
