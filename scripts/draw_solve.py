"""Draw a puzzle being solved, ACT step by ACT step, by a trained model.

python -m scripts.draw_solve runs/quickstart-sudoku solve.png
python -m scripts.draw_solve runs/quickstart-sudoku solve.png --row 17
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.common import InputError
from datasets.puzzle_dataset import Batch
from evaluators.render import check_picture, draw_film_strip
from models.losses import IGNORE_LABEL_ID
from training import distributed
from training.cli import run_cli
from training.config import load_config
from training.trained import Trained, open_trained

CANDIDATES = 256


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.draw_solve", description="Draw a puzzle being solved.")
    parser.add_argument("checkpoint", help="a run's folder or a checkpoint")
    parser.add_argument("out", type=Path, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--row", type=int, help="of the test split; default: one that takes long and ends up right")
    arguments = parser.parse_args(argv)
    check_picture(arguments.out)
    config = load_config("cfg_evaluate", [f"checkpoint={arguments.checkpoint}", "device=cpu"])
    with distributed.init("cpu") as dist:
        trained = open_trained(config, dist)
    kind = trained.dataset.metadata.kind
    if kind is None:
        raise InputError("the data set does not say what kind of puzzle it holds, so it cannot be drawn")
    batch = _rows(trained, arguments.row)
    preds, confidence, q_halt = solve(trained, batch)
    row = 0 if arguments.row is not None else interesting_row(preds, batch["labels"])
    draw_film_strip(
        kind,
        batch["inputs"][row],
        batch["labels"][row],
        preds[:, row],
        confidence[:, row],
        q_halt[:, row],
        arguments.out,
        trained.dataset.metadata,
    )
    print(arguments.out)


@torch.no_grad()
def solve(trained: Trained, batch: Batch) -> tuple[NDArray, NDArray, NDArray]:
    """After every ACT step: predictions [T, rows, seq_len], their probability, and the halt logits [T, rows]."""
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    carry, steps = trained.model.initial_carry(tensors), []
    for _ in range(trained.model.model.config.halt_max_steps):
        carry, _, _, outputs, _ = trained.model(
            carry=carry, batch=tensors, return_keys=("preds", "logits", "q_halt_logits")
        )
        confidence = outputs["logits"].float().softmax(-1).amax(-1)
        steps.append((outputs["preds"].numpy(), confidence.numpy(), outputs["q_halt_logits"].float().numpy()))
    preds, confidences, q_halt = (np.stack(part) for part in zip(*steps, strict=True))
    return preds, confidences, q_halt


def interesting_row(preds: NDArray, labels: NDArray) -> int:
    """Among the rows that end up right, the one whose prediction changes most often, then that most wrong at first."""
    wrong = ((labels != IGNORE_LABEL_ID) & (preds != labels)).sum(-1)
    changes = (preds[1:] != preds[:-1]).any(-1).sum(0)
    return int(np.argmax(np.where(wrong[-1] == 0, changes * preds.shape[-1] + wrong[0], -1)))


def _rows(trained: Trained, row: int | None) -> Batch:
    """The wanted row alone, or the first `CANDIDATES`."""
    total = trained.dataset.num_rows
    if row is not None and not 0 <= row < total:
        raise InputError(f"--row {row} is not one of the {total} test rows: give 0 to {total - 1}")
    size = 1 if row is not None else min(CANDIDATES, total)
    for index, (_, batch, _) in enumerate(trained.dataset.test_batches(size, 0, 1)):
        if row is None or index == row:
            return batch
    raise AssertionError("the data set has fewer rows than it says")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
