"""The maze builder: what it generates, the lists it reads, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datasets import build_maze_dataset
from datasets.common import DIHEDRAL_TRANSFORMS, dihedral_transform, load_metadata
from datasets.maze import generate
from datasets.puzzle_dataset import PuzzleDataset
from tests.datasets.maze_oracle import picture, solved

MAZES = generate(6, seed=99, start=0, stop=3000, min_path=8)
QUESTIONS = [picture(maze).replace("|", "") for maze in MAZES.questions]
ANSWERS = [picture(maze).replace("|", "") for maze in MAZES.answers]
HEADER = "source,question,answer,rating"
OTHER_ORDER = ((-1, 0), (0, 1), (0, -1), (1, 0))


def csv_of(rows: range, answers: list[str] = ANSWERS) -> str:
    return "\n".join([HEADER, *(f"made,{QUESTIONS[row]},{answers[row]},0" for row in rows)]) + "\n"


def build(out: Path, *options: object) -> None:
    argv = ["--output-dir", str(out), *(str(option) for option in options)]
    assert build_maze_dataset.main(argv) == 0


def test_generated_dataset(tmp_path: Path) -> None:
    options = ("--size", 8, "--num-train", 50, "--num-test", 30, "--aug")
    build(tmp_path / "compact", *options)
    build(tmp_path / "expanded", *options, "--storage", "expanded")
    train, test = (load_metadata(tmp_path / "expanded" / split) for split in ("train", "test"))
    assert (train.total_groups, train.total_puzzles, test.total_puzzles) == (50, 400, 30)
    assert (train.vocab_size, train.seq_len, train.grid, train.box, train.kind) == (6, 64, (8, 8), None, "maze")
    assert train.provenance is not None
    assert train.provenance["difficulty"]["train"]["min"] >= 15
    inputs, labels = (np.load(tmp_path / "expanded" / "train" / f"all__{n}.npy") for n in ("inputs", "labels"))
    for maze, label in zip(inputs, labels, strict=True):
        assert (label == solved(maze)).all()
        assert (label == 5).sum() + 2 >= 15
    trained = {maze.tobytes() for maze in inputs}
    for maze in np.load(tmp_path / "expanded" / "test" / "all__inputs.npy"):
        for tid in range(DIHEDRAL_TRANSFORMS):
            assert dihedral_transform(maze.reshape(8, 8), tid).tobytes() not in trained
    one, other = (PuzzleDataset([tmp_path / name], "train") for name in ("compact", "expanded"))
    assert one.dataset_hash == other.dataset_hash
    for name, rows in one.train_batch(3, 32, range(32)).items():
        assert (rows == other.train_batch(3, 32, range(32))[name]).all()


def test_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "train").write_text(csv_of(range(40)))
    (tmp_path / "test").write_text(csv_of(range(40, 60)))
    build(tmp_path / "out", "--train-file", tmp_path / "train", "--test-file", tmp_path / "test", "--max-test", 5)
    for split, rows in (("train", range(40)), ("test", range(40, 45))):
        base = tmp_path / "out" / split / "all__base_"
        assert (np.load(f"{base}inputs.npy") == MAZES.questions[rows]).all()
        assert (np.load(f"{base}labels.npy") == MAZES.answers[rows]).all()


def test_another_shortest_path_is_an_answer_unless_augmented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --aug it would be mixed with labels of ours."""
    others = [
        picture(path).replace("|", "") for maze in MAZES.questions if (path := solved(maze, OTHER_ORDER)) is not None
    ]
    row = next(row for row in range(40) if others[row] != ANSWERS[row])
    (tmp_path / "train").write_text(csv_of(range(40), others))
    (tmp_path / "test").write_text(csv_of(range(40, 60)))
    build(tmp_path / "out", "--train-file", tmp_path / "train", "--test-file", tmp_path / "test")
    assert (np.load(tmp_path / "out" / "train" / "all__base_labels.npy") != MAZES.answers[:40]).any()
    capsys.readouterr()
    options = ["--train-file", "train", "--test-file", "test", "--aug"]
    refused(tmp_path, capsys, options, rf"train line {row + 2}: .*; drop --aug")


def row(question: str, answer: str) -> str:
    return f"{HEADER}\nmade,{QUESTIONS[1]},{ANSWERS[1]},0\nmade,{question},{answer},0\n"


BAD_LISTS = {
    "no CSV": ("S G ", r"train line 1: mazes come as CSV"),
    "not square": (row("S G", "S G").replace(f"made,{QUESTIONS[1]},{ANSWERS[1]},0\n", ""), r"train: 3 cells"),
    "odd character": (row("S" + "." * 35, "S" + "o" * 35), r'train line 3: question has "\." in cell 2'),
    "two starts": (row("SS" + " " * 33 + "G", " " * 36), r"train line 3: the maze has 2 cells S"),
    "no goal": (row("S" + " " * 35, "S" + " " * 35), r"train line 3: the maze has 0 cells G"),
    "path in question": (row("So" + " " * 33 + "G", " " * 36), r"train line 3: the question has path in cell 2"),
    "no path": (row("S" + "#" * 34 + "G", "S" + "#" * 34 + "G"), r"train line 3: the maze has no path"),
    "path in wall": (row("S#G" + " " * 33, "SoG" + " " * 33), r"line 3: the answer changes the maze"),
    "wall gone": (row("S G" + " " * 27 + "#" * 6, "SoG" + " " * 33), r"line 3: the answer changes the maze"),
    "no answer": (row("S G" + " " * 33, "S G" + " " * 33), r"line 3: the answer marks 2 cells, .* of 3"),
    "stray": (row("S G" + " " * 33, "SoG  o" + " " * 30), r"line 3: the answer marks 4 cells, .* of 3"),
    "detour": (row("S G" + " " * 33, "S G   ooo" + " " * 27), r"line 3: the answer marks 5 cells, .* of 3"),
    "gap": (row("S  G" + " " * 32, "So Go" + " " * 31), r"line 3: the answer marks 4 cells, .* of 4"),
    "in both lists": (row(QUESTIONS[50], ANSWERS[50]), r"test line 2: .* also in .*train line 3"),
}


@pytest.mark.parametrize(("text", "message"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_bad_lists_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "train").write_text(text)
    same = "3 cells" in message or "as CSV" in message
    (tmp_path / "test").write_text(text if same else csv_of(range(50, 51)))
    refused(tmp_path, capsys, ["--train-file", "train", "--test-file", "test"], message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--size 2", r"--size 2 must be in 3\.\.255"),
        ("--size 5 --min-path 26", r"--min-path 26 must be in 2\.\.25 for --size 5"),
        ("--size 4 --min-path 16", r"no new puzzle in .* lower --min-path"),
        ("--min-path 5 --train-file a --test-file b", r"--min-path is for generated puzzles"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    refused(tmp_path, capsys, options.split(), message)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    """The builder, run in a folder, ends with one line on stderr, code 2, and writes nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(build_maze_dataset, "_PATIENCE", 50_000)
        assert build_maze_dataset.main(["--output-dir", "refused", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert sorted(tmp_path.iterdir()) == before
