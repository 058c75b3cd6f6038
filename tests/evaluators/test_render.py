"""Pictures: which cell gets which colour, digit and mark, which steps are shown, and what is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from datasets.common import PuzzleDatasetMetadata
from evaluators import grid_drawing, render
from evaluators.grid_drawing import GridMarks, draw_grid
from evaluators.render import draw_arc_task, draw_film_strip, grid_shape, steps_to_show

SUDOKU_4 = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]) + 1


def metadata(seq_len: int, **fields: Any) -> PuzzleDatasetMetadata:
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=12,
        seq_len=seq_len,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1,
        sets=["all"],
        **fields,
    )


def painted(
    kind: Literal["arc", "sudoku", "maze"], tokens: np.ndarray, marks: GridMarks | None = None, **options: Any
) -> tuple[Any, list[list[str]]]:
    """The axes and the colour under every cell, as it shows on paper."""
    axes = Figure(figsize=(2, 2)).add_axes((0, 0, 1, 1))
    draw_grid(axes, kind, tokens, marks, **options)
    image = np.asarray(axes.images[0].get_array())
    assert image.shape[:2] == tokens.shape
    on_paper = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return axes, [[to_hex(cell) for cell in row] for row in on_paper]


def points(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xydata())


def mask(shape: tuple[int, ...], *cells: tuple[int, int]) -> np.ndarray:
    marked = np.zeros(shape, bool)
    for cell in cells:
        marked[cell] = True
    return marked


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of all pictures drawn in the test."""
    drawn: list[Figure] = []
    save = render.Sheet.save

    def remember(sheet: render.Sheet, path: Path) -> Path:
        drawn.append(sheet.figure)
        return save(sheet, path)

    monkeypatch.setattr(render.Sheet, "save", remember)
    return drawn


def words(figure: Figure) -> list[str]:
    texts = [text.get_text() for axes in figure.axes for text in axes.texts] + [t.get_text() for t in figure.texts]
    return [text for text in texts if text and not text.isdigit()]


def test_arc_colours_are_the_well_known_ones() -> None:
    tokens = np.array([[2, 3, 4, 5, 6], [7, 8, 9, 10, 11], [0, 1, 12, -100, 2]])
    _, cells = painted("arc", tokens)
    assert cells[0] == ["#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00"]
    assert cells[1] == ["#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25"]
    assert cells[2] == [grid_drawing.ARC_NO_COLOUR] * 4 + ["#000000"]


def test_arc_confidence_fades_and_crosses_mark_wrong_cells() -> None:
    tokens = np.full((2, 3), 2)
    confidence = np.array([[0.0, 0.5, 1.0]] * 2)
    axes, cells = painted("arc", tokens, GridMarks(wrong=mask((2, 3), (1, 0)), confidence=confidence))
    shades = [int(cell[1:3], 16) for cell in cells[0]]
    assert shades[0] > shades[1] > shades[2] == 0
    assert shades[0] == round(255 * (1 - grid_drawing.FAINTEST))
    assert [points(line).tolist() for line in axes.lines] == [[[0.5, 1.5]]] * 2


def test_sudoku_digits_and_their_styles() -> None:
    tokens = SUDOKU_4.copy()
    tokens[3, 3] = 1
    shape = tokens.shape
    marks = GridMarks(
        given=mask(shape, (0, 0)),
        wrong=mask(shape, (0, 1)),
        changed=mask(shape, (0, 1), (0, 2)),
        confidence=np.full(shape, 0.2),
    )
    axes, cells = painted("sudoku", tokens, marks, box=(2, 2))
    written = {(text.get_position()[0] - 0.5, int(text.get_position()[1])): text for text in axes.texts}
    assert {place: text.get_text() for place, text in written.items()} == {
        (x, y): str(SUDOKU_4[y, x] - 1) for x in range(4) for y in range(4) if (x, y) != (3, 3)
    }
    clue, wrong, plain = written[0, 0], written[1, 0], written[2, 0]
    assert (clue.get_weight(), plain.get_weight()) == ("bold", "normal")
    assert [text.get_color() for text in (clue, wrong, plain)] == [
        grid_drawing.INK,
        grid_drawing.WRONG,
        grid_drawing.ANSWER,
    ]
    assert (clue.get_alpha(), plain.get_alpha()) == (1.0, pytest.approx(0.4))
    assert cells[0] == [
        grid_drawing.GIVEN_CELL,
        grid_drawing.WRONG_CELL,
        grid_drawing.CHANGED_CELL,
        grid_drawing.PAPER,
    ]


