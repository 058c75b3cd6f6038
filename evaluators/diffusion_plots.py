"""Pictures of what a diffusion head can do, drawn from the tree of measures that ``diffusion.json`` holds.

Usage: draw_measures(json.loads(Path("diffusion.json").read_text()), Path("pictures"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from datasets.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from evaluators.arc_rows import crop
from evaluators.grid_drawing import INK, MAZE_FREE, MUTED, RIGHT, RULE, SUDOKU_BLANK, GridMarks, draw_grid
from evaluators.render import Sheet, grid_shape

# By method: colour and line; heads take the blues in turn.
STYLES = {
    "zero": ("#9ca3af", ":"),
    "sigma * x_t": ("#6b7280", "-."),
    "copy": ("#d97706", "--"),
    "mean latent": ("#b45309", ":"),
    "regression": ("#15803d", "-"),
    "TRM": (INK, "-"),
    "TRM stopped early": ("#7b2d8b", "-"),
}
HEAD_COLOURS = ("#2563eb", "#0891b2", "#7c3aed", "#db2777", "#1e3a8a")
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BOTTOM = 4.3, 2.9, 0.75, 0.5, 0.65
FILM_PANEL, FILM_GAP, FILM_MOST = 1.25, 0.1, 6


def draw_measures(measures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every plot that the measures have something for; returns the paths."""
    drawings: dict[str, Callable[[Mapping[str, Any], Path], Path | None]] = {
        "error_by_timestep.png": draw_by_timestep,
        "error_by_act_step.png": draw_by_act_step,
        "accuracy_by_nfe.png": draw_by_nfe,
        "accuracy_by_flops.png": draw_by_flops,
    }
    return [path for name, draw in drawings.items() if (path := draw(measures, folder / name)) is not None]


def draw_by_timestep(measures: Mapping[str, Any], path: Path) -> Path | None:
    """Error in the noise, and relative error of x_0, by timestep."""
    eps, x_0 = measures["eps_mse"], measures["x0_error_by_timestep"]
    if not eps["methods"]:
        return None
    panels = _Panels(2)
    panel = panels.add("Squared error in the noise, per element", "timestep", log=True)
    for method, errors in eps["methods"].items():
        _plot(panel, method, eps["timesteps"], errors["all"])
    panel.set_ylim(bottom=1e-8)
    panel = panels.add("Relative error of x_0 (raw latents)", "timestep")
    for method, errors in x_0["methods"].items():
        _plot(panel, f"{method}, z_L", x_0["timesteps"], errors["z_L"], style=(_style(method)[0], "-"))
        _plot(panel, f"{method}, z_H", x_0["timesteps"], errors["z_H"], style=(_style(method)[0], "--"))
    return panels.save(path)


def draw_by_act_step(measures: Mapping[str, Any], path: Path) -> Path | None:
    """Relative error of x_0 from pure noise by ACT step and, at the first, by position in the H-cycle."""
    methods = measures["x0_error"]
    if not methods:
        return None
    panels = _Panels(2)
    panel = panels.add("Relative error of x_0 from pure noise", "ACT step", log=True)
    for method, errors in methods.items():
        _plot(panel, method, measures["act_steps"], errors["by_act_step"])
    panel.set_xscale("log", base=2)
    panel.set_xticks(measures["act_steps"], [str(step) for step in measures["act_steps"]])
    panel.minorticks_off()
    first = measures["act_steps"][0]
    panel = panels.add(f"... at ACT step {first}, by position in the H-cycle", "position", log=True)
    names = [f"{kind}\n{place + 1}" for place, kind in enumerate(measures["position_types"])]
    for method, errors in methods.items():
        _plot(panel, method, range(len(names)), errors["by_act_step_and_position"][0])
    panel.set_xticks(range(len(names)), names)
    return panels.save(path)


def draw_by_nfe(measures: Mapping[str, Any], path: Path) -> Path | None:
    """What is read out of sampled z_H against network evaluations, with the students' accuracy where there are any."""
    cost = measures.get("cost", {}).get("head", {})
    decoded = {name: part for name, part in measures["decode"].items() if name.startswith("head")}
    if not decoded:
        return None
    nfe = {name: cost.get(name, {}).get("nfe", int(name.split()[-1])) for name in decoded}
    names = sorted(nfe, key=lambda name: nfe[name])
    panels = _Panels(1)
    panel = panels.add("Read out of sampled z_H", "network evaluations")
    for figure, label, style in (
        ("token_agreement", "tokens as the TRM's", ("#93c5fd", "-")),
        ("exact_agreement", "puzzles as the TRM's", ("#2563eb", "-")),
        ("exact_accuracy", "puzzles solved", ("#15803d", "-")),
    ):
        _plot(
            panel, label, [nfe[name] for name in names], [decoded[name][figure]["all"] for name in names], style=style
        )
    students = {name: part for name, part in measures.get("rollout", {}).items() if name in nfe}
    if students:
        own = sorted(students, key=lambda name: nfe[name])
        last = [students[name]["exact_accuracy"][-1] for name in own]
        _plot(panel, "student, last ACT step", [nfe[name] for name in own], last, style=("#c8412b", "-"))
    for name, style in (("TRM", (INK, "--")), ("regression", ("#15803d", "--"))):
        if name in measures["decode"] and (level := measures["decode"][name]["exact_accuracy"]["all"]) is not None:
            panel.axhline(level, color=style[0], linestyle=style[1], linewidth=1, label=f"{name}, puzzles solved")
    panel.set(ylim=(-0.03, 1.03), xticks=sorted(set(nfe.values())))
    return panels.save(path)


