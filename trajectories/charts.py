"""Charts of what `trajectories.measures` finds, one figure each, for reports and documents.

Usage: ``write_charts(Course.of(capture), drifts(capture, positions), capture.header, Path("figures"))``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evaluators.grid_drawing import ANSWER, HALT, INK, MUTED, RIGHT, RULE, WRONG
from evaluators.render import Sheet
from trajectories.measures import Course, Drift, reliability
from trajectories.store import Header

WIDTH, HEIGHT = 6.2, 3.5
BAR = 0.27


def write_charts(course: Course, drift: dict[str, Drift], header: Header, folder: Path) -> list[tuple[Path, str]]:
    """Write every chart that there are data for into `folder` as PNG; their paths and what they show."""
    charts: dict[str, tuple[str, Callable[[Sheet], None]]] = {}
    if course.labelled.any():
        charts |= {
            "accuracy": ("What is right after each ACT step", partial(_accuracy, course)),
            "steps": ("How many ACT steps a puzzle takes", partial(_steps, course)),
            "reliability": ("Whether confidence can be trusted", partial(_reliability, course)),
            "halting": ("Whether the halting head knows when it is done", partial(_halting, course)),
        }
    charts["flips"] = "Which cells are revised", partial(_flips, course, header.grid)
    if drift:
        measured = min(found.rows for found in drift.values())
        charts["drift"] = f"How far the latents move in an ACT step, first {measured} rows", partial(_drift, drift)
    written = []
    for name, (title, draw) in charts.items():
        sheet = Sheet(WIDTH, HEIGHT)
        sheet.figure.text(0.02, 0.965, title, fontsize=11, fontweight="bold", color=INK, va="top")
        draw(sheet)
        written.append((sheet.save(folder / f"{name}.png"), title))
    return written


def _axes(sheet: Sheet, left: float = 0.65, width: float = WIDTH - 0.95, top: float = 0.75) -> Axes:
    axes = sheet.axes(left, top, width, HEIGHT - top - 0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _label(axes: Axes, below: str, beside: str = "") -> None:
    axes.set_xlabel(below, fontsize=8.5, color=MUTED)
    axes.set_ylabel(beside, fontsize=8.5, color=MUTED)


def _legend(axes: Axes, columns: int = 3) -> None:
    """Above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.04, 1.0), ncols=columns, frameon=False, fontsize=8, labelcolor=INK)


def _as_percent(axes: Axes) -> None:
    axes.set(ylim=(0, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1], yticklabels=["0", "25", "50", "75", "100 %"])


