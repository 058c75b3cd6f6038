"""The curves of a run as one picture, from its ``metrics.jsonl``.

Usage: ``plot_curves("runs/sudoku")`` writes ``runs/sudoku/curves.png``
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from training.files import written_aside
from training.metrics_file import read_metrics

CURVES_NAME = "curves.png"

_LOSSES = {
    "train/loss": ("total", "#1f4e79"),
    "train/lm_loss": ("tokens", "#2a9d8f"),
    "train/q_halt_loss": ("halting", "#e08e45"),
}
_TRAIN_ACCURACIES = {
    "train/accuracy": ("train, cells", "#9dbbd8"),
    "train/exact_accuracy": ("train, whole puzzles", "#1f4e79"),
}
_EVAL_PATTERN = re.compile(r"eval/(?P<set>.+)/(?P<figure>accuracy|exact_accuracy|exact|shortest_path|pass@2)")
_EVAL_NAMES = {
    "accuracy": "cells",
    "exact_accuracy": "whole puzzles",
    "exact": "exact",
    "shortest_path": "a shortest path",
    "pass@2": "pass@2",
}
_EVAL_COLOURS = ("#f2b5a7", "#c8412b", "#7b2d8b", "#3b8132", "#8a6d3b", "#555555")
_STEPS_COLOUR = "#5b5ea6"
# The window of the running mean, as a share of the points.
_SMOOTHING = 0.03
# So many or fewer are marked one by one: a single point has no line.
_FEW_POINTS = 20


def plot_curves(run_dir: str | Path) -> Path | None:
    """Draw loss, accuracy (training and evaluation) and steps until halting over the optimiser steps.

    Returns the PNG's path, or None if nothing that it shows has been logged yet.
    """
    records = read_metrics(run_dir)
    if not any(key.startswith(("train/", "eval/")) for record in records for key in record):
        return None
    figure = Figure(figsize=(12, 7.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["steps", "steps"]], height_ratios=[2.2, 1])
    _draw_losses(panels["loss"], records)
    _draw_accuracies(panels["accuracy"], records)
    _draw_steps(panels["steps"], records)
    for panel in panels.values():
        _finish(panel, last_step=max(record["step"] for record in records))
    figure.suptitle(Path(run_dir).resolve().name, fontweight="bold")
    target = Path(run_dir) / CURVES_NAME
    with written_aside(target) as path:
        figure.savefig(path, format="png")
    return target


def _draw_losses(panel: Axes, records: list[dict[str, Any]]) -> None:
    panel.set_title("Loss per puzzle")
    seen = [np.empty(0)]
    for key, (label, colour) in _LOSSES.items():
        steps, values = _series(records, key)
        if len(steps):
            _draw_smoothed(panel, steps, values, label, colour)
            seen.append(values)
    everything = np.concatenate(seen)
    if everything.size and 0 < 10 * everything.min() < everything.max():
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")


def _draw_accuracies(panel: Axes, records: list[dict[str, Any]]) -> None:
    panel.set_title("Accuracy")
    panel.set_ylim(-0.02, 1.02)
    for key, (label, colour) in _TRAIN_ACCURACIES.items():
        steps, values = _series(records, key)
        if len(steps):
            _draw_smoothed(panel, steps, values, label, colour)
    keys = dict.fromkeys(key for record in records for key in record if _EVAL_PATTERN.fullmatch(key))
    for index, key in enumerate(keys):
        match = _EVAL_PATTERN.fullmatch(key)
        assert match is not None
        steps, values = _series(records, key)
        colour = _EVAL_COLOURS[index % len(_EVAL_COLOURS)]
        label = f"eval {match['set']}, {_EVAL_NAMES[match['figure']]}"
        panel.plot(steps, values, "o-", color=colour, markersize=4, linewidth=1.2, label=label, clip_on=False)
        low_steps, low = _series(records, f"{key}_low")
        high_steps, high = _series(records, f"{key}_high")
        if len(low_steps) and np.array_equal(low_steps, high_steps):
            panel.fill_between(low_steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_steps(panel: Axes, records: list[dict[str, Any]]) -> None:
    panel.set_title("Steps until halting, mean over the puzzles that halted")
    steps, values = _series(records, "train/steps")
    if len(steps):
        _draw_smoothed(panel, steps, values, "train", _STEPS_COLOUR)
        panel.set_ylim(bottom=0)


def _finish(panel: Axes, last_step: int) -> None:
    panel.set_xlabel("optimiser step")
    panel.set_xlim(0, max(1, last_step))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=9)
    else:
        panel.text(0.5, 0.5, "nothing logged", transform=panel.transAxes, ha="center", color="#999999")


def _draw_smoothed(panel: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    marker = "." if len(steps) <= _FEW_POINTS else ""
    panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    panel.plot(steps, _running_mean(values), marker=marker, color=colour, linewidth=1.8, label=label)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window, cut off at the ends: [n] -> [n]."""
    half = int(len(values) * _SMOOTHING / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _series(records: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one figure, without the gaps."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
