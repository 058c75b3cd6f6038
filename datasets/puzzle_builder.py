"""What the Sudoku and the maze builder share: options, puzzle lists, and what is recorded of both.

Usage: ``lists = read_lists(args, GENERATOR_OPTIONS); ...; finish(args, splits, lists, plans, ...)``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.common import BLANK_NAME, InputError
from datasets.generation import Puzzles
from datasets.puzzle_lists import PuzzleList, hub_files, read_puzzle_list
from datasets.storage import Kind, SplitPlan, check_output_dir, write_dataset

SPLITS = ("train", "test")
_UNRECORDED = ("output_dir", "overwrite", "storage", "train_file", "test_file")


def shared_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of both builders."""
    parser = argparse.ArgumentParser(
        prog=f"python -m datasets.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output-dir", required=True, help="directory to create")
    add("--num-train", type=int, help="puzzles to generate for training (default 1000)")
    add("--num-test", type=int, help="puzzles to generate for testing (default 1000)")
    add("--train-file", help="take the training puzzles from a list instead: plain text or CSV, also .gz")
    add("--test-file", help="the list of test puzzles that goes with --train-file")
    add("--hub", metavar="REPOSITORY", help="download both lists from the Hugging Face hub")
    add("--max-train", "--subsample-size", type=int, help="use the first so many rows of the training list")
    add("--max-test", type=int, help="use the first so many rows of the test list")
    add(
        "--sample-seed",
        type=int,
        help="let --max-train and --max-test take random rows, drawn from this seed",
    )
    add("--seed", type=int, default=0, help="equal seeds give equal bytes (default 0)")
    add("--storage", choices=["compact", "expanded"], default="compact", help="compact makes rows when read")
    add("--overwrite", action="store_true", help="replace what is in the output directory")
    return parser


def check_shared(args: argparse.Namespace) -> None:
    """`InputError` for values of the shared options that cannot be."""
    for name in ("num_train", "num_test", "max_train", "max_test"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"{_flag(name)} {value} must be at least 1")
    for name in ("seed", "sample_seed"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 2**63:
            raise InputError(f"{_flag(name)} {value} must be in 0..2**63-1")
    if args.sample_seed is not None and args.max_train is None and args.max_test is None:
        raise InputError("--sample-seed chooses the rows of --max-train and --max-test; give one of them")
    check_output_dir(Path(args.output_dir), args.overwrite)


def read_lists(args: argparse.Namespace, generator_options: Sequence[str]) -> dict[str, PuzzleList] | None:
    """The training and the test list that the command line names, None if puzzles are to be generated.

    Options of the other way, ``generator_options`` or those of lists, raise `InputError` rather than do
    nothing.
    """
    from_files = args.train_file is not None or args.test_file is not None
    list_options = ("max_train", "max_test", "sample_seed")
    if not from_files and args.hub is None:
        _refuse(args, list_options, "is for puzzle lists; give --train-file and --test-file, or --hub")
        return None
    _refuse(args, generator_options, "is for generated puzzles; with puzzle lists use --max-train, --max-test")
    if from_files and args.hub is not None:
        raise InputError(f"--hub {args.hub} and --train-file/--test-file exclude each other; give one of them")
    if from_files and (args.train_file is None or args.test_file is None):
        raise InputError("--train-file and --test-file go together; split the list in two and give both")
    paths = hub_files(args.hub) if args.hub else (Path(args.train_file), Path(args.test_file))
    limits = (args.max_train, args.max_test)
    lists = {
        split: read_puzzle_list(path, max_rows=limit, sample_seed=None if limit is None else args.sample_seed)
        for split, path, limit in zip(SPLITS, paths, limits, strict=True)
    }
    lengths = {split: puzzles.questions.shape[1] for split, puzzles in lists.items()}
    if lengths["train"] != lengths["test"]:
        raise InputError(f"{paths[1]}: puzzles of {lengths['test']} cells, {paths[0]} has {lengths['train']}")
    return lists


def finish(
    args: argparse.Namespace,
    splits: Mapping[str, Puzzles],
    lists: Mapping[str, PuzzleList] | None,
    plans: Mapping[str, SplitPlan],
    *,
    kind: Kind,
    box: tuple[int, int] | None,
    vocab_size: int,
    class_meaning: str,
    record: Mapping[str, Any],
    started: float,
) -> None:
    """Writes the dataset and prints what it holds.

    ``class_meaning`` says which puzzles the keys of ``splits`` count as equivalent; ``record`` joins the
    provenance.
    """
    apart = _separation(splits, lists, class_meaning)
    seq_len = splits["train"].questions.shape[1]
    side = int(seq_len**0.5)
    difficulty = {
        split: {"mean": round(float(scale.mean()), 3), "min": int(scale.min()), "max": int(scale.max())}
        for split, scale in ((split, puzzles.difficulty) for split, puzzles in splits.items())
    }
    provenance = {
        "builder": f"build_{kind}_dataset",
        "arguments": {name: value for name, value in vars(args).items() if name not in _UNRECORDED},
        "sources": {split: puzzles.source() for split, puzzles in lists.items()} if lists else "generated",
        "separation": apart,
        "difficulty": difficulty,
        **record,
    }
    summary = write_dataset(
        Path(args.output_dir),
        identifiers=[BLANK_NAME],
        test_puzzles=None,
        splits=plans,
        kind=kind,
        grid=(side, side),
        box=box,
        vocab_size=vocab_size,
        seq_len=seq_len,
        storage=args.storage,
        provenance=provenance,
        overwrite=args.overwrite,
    )
    print(summary.describe(time.perf_counter() - started))
    for split, figures in difficulty.items():
        print(f"  {split} difficulty: mean {figures['mean']}, {figures['min']} to {figures['max']}")
    print(f"  test puzzles equivalent to a training puzzle: {apart['test_puzzles_of_a_train_class']}")


def _separation(splits: Mapping[str, Puzzles], lists: Mapping[str, PuzzleList] | None, meaning: str) -> dict[str, Any]:
    """How far the test puzzles are from the training puzzles, for the dataset's provenance.

    Raises `InputError` if a listed puzzle is in both. ``meaning`` says what a class is.
    """
    train, test = splits["train"], splits["test"]
    shared = np.isin(test.keys, train.keys)
    trained = {train.questions[row].tobytes(): row for row in np.flatnonzero(np.isin(train.keys, test.keys))}
    for row in np.flatnonzero(shared):
        twin = trained.get(test.questions[row].tobytes())
        if twin is not None and lists is not None:
            lists["test"].fail(
                int(row),
                f"the puzzle is also in {lists['train'].path} line {lists['train'].lines[twin]}; remove one",
            )
    return {
        "class": meaning,
        "train_classes": len(np.unique(train.keys)),
        "test_classes": len(np.unique(test.keys)),
        "test_puzzles_in_train": 0,
        "test_puzzles_of_a_train_class": int(shared.sum()),
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise InputError(f"{_flag(name)} {why}")