@pytest.mark.parametrize(
    ("box", "heights", "offsets"),
    [((2, 3), [0, 2, 4, 6], [0, 3, 6]), ((3, 2), [0, 3, 6], [0, 2, 4, 6]), (None, [0, 6], [0, 6])],
)
def test_sudoku_box_lines(box: tuple[int, int] | None, heights: list[int], offsets: list[int]) -> None:
    axes, _ = painted("sudoku", np.full((6, 6), 1), box=box)
    thin, thick = axes.collections
    assert len(thin.get_segments()) == 14
    ends = [(start.tolist(), end.tolist()) for start, end in thick.get_segments()]
    across = [([0, y], [6, y]) for y in heights]
    assert ends == across + [([x, 0], [x, 6]) for x in offsets]


def test_maze_cells() -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [5, 2, 5, 2, 1]])
    marks = GridMarks(wrong=mask((2, 5), (1, 0), (1, 1)))
    axes, cells = painted("maze", tokens, marks)
    wall, path = grid_drawing.MAZE_PALETTE[1], grid_drawing.ANSWER
    assert cells[0] == [wall, grid_drawing.PAPER, grid_drawing.RIGHT, grid_drawing.HALT, path]
    assert cells[1] == [grid_drawing.WRONG, grid_drawing.MISSING_CELL, path, grid_drawing.PAPER, wall]
    assert [points(line).tolist() for line in axes.lines] == [[[2.5, 0.5]], [[3.5, 0.5]]]


def test_steps_to_show_are_those_that_changed() -> None:
    history = np.array([0, 0, 1, 1, 2, 3, 3, 4, 4, 4])[:, None]
    assert steps_to_show(history, 9) == [0, 2, 4, 5, 7]
    assert steps_to_show(history, 3) == [0, 4, 7]
    assert steps_to_show(history, 2) == [0, 7]
    assert steps_to_show(np.zeros((16, 4)), 6) == [0]
    assert steps_to_show(np.array([[1], [2], [1]]), 6) == [0, 1, 2]


def test_grid_shape() -> None:
    assert grid_shape(metadata(81)) == (9, 9)
    assert grid_shape(metadata(12, grid=(3, 4))) == (3, 4)
    with pytest.raises(ValueError, match="3x4 grid does not hold seq_len=81"):
        grid_shape(metadata(81, grid=(3, 4)))


def sudoku_film(path: Path, **changes: Any) -> Path:
    label = SUDOKU_4.ravel()
    inputs = np.where(np.arange(16) % 2, 1, label)
    first, second = label.copy(), label.copy()
    first[[1, 3, 5]], second[5] = 2, 2
    arguments: dict[str, Any] = {
        "kind": "sudoku",
        "inputs": inputs,
        "label": label,
        "per_step_preds": np.stack([first, second, second, label, label]),
        "per_step_confidence": np.full((5, 16), 0.6),
        "q_halt": np.array([-3.0, -1, 0, 2, 4]),
        "path": path,
        "metadata": metadata(16, grid=(4, 4), box=(2, 2)),
    }
    return draw_film_strip(**arguments | changes)


