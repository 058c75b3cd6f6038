"""Opening a teacher: the right weights, the right data, and an accuracy that was measured again."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretrain
from datasets.build_sudoku_dataset import main as build_sudoku
from datasets.common import InputError
from tests.training.runs import TRM, build_sudoku_4x4, overrides, records
from training.build import model_config
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run_cli
from training.distributed import Distributed
from training.teacher import (
    Teacher,
    check_accuracy,
    check_same_teacher,
    draw_test_rows,
    fisher_exact,
    hash_of_tensors,
    open_teacher,
    recorded_accuracy,
)

STEP = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, evaluated on all its held-out puzzles."""
    folder = tmp_path_factory.mktemp("teacher")
    data = build_sudoku_4x4(folder / "sudoku")
    more = [f"max_steps={STEP}", "max_eval_puzzles=null", "arch.hidden_size=32"]
    assert run_cli(pretrain.main, overrides(TRM, data, folder / "run", *more)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def teacher(run: Path) -> Teacher:
    return open_teacher(str(run), Distributed())


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run", symlinks=True))


class HalfSolved:
    """Held-out data whose even rows have the teacher's own answers for labels."""

    def __init__(self, teacher: Teacher):
        self.real, self.num_rows = teacher.test_set, teacher.test_set.num_rows
        arrays = self.real.test_rows(np.arange(self.num_rows))
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        carry = teacher.model.initial_carry(batch)
        for _ in range(teacher.halt_max_steps):
            carry, outputs = teacher.model.model(carry=carry, batch=batch)
        self.answers = outputs["logits"].argmax(-1).numpy()

    def test_rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.real.test_rows(rows)
        return {**batch, "labels": np.where(rows[:, None] % 2 == 0, self.answers[rows], batch["labels"])}


def half_solved(run: Path) -> Teacher:
    teacher = open_teacher(str(run), Distributed())
    return dataclasses.replace(teacher, test_set=HalfSolved(teacher))  # type: ignore[arg-type]


def record(run: Path, exact: float, rows: int) -> None:
    file = run / "eval" / f"step_{STEP}" / "act_steps.json"
    content = json.loads(file.read_text())
    content["all"] |= {"rows": rows, "exact_accuracy_by_step": [0.0, exact]}
    file.write_text(json.dumps(content))


def test_the_weights_are_the_averages_and_the_settings_the_runs_own(run: Path, teacher: Teacher) -> None:
    groups = load_checkpoint(run / f"checkpoints/step_{STEP}", groups=["model", "ema"]).groups
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, (groups["model"] | groups["ema"])[name])
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    found = (teacher.latent_length, teacher.hidden_size, teacher.H_cycles, teacher.L_cycles, teacher.halt_max_steps)
    assert found == (2 + 16, 32, 2, 2, 3)
    raw = open_teacher(str(run), Distributed(), use_ema=False)
    assert all(torch.equal(tensor, groups["model"][name]) for name, tensor in raw.model.state_dict().items())
    assert raw.identity["weights"] != teacher.identity["weights"]
    assert open_teacher(str(run), Distributed()).identity == teacher.identity
    json.dumps(teacher.identity)


