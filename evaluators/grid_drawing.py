"""One grid on one matplotlib axes: ARC, Sudoku or maze, with what a prediction got wrong or changed.

Usage: draw_grid(axes, "sudoku", tokens, GridMarks(given=tokens > 1), box=(3, 3))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba, to_rgba_array

from datasets.common import ARC_COLOUR_0, ARC_COLOURS

Kind = Literal["arc", "sudoku", "maze"]

PAPER, INK, MUTED, RULE = "#ffffff", "#1f2937", "#6b7280", "#c3c9d2"
ANSWER, WRONG, RIGHT, HALT = "#2563eb", "#dc2626", "#15803d", "#d97706"
GIVEN_CELL, CHANGED_CELL, WRONG_CELL, MISSING_CELL = "#eef1f5", "#fff4c2", "#fde4e4", "#f9b4b4"

ARC_PALETTE = (
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
)
ARC_NO_COLOUR, ARC_RULE = "#f3f4f6", "#5b6470"

SUDOKU_BLANK = 1
MAZE_WALL, MAZE_FREE, MAZE_START, MAZE_GOAL, MAZE_PATH = 1, 2, 3, 4, 5
MAZE_PALETTE = {MAZE_WALL: "#3b4657", MAZE_START: RIGHT, MAZE_GOAL: HALT, MAZE_PATH: ANSWER}

# The faintest a cell of no confidence gets: it must stay readable.
FAINTEST = 0.25


@dataclass(frozen=True)
class GridMarks:
    """What to mark in a grid, each [rows, cols] or None for nothing.

    `given`, `wrong`, `changed` are bool: cells of the puzzle itself, cells that differ from the solution,
    cells that differ from the picture before. `confidence` in [0, 1] becomes opacity.
    """

    given: np.ndarray | None = None
    wrong: np.ndarray | None = None
    changed: np.ndarray | None = None
    confidence: np.ndarray | None = None

    def mask(self, name: Literal["given", "wrong", "changed"], shape: tuple[int, ...]) -> np.ndarray:
        marked = getattr(self, name)
        return np.zeros(shape, bool) if marked is None else marked

    def opacity(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.confidence is None:
            return np.ones(shape)
        return FAINTEST + (1 - FAINTEST) * np.clip(self.confidence, 0, 1)


def draw_grid(
    axes: Axes,
    kind: Kind,
    tokens: np.ndarray,
    marks: GridMarks | None = None,
    *,
    box: tuple[int, int] | None = None,
) -> None:
    """Draw a grid of tokens [rows, cols] on empty axes; `box` is the rows and columns of a Sudoku box."""
    rows, columns = tokens.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.set_axis_off()
    drawer: dict[str, Callable[[Axes, np.ndarray, GridMarks], None]] = {
        "arc": _draw_arc,
        "sudoku": _draw_sudoku,
        "maze": _draw_maze,
    }
    drawer[kind](axes, tokens, marks or GridMarks())
    if kind == "sudoku":
        _draw_rules(axes, rows, columns, 1, 1, RULE, 0.5)
        box_rows, box_columns = box or (rows, columns)
        _draw_rules(axes, rows, columns, box_rows, box_columns, INK, 1.2)
    elif kind == "maze":
        frame_grid(axes, rows, columns, RULE, 0.5)
    else:
        _draw_rules(axes, rows, columns, 1, 1, ARC_RULE, 0.4)


def frame_grid(axes: Axes, rows: int, columns: int, colour: str, width: float) -> None:
    """A frame around a drawn grid."""
    _draw_rules(axes, rows, columns, rows, columns, colour, width)


def points_per_cell(axes: Axes, rows: int, columns: int) -> float:
    """Side of one cell on paper, in points; the axes' figure must have its final size."""
    figure = axes.figure
    width, height = figure.get_size_inches() * 72  # type: ignore[union-attr]
    place = axes.get_position()
    return float(min(place.width * width / columns, place.height * height / rows))