def test_film_strip_tells_the_story(tmp_path: Path, figures: list[Figure]) -> None:
    path = sudoku_film(tmp_path / "pictures" / "film.png")
    chart = ["ACT step", "halting probability", "cells right"]
    panels = ["puzzle", "step 1", "5 of 8 right", "step 2", "7 of 8 right", "step 4", "solved ✓"]
    assert words(figures[0]) == panels + chart
    halting, cells = (line for line in map(points, figures[0].axes[-1].lines) if len(line) == 5)
    assert cells[:, 1].tolist() == [5 / 8, 7 / 8, 7 / 8, 1, 1]
    assert halting[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert halting[:, 1] == pytest.approx(1 / (1 + np.exp([3.0, 1, 0, -2, -4])))
    below, above = (text.xy[1] for text in figures[0].axes[-1].texts[1:] if isinstance(text, Annotation))
    assert above == 1
    assert 0 < below <= 0.8, "the names of two curves that end together must not overlap"
    picture = imread(path)
    assert 1000 <= picture.shape[1] <= 2000
    assert picture[2, 2, :3].tolist() == [1, 1, 1]
    assert list(path.parent.iterdir()) == [path]


def test_film_strip_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = sudoku_film(tmp_path / "one.png"), sudoku_film(tmp_path / "two.png", per_step_confidence=None)
    assert one.read_bytes() == sudoku_film(tmp_path / "three.png").read_bytes()
    assert one.read_bytes() != two.read_bytes()


def test_a_changed_clue_is_not_solved(tmp_path: Path, figures: list[Figure]) -> None:
    label = SUDOKU_4.ravel()
    spoiled = label.copy()
    spoiled[0] = label[1]
    sudoku_film(tmp_path / "a.png", per_step_preds=spoiled[None], q_halt=np.zeros(1), per_step_confidence=None)
    assert "solved ✓" not in words(figures[0])
    assert "given cells changed" in words(figures[0])


def arc_row(grid: list[list[int]], pad: int) -> np.ndarray:
    canvas = np.full((5, 5), pad)
    height, width = len(grid), len(grid[0])
    canvas[: height + 1, : width + 1] = 1
    canvas[height, width] = pad
    canvas[:height, :width] = np.array(grid) + 2
    return canvas.ravel()


@pytest.mark.parametrize("known", [True, False])
def test_film_strip_of_arc_shows_the_whole_answer(tmp_path: Path, figures: list[Figure], known: bool) -> None:
    label = arc_row([[1, 2], [3, 4]], -100)
    right, large = arc_row([[1, 2], [3, 4]], 0), arc_row([[1, 2, 5], [3, 4, 5]], 0)
    draw_film_strip(
        "arc",
        arc_row([[7]], 0),
        label if known else np.full(25, -100),
        np.stack([right, large]),
        None,
        np.zeros(2),
        tmp_path / "arc.png",
        metadata(25),
    )
    panels = figures[0].axes[:3]
    assert [np.asarray(axes.images[0].get_array()).shape[:2] for axes in panels] == [(2, 3)] * 3
    told = words(figures[0])
    assert [word in told for word in ("solved ✓", "cells right")] == [known, known]
    assert any("of" in word for word in told) == known
    crosses = [points(line).tolist() for line in panels[2].lines]
    assert crosses == [[[2.5, 0.5], [2.5, 1.5]] if known else []] * 2


def test_film_strip_of_a_maze(tmp_path: Path, figures: list[Figure]) -> None:
    label = np.array([3, 5, 1, 1, 5, 4, 2, 2, 2])
    inputs = np.where(label == 5, 2, label)
    draw_film_strip(
        "maze", inputs, label, np.stack([inputs, label]), None, np.zeros(2), tmp_path / "m.png", metadata(9)
    )
    assert "3 of 5 right" in words(figures[0])
    assert "solved ✓" in words(figures[0])


TASK: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2], [1]]}, {"input": [[3]], "output": [[3]]}],
    "test": [{"input": [[4, 5]], "output": [[5], [4]]}, {"input": [[6]]}],
}


def test_arc_task_shows_every_attempt(tmp_path: Path, figures: list[Figure]) -> None:
    attempts = [
        [
            {"grid": [[5], [4]], "votes": 7, "correct": True},
            {"grid": [[1]], "votes": 1, "correct": False},
            {"grid": [[2]], "votes": 1, "correct": None},
        ],
        [],
    ]
    path = draw_arc_task(TASK, attempts, tmp_path / "task.png")
    demonstrations = ["example 1", "↓", "example 2", "↓"]
    first = [
        "test 1",
        "↓",
        "solution",
        "attempt 1",
        "7 votes ✓",
        "attempt 2",
        "1 vote ✗",
        "attempt 3",
        "1 vote",
    ]
    assert words(figures[0]) == [*demonstrations, *first, "test 2", "↓", "?", "no answer"]
    grids = [np.asarray(axes.images[0].get_array()).shape[:2] for axes in figures[0].axes if axes.images]
    assert grids == [(1, 2), (2, 1), (1, 1), (1, 1), (1, 2), (2, 1), (2, 1), (1, 1), (1, 1), (1, 1)]
    places = [axes.get_position(original=True) for axes in figures[0].axes if axes.images]
    assert len({(place.x0, place.y0) for place in places}) == len(places), "two grids in one place"
    width, height = figures[0].get_size_inches()
    for axes in figures[0].axes:
        place = axes.get_position()
        assert 0 <= place.x0 < place.x1 <= 1
        assert 0 <= place.y0 < place.y1 <= 1
    assert imread(path).shape[:2] == (round(height * 200), int(width * 200))


def test_an_unknown_format_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        draw_arc_task(TASK, [[], []], tmp_path / "task.xyz")
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_no_global_state() -> None:
    code = "import sys, evaluators.render; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
