"""The Sudoku builder: what it generates, the lists it reads, and what it refuses."""

from __future__ import annotations

import gzip
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from datasets import build_sudoku_dataset
from datasets.common import load_identifiers, load_metadata
from datasets.puzzle_dataset import PuzzleDataset
from datasets.sudoku_classes import class_keys
from datasets.sudoku_generator import generate
from datasets.sudoku_solver import board
from tests.datasets.sudoku_oracle import solutions

PUZZLES = generate(board(4), seed=99, start=0, stop=60, clues=(5, 9), min_guesses=0)
QUESTIONS = ["".join(str(digit) for digit in puzzle) for puzzle in PUZZLES.questions]
ANSWERS = ["".join(str(digit) for digit in puzzle) for puzzle in PUZZLES.answers]
HEADER = "source,question,answer,rating"


def build(out: Path, *options: object) -> None:
    argv = ["--output-dir", str(out), *(str(option) for option in options)]
    assert build_sudoku_dataset.main(argv) == 0


def csv_of(rows: range, answers: list[str] = ANSWERS) -> str:
    return "\n".join([HEADER, *(f"made,{QUESTIONS[row]},{answers[row]},0" for row in rows)]) + "\n"


def base(out: Path, split: str, name: str) -> list[str]:
    """Base puzzles as text, 0 for a blank."""
    return ["".join(map(str, row - 1)) for row in np.load(out / split / f"all__base_{name}.npy")]


def test_generated_dataset(tmp_path: Path) -> None:
    build(tmp_path / "a", "--size", 4, "--num-train", 60, "--num-test", 40, "--num-aug", 5, "--seed", 7)
    train, test = (load_metadata(tmp_path / "a" / split) for split in ("train", "test"))
    assert (train.total_groups, train.total_puzzles, test.total_groups, test.total_puzzles) == (60, 360, 40, 40)
    assert (train.vocab_size, train.seq_len, train.grid, train.box) == (6, 16, (4, 4), (2, 2))
    assert (train.pad_id, train.ignore_label_id, train.num_puzzle_identifiers, train.sets) == (0, 0, 1, ["all"])
    assert train.mean_puzzle_examples == 1
    assert load_identifiers(tmp_path / "a") == ["<blank>"]
    assert train.provenance is not None
    assert train.provenance["separation"]["test_puzzles_of_a_train_class"] == 0
    assert "288" in train.provenance["separation"]["class"]
    for split in ("train", "test"):
        inputs, labels = (base(tmp_path / "a", split, name) for name in ("inputs", "labels"))
        assert len(set(inputs)) == len(inputs)
        for question, answer in zip(inputs, labels, strict=True):
            assert solutions([int(digit) for digit in question], 4) == [[int(digit) for digit in answer]]


def test_no_test_puzzle_is_a_training_row_or_equivalent_to_one(tmp_path: Path) -> None:
    options = ("--size", 4, "--clues", "5-8", "--num-train", 200, "--num-test", 80, "--num-aug", 200)
    build(tmp_path / "a", *options, "--storage", "expanded")
    train, test = (np.load(tmp_path / "a" / split / "all__inputs.npy") - 1 for split in ("train", "test"))
    assert len(train) == 200 * 201
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
    keys = [set(class_keys(rows, rows, board(4)).tolist()) for rows in (train, test)]
    assert not keys[0] & keys[1]


