"""The figures of an ablation: losses against what was spent, and the score of every preset with all of its seeds.

plot_ablation(path, ablation, rows, run_dirs)     # run_dirs["trm"] = [runs/trm-s0, runs/trm-s1]
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from training.ablation import AblationList, Row
from training.files import written_aside
from training.metrics_file import read_metrics

LOSS = "train/lm_loss"
SMOOTHED = 5  # records in a running mean
COLOURS = colormaps["tab20"].colors  # type: ignore[attr-defined]


def plot_ablation(
    target: Path, ablation: AblationList, rows: Sequence[Row], run_dirs: Mapping[str, Sequence[Path]]
) -> None:
    """One PNG: the loss on the tokens over operations and over steps, one colour a preset, and the scores."""
    figure = Figure(figsize=(15, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    by_flops, by_step, scores = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    for index, row in enumerate(rows):
        colour = COLOURS[index % len(COLOURS)]
        for number, run_dir in enumerate(run_dirs[row.name]):
            steps, losses = loss_curve(run_dir)
            label = row.name if number == 0 else None
            by_flops.plot(steps * row.cost.flops, losses, color=colour, linewidth=1.2, label=label)
            by_step.plot(steps, losses, color=colour, linewidth=1.2, label=label)
    _finish(by_flops, "Training loss on the answer", "operations")
    by_flops.xaxis.set_major_formatter(EngFormatter("FLOP"))
    by_flops.locator_params(axis="x", nbins=5)
    _finish(by_step, "The same by steps", "optimiser step")
    _draw_scores(scores, ablation, rows)
    figure.suptitle(ablation.title)
    with written_aside(target) as path:
        figure.savefig(path, format="png")


def loss_curve(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the running mean of the loss, int64 and fp64 [n]."""
    points = [(record["step"], record[LOSS]) for record in read_metrics(run_dir) if record.get(LOSS) is not None]
    if not points:
        return np.zeros(0, np.int64), np.zeros(0)
    steps, losses = (np.array(column) for column in zip(*points, strict=True))
    width = min(SMOOTHED, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    return steps[width - 1 :], smooth


def _draw_scores(panel: Axes, ablation: AblationList, rows: Sequence[Row]) -> None:
    panel.set_title("Every seed, and the mean")
    panel.set_xlabel(f"{ablation.score}, %")
    for index, row in enumerate(rows):
        values = [100 * value for value in row.values(ablation.score)]
        if values:
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(values, [index] * len(values), "o", color=colour, alpha=0.7, clip_on=False)
            panel.plot([statistics.mean(values)], [index], "|", color=colour, markersize=18, markeredgewidth=2)
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.grid(color="#dddddd", linewidth=0.6)


def _finish(panel: Axes, title: str, x: str) -> None:
    panel.set_title(title)
    panel.set_xlabel(x)
    panel.grid(color="#dddddd", linewidth=0.6)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)