def _accuracy(course: Course, sheet: Sheet) -> None:
    axes, steps = _axes(sheet), np.arange(1, course.max_steps + 1)
    known = np.any(course.labelled, axis=1)
    curves = (
        ("puzzles solved", course.solved[known].mean(0), RIGHT, "-"),
        ("cells right", course.share_right()[known].mean(0), ANSWER, "-"),
        ("halting probability", course.halt_probability[known].mean(0), HALT, "--"),
    )
    for name, values, colour, style in curves:
        axes.plot(steps, values, style, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
    axes.set_xticks(steps)
    _as_percent(axes)
    _label(axes, "ACT step")
    _legend(axes)


def _steps(course: Course, sheet: Sheet) -> None:
    axes, known = _axes(sheet), np.any(course.labelled, axis=1)
    steps = np.arange(0, course.max_steps + 1)
    series = (
        ("first solved", course.solved_at, RIGHT),
        ("answer settled", course.settled_at, ANSWER),
        ("says it is done", course.halts_at, HALT),
    )
    for i, (name, values, colour) in enumerate(series):
        counts = np.bincount(values[known], minlength=len(steps))
        axes.bar(steps + (i - 1) * BAR, counts, BAR * 0.9, color=colour, label=name)
    axes.set_xticks(steps, ["never", *map(str, steps[1:])])
    _label(axes, "ACT step", "puzzles")
    _legend(axes)


def _flips(course: Course, grid: tuple[int, int], sheet: Sheet) -> None:
    flips = course.changes.sum(1)
    free = ~course.given
    mean = np.where(free, flips, 0).sum(0) / np.maximum(free.sum(0), 1)
    side = HEIGHT - 1.35
    axes = sheet.axes(0.35, 0.75, side, side)
    image = axes.imshow(mean.reshape(grid), cmap="Blues", vmin=0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(RULE)
    axes.set_xlabel("mean changes of a cell, by place", fontsize=8.5, color=MUTED)
    scale = sheet.axes(0.45 + side, 0.75, 0.1, side)
    sheet.figure.colorbar(image, cax=scale).outline.set_visible(False)
    scale.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    beside = _axes(sheet, 1.65 + side, WIDTH - side - 1.9)
    counts = np.bincount(flips[free], minlength=2) / max(1, free.sum())
    beside.bar(np.arange(len(counts)), counts, 0.7, color=ANSWER)
    beside.set_xticks(np.arange(0, len(counts), max(1, len(counts) // 8)))
    _label(beside, "changes of a cell over the steps", "share of cells")


def _reliability(course: Course, sheet: Sheet) -> None:
    side = HEIGHT - 1.35
    last = course.max_steps - 1
    asked = course.asked
    cells = [
        (f"cells, step {step + 1}", course.confidence[:, step][asked], course.right[:, step][asked], colour)
        for step, colour in ((0, MUTED), (last, ANSWER))
    ]
    known = np.any(course.labelled, axis=1)
    puzzles = [
        (f"halting, step {last + 1}", course.halt_probability[known, last], course.solved[known, last], HALT),
    ]
    for left, series, name in ((0.65, cells, "share right"), (0.65 + side + 0.75, puzzles, "share solved")):
        axes = _axes(sheet, left, side, 0.9)
        axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
        for label, probability, outcome, colour in series:
            _draw_reliability(axes, label, probability, outcome, colour)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        _label(axes, "probability given", name)
        _legend(axes, 1)


def _draw_reliability(axes: Axes, label: str, probability: NDArray, outcome: NDArray, colour: str) -> None:
    found = reliability(probability, outcome)
    there = found.count > 0
    sizes = 8 + 90 * np.sqrt(found.count[there] / max(1, found.count.max()))
    axes.plot(found.probability[there], found.share[there], color=colour, linewidth=1.4)
    axes.scatter(found.probability[there], found.share[there], sizes, color=colour, alpha=0.75, linewidths=0)
    axes.plot([], [], "o-", color=colour, markersize=4, label=f"{label} (ECE {found.calibration_error:.3f})")


def _halting(course: Course, sheet: Sheet) -> None:
    for i, (name, step) in enumerate((("after every ACT step", None), ("after the last", course.max_steps))):
        table = course.halting_table(step)
        axes = sheet.axes(1.1 + i * 2.75, 0.95, 2.0, 1.75)
        axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1, table.sum()), aspect="auto")
        for (row, column), count in np.ndenumerate(table):
            share = count / max(1, table.sum())
            colour = "#ffffff" if share > 0.55 else INK if row == column else WRONG
            axes.text(column, row, f"{count:,}\n{share:.1%}", ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks([0, 1], ["solved", "not solved"])
        axes.set_yticks([0, 1], ["says done", "goes on"] if i == 0 else ["", ""])
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
        axes.spines[:].set_color(RULE)
        axes.set_title(name, fontsize=9, color=MUTED)


def _drift(drift: dict[str, Drift], sheet: Sheet) -> None:
    half = (WIDTH - 2.0) / 2
    names = (("change", "‖Δz‖ / ‖z‖"), ("cosine", "cosine of z before and after"))
    for left, (part, name) in zip((0.65, 1.5 + half), names, strict=True):
        axes = _axes(sheet, left, half)
        for (latent, found), colour in zip(drift.items(), (ANSWER, HALT), strict=False):
            values = getattr(found, part)
            axes.plot(np.arange(2, len(values) + 2), values, "o-", color=colour, markersize=3.5, label=latent)
        _label(axes, "ACT step", name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(*((0, None) if part == "change" else (None, 1.005)))
        _legend(axes)