def test_both_storages_and_any_number_of_cores_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--size", 6, "--num-train", 20, "--num-test", 10, "--num-aug", 3)
    build(tmp_path / "compact", *options)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    build(tmp_path / "expanded", *options, "--storage", "expanded")
    one, other = (PuzzleDataset([tmp_path / name], "train") for name in ("compact", "expanded"))
    assert one.dataset_hash == other.dataset_hash
    for step in (0, 1, 5):
        first, second = (data.train_batch(step, 16, range(16)) for data in (one, other))
        for name, rows in first.items():
            assert (rows == second[name]).all()
        assert (first["labels"][first["inputs"] > 1] == first["inputs"][first["inputs"] > 1]).all()
    build(tmp_path / "seed", *options, "--seed", 1)
    assert PuzzleDataset([tmp_path / "seed"], "train").dataset_hash != one.dataset_hash


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "txt", "dots"])
def test_lists_are_read(tmp_path: Path, kind: str) -> None:
    for name, rows in (("train", range(40)), ("test", range(40, 60))):
        text = csv_of(rows) if "csv" in kind else "\n\n".join(QUESTIONS[row] for row in rows)
        text = text.replace("0", ".") if kind == "dots" else text
        content = gzip.compress(text.encode()) if kind.endswith("gz") else text.encode()
        (tmp_path / f"{name}.{kind}").write_bytes(content)
    files = ("--train-file", tmp_path / f"train.{kind}", "--test-file", tmp_path / f"test.{kind}")
    build(tmp_path / "all", *files, "--num-aug", 2)
    assert base(tmp_path / "all", "train", "inputs") == QUESTIONS[:40]
    assert base(tmp_path / "all", "train", "labels") == ANSWERS[:40]
    assert base(tmp_path / "all", "test", "labels") == ANSWERS[40:]
    build(tmp_path / "first", *files, "--max-train", 7, "--max-test", 3)
    assert base(tmp_path / "first", "train", "inputs") == QUESTIONS[:7]
    assert base(tmp_path / "first", "test", "inputs") == QUESTIONS[40:43]
    samples = []
    for seed in (0, 1):
        build(tmp_path / f"sample{seed}", *files, "--max-train", 7, "--sample-seed", seed)
        samples.append(base(tmp_path / f"sample{seed}", "train", "inputs"))
        places = [QUESTIONS.index(question) for question in samples[-1]]
        assert places == sorted(set(places))
        assert max(places) < 40
    assert samples[0] != samples[1] != QUESTIONS[:7]


def test_equivalent_puzzles_in_both_lists_are_counted(tmp_path: Path) -> None:
    turned = QUESTIONS[0][::-1]
    assert turned not in QUESTIONS
    (tmp_path / "train").write_text(QUESTIONS[0])
    (tmp_path / "test").write_text(f"{QUESTIONS[1]}\n{turned}")
    build(tmp_path / "out", "--train-file", tmp_path / "train", "--test-file", tmp_path / "test")
    provenance = load_metadata(tmp_path / "out" / "test").provenance
    assert provenance is not None
    assert provenance["separation"]["test_puzzles_of_a_train_class"] == 1
    assert provenance["sources"]["train"]["file"] == "train"


