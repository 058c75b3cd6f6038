"""A solve for papers and READMEs: a film strip of the steps that changed the answer, or an animated picture of all.

Usage: ``write_film(solve, Path("solve.gif"))``; the suffix says which: .gif moves, .png, .svg and .pdf are strips
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.common import InputError, check_folder
from evaluators.common import write_bytes
from evaluators.grid_drawing import ANSWER, HALT, INK, MUTED, PAPER, RIGHT, GridMarks, draw_grid
from evaluators.render import MARGIN, Sheet, arc_extent, check_picture, draw_curves, draw_film_strip
from trajectories.solve import Solve

GIF = ".gif"
DOTS_PER_INCH = 110
FRAME_MS, LAST_FRAME_MS = 550, 2600
PANEL, SPACE, CHART = 2.5, 0.35, 1.0  # inches


def check_film(path: Path) -> None:
    """`InputError` unless a film can be written to `path`; asked before the work for it begins."""
    if path.suffix != GIF:
        check_picture(path)
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a name for the film")
    check_folder(path.parent, str(path))


def write_film(solve: Solve, path: Path) -> Path:
    """Write the film of one puzzle; `InputError` where its data do not say what kind of puzzle it is."""
    if solve.header.kind is None:
        raise InputError("the data set does not say what kind of puzzle it holds, so it cannot be drawn")
    if path.suffix != GIF:
        done = solve.steps_only()
        metadata = solve.header.sources[0].metadata
        return draw_film_strip(
            solve.header.kind, done.inputs, done.labels, done.preds, done.confidence, done.q_halt, path, metadata
        )
    frames = [_frame(solve, i) for i in range(len(solve.moments))]
    durations = [max(120, FRAME_MS // solve.cycles)] * (len(frames) - 1) + [LAST_FRAME_MS]
    film = io.BytesIO()
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    write_bytes(path, film.getvalue())
    return path


def _frame(solve: Solve, i: int) -> Image.Image:
    """The puzzle beside its answer at frame `i`, above a chart over all frames."""
    header, kind = solve.header, solve.header.kind
    assert kind is not None
    rows, columns = header.grid
    height, width = arc_extent(columns, solve.inputs, solve.labels, *solve.preds) if kind == "arc" else header.grid

    def cut(cells: np.ndarray) -> np.ndarray:
        return cells.reshape(rows, columns)[:height, :width]

    tall, wide = PANEL * min(1, height / width), PANEL * min(1, width / height)
    sheet = Sheet(2 * PANEL + SPACE + 4 * MARGIN, 0.5 + tall + 0.45 + CHART)
    centres = 2 * MARGIN + PANEL / 2, 2 * MARGIN + 1.5 * PANEL + SPACE
    left, right = (sheet.axes(centre - wide / 2, 0.5, wide, tall) for centre in centres)
    draw_grid(left, kind, cut(solve.inputs), GridMarks(given=cut(solve.given)), box=header.box)
    wrong = solve.wrong[i]
    marks = GridMarks(
        given=cut(solve.given & ~wrong),
        wrong=cut(wrong),
        changed=cut(solve.preds[i] != solve.preds[i - 1]) if i else None,
        confidence=cut(solve.confidence[i]),
    )
    draw_grid(right, kind, cut(solve.preds[i]), marks, box=header.box)
    step, cycle = solve.moments[i]
    moment = f"step {step}" + (f", cycle {cycle} of {solve.cycles}" if solve.cycles > 1 else "")
    for centre, text in zip(centres, ("puzzle", moment), strict=True):
        sheet.text(centre, 0.28, text, fontsize=11, fontweight="bold", color=INK)
    changed = f", {solve.given_changed[i]} given changed" if solve.given_changed[i] else ""
    verdict = "solved ✓" if solve.solved[i] else f"{solve.cells_right[i]} of {solve.asked.sum()} right{changed}"
    colour = RIGHT if solve.solved[i] else MUTED
    sheet.text(centres[1], 0.5 + tall + 0.2, verdict if solve.labelled else "", fontsize=10, color=colour)
    _chart(sheet, solve, i, 0.5 + tall + 0.5)
    drawn = io.BytesIO()
    sheet.figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH, facecolor=PAPER)
    # One palette a frame, without dithering, which would make flat colours flicker.
    return Image.open(drawn).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _chart(sheet: Sheet, solve: Solve, i: int, top: float) -> None:
    axes = sheet.axes(0.62, top, sheet.width - 2.35, CHART * 0.62)
    curves = {"halting probability": (HALT, solve.halt_probability)}
    if solve.labelled:
        curves["cells right"] = (ANSWER, solve.cells_right / max(1, solve.asked.sum()))
    draw_curves(axes, curves, [i])
    axes.axvline(i + 1, color=MUTED, linewidth=0.7, zorder=0)
    if solve.cycles > 1:
        ends = [k + 1 for k, (_, cycle) in enumerate(solve.moments) if cycle == solve.cycles]
        axes.set_xticks(ends, [str(step) for step in range(1, len(ends) + 1)])
