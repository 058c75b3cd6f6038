"""A report on captured solves: a table of puzzles as CSV, the charts, and one HTML page with both and the pictures.

Usage: ``write_report(open_capture(folder), Path("report"))`` writes puzzles.csv, figures/*.png and report.html
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.common import IGNORE_LABEL_ID, InputError, read_json
from evaluators import build_evaluators
from evaluators.common import write_text
from training.evaluation import METRICS_FILE, STEPS_FILE
from training.recount import COUNTED, recount
from trajectories.charts import write_charts
from trajectories.measures import Course, answers, drifts
from trajectories.page import KINDS, provenance_text, subtitle, write_page
from trajectories.replay import check_showable, pack
from trajectories.solve import Solve, solves
from trajectories.store import NO_ROW, Capture
from trajectories.tasks import Tasks, data_folders

COLUMNS = (
    *("row", "name", "exact", "cell_accuracy"),
    *("first_solved_step", "settled_step", "first_halt_step", "changes", "lost"),
    *("halting_probability", "mean_confidence", "input", "answer", "solution"),
)


def write_report(
    capture: Capture, folder: Path, *, data_root: Path | None = None, start: int = 0, most: int | None = None
) -> Path:
    """Report on the captured rows from the `start`-th on, `most` of them at most; the page's path.

    The figures are recounted where all rows of the test split were captured, and compared with the evaluation's files.
    Raises `InputError` where there is no such row, more kinds of cell than a page can show, or ARC's data set is
    missing or another; nothing is written then.
    """
    page = folder / "report.html"
    check_showable(capture.header, page)
    chosen = chosen_rows(capture, start, most)
    tasks = Tasks.of(capture, data_root)
    figures, note = figures_of(capture, data_root)
    course = Course.of(capture, chosen)
    found = solves(capture, capture.row_index[chosen].tolist())
    facts = row_facts(course)
    names = [solve.name if tasks is None else tasks.name(solve.identifier) for solve in found]
    write_text(folder / "puzzles.csv", _table(found, names, facts))
    charts = write_charts(course, drifts(capture, chosen), capture.header, folder / "figures")
    last = [_answer_only(solve) for solve in found]
    write_page(
        page,
        "report.html",
        ("payload.js", "grid.js", "report.js"),
        title=f"{KINDS.get(capture.header.kind or '', 'Puzzles')}: what became of {len(chosen)} rows",
        subtitle=subtitle(capture.header),
        note=note,
        provenance=provenance_text(capture.header),
        answers_payload=_figures_html(f"Of the rows of this report ({len(chosen)})", answers(course)),
        figures_payload=_figures_html("Of the whole test split", figures),
        charts_payload="".join(_chart_html(path, title) for path, title in charts),
        payload=pack(last, tasks, facts),
    )
    return page


def chosen_rows(capture: Capture, start: int, most: int | None) -> NDArray[np.int64]:
    """Positions of the rows to report on; `InputError` for none."""
    chosen = np.arange(len(capture))[start : None if most is None else start + most]
    if not len(chosen):
        raise InputError(f"--start {start}: {capture.folder} has {len(capture)} rows, give 0 to {len(capture) - 1}")
    return chosen


def figures_of(capture: Capture, data_root: Path | None = None) -> tuple[dict[str, float], str]:
    """The evaluation's figures, recounted, and what is to be said of them; no figures for a part of the test split, and
    none of an evaluator that pools several evaluations, of which a capture has one."""
    header = capture.header
    if NO_ROW in capture.row_index:
        return {}, "The puzzle was written down and is in no data set, so there are no figures of an evaluation."
    if not capture.complete:
        return {}, (
            f"{len(capture)} of the test split's {header.dataset_rows} rows were captured, which is too few for the "
            "figures of an evaluation."
        )
    sources = header.sources if header.kind != "arc" else data_folders(header, data_root)
    specs = [spec for spec in header.evaluators if not spec.get("pool_evaluations")]
    figures, by_step = recount(capture.chunks(COUNTED), header.max_steps, build_evaluators(specs, sources))
    note = f"Recounted from the captured answers. {_agreement(capture, figures, by_step)}"
    if len(specs) < len(header.evaluators):
        note += " Votes pooled over several evaluations cannot be recounted from one: their figures are left out."
    return figures, note


def _agreement(capture: Capture, figures: dict[str, float], by_step: dict[str, Any]) -> str:
    """Whether the evaluation whose files lie beside the capture has the same figures."""
    folder = capture.folder.parent
    theirs = {name: read_json(folder / name) for name in (METRICS_FILE, STEPS_FILE) if (folder / name).is_file()}
    if not theirs:
        return "No evaluation's files lie beside them to be compared with."
    named = " and ".join(theirs)
    ours: dict[str, Any] = {METRICS_FILE: figures, STEPS_FILE: by_step}
    if METRICS_FILE in theirs:
        content = theirs[METRICS_FILE]
        known = content.get("figures") if isinstance(content, dict) else None
        if isinstance(known, dict):
            theirs[METRICS_FILE] = {name: known.get(name) for name in figures}  # it may have more, pooled ones
    if all(json.dumps(theirs[name]) == json.dumps(ours[name]) for name in theirs):  # as text, so that nan is nan
        return f"They are the evaluation's own, as in {named} beside them."
    return f"They are not those of {named} beside them, which another evaluation has written since, or other code."


def row_facts(course: Course) -> list[dict[str, Any]]:
    """What a table says of each row, beside its answer."""
    facts = {
        "solved_at": course.solved_at,
        "settled_at": course.settled_at,
        "halts_at": course.halts_at,
        "changes": course.changes.sum((1, 2)),
        "lost": course.lost.astype(int),
    }
    return [dict(zip(facts, (int(value) for value in row), strict=True)) for row in zip(*facts.values(), strict=True)]


def _table(found: Sequence[Solve], names: Sequence[str], facts: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for solve, name, fact in zip(found, names, facts, strict=True):
        labelled = (solve.labels != IGNORE_LABEL_ID).sum()
        accuracy = f"{(labelled - solve.wrong[-1].sum()) / labelled:.6f}" if labelled else ""
        scores = [int(solve.solved[-1]), accuracy] if labelled else ["", ""]
        sure = [f"{solve.halt_probability[-1]:.6f}", f"{solve.confidence[-1].mean(dtype=np.float64):.6f}"]
        grids = [as_text(solve, cells) for cells in (solve.inputs, solve.preds[-1], solve.labels)]
        writer.writerow([solve.row, name, *scores, *fact.values(), *sure, *grids])
    return text.getvalue()


def as_text(solve: Solve, tokens: NDArray) -> str:
    """A grid in the symbols of its kind, rows ended by / where that tells them apart; "?" where nothing is known."""
    rows, columns = solve.header.grid
    symbols = [*solve.header.symbols, "?"]
    known = np.where(tokens == IGNORE_LABEL_ID, len(symbols) - 1, tokens)
    lines = ["".join(symbols[token] for token in line) for line in known.reshape(rows, columns)]
    if solve.header.kind == "arc":  # its canvas is padding for the most part
        return "/".join(line.rstrip("?|") for line in lines if line.strip("?|"))
    return "".join(lines)


def _answer_only(solve: Solve) -> Solve:
    return replace(
        solve,
        preds=solve.preds[-1:],
        confidence=solve.confidence[-1:],
        q_halt=solve.q_halt[-1:],
        wants_to_halt=solve.wants_to_halt[-1:],
        moments=[(solve.moments[-1][0], 1)],
    )


def figure_text(value: float) -> str:
    """Five digits, or a dash for a mean of nothing."""
    return "–" if math.isnan(value) else f"{value:.5g}"


def _figures_html(title: str, figures: dict[str, float]) -> str:
    cells = ((html.escape(name), figure_text(value)) for name, value in figures.items())
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
    return f"<table><caption>{title}</caption><tr><th>figure</th><th>value</th></tr>{rows}</table>" if rows else ""


def _chart_html(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