def test_hub_lists_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, name: str, *, repo_type: str) -> str:
        assert (repository, repo_type) == ("owner/puzzles", "dataset")
        (tmp_path / name).write_text(csv_of(range(10) if name == "train.csv" else range(10, 15)))
        return str(tmp_path / name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    build(tmp_path / "out", "--hub", "owner/puzzles", "--max-train", 4)
    assert base(tmp_path / "out", "train", "inputs") == QUESTIONS[:4]
    assert base(tmp_path / "out", "test", "inputs") == QUESTIONS[10:15]


def test_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(repository: str, name: str, *, repo_type: str) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    refused(tmp_path, capsys, ["--hub", "owner/puzzles"], r"--hub owner/puzzles: download failed .*no network")


def wrong_answer(row: int) -> str:
    swap = str.maketrans("12", "21")
    return ANSWERS[row].translate(swap)


BAD_LISTS = {
    "not a digit": (f"{QUESTIONS[1]}\n{QUESTIONS[2][:5]}x{QUESTIONS[2][6:]}\n", r'train line 2: .*"x" in cell 6'),
    "digit too large": (f"\n{QUESTIONS[2][:5]}5{QUESTIONS[2][6:]}\n", r'train line 2: .*"5" in cell 6'),
    "other length": (f"{QUESTIONS[1]}\n{QUESTIONS[2]}0\n", r"train line 2: 17 cells, the first puzzle has 16"),
    "several solutions": (f"{QUESTIONS[1]}\n{'0' * 16}\n", r"train line 2: .* more than one solution"),
    "no solution": (f"{QUESTIONS[1]}\n11{'0' * 14}\n", r"train line 2: .* no solution"),
    "empty": ("", r"train holds no puzzle"),
    "header only": (HEADER + "\n", r"train holds no puzzle"),
    "no header": (f"made,{QUESTIONS[1]},{ANSWERS[1]},0\n", r'train line 1: no column "question"'),
    "too few columns": (f"{HEADER}\nmade,{QUESTIONS[1]}\n", r"train line 2: 2 columns, the header has 4"),
    "short answer": (f"{HEADER}\nmade,{QUESTIONS[1]},{ANSWERS[1][:-1]},0\n", r"line 2: answer of 15 cells"),
    "blank answer": (f"{HEADER}\nmade,{QUESTIONS[1]},{'0' * 16},0\n", r"line 2: the answer has 0 in cell 1"),
    "wrong answer": (f"{HEADER}\na,{QUESTIONS[1]},{wrong_answer(1)},0\n", r"line 2: the answer has . in cell"),
    "in both lists": (f"{QUESTIONS[1]}\n{QUESTIONS[50]}\n", r"test line 1: .* also in .*train line 2"),
    "not ASCII": (f"{QUESTIONS[1]}\n§{QUESTIONS[2][1:]}", r"train is not ASCII"),
}


@pytest.mark.parametrize(("text", "message"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_bad_lists_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "train").write_text(text, encoding="utf-8")
    (tmp_path / "test").write_text(QUESTIONS[50])
    refused(tmp_path, capsys, ["--train-file", "train", "--test-file", "test"], message)


BAD_OPTIONS = {
    "missing file": ("--train-file nowhere --test-file test", r"nowhere does not exist"),
    "damaged gzip": ("--train-file torn.gz --test-file test", r"torn.gz is a damaged gzip file|torn.gz cannot be"),
    "one file": ("--train-file test", r"--train-file and --test-file go together"),
    "other size": ("--train-file test --test-file six", r"six: puzzles of 36 cells, test has 16"),
    "no Sudoku": ("--train-file five --test-file five", r"five: 25 cells are no Sudoku; sizes are 4x4, 6x6, 9x9"),
    "size of a list": ("--train-file test --test-file test --size 4", r"--size is for generated puzzles"),
    "limit of none": ("--max-train 5", r"--max-train is for puzzle lists"),
    "sample of all": ("--train-file test --test-file test --sample-seed 5", r"--sample-seed chooses"),
    "hub without package": ("--hub a/b", r"--hub a/b needs the package huggingface_hub"),
    "hub and file": ("--hub a/b --train-file test --test-file test", r"exclude each other"),
    "no puzzles": ("--num-train 0", r"--num-train 0 must be at least 1"),
    "negative augmentations": ("--num-aug -1", r"--num-aug -1"),
    "negative seed": ("--seed -1", r"--seed -1 must be in"),
    "clues fall": ("--size 4 --clues 8-5", r"--clues 8-5"),
    "too many clues": ("--size 4 --clues 16", r"--clues 16-16"),
    "too hard": ("--size 4 --min-guesses 5", r"no new puzzle in .* attempts .*lower .*--min-guesses"),
    "too many puzzles": ("--size 4 --num-train 99999999 --clues 15", r"no new puzzle in"),
    "too many rows": ("--size 4 --num-train 3 --num-test 3 --num-aug 1000000000", r"exceed 2\*\*31 rows"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    message: str,
) -> None:
    (tmp_path / "test").write_text(QUESTIONS[50])
    (tmp_path / "five").write_text("0" * 25)
    (tmp_path / "six").write_text("0" * 36)
    (tmp_path / "torn.gz").write_bytes(gzip.compress(QUESTIONS[0].encode() * 99)[:-12])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(tmp_path, capsys, options.split(), message)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    """The builder, run in a folder, ends with one line on stderr, code 2, and writes nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(build_sudoku_dataset, "_PATIENCE_WHEN_CLIMBING", 50)
        assert build_sudoku_dataset.main(["--output-dir", "out", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert sorted(tmp_path.iterdir()) == before