def _draw_rules(
    axes: Axes, rows: int, columns: int, row_step: int, column_step: int, colour: str, width: float
) -> None:
    across = [[(0, y), (columns, y)] for y in range(0, rows + 1, row_step)]
    down = [[(x, 0), (x, rows)] for x in range(0, columns + 1, column_step)]
    axes.add_collection(
        LineCollection(across + down, colors=colour, linewidths=width, capstyle="projecting", clip_on=False)
    )


def _paint(axes: Axes, cells: np.ndarray) -> None:
    rows, columns = cells.shape[:2]
    axes.imshow(cells, extent=(0, columns, rows, 0), interpolation="nearest", aspect="equal", zorder=0)


def _draw_arc(axes: Axes, tokens: np.ndarray, marks: GridMarks) -> None:
    """Colours as squares, faded by confidence; what is no colour is pale; a cross marks a wrong cell."""
    palette = to_rgba_array([ARC_NO_COLOUR, *ARC_PALETTE])
    colours = tokens - ARC_COLOUR_0
    is_colour = (colours >= 0) & (colours < ARC_COLOURS)
    cells = palette[np.where(is_colour, colours + 1, 0)]
    cells[..., 3] = np.where(is_colour, marks.opacity(tokens.shape), 1.0)
    _paint(axes, cells)
    size = 0.34 * points_per_cell(axes, *tokens.shape)
    y, x = np.nonzero(marks.mask("wrong", tokens.shape))
    for colour, width in ((PAPER, 0.5), (WRONG, 0.26)):
        axes.plot(x + 0.5, y + 0.5, "x", color=colour, markersize=size, markeredgewidth=width * size, clip_on=False)


def _draw_sudoku(axes: Axes, tokens: np.ndarray, marks: GridMarks) -> None:
    """Given digits bold, answers coloured and faded by confidence, changed and wrong cells shaded."""
    shape = tokens.shape
    given, wrong, changed = (marks.mask(name, shape) for name in ("given", "wrong", "changed"))
    opacity = marks.opacity(shape)
    cells = np.broadcast_to(to_rgba(PAPER), (*shape, 4)).copy()
    cells[given] = to_rgba(GIVEN_CELL)
    cells[changed] = to_rgba(CHANGED_CELL)
    cells[wrong] = to_rgba(WRONG_CELL)
    _paint(axes, cells)
    size = 0.62 * points_per_cell(axes, *shape)
    for (y, x), token in np.ndenumerate(tokens):
        if token <= SUDOKU_BLANK:
            continue
        axes.text(
            x + 0.5,
            y + 0.53,
            str(token - SUDOKU_BLANK),
            ha="center",
            va="center_baseline",
            fontsize=size,
            fontweight="bold" if given[y, x] else "normal",
            color=INK if given[y, x] else WRONG if wrong[y, x] else ANSWER,
            alpha=1.0 if given[y, x] else opacity[y, x],
        )


def _draw_maze(axes: Axes, tokens: np.ndarray, marks: GridMarks) -> None:
    """Walls dark, the path faded by confidence; wrong cells red, full where extra, pale where missing."""
    shape = tokens.shape
    wrong = marks.mask("wrong", shape)
    cells = np.broadcast_to(to_rgba(PAPER), (*shape, 4)).copy()
    for token, colour in MAZE_PALETTE.items():
        cells[tokens == token] = to_rgba(colour)
    on_path = tokens == MAZE_PATH
    cells[on_path & wrong] = to_rgba(WRONG)
    cells[on_path, 3] = marks.opacity(shape)[on_path]
    cells[wrong & ~on_path] = to_rgba(MISSING_CELL)
    _paint(axes, cells)
    size = 1.35 * points_per_cell(axes, *shape)
    for token in (MAZE_START, MAZE_GOAL):
        y, x = np.nonzero(tokens == token)
        axes.plot(x + 0.5, y + 0.5, "o", color=MAZE_PALETTE[token], markersize=size, clip_on=False)