def draw_by_flops(measures: Mapping[str, Any], path: Path) -> Path | None:
    """Exact accuracy against GFLOP of a puzzle: students by ACT step and the TRM stopped early."""
    curves = measures.get("accuracy_by_flops")
    if not curves:
        return None
    panels = _Panels(1, width=6.5)
    panel = panels.add("Puzzles solved against cost", "GFLOP for a puzzle")
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.tick_params(which="minor", labelsize=6.5, labelcolor=MUTED)
    for method, curve in curves.items():
        _plot(panel, method, curve["gflop"], curve["exact_accuracy"])
    panel.set_ylim(-0.03, 1.03)
    return panels.save(path)


def draw_denoising(film: Mapping[str, np.ndarray], metadata: PuzzleDatasetMetadata, path: Path) -> Path:
    """A sample on its way from noise: above what is read out of x_t, below what is read out of the predicted x_0.

    `film`: ``timesteps`` [T], ``noisy`` and ``clean`` [T, seq_len], ``inputs`` and ``labels`` [seq_len].
    """
    rows, columns = grid_shape(metadata)
    kind = metadata.kind or "sudoku"
    inputs, labels = film["inputs"], film["labels"]
    height, width = rows, columns
    if kind == "arc":
        sizes = [crop(row, 0, rows) for row in (inputs, labels, film["clean"][-1])]
        height, width = (max(1, *(size[part] for size in sizes)) for part in (0, 1))
    asked = labels != IGNORE_LABEL_ID
    given = {"arc": np.zeros(len(inputs), bool), "maze": inputs != MAZE_FREE}.get(kind, inputs > SUDOKU_BLANK)

    def cut(row: np.ndarray) -> np.ndarray:
        return row.reshape(rows, columns)[:height, :width]

    steps = np.unique(np.linspace(0, len(film["timesteps"]) - 1, FILM_MOST).round().astype(int))
    tall = FILM_PANEL * height / width
    tops = [0.55, 0.55 + tall + 0.4]
    sheet = Sheet(1.2 + (1 + len(steps)) * (FILM_PANEL + FILM_GAP), tops[1] + tall + 0.35)
    axes = sheet.axes(0.15, (tops[0] + tops[1]) / 2, FILM_PANEL, tall)
    draw_grid(axes, kind, cut(inputs), GridMarks(given=cut(given)), box=metadata.box)
    sheet.text(0.15 + FILM_PANEL / 2, (tops[0] + tops[1]) / 2 - 0.14, "puzzle", fontsize=9, color=INK)
    left = 0.15 + FILM_PANEL + 0.85
    for top, name in zip(tops, ("x_t", "predicted\nx_0"), strict=True):
        sheet.text(left - 0.4, top + tall / 2, name, fontsize=9, color=INK)
    for column, step in enumerate(steps):
        place = left + column * (FILM_PANEL + FILM_GAP)
        sheet.text(place + FILM_PANEL / 2, 0.32, f"t = {film['timesteps'][step]}", fontsize=9, color=INK)
        for top, name in zip(tops, ("noisy", "clean"), strict=True):
            answer = film[name][step]
            wrong = asked & (answer != labels)
            marks = GridMarks(given=cut(given & ~wrong), wrong=cut(wrong))
            draw_grid(sheet.axes(place, top, FILM_PANEL, tall), kind, cut(answer), marks, box=metadata.box)
            solved = asked.any() and not wrong.any()
            text = "solved ✓" if solved else f"{int((asked & ~wrong).sum())} of {int(asked.sum())} right"
            colour = RIGHT if solved else MUTED
            sheet.text(place + FILM_PANEL / 2, top + tall + 0.13, text, fontsize=7.5, color=colour)
    return sheet.save(path)


class _Panels:
    """Panels in a row on one sheet."""

    def __init__(self, count: int, width: float = PANEL_WIDTH) -> None:
        self.width, self.made = width, 0
        self.sheet = Sheet(count * (LEFT + width + 0.25), TOP + PANEL_HEIGHT + BOTTOM)

    def add(self, title: str, across: str, log: bool = False) -> Axes:
        left = LEFT + self.made * (LEFT + self.width + 0.25)
        axes = self.sheet.axes(left, TOP, self.width, PANEL_HEIGHT)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel(across, fontsize=9, color=MUTED)
        axes.set_yscale("log" if log else "linear")
        axes.tick_params(labelsize=8, labelcolor=MUTED)
        axes.grid(color=RULE, linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        self.made += 1
        return axes

    def save(self, path: Path) -> Path:
        for axes in self.sheet.figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=7.5)
        return self.sheet.save(path)


def _plot(
    panel: Axes, method: str, x: Sequence[float], y: Sequence[float | None], style: tuple[str, str] | None = None
) -> None:
    """A line with its points; what was not measured leaves a gap."""
    colour, line = style or _style(method)
    values = np.array([np.nan if value is None else value for value in y], dtype=np.float64)
    panel.plot(list(x), values, line, color=colour, marker="o", markersize=3, linewidth=1.5, label=method)


def _style(method: str) -> tuple[str, str]:
    if method in STYLES:
        return STYLES[method]
    number = int("".join(filter(str.isdigit, method)) or 0)
    return HEAD_COLOURS[number.bit_length() % len(HEAD_COLOURS)], "-"
