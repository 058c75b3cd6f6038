"""An evaluation's figures once more, from what was recorded of its rows: the same arithmetic, without the model.

Usage: ``figures, by_step = recount(capture.chunks(COUNTED), max_steps, build_evaluators(specs, sources))``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.evaluation import Evaluator, SetTotals, collect_figures
from training.rollout import Rows, score_rows

# The arrays that the figures are made of.
COUNTED = (
    "row_index",
    "steps",
    "lm_loss",
    "inputs",
    "labels",
    "puzzle_identifiers",
    "step_preds",
    "step_q_halt_logits",
    "step_wants_to_halt",
)


def recount(
    parts: Iterable[tuple[str, Rows]],
    max_steps: int,
    evaluators: Sequence[tuple[str, Evaluator]],
    save_dir: Path | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """All figures, and those by ACT step as in ``act_steps.json``, from the `COUNTED` arrays of rows by set.

    The evaluators write their files into `save_dir`.
    """
    for _, evaluator in evaluators:
        evaluator.begin_eval()
    totals: dict[str, SetTotals] = {}
    for set_name, rows in parts:
        total = totals.setdefault(set_name, SetTotals(max_steps))
        total.add(rows)
        _add_steps(total, rows)
        answers = {"preds": rows["step_preds"][:, -1], "q_halt_logits": rows["step_q_halt_logits"][:, -1]}
        for _, evaluator in evaluators:
            evaluator.update_batch(rows, answers)
    by_step = {name: total.act.as_json() for name, total in totals.items()}
    return collect_figures(totals, evaluators, save_dir, lambda item: [item]), by_step


def _add_steps(total: SetTotals, rows: Rows) -> None:
    steps, labels = rows["steps"], torch.from_numpy(rows["labels"])
    wants = rows["step_wants_to_halt"]
    first_halt = np.where(wants.any(1), wants.argmax(1) + 1, 0)
    for step in range(1, total.act.max_steps + 1):
        preds = torch.from_numpy(rows["step_preds"][:, step - 1].astype(np.int32))
        exact, cell, labelled = score_rows(preds, labels)
        counted = labelled & (steps >= step)
        finished = steps == step
        total.act.add_step(np.full(int(counted.sum()), step), exact[counted], cell[counted], finished[counted])
        done = finished & labelled
        total.act.add_finished(exact[done], rows["step_q_halt_logits"][done, step - 1], first_halt[done])
