"""Films of a solve: what is written beside the grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from evaluators.render import Sheet
from tests.trajectories.made import made_solves
from trajectories.film import write_film
from trajectories.solve import Solve


@pytest.fixture
def spoilt() -> Solve:
    """An asked cell is wrong at first, then one that was given is."""
    solve = made_solves("sudoku", 4, 6, rows=1, steps=3)[0]
    preds = np.stack([solve.labels] * 3)
    for frame, cells in enumerate((solve.asked, solve.given)):
        cell = cells.argmax()
        preds[frame, cell] = 2 if preds[frame, cell] > 2 else 3
    return replace(solve, preds=preds)


def test_a_film_names_given_cells_that_were_changed(
    spoilt: Solve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []

    def keep(sheet: Sheet, left: float, top: float, text: str, **style: Any) -> None:
        said.append(text)

    monkeypatch.setattr(Sheet, "text", keep)
    write_film(spoilt, tmp_path / "a.gif")
    count = spoilt.asked.sum()
    verdicts = [f"{count - 1} of {count} right", f"{count} of {count} right, 1 given changed", "solved ✓"]
    assert said[2::3] == verdicts


def test_a_film_strip_does_too(spoilt: Solve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []

    def keep(sheet: Sheet, path: Path) -> Path:
        figures.append(sheet.figure)
        return path

    monkeypatch.setattr(Sheet, "save", keep)
    write_film(spoilt, tmp_path / "a.png")
    said = [text.get_text() for text in figures[0].findobj(Text)]
    count = spoilt.asked.sum()
    verdicts = [f"{count - 1} of {count} right", "given cells changed", "solved ✓"]
    assert [text for text in said if text in verdicts] == verdicts
