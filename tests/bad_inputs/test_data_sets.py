"""Missing, truncated, forged and contradictory files of a built data set, as ``pretrain.py`` meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest

from tests.bad_inputs.sandbox import (
    TINY,
    Sandbox,
    cut,
    edit_array,
    edit_json,
    make_bomb,
    run,
    set_entry,
    write_npy_of_shape,
)

Damage = Callable[[str], object]


def remove(path: str) -> None:
    Path(path).unlink()


def write(content: bytes) -> Damage:
    return lambda path: Path(path).write_bytes(content)


def replace(old: bytes, new: bytes) -> Damage:
    return lambda path: Path(path).write_bytes(Path(path).read_bytes().replace(old, new))


def keys(**changes: object) -> Damage:
    return lambda path: edit_json(path, **changes)


def array(edit: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    return lambda path: edit_array(path, edit)


def object_array(path: str) -> None:
    np.save(path, np.array([make_bomb()], dtype=object), allow_pickle=True)


REBUILD = "rebuild the dataset"

SUDOKU = [
    # files that are not there or not whole
    ("train/dataset.json", remove, "train/dataset.json does not exist"),
    ("test/dataset.json", remove, "test/dataset.json does not exist"),
    ("train/all__base_labels.npy", remove, f"train/all__base_labels.npy does not exist; {REBUILD}"),
    ("train/all__plan_seed.npy", remove, f"train/all__plan_seed.npy does not exist; {REBUILD}"),
    ("test/all__group_indices.npy", remove, f"test/all__group_indices.npy does not exist; {REBUILD}"),
    ("train/dataset.json", cut, "train/dataset.json is not valid JSON"),
    ("train/dataset.json", write(b""), "train/dataset.json is not valid JSON"),
    ("train/dataset.json", write(b"\xff\xfe{}"), "train/dataset.json is not valid JSON"),
    ("train/dataset.json", write(b"[" * 100_000), "train/dataset.json is not valid JSON"),
    ("train/dataset.json", write(b"[1]"), "train/dataset.json: "),
    ("train/all__base_inputs.npy", cut, "train/all__base_inputs.npy is truncated or not an .npy array"),
    ("train/all__base_inputs.npy", partial(cut, keep=0.1), "train/all__base_inputs.npy is truncated or not"),
    ("train/all__base_inputs.npy", write(b""), "train/all__base_inputs.npy is truncated or not"),
    ("test/all__puzzle_indices.npy", write(b"\x93NUMPY" * 40), "test/all__puzzle_indices.npy is truncated or not"),
    ("train/all__base_inputs.npy", partial(write_npy_of_shape, shape=(8, 2**50)), "base_inputs.npy is truncated"),
    ("train/all__puzzle_indices.npy", replace(b"'<i4'", b"'<,4'"), "puzzle_indices.npy is truncated or not"),
    # files that want to be unpickled
    ("train/all__base_inputs.npy", object_array, "train/all__base_inputs.npy .*(pickle|[Oo]bject)"),
    ("train/all__puzzle_indices.npy", object_array, "train/all__puzzle_indices.npy .*(pickle|[Oo]bject)"),
    # metadata
    ("train/dataset.json", keys(vocab_size=None), "train/dataset.json: key vocab_size: Field required"),
    ("train/dataset.json", keys(seq_len="many"), "train/dataset.json: key seq_len: .*integer"),
    ("train/dataset.json", keys(vocab_size=0), "train/dataset.json: key vocab_size: .*greater"),
    ("train/dataset.json", keys(storage="zipped"), "train/dataset.json: key storage: .*'compact'"),
    ("train/dataset.json", keys(kind="chess"), "train/dataset.json: key kind: "),
    ("train/dataset.json", keys(kind=None), "train/dataset.json: .*kind"),
    ("train/dataset.json", keys(kind="maze"), "train/.*"),
    ("train/dataset.json", keys(sets=[]), "train/dataset.json: sets is empty"),
    ("train/dataset.json", keys(sets=["most"]), "train/most__puzzle_identifiers.npy does not exist"),
    ("train/dataset.json", keys(blank_identifier_id=1), "train/dataset.json: blank_identifier_id must be 0"),
    ("train/dataset.json", keys(pad_id=6), "train/dataset.json: .*pad_id"),
    ("train/dataset.json", keys(total_groups=7), "train/dataset.json: total_groups is 7 but the arrays have 8"),
    ("train/dataset.json", keys(seq_len=25), r"train/all__base_inputs.npy is uint8 \[8, 16\], expected .*\[8, 25\]"),
    ("train/dataset.json", keys(vocab_size=5), "train/all__base_inputs.npy: row .* holds token 5, outside 0..4"),
    ("test/dataset.json", keys(vocab_size=7), "test/all__plan_box.npy .* vocab_size is 7"),
    ("test/dataset.json", keys(num_puzzle_identifiers=2), "identifiers.json|num_puzzle_identifiers"),
    # arrays
    ("train/all__base_inputs.npy", array(set_entry((3, 5), 6)), "base_inputs.npy: row 3, cell 5 holds token 6"),
    ("train/all__base_labels.npy", array(set_entry((0, 15), 200)), "base_labels.npy: row 0, cell 15 holds token 200"),
    ("test/all__base_labels.npy", array(set_entry((5, 0), 99)), "test/all__base_labels.npy: row 5, cell 0 .*99"),
    ("train/all__base_inputs.npy", array(lambda a: a.astype(np.float32)), "base_inputs.npy is float32"),
    ("train/all__base_inputs.npy", array(lambda a: a.astype(np.int8) - 3), "base_inputs.npy: row 0, cell .*token -2"),
    ("train/all__base_inputs.npy", array(lambda a: a[:-1]), r"base_inputs.npy is uint8 \[7, 16\], expected"),
    ("train/all__base_inputs.npy", array(lambda a: a.reshape(-1)), r"base_inputs.npy is uint8 \[128\], expected"),
    ("train/all__puzzle_identifiers.npy", array(set_entry(9, 1)), "puzzle_identifiers.npy entry 9 is outside 0..0"),
    ("train/all__puzzle_identifiers.npy", array(set_entry(0, -1)), "puzzle_identifiers.npy entry 0 is outside"),
    ("train/all__puzzle_identifiers.npy", array(lambda a: a[:-2]), "identifiers.npy has 30 entries, expected 32"),
    ("train/all__puzzle_indices.npy", array(set_entry(4, 2)), "puzzle_indices.npy entry 4 is below"),
    ("train/all__puzzle_indices.npy", array(set_entry(0, 1)), "puzzle_indices.npy must begin with 0"),
    ("train/all__puzzle_indices.npy", array(set_entry(32, 40)), "puzzle_indices.npy entry 32"),
    ("train/all__puzzle_indices.npy", array(lambda a: a.astype(float)), "puzzle_indices.npy is float64"),
    ("train/all__puzzle_indices.npy", array(lambda a: a[:0]), "puzzle_indices.npy must begin with 0"),
    ("train/all__group_indices.npy", array(set_entry(2, 1)), "group_indices.npy entry 2 is not above"),
    ("train/all__group_indices.npy", array(set_entry(8, 31)), "group_indices.npy ends with 31, expected 32"),
    ("train/all__group_indices.npy", array(lambda a: a[:-1]), "group_indices.npy ends with 28, expected 32"),
    ("train/all__plan_box.npy", array(set_entry(0, 3)), r"plan_box.npy holds \[3, 2\]"),
    ("train/all__plan_box.npy", array(lambda a: -a), r"plan_box.npy holds \[-2, -2\]"),
    ("train/all__plan_seed.npy", array(set_entry(0, 2**63)), "plan_seed.npy entry 0 is not below 2..63"),
    ("train/all__plan_seed.npy", array(lambda a: a.astype(np.int32)), "plan_seed.npy is int32"),
]  # fmt: skip


def refused(sandbox: Sandbox, data: str, name: str, damage: Damage, message: str, settings: str = "") -> None:
    damage(f"{data}/{name}")
    sandbox.assert_refused("pretrain", f"{TINY} data_paths=[{data}] checkpoint_path=new {settings}", message)


@pytest.mark.parametrize(("name", "damage", "message"), SUDOKU)
def test_sudoku(sandbox: Sandbox, name: str, damage: Damage, message: str) -> None:
    refused(sandbox, "sudoku", name, damage, message)


ARC = [
    ("identifiers.json", remove, "arc/identifiers.json does not exist"),
    ("train/all__base_cells.npy", array(set_entry(0, 10)), "base_cells.npy entry 0 is not a colour"),
    ("train/all__base_cells.npy", array(lambda a: a[:-1]), "base_offsets.npy entry .* leaves the cells"),
    ("train/all__base_shapes.npy", array(set_entry((0, 0), 7)), "base_shapes.npy entry 0 is larger than the canvas"),
    ("train/all__base_offsets.npy", array(set_entry(0, -5)), "base_offsets.npy entry 0 leaves the cells"),
    ("train/all__base_group_pairs.npy", array(set_entry(1, 1)), "(base_group_pairs|puzzle_indices).npy"),
    ("train/all__base_group_pairs.npy", array(set_entry(1, -1)), "(base_group_pairs|puzzle_indices).npy"),
    ("train/all__base_group_pairs.npy", array(set_entry(-1, 2**40)), "base_"),
    ("train/all__plan_tid.npy", array(set_entry(2, 8)), "plan_tid.npy entry 2 is no symmetry"),
    ("train/all__plan_colours.npy", array(set_entry((1, 3), 0)), "plan_colours.npy entry 1 is no permutation"),
    ("train/all__puzzle_identifiers.npy", array(set_entry(5, 19)), "puzzle_identifiers.npy entry 5 is outside 0..18"),
    ("train/dataset.json", keys(seq_len=35), "train/dataset.json: seq_len 35 is no square"),
    ("test/dataset.json", keys(num_puzzle_identifiers=20), "num_puzzle_identifiers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), ARC)
def test_arc(sandbox: Sandbox, name: str, damage: Damage, message: str) -> None:
    refused(sandbox, "arc", name, damage, message)


def other_tasks(path: str) -> None:
    tasks = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({f"other{index}": task for index, task in enumerate(tasks.values())}))


def first_test_input(grid: object) -> Damage:
    def damage(path: str) -> None:
        tasks = json.loads(Path(path).read_text())
        next(iter(tasks.values()))["test"][0]["input"] = grid
        Path(path).write_text(json.dumps(tasks))

    return damage


def rename_all(path: str) -> None:
    names = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(names[:1] + [f"x{name}" for name in names[1:]]))


def drop_last(path: str) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text())[:-1]))


ARC_EVALUATION = [
    ("test_puzzles.json", remove, "arc/test_puzzles.json does not exist"),
    ("test_puzzles.json", cut, "arc/test_puzzles.json is not valid JSON"),
    ("test_puzzles.json", write(b"[]"), "arc/test_puzzles.json must map task ids to their pairs"),
    ("test_puzzles.json", write(b"{}"), "arc/test_puzzles.json has no task with test pairs"),
    ("test_puzzles.json", write(b'{"a": {"train": []}}'), "arc/test_puzzles.json: task a has no list of test pairs"),
    ("test_puzzles.json", first_test_input([[1, 2], [3]]), "test pair 0, input: expected a rectangular list"),
    ("test_puzzles.json", first_test_input([[10]]), "test pair 0, input: colours 10..10, expected 0..9"),
    ("test_puzzles.json", first_test_input([[1] * 7]), "test pair 0, input: 1x7 cells do not fit rows of 6x6"),
    ("test_puzzles.json", first_test_input("grid"), "test pair 0, input: expected a rectangular list"),
    ("test_puzzles.json", other_tasks, "arc/identifiers.json: no name belongs to any of the 3 tasks of test_puzzles"),
    ("identifiers.json", rename_all, "arc/identifiers.json: no name belongs to any of the 3 tasks of test_puzzles"),
    ("identifiers.json", drop_last, "arc/identifiers.json has 18 names but num_puzzle_identifiers is 19"),
    ("identifiers.json", write(b"{}"), "arc/identifiers.json must be a non-empty list"),
    ("identifiers.json", write(b'["<blank>", "a|||t9|||0123456789"]'), 'arc/identifiers.json: name 1 is "a.*t9'),
]


@pytest.mark.parametrize(("name", "damage", "message"), ARC_EVALUATION)
def test_what_only_the_arc_evaluator_reads(sandbox: Sandbox, name: str, damage: Damage, message: str) -> None:
    refused(sandbox, "arc", name, damage, message, "'evaluators=[{name: arc@ARC}]'")


def without_rows(data: str) -> None:
    edit_json(f"{data}/test/dataset.json", total_groups=0)
    for name, keep in (("base_inputs", 0), ("base_labels", 0), ("puzzle_identifiers", 0), ("puzzle_indices", 1)):
        edit_array(f"{data}/test/all__{name}.npy", itemgetter(slice(keep)))
    edit_array(f"{data}/test/all__group_indices.npy", itemgetter(slice(1)))


def test_test_split_without_rows(sandbox: Sandbox) -> None:
    without_rows("sudoku")
    sandbox.assert_refused("pretrain", f"{TINY} data_paths=[sudoku] checkpoint_path=new", "sudoku/test: .*no row")


def test_test_data_of_other_puzzles(sandbox: Sandbox) -> None:
    """Other tasks under the same numbers: their embeddings would be those of the training tasks."""
    assert run("build_arc", "--output-dir arc2 --grid-size 6 --max-tasks 3 --num-aug 2 --seed 7")[0] == 0
    settings = f"{TINY} data_paths=[arc] data_paths_test=[arc2] checkpoint_path=new"
    sandbox.assert_refused("pretrain", settings, r"arc2 is not among the training data \(arc\)")


EXPANDED = [
    ("test/all__inputs.npy", remove, "test/all__inputs.npy does not exist"),
    ("test/all__inputs.npy", cut, "test/all__inputs.npy is truncated or not an .npy array"),
    ("test/all__inputs.npy", object_array, "test/all__inputs.npy .*(pickle|[Oo]bject)"),
    ("train/all__labels.npy", array(set_entry((31, 2), 6)), "train/all__labels.npy: row 31, cell 2 holds token 6"),
    ("train/all__labels.npy", array(lambda a: a.astype(np.int32) - 100), "train/all__labels.npy: row 0, cell 0 .*-9"),
    ("train/all__labels.npy", array(lambda a: a[:30]), r"train/all__labels.npy is uint8 \[30, 16\], expected .*\[32"),
    ("train/all__inputs.npy", array(lambda a: a / 2), "train/all__inputs.npy is float"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), EXPANDED)
def test_expanded_storage(sandbox: Sandbox, name: str, damage: Damage, message: str) -> None:
    shutil.rmtree("sudoku")
    build = "--output-dir sudoku --size 4 --num-train 8 --num-test 6 --num-aug 3 --storage expanded"
    assert run("build_sudoku", build) == (0, "")
    refused(sandbox, "sudoku", name, damage, message)