def test_the_identity_does_not_depend_on_the_dtype_of_the_device(
    run: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU runs in bf16 what a CPU runs in fp32, and has the initial latents in it."""

    def on_a_gpu(*args: Any, **more: Any) -> dict[str, Any]:
        return model_config(*args, **more) | {"forward_dtype": "bfloat16"}

    monkeypatch.setattr("training.teacher.model_config", on_a_gpu)
    other = open_teacher(str(run), Distributed())
    dtypes = [one.model.model.inner.H_init.dtype for one in (teacher, other)]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert other.identity == teacher.identity
    check_same_teacher(teacher.identity, other)


def test_the_hash_depends_on_names_shapes_and_every_number() -> None:
    one = {"a": torch.arange(6.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    same = {"b": one["b"].clone(), "a": one["a"].clone()}
    assert hash_of_tensors(one) == hash_of_tensors(same)
    for other in (
        {"a": one["a"].view(2, 3), "b": one["b"]},
        {"c": one["a"], "b": one["b"]},
        {"a": one["a"].double(), "b": one["b"]},
        {"a": one["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": one["b"]},
    ):
        assert hash_of_tensors(other) != hash_of_tensors(one)


def test_the_accuracy_is_that_of_the_run(run: Path, teacher: Teacher, capsys: pytest.CaptureFixture[str]) -> None:
    exact = records(run, "eval/all/exact_accuracy")[STEP]
    recorded = recorded_accuracy(teacher.weights.path)
    assert recorded == (pytest.approx(exact), teacher.test_set.num_rows)
    assert check_accuracy(teacher, Distributed(), puzzles=1000) == pytest.approx(exact)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("exact", "rows", "refused"), [(1.0, 1000, True), (0.0, 1000, True), (0.55, 1000, False), (1.0, 2, False)]
)
def test_a_record_that_cannot_be_true_is_refused(
    run: Path, tmp_path: Path, exact: float, rows: int, refused: bool
) -> None:
    other = copy_of(run, tmp_path)
    record(other, exact, rows)
    teacher = half_solved(other)
    if refused:
        with pytest.raises(InputError, match=f"recorded {exact:.4f} on {rows}: the weights, the data or the code"):
            check_accuracy(teacher, Distributed())
    else:
        assert check_accuracy(teacher, Distributed()) == 0.5
        few = draw_test_rows(teacher, 5)
        assert check_accuracy(teacher, Distributed(), puzzles=5) == pytest.approx((few % 2 == 0).mean())


def test_without_a_record_it_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_of(run, tmp_path)
    raw = open_teacher(str(other), Distributed(), use_ema=False)  # the run evaluated its averages
    check_accuracy(raw, Distributed(), puzzles=2)
    assert "no accuracy of these weights is recorded" in capsys.readouterr().err
    shutil.rmtree(other / "eval")
    assert recorded_accuracy(raw.weights.path) is None
    check_accuracy(open_teacher(str(other), Distributed()), Distributed(), puzzles=2)
    assert "no accuracy of these weights is recorded" in capsys.readouterr().err


def test_a_damaged_record_is_named(run: Path, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path)
    for content in ('{"all": 3}', '{"all": {"rows": 1}}', "[]", '{"all": {"rows": 2, "exact_accuracy_by_step": []}}'):
        (other / "eval" / f"step_{STEP}" / "act_steps.json").write_text(content)
        with pytest.raises(InputError, match=r"act_steps\.json is not the record of an evaluation"):
            recorded_accuracy(other / "checkpoints" / f"step_{STEP}")


def test_fishers_exact_test_against_known_values() -> None:
    # "Lady tasting tea" and the classic example of Fisher (1935) on criminal twins.
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(0.485714, abs=1e-6)
    assert fisher_exact(2, 17, 10, 13) == pytest.approx(0.0005367, rel=1e-3)
    assert fisher_exact(8, 10, 8, 10) == pytest.approx(1)
    # Against a record of very many rows it is the binomial test.
    binomial = sum(math.comb(20, k) for k in range(21) if math.comb(20, k) <= math.comb(20, 3)) / 2**20
    assert fisher_exact(3, 20, 5_000_000, 10_000_000) == pytest.approx(binomial, rel=1e-3)


def test_drawn_rows_are_different_and_nested(teacher: Teacher) -> None:
    all_rows = draw_test_rows(teacher, 10**6)
    np.testing.assert_array_equal(all_rows, np.arange(teacher.test_set.num_rows))
    few, more = (set(draw_test_rows(teacher, count).tolist()) for count in (5, 9))
    assert len(few) == 5 and len(more) == 9 and few < more
    assert few != set(draw_test_rows(teacher, 5, seed=1).tolist())
    assert few != set(range(5))


def test_rows_of_any_positions_are_those_of_the_loader(teacher: Teacher) -> None:
    data = teacher.train_set
    positions = np.array([200, 3, 70, 3, 0])
    rows = data.train_rows(positions)
    for i, position in enumerate(positions.tolist()):
        expected = data.train_batch(position // 10, 10, range(position % 10, position % 10 + 1))
        for key, value in expected.items():
            np.testing.assert_array_equal(rows[key][i], value[0])
    held_out = teacher.test_set
    _, batch, index = next(iter(held_out.test_batches(held_out.num_rows, 0, 1)))
    wanted = np.array([5, 0, 11])
    for key, value in held_out.test_rows(wanted).items():
        np.testing.assert_array_equal(value, batch[key][wanted])
        assert index[wanted].tolist() == wanted.tolist()


def test_another_teacher_is_named_by_what_differs(run: Path, teacher: Teacher) -> None:
    recorded: dict[str, Any] = json.loads(json.dumps(teacher.identity)) | {"statistics": "0123"}
    check_same_teacher(recorded, teacher, statistics="0123")
    check_same_teacher(recorded, teacher)
    with pytest.raises(InputError, match="with other statistics of the latents"):
        check_same_teacher(recorded, teacher, statistics="4567")
    with pytest.raises(InputError, match="with other weights"):
        check_same_teacher(recorded, open_teacher(str(run), Distributed(), use_ema=False))
    for key, text in (("dataset_hash", "other training data"), ("identifiers_hash", "other puzzles")):
        with pytest.raises(InputError, match=f"{text}.*name that teacher, or train a new head"):
            check_same_teacher(recorded, dataclasses.replace(teacher, identity={**teacher.identity, key: "other"}))


def test_data_may_move_but_not_change(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run.parent / "sudoku", tmp_path / "sudoku")
    assert open_teacher(str(run), Distributed(), data_paths=[str(moved)]).train_set.num_rows > 0
    other = tmp_path / "other"
    arguments = ["--size", "4", "--num-train", "16", "--num-test", "8", "--num-aug", "2", "--seed", "5"]
    assert build_sudoku(["--output-dir", str(other), *arguments]) == 0
    with pytest.raises(InputError, match=r"trained on other training data than data_paths=\[.*other\]"):
        open_teacher(str(run), Distributed(), data_paths=[str(other)])


def test_what_is_no_teacher_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_teacher(str(tmp_path / "nowhere"), Distributed())
    bare = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, bare)
    with pytest.raises(InputError, match="holds nothing but weights"):
        open_teacher(str(bare), Distributed())
    tensors = {"model": {"a": torch.zeros(1)}}
    save_checkpoint(tmp_path / "head", 1, replicated=tensors, sharded={}, meta={"config": {}}, kind="diffusion")
    with pytest.raises(InputError, match="is of kind 'diffusion', not a teacher"):
        open_teacher(str(tmp_path / "head"), Distributed())


def test_an_architecture_without_both_latents_is_refused(run: Path, tmp_path: Path) -> None:
    arch = [*TRM, "arch.name=recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"]
    command = overrides(arch, run.parent / "sudoku", tmp_path / "run", "max_steps=1")
    assert run_cli(pretrain.main, command) == 0
    with pytest.raises(InputError, match=r"trm_singlez@.* has the latents z_L, but"):
        open_teacher(str(tmp_path / "run"), Distributed())
