"""Pictures for people: a puzzle being solved step by step, and an ARC task with what a model answered.

matplotlib's Agg only, no global state; the suffix of the path gives the format (.png, .svg, .pdf).

Usage: draw_film_strip("sudoku", inputs, label, preds, confidence, q_halt, Path("solving.png"), metadata)
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets.common import ARC_COLOUR_0, IGNORE_LABEL_ID, InputError, PuzzleDatasetMetadata, check_folder
from evaluators.arc_rows import crop
from evaluators.common import write_bytes
from evaluators.grid_drawing import (
    ANSWER,
    HALT,
    INK,
    MAZE_FREE,
    MUTED,
    PAPER,
    RIGHT,
    RULE,
    SUDOKU_BLANK,
    WRONG,
    GridMarks,
    Kind,
    draw_grid,
    frame_grid,
)

FORMATS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 200
MARGIN, GAP = 0.2, 0.14
FILM_WIDTH, LARGEST_PANEL, CHART_HEIGHT = 10.0, 2.0, 0.95
TASK_PANEL, TASK_GAP = 1.35, 0.3


def check_picture(path: Path) -> None:
    """`InputError` unless a picture can be written to ``path``; asked before the work for it begins."""
    if path.suffix not in FORMATS or path.is_dir():
        raise InputError(f"{path} is no name for a picture; let it end in {', '.join(FORMATS)}")
    check_folder(path.parent, str(path))


class Sheet:
    """A figure laid out in inches from its top-left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=PAPER)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        centred: dict[str, Any] = {"ha": "center", "va": "center"}
        self.figure.text(left / self.width, 1 - top / self.height, text, **centred, **style)

    def save(self, path: Path) -> Path:
        picture = io.BytesIO()
        self.figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", facecolor=PAPER)
        write_bytes(path, picture.getvalue())
        return path


def grid_shape(metadata: PuzzleDatasetMetadata) -> tuple[int, int]:
    """Rows and columns of a data set's grids: as the metadata says, else a square of seq_len cells."""
    side = math.isqrt(metadata.seq_len)
    rows, columns = metadata.grid or (side, side)
    if rows * columns != metadata.seq_len:
        raise ValueError(f"a {rows}x{columns} grid does not hold seq_len={metadata.seq_len} tokens")
    return rows, columns


def steps_to_show(per_step_preds: np.ndarray, limit: int) -> list[int]:
    """At most `limit` of the steps at which the prediction [T, ...] changed, with the first and the last."""
    flat = per_step_preds.reshape(len(per_step_preds), -1)
    changes = [0, *(1 + np.flatnonzero((flat[1:] != flat[:-1]).any(axis=1))).tolist()]
    chosen = np.unique(np.linspace(0, len(changes) - 1, min(limit, len(changes))).round().astype(int))
    return [changes[index] for index in chosen]


def draw_film_strip(
    kind: Kind,
    inputs: np.ndarray,
    label: np.ndarray,
    per_step_preds: np.ndarray,
    per_step_confidence: np.ndarray | None,
    q_halt: np.ndarray,
    path: Path,
    metadata: PuzzleDatasetMetadata,
    *,
    max_panels: int = 7,
) -> Path:
    """The puzzle, then the prediction after the ACT steps that changed it, above a chart over all steps.

    Args:
        inputs, label: [seq_len] tokens; label -100 where nothing is asked.
        per_step_preds: [T, seq_len] tokens after each ACT step.
        per_step_confidence: [T, seq_len] probability of the predicted token, drawn as opacity; or None.
        q_halt: [T] halting logits.
        max_panels: at most so many grids, the puzzle included.
    """
    rows, columns = grid_shape(metadata)
    labelled = label != IGNORE_LABEL_ID
    given = given_cells(kind, inputs)
    asked = labelled & ~given
    right = asked & (per_step_preds == label)
    wrong = labelled & (per_step_preds != label)
    height, width = (rows, columns) if kind != "arc" else arc_extent(rows, inputs, label, per_step_preds[-1])

    def cut(row: np.ndarray) -> np.ndarray:
        return row.reshape(rows, columns)[:height, :width]

    steps = steps_to_show(per_step_preds, max_panels - 1)
    sheet, boxes = _film_sheet(1 + len(steps), height / width)
    draw_grid(boxes[0], kind, cut(inputs), GridMarks(given=cut(given)), box=metadata.box)
    _caption(boxes[0], "input" if kind == "arc" else "puzzle", "", INK)
    shown = inputs
    for axes, step in zip(boxes[1:], steps, strict=True):
        answer = per_step_preds[step]
        marks = GridMarks(
            given=cut(given & ~wrong[step]),
            wrong=cut(wrong[step]),
            changed=cut(answer != shown) if step else None,
            confidence=None if per_step_confidence is None else cut(per_step_confidence[step]),
        )
        draw_grid(axes, kind, cut(answer), marks, box=metadata.box)
        solved = asked.any() and not wrong[step].any()
        part = f"{right[step].sum()} of {asked.sum()} right"
        missed = "given cells changed" if (right[step] == asked).all() else part
        verdict = "solved ✓" if solved else missed if asked.any() else ""
        _caption(axes, f"step {step + 1}", verdict, RIGHT if solved else MUTED)
        shown = answer
    curves = {"halting probability": (HALT, 1 / (1 + np.exp(-np.asarray(q_halt, np.float64))))}
    if asked.any():
        curves["cells right"] = (ANSWER, right.sum(axis=1) / asked.sum())
    draw_curves(sheet.axes(0.62, sheet.height - CHART_HEIGHT, sheet.width - 2.35, 0.62), curves, steps)
    return sheet.save(path)


