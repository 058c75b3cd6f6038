"""One puzzle being solved by a trained model, ACT step by ACT step: as a page, a film, a capture or a dictionary.

python -m scripts.extract_single_puzzle_trajectory runs/quickstart-sudoku solve.html solve.gif --row 17 --depth h_cycle
python -m scripts.extract_single_puzzle_trajectory runs/quickstart-sudoku solve.png --grid "..1.../6...2./..."
python -m scripts.extract_single_puzzle_trajectory runs/quickstart-arc task.html --id 25ff71a9

Without --row, --id or --grid: a puzzle of the test split that takes long and ends up right. The suffix of each name
says what is written: .html plays it, .gif, .png, .svg and .pdf are films, .json is the dictionary of
`extract_single_puzzle_trajectory`, and a name without a suffix becomes a capture's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.common import IGNORE_LABEL_ID, InputError, check_folder
from evaluators.common import write_text
from models.losses import ACTLossHead
from training import distributed
from training.cli import run_cli, script_parser, warn
from training.config import load_config
from training.progress import Progress
from training.recording import Rows
from training.trained import Trained, open_trained
from trajectories.capturing import describe, record_rows
from trajectories.film import check_film, write_film
from trajectories.grids import read_grid
from trajectories.replay import write_replay
from trajectories.solve import Solve, dictionary_of, solve_of, telling
from trajectories.store import NO_ROW, Header, TrajectoryWriter, check_target
from trajectories.tasks import Tasks

# Among so many rows the telling one is looked for, so many at a time.
CANDIDATES, AT_ONCE = 256, 32
# Keys of evaluate.py, and their sections, that say nothing about a single row, which is always solved to the end.
WITHOUT_EFFECT = {
    *("act_eval", "act_eval_confidence", "capture", "diffusion", "eval_batch_size", "eval_save_outputs"),
    *("evaluator", "evaluators", "output_dir"),
}
ARGUMENTS = {"checkpoint": "the first argument", "device": "--device"}
FILMS = (".gif", ".png", ".svg", ".pdf")


def main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    for out in arguments.out:
        _check_out(out)
    for given in arguments.set:
        _check_key(given)
    options = [f"checkpoint={arguments.checkpoint}", f"device={arguments.device}", *arguments.set]
    config = load_config("cfg_evaluate", options)
    with distributed.init(config.device) as dist:
        trained = open_trained(config, dist)
        header = describe(trained.model, trained.dataset, arguments.depth, trained.protocol | {"act_eval": "fixed"})
        batch = _choose(trained, header, arguments, dist.device)
        rows = record_rows(trained.model, batch, arguments.depth, dist.device)
    if arguments.grid is not None:
        rows["row_index"] = np.full(1, NO_ROW)
    solve = solve_of(header, rows, 0)
    for out in arguments.out:
        _write(out, solve, rows)
        print(out)


def extract_single_puzzle_trajectory(
    model: ACTLossHead, batch: Mapping[str, Tensor], puzzle_idx: int, symbols: list[str] | None = None
) -> dict[str, Any]:
    """The solving of row `puzzle_idx` of a batch of tensors, counted from the end where negative, as a dictionary.

    ``puzzle_idx``, ``input`` and ``label`` [seq_len], ``symbols`` (what each token stands for) and ``steps``, a list of
    ``step_number`` (from 0), ``predictions`` [seq_len] and ``confidence`` [seq_len], ``is_halted``, ``q_halt_logits``.
    Predictions are tokens, as input and label are; confidence is the token's probability under the distribution that
    the model was trained with. Raises `InputError` for a row that the batch does not have.
    """
    count = len(batch["inputs"])
    if not -count <= puzzle_idx < count:
        raise InputError(f"puzzle_idx={puzzle_idx} is not one of the batch's {count} rows: give 0 to {count - 1}")
    row = range(count)[puzzle_idx]
    arrays = {key: value[row : row + 1].cpu().numpy().astype(np.int32) for key, value in batch.items()}
    arrays["row_index"] = np.array([row], np.int64)
    return dictionary_of(record_rows(model, arrays, "eval", batch["inputs"].device), 0, symbols)


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("extract_single_puzzle_trajectory", __doc__)
    parser.add_argument("checkpoint", help="a run's folder, a checkpoint or a file of weights")
    parser.add_argument("out", type=Path, nargs="+", help="what to write, by suffix")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, help="index in the test split, from 0")
    which.add_argument("--grid", help="a grid: rows of characters ended by /, rows in JSON, or a .json file")
    parser.add_argument("--id", help="an ARC task's name: its first test pair, or the task that --grid belongs to")
    parser.add_argument("--depth", choices=["eval", "h_cycle", "layer"], default="eval", help="default eval")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of evaluate.py")
    return parser


def _check_out(out: Path) -> None:
    if out.suffix in FILMS:
        check_film(out)
    elif out.suffix in (".html", ".json", ""):
        check_folder(out.parent, str(out))
        if not out.suffix:
            check_target(out)
        elif out.is_dir():
            raise InputError(f"{out} is a folder: give a name for the file")
    else:
        raise InputError(f"{out}: unknown suffix; use .html, {', '.join(FILMS)}, .json, or none for a capture's folder")


def _check_key(given: str) -> None:
    key = given.partition("=")[0].lstrip("+~")
    if key in ARGUMENTS:
        raise InputError(f"--set {given}: give {ARGUMENTS[key]} instead")
    if key.partition(".")[0] in WITHOUT_EFFECT:
        raise InputError(f"--set {given} has no effect on a single row, which runs all its ACT steps: drop it")


def _choose(trained: Trained, header: Header, arguments: argparse.Namespace, device: torch.device) -> Rows:
    """The row that is asked for, as a batch of one."""
    total = trained.dataset.num_rows
    if arguments.grid is not None:
        return _written_down(trained, arguments.grid, arguments.id)
    if arguments.row is not None:
        if arguments.id is not None:
            raise InputError(f"--row {arguments.row} and --id {arguments.id} both name a row: give one of them")
        if not 0 <= arguments.row < total:
            raise InputError(f"--row {arguments.row} is not one of the {total} test rows: give 0 to {total - 1}")
        return _test_rows(trained, np.array([arguments.row]))
    if arguments.id is not None:
        return _test_rows(trained, np.array([_row_of(trained, arguments.id)]))
    return _test_rows(trained, np.array([_telling_row(trained, header, device)]))


def _telling_row(trained: Trained, header: Header, device: torch.device) -> int:
    count = min(CANDIDATES, trained.dataset.num_rows)
    progress = Progress(count)
    progress.message(f"solving {count} puzzles to find one that is worth seeing; --row names one")
    found: list[Solve] = []
    for start in range(0, count, AT_ONCE):
        batch = _test_rows(trained, np.arange(start, min(start + AT_ONCE, count)))
        rows = record_rows(trained.model, batch, "eval", device)
        found += [solve_of(header, rows, i) for i in range(len(rows["row_index"]))]
        progress.update(len(found))
    progress.close()
    return telling(found).row


def _test_rows(trained: Trained, rows: np.ndarray) -> Rows:
    return {**trained.dataset.test_rows(rows.astype(np.int64)), "row_index": rows.astype(np.int64)}


def _identifier(trained: Trained, name: str) -> int:
    for source in trained.dataset.sources:
        names = source.identifiers()
        if name in names[1:]:
            return names.index(name) + source.id_offset
    where = ", ".join(str(source.path) for source in trained.dataset.sources)
    raise InputError(f"--id {name}: {where} has no puzzle of that name, see identifiers.json there; or use --row")


def _row_of(trained: Trained, name: str) -> int:
    identifier, batch_size = _identifier(trained, name), 4096
    for start in range(0, trained.dataset.num_rows, batch_size):
        rows = np.arange(start, min(start + batch_size, trained.dataset.num_rows))
        found = np.flatnonzero(trained.dataset.test_rows(rows)["puzzle_identifiers"] == identifier)
        if len(found):
            return start + int(found[0])
    raise InputError(f"--id {name} has no row in the test split: name a puzzle that is tested")


def _written_down(trained: Trained, grid: str, name: str | None) -> Rows:
    metadata = trained.dataset.metadata
    inputs, labels = read_grid(grid, metadata)
    if metadata.kind == "arc" and name is None:
        raise InputError("--grid of an ARC model needs --id TASK as well: the model knows a task by its embedding")
    identifier = 0 if name is None else _identifier(trained, name)
    if metadata.kind != "arc" and (labels == IGNORE_LABEL_ID).all():
        warn("the grid has no solution, or several: what is wrong in an answer cannot be marked")
    return {
        "inputs": inputs[None],
        "labels": labels[None],
        "puzzle_identifiers": np.array([identifier], np.int32),
        "row_index": np.zeros(1, np.int64),
    }


def _write(out: Path, solve: Solve, rows: Rows) -> None:
    if out.suffix in FILMS:
        write_film(solve, out)
    elif out.suffix == ".html":
        tasks = Tasks(solve.header.sources) if solve.header.kind == "arc" else None
        write_replay([solve], out, tasks)
    elif out.suffix == ".json":
        content = dictionary_of(rows, 0, solve.header.symbols)
        write_text(out, json.dumps(content, default=lambda array: array.tolist()))
    else:
        with TrajectoryWriter(out, solve.header) as writer:
            writer.add(solve.header.sources[0].metadata.sets[0], rows)


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
