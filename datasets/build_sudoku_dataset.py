"""Builds a Sudoku dataset: generated puzzles, or lists of puzzles from files or the hub.

Every puzzle has exactly one solution (lists are solved to make sure), and training puzzles are augmented by
the symmetries of Sudoku. Generated test puzzles are equivalent to no training puzzle.

Usage: ``python -m datasets.build_sudoku_dataset --output-dir data/sudoku-6x6 --size 6``
       ``python -m datasets.build_sudoku_dataset --output-dir data/sudoku-extreme-1k-aug-1000
         --hub sapientinc/sudoku-extreme --max-train 1000``
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from datasets.common import InputError, run_builder
from datasets.generation import Puzzles, generate_splits
from datasets.puzzle_builder import check_shared, finish, read_lists, shared_parser
from datasets.puzzle_lists import PuzzleList
from datasets.sudoku import BOXES, board_size, puzzle_plan, vocab_size
from datasets.sudoku_classes import class_keys
from datasets.sudoku_generator import generate
from datasets.sudoku_solver import Board, board, solve

_GENERATOR_OPTIONS = ("size", "clues", "min_guesses", "num_train", "num_test")
_ATTEMPTS_PER_TASK = 128
_PATIENCE = 20_000
_PATIENCE_WHEN_CLIMBING = 500
_CLASS_MEANING = {
    4: "puzzles that a symmetry of Sudoku makes equal; solutions recur, as there are only 288 grids",
    6: "puzzles that a symmetry of Sudoku makes equal; solutions recur up to symmetry (49 classes)",
    9: "puzzles whose solutions agree in an invariant of the symmetries of Sudoku, as all equivalent ones do",
}


def main(argv: list[str] | None = None) -> int:
    """Command line of the builder; returns the exit code, 2 for a user error."""
    args = _parser().parse_args(argv)
    return run_builder(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    """Builds the dataset that the parsed command line describes; raises `InputError` before writing."""
    started = time.perf_counter()
    check_shared(args)
    if args.num_aug < 0:
        raise InputError(f"--num-aug {args.num_aug} must be at least 0")
    lists = read_lists(args, _GENERATOR_OPTIONS)
    if lists is None:
        rules = board(args.size or 9)
        splits = _generated(args, rules)
    else:
        rules = board(lists["train"].measured(board_size))
        splits = {split: _listed(puzzles, rules) for split, puzzles in lists.items()}
    box = (rules.box_rows, rules.box_cols)
    finish(
        args,
        splits,
        lists,
        {
            split: puzzle_plan(
                puzzles.questions,
                puzzles.answers,
                box=box,
                num_aug=args.num_aug if split == "train" else 0,
                seed=args.seed,
            )
            for split, puzzles in splits.items()
        },
        kind="sudoku",
        box=box,
        vocab_size=vocab_size(rules.size),
        class_meaning=_CLASS_MEANING[rules.size],
        record={
            "difficulty_scale": "values assumed by our solver until the solution is found and proved unique",
            "mean_clues": {
                split: round(float((puzzles.questions > 0).sum(axis=1).mean()), 2) for split, puzzles in splits.items()
            },
        },
        started=started,
    )


def _parser() -> argparse.ArgumentParser:
    parser = shared_parser("build_sudoku_dataset", (__doc__ or "").split("\n\nUsage")[0])
    add = parser.add_argument
    add("--size", type=int, choices=list(BOXES), help="grid to generate (default 9)")
    add(
        "--clues",
        type=_clue_range,
        metavar="N[-M]",
        help="clues to leave, or their range (default 0: minimal)",
    )
    add("--min-guesses", type=int, help="least difficulty, in values our solver has to assume (default 0)")
    add("--num-aug", type=int, default=1000, help="augmentations a training puzzle (default 1000)")
    return parser


def _clue_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} must be a number of clues or a range like 20-30")
    return int(low), int(high if dash else low)


def _generated(args: argparse.Namespace, rules: Board) -> dict[str, Puzzles]:
    clues = args.clues or (0, 0)
    min_guesses = args.min_guesses or 0
    if not 0 <= clues[0] <= clues[1] < rules.size**2:
        raise InputError(f"--clues {clues[0]}-{clues[1]} must rise within 0..{rules.size**2 - 1}")
    if min_guesses < 0:
        raise InputError(f"--min-guesses {min_guesses} must be at least 0")
    return generate_splits(
        lambda start, stop: generate(
            rules, seed=args.seed, start=start, stop=stop, clues=clues, min_guesses=min_guesses
        ),
        {"train": args.num_train or 1000, "test": args.num_test or 1000},
        per_task=_ATTEMPTS_PER_TASK if min_guesses == 0 else 8,
        patience=_PATIENCE if min_guesses == 0 else _PATIENCE_WHEN_CLIMBING,
        remedy="lower --num-train, --num-test or --min-guesses, or allow more --clues",
    )


def _listed(puzzles: PuzzleList, rules: Board) -> Puzzles:
    """The puzzles of a list with their solutions; `InputError` names the first line that is wrong."""
    questions = _digits(puzzles, puzzles.questions, rules.size, "question")
    solved = solve(questions, rules)
    for row in np.flatnonzero(solved.counts != 1)[:1]:
        found = "no solution" if solved.counts[row] == 0 else "more than one solution"
        puzzles.fail(row, f"the puzzle has {found}; remove it")
    if puzzles.answers is not None:
        answers = _digits(puzzles, puzzles.answers, rules.size, "answer")
        for row in np.flatnonzero((answers != solved.solutions).any(axis=1))[:1]:
            cell = int(np.flatnonzero(answers[row] != solved.solutions[row])[0])
            puzzles.fail(
                row,
                f"the answer has {answers[row, cell]} in cell {cell + 1}, the only solution of the question "
                f"{solved.solutions[row, cell]}; correct it",
            )
    return Puzzles(questions, solved.solutions, class_keys(questions, solved.solutions, rules), solved.guesses)


def _digits(puzzles: PuzzleList, text: np.ndarray, size: int, column: str) -> np.ndarray:
    digits = np.where(text == ord("."), 0, text - ord("0")).astype(np.uint8)
    for row, cell in np.argwhere(digits > size)[:1]:
        puzzles.fail(
            row,
            f'{column} has "{chr(text[row, cell])}" in cell {cell + 1}; use 1 to {size}, 0 or . for blank',
        )
    return digits


if __name__ == "__main__":
    sys.exit(main())