def draw_arc_task(
    task: dict[str, list[dict[str, Any]]], attempts: Sequence[Sequence[dict[str, Any]]], path: Path
) -> Path:
    """Demonstrations, then every test pair with its solution and what was answered to it.

    Args:
        task: as in test_puzzles.json, {"train": [pair], "test": [pair]}; a test pair may lack its "output".
        attempts: as in attempts.json, per test pair a list of {"grid", "votes", "correct"}; votes None: not known.
    """
    columns = len(task["train"]) + sum(1 + max(1, math.ceil(len(given) / 2)) for given in attempts)
    tops = 0.5, 0.5 + TASK_PANEL + 0.62
    sheet = Sheet(
        2 * MARGIN + columns * (TASK_PANEL + GAP) - GAP + len(attempts) * TASK_GAP,
        tops[1] + TASK_PANEL + 0.42,
    )
    left = MARGIN
    for number, pair in enumerate(task["train"], 1):
        _task_column(sheet, left, tops, pair, f"example {number}", "")
        left += TASK_PANEL + GAP
    for number, (pair, answers) in enumerate(zip(task["test"], attempts, strict=True), 1):
        left += TASK_GAP
        rule = sheet.axes(left - (TASK_GAP + GAP) / 2, MARGIN, 0.01, sheet.height - 2 * MARGIN)
        rule.set(xticks=[], yticks=[], facecolor=RULE)
        rule.spines[:].set_visible(False)
        _task_column(sheet, left, tops, pair, f"test {number}" if len(attempts) > 1 else "test", "solution")
        left += TASK_PANEL + GAP
        if not answers:
            sheet.text(left + TASK_PANEL / 2, sheet.height / 2, "no answer", fontsize=9, color=MUTED)
        for rank, answer in enumerate(answers):
            _attempt(sheet, left + rank // 2 * (TASK_PANEL + GAP), tops[rank % 2], rank + 1, answer)
        left += max(1, math.ceil(len(answers) / 2)) * (TASK_PANEL + GAP)
    return sheet.save(path)


def _task_column(
    sheet: Sheet, left: float, tops: tuple[float, float], pair: dict[str, Any], title: str, below: str
) -> None:
    """A pair as a column: its input, an arrow, its output or a question mark."""
    centre = left + TASK_PANEL / 2
    sheet.text(centre, tops[0] - 0.2, title, fontsize=9.5, fontweight="bold", color=INK)
    _colour_grid(sheet, left, tops[0], pair["input"])
    sheet.text(centre, (tops[0] + TASK_PANEL + tops[1]) / 2, "↓", fontsize=13, color=MUTED)
    if "output" in pair:
        _colour_grid(sheet, left, tops[1], pair["output"])
        sheet.text(centre, tops[1] + TASK_PANEL + 0.16, below, fontsize=8.5, color=MUTED)
    else:
        sheet.text(centre, tops[1] + TASK_PANEL / 2, "?", fontsize=26, color=MUTED)


def _attempt(sheet: Sheet, left: float, top: float, number: int, answer: dict[str, Any]) -> None:
    colour, sign = {True: (RIGHT, " ✓"), False: (WRONG, " ✗"), None: (MUTED, "")}[answer["correct"]]
    axes = _colour_grid(sheet, left, top, answer["grid"])
    frame_grid(axes, len(answer["grid"]), len(answer["grid"][0]), colour, 2.0)
    centre = left + TASK_PANEL / 2
    sheet.text(centre, top - 0.2, f"attempt {number}", fontsize=9.5, fontweight="bold", color=INK)
    votes = answer["votes"]
    counted = "" if votes is None else "1 vote" if votes == 1 else f"{votes} votes"
    sheet.text(centre, top + TASK_PANEL + 0.16, counted + sign, fontsize=8.5, color=colour)


def _colour_grid(sheet: Sheet, left: float, top: float, grid: Sequence[Sequence[int]]) -> Axes:
    axes = sheet.axes(left, top, TASK_PANEL, TASK_PANEL)
    draw_grid(axes, "arc", np.asarray(grid) + ARC_COLOUR_0)
    return axes


def given_cells(kind: Kind | None, inputs: np.ndarray) -> np.ndarray:
    """The cells of the puzzles [..., seq_len] that an answer must repeat: clues; walls, start and goal; none on ARC."""
    if kind not in ("sudoku", "maze"):
        return np.zeros(inputs.shape, bool)
    return inputs != MAZE_FREE if kind == "maze" else inputs > SUDOKU_BLANK


def arc_extent(side: int, *rows: np.ndarray) -> tuple[int, int]:
    """Height and width that show the grids of all these token rows."""
    sizes = [crop(row, 0, side) for row in rows]
    return max(1, *(height for height, _ in sizes)), max(1, *(width for _, width in sizes))


def _film_sheet(panels: int, aspect: float) -> tuple[Sheet, list[Axes]]:
    """A sheet with a row of equal boxes of this height to width, and room for the chart below."""
    size = min(LARGEST_PANEL, (FILM_WIDTH - 2 * MARGIN - (panels - 1) * GAP) / panels)
    sheet = Sheet(2 * MARGIN + panels * size + (panels - 1) * GAP, 0.42 + size * aspect + 0.5 + CHART_HEIGHT)
    boxes = [sheet.axes(MARGIN + panel * (size + GAP), 0.42, size, size * aspect) for panel in range(panels)]
    return sheet, boxes


def _caption(axes: Axes, above: str, below: str, colour: str) -> None:
    style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
    axes.annotate(above, (0.5, 1), (0, 5), va="bottom", fontsize=9.5, color=INK, fontweight="bold", **style)
    axes.annotate(below, (0.5, 0), (0, -5), va="top", fontsize=8.5, color=colour, **style)


def draw_curves(axes: Axes, curves: dict[str, tuple[str, np.ndarray]], steps: Sequence[int]) -> None:
    """Curves in [0, 1] over the ACT steps, named at their right end, with a dot at every step shown above."""
    number = len(next(iter(curves.values()))[1])
    axes.set(xlim=(0.7, number + 0.3), ylim=(-0.04, 1.06), xticks=range(1, number + 1), yticks=[0, 0.5, 1])
    axes.set_yticklabels(["0", "", "100 %"])
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_facecolor("none")
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate("ACT step", (1, 0), (7, -7), xycoords="axes fraction", fontsize=8, color=MUTED, **beside)
    ends = _spread([values[-1] for _, values in curves.values()], 0.26)
    for (name, (colour, values)), end in zip(curves.items(), ends, strict=True):
        x = np.arange(1, number + 1)
        axes.plot(x, values, color=colour, linewidth=1.6, solid_capstyle="round", clip_on=False)
        axes.plot(x[list(steps)], values[list(steps)], "o", color=colour, markersize=3.6, clip_on=False)
        place = ("axes fraction", "data")
        axes.annotate(name, (1, end), (7, 0), xycoords=place, fontsize=8.5, color=colour, **beside)


def _spread(heights: Sequence[float], distance: float) -> list[float]:
    """The heights moved apart, in order, so that labels at them do not overlap; none above 1."""
    placed = np.empty(len(heights))
    ceiling = 1.0
    for index in np.argsort(heights, kind="stable")[::-1]:
        placed[index] = min(heights[index], ceiling)
        ceiling = placed[index] - distance
    return placed.tolist()
