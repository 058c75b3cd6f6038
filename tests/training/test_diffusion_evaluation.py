"""Evaluation of a diffusion head: rows against the recursion, a head that is the teacher, files, and evaluate.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_train
import evaluate
import pretrain
from datasets.common import InputError
from evaluators.diffusion import DiffusionEvaluator
from models.student import row_keys
from tests.training.runs import COARSE_TO_FINE, TRM, build_sudoku_4x4, overrides
from training import diffusion_sampling
from training.checkpoint import load_checkpoint
from training.cli import EXIT_BAD_INPUT, run_cli
from training.diffusion_eval_options import DiffusionEvalOptions
from training.diffusion_evaluation import evaluate_head
from training.diffusion_head import build_head, head_config, open_head
from training.diffusion_rollout import accuracy_by_flops, measure_cost
from training.diffusion_rows import RowBatch, RowLayout, early_answers
from training.diffusion_sampling import HeadSampler
from training.diffusion_schema import DiffusionSection, NoiseSection
from training.distributed import Distributed
from training.flops import forward_flops
from training.harvest import eval_batches, harvest_entries, layout_of
from training.teacher import Teacher, open_teacher

CPU = torch.device("cpu")
NOISE = NoiseSection(schedule="linear", steps=100, beta_start=1e-3, beta_end=0.2)
HEADS = {
    "layer": "diffusion_916@Diffusion916",
    "h_cycle": "diffusion_9160@Diffusion9160",
    "jump": "diffusion_9160@Diffusion9160",
}
SMALL: dict[str, Any] = {
    "puzzles": 6,
    "timestep_puzzles": 3,
    "seed_puzzles": 2,
    "seeds": 3,
    "timesteps": 3,
    "steps": (1, 2),
    "act_steps": (1, 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a teacher that has seen a few batches of it."""
    folder = tmp_path_factory.mktemp("diffusion")
    data = build_sudoku_4x4(folder / "sudoku")
    command = [*overrides(TRM, data, folder / "teacher", "max_steps=20"), "evaluators=[{name: sudoku@Sudoku}]"]
    assert run_cli(pretrain.main, command) == 0
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return open_teacher(str(folder / "teacher"), Distributed(), max_eval_puzzles=8)


def make_head(teacher: Teacher, rows: Any, exact: bool = False, **settings: Any) -> Any:
    """A head of random weights, or, for one update, one that computes what the teacher does."""
    layers = teacher.config.L_layers if exact else 2
    section = DiffusionSection(
        name=HEADS[rows], rows=rows, num_layers=layers, num_heads=None, expansion=None, **settings
    )  # type: ignore[call-arg]
    head: Any = build_head(section.name, head_config(section, teacher), NOISE, CPU)
    head.normalizer.set_statistics(0.1 * torch.ones(2, teacher.hidden_size), 0.7 * torch.ones(2, teacher.hidden_size))
    if exact:
        head.init_from_level(teacher.model.model.inner.L_level)
    else:
        for parameter in head.parameters():  # out of the zeros that adaLN-zero starts with
            torch.nn.init.normal_(parameter, std=0.1)
    return head.eval().requires_grad_(False)


def harvested(teacher: Teacher, layout: RowLayout, rows: int = 3) -> tuple[Tensor, Tensor]:
    batch = {key: torch.from_numpy(value) for key, value in teacher.test_set.test_rows(np.arange(rows)).items()}
    return harvest_entries(teacher, batch, layout.harvested), row_keys(batch["inputs"])


def all_rows(teacher: Teacher, layout: RowLayout, rows_at_once: int = 1000) -> list[RowBatch]:
    return list(layout.batches(*harvested(teacher, layout), rows_at_once))


def test_rows_of_updates_are_what_the_level_computes(teacher: Teacher) -> None:
    layout = RowLayout.of("layer", layout_of(teacher), act_steps=(3, 1))
    (rows,) = all_rows(teacher, layout)
    count = 2 * teacher.H_cycles * (teacher.L_cycles + 1)
    assert rows.target.shape == (3 * count, 1, teacher.latent_length, teacher.hidden_size)
    inner = teacher.model.model.inner
    prev, other, x = rows.conditions
    assert torch.equal(inner.L_level(prev, other + x, inner.rotary()), rows.target[:, 0])
    assert not x[rows.types[:, 0] == 1].any() and bool(x[rows.types[:, 0] == 0].any())
    assert torch.equal(rows.copied[:, 0], prev)
    assert torch.equal(rows.answers, torch.where(rows.types[:, 0] == 1)[0])
    assert rows.cells.flatten().tolist() == sorted(list(range(count)) * 3)
    assert layout.position_types == (0,) * teacher.L_cycles + (1,) and layout.act_steps == (1, 3)
    assert len(rows.key.unique()) == len(rows.key)


def test_rows_of_cycles_are_what_a_cycle_computes(teacher: Teacher) -> None:
    (rows,) = all_rows(teacher, RowLayout.of("h_cycle", layout_of(teacher), act_steps=(1, 2)))
    inner = teacher.model.model.inner
    x, z_H, z_L = rows.conditions
    updates: list[Tensor] = []
    carry = inner.cycle(inner.carry_class(z_H=z_H, z_L=z_L), x, inner.rotary(), updates)
    assert torch.equal(torch.stack([*updates, carry.z_H], 1), rows.target)
    assert torch.equal(rows.copied, torch.stack([z_L] * teacher.L_cycles + [z_H], 1))
    assert rows.answer_block == teacher.L_cycles and len(rows.answers) == len(rows.key)


def test_rows_of_jumps_are_what_act_steps_compute(teacher: Teacher) -> None:
    layout = RowLayout.of("jump", layout_of(teacher), act_steps=(), jump_from=(1, 0), jump_to=3)
    assert layout.harvested == (1, 2, 3) and layout.act_steps == (1, 2)
    (rows,) = all_rows(teacher, layout)
    inner = teacher.model.model.inner
    x, z_H, z_L = rows.conditions
    for start, part in ((0, slice(0, 3)), (1, slice(3, 6))):
        carry = inner.carry_class(z_H=z_H[part], z_L=z_L[part])
        for _ in range(3 - start):
            carry = inner.recur(carry, x[part], inner.rotary())
        assert torch.equal(torch.stack([carry.z_H, carry.z_L], 1), rows.target[part])
    assert rows.types[0].tolist() == [1, 0] and torch.equal(rows.copied, torch.stack([z_H, z_L], 1))


def test_batches_of_any_size_hold_the_same_rows(teacher: Teacher) -> None:
    layout = RowLayout.of("layer", layout_of(teacher), act_steps=(1,))
    (whole,), parts = all_rows(teacher, layout), all_rows(teacher, layout, rows_at_once=5)
    assert len(parts) == -(-len(whole.key) // 5)
    for name in ("target", "types", "cells", "key", "puzzle"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    answers = torch.cat([5 * number + part.answers for number, part in enumerate(parts)])
    assert torch.equal(answers, whole.answers)


def test_where_the_teacher_could_stop(teacher: Teacher) -> None:
    layout = layout_of(teacher)
    entries, _ = harvested(teacher, RowLayout.of("layer", layout, act_steps=(1, 3)))
    early = early_answers((1, 3), layout)
    assert [cycles for cycles, _ in early] == [1, 2, 5, 6]
    (rows,) = all_rows(teacher, RowLayout.of("h_cycle", layout, act_steps=(1, 3)))
    z_H = entries.flatten(1, 2)[:, [place for _, place in early]]
    assert torch.equal(z_H.transpose(0, 1).reshape(rows.target[:, -1].shape), rows.target[:, -1])


@pytest.mark.parametrize("rows", ["layer", "h_cycle"])
def test_samples_do_not_depend_on_the_batch(teacher: Teacher, rows: Any) -> None:
    sampler = HeadSampler(make_head(teacher, rows), rows, "ddim", 2, device=CPU)
    (batch,) = all_rows(teacher, RowLayout.of(rows, layout_of(teacher), act_steps=(1,)))
    types = batch.types if rows == "layer" else None
    whole = sampler(batch.conditions, types, batch.key)
    sampler.rows_at_once = 4
    order = torch.arange(len(batch.key) - 1, -1, -1)
    turned = tuple(part[order] for part in batch.conditions)
    parts = sampler(turned, None if types is None else types[order], batch.key[order])
    assert torch.allclose(parts[order], whole, atol=1e-5)
    assert torch.allclose(whole.square().mean(-1), torch.ones(()), atol=1e-3)  # on the sphere
    other = HeadSampler(make_head(teacher, rows), rows, "ddim", 2, device=CPU, seed=1)
    assert not torch.allclose(other(batch.conditions, types, batch.key), whole, atol=1e-4)


def test_samplers_that_do_not_suit(teacher: Teacher) -> None:
    with pytest.raises(InputError, match=r"steps=101 must lie in 1\.\.100"):
        HeadSampler(make_head(teacher, "layer"), "layer", "ddim", 101, device=CPU)


def measure(teacher: Teacher, head: Any, rows: Any, save_dir: Path | None = None, **options: Any) -> dict[str, float]:
    regression = options.pop("regression", None)
    chosen = DiffusionEvalOptions(rows=rows, **(SMALL | options))
    figures = evaluate_head(
        head, teacher, Distributed(), chosen, DiffusionEvaluator(), regression=regression, save_dir=save_dir
    )
    assert figures is not None
    return figures


def test_a_head_that_is_the_teacher(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head(teacher, "layer", exact=True)
    figures = measure(teacher, head, "layer", tmp_path / "eval", regression=None)
    for nfe in (1, 2):
        assert figures[f"diffusion/head_nfe_{nfe}/x0_error"] < 1e-4
        assert figures[f"diffusion/head_nfe_{nfe}/exact_agreement"] == 1
        assert figures[f"diffusion/head_nfe_{nfe}/q_difference"] < 1e-3
    assert figures["diffusion/head_nfe_1/seed_spread"] < 1e-4
    assert 0.01 < figures["diffusion/copy/x0_error"] < 2 and figures["diffusion/zero/eps_mse"] == pytest.approx(1, 0.05)
    tree = json.loads((tmp_path / "eval/diffusion.json").read_text())
    assert tree["rollout"]["head, NFE 1"]["exact_accuracy"] == tree["rollout"]["TRM"]["exact_accuracy"]
    assert tree["rollout"]["head, NFE 1"]["accuracy"] == pytest.approx(tree["rollout"]["TRM"]["accuracy"])
    assert tree["rollout"]["TRM"]["rows"] == 6 and len(tree["rollout"]["TRM"]["accuracy"]) == teacher.halt_max_steps
    assert tree["eps_mse"]["timesteps"] == [0, 16, 50, 83, 99]
    assert max(tree["x0_error_by_timestep"]["methods"]["head"]["all"]) < 1e-4
    assert tree["protocol"]["puzzles"] == 6 and tree["protocol"]["teacher_sha256"] == teacher.identity["weights"]
    cost = tree["cost"]
    assert cost["head"]["head, NFE 2"]["gflop"] == 2 * cost["head"]["head, NFE 1"]["gflop"] > 0
    assert cost["teacher"]["act_step"]["gflop"] > teacher.H_cycles * cost["teacher"]["h_cycle"]["gflop"]
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert {"denoising.png", "accuracy_by_flops.png", "error_by_timestep.png", "diffusion.json"} <= names
    # Smaller pieces, the same figures.
    monkeypatch.setattr(diffusion_sampling, "TOKENS_ELSEWHERE", 5 * teacher.latent_length)
    monkeypatch.setattr("training.diffusion_evaluation.HARVEST_ELSEWHERE", 1)
    again = measure(teacher, head, "layer", quick=True)
    assert set(again) < set(figures)
    for key, value in again.items():
        assert value == pytest.approx(figures[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("arch", [TRM, COARSE_TO_FINE], ids=["trm", "coarse_to_fine"])
def test_what_is_timed_is_what_is_counted(
    arch: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["max_steps=1", "arch.mlp_t=true", "arch.pos_encodings=none"]  # not all of attention is counted on a CPU
    assert run_cli(pretrain.main, overrides(arch, folder / "sudoku", tmp_path, *more)) == 0
    teacher = open_teacher(str(tmp_path), Distributed())
    (batch,) = eval_batches(teacher, Distributed(), rows=1, act_steps=[1])  # positions are embedded once for a batch

    def counted(unit: Any, count: int, device: torch.device) -> dict[str, float]:
        return {"timed_gflop": forward_flops(unit) / count / 1e9}

    monkeypatch.setattr("training.diffusion_rollout._timed", counted)
    units = measure_cost(teacher, "layer", {}, batch)["teacher"]
    assert list(units) == ["application", "h_cycle", "act_step"]
    for unit in units.values():
        assert unit["timed_gflop"] == pytest.approx(unit["gflop"], rel=1e-9)


@pytest.mark.parametrize("rows", ["h_cycle", "jump"])
def test_heads_of_many_latents(teacher: Teacher, rows: Any, tmp_path: Path) -> None:
    """With a regression head beside them; random weights are right about nothing."""
    head, regression = make_head(teacher, rows), make_head(teacher, rows, prediction="regression")
    figures = measure(teacher, head, rows, tmp_path, regression=regression, steps=(1,), timesteps=2)
    for method in ("head_nfe_1", "regression"):
        assert 0.5 < figures[f"diffusion/{method}/x0_error"] < 2
        assert figures[f"diffusion/{method}/exact_agreement"] < 1
    tree = json.loads((tmp_path / "diffusion.json").read_text())
    levels = tree["x0_error_by_timestep"]["methods"]["regression"]["all"]
    assert levels == pytest.approx([levels[0]] * 4)  # it does not see the noise
    snr = tree["eps_mse"]["snr"]
    errors = tree["eps_mse"]["methods"]["regression"]["all"]
    assert errors[0] / errors[-1] == pytest.approx(snr[0] / snr[-1], rel=1e-3)
    flops = tree["accuracy_by_flops"]
    once = tree["cost"]["head"]["regression"]["gflop"]
    aside = (
        tree["cost"]["teacher"]["act_step"]["gflop"] - teacher.H_cycles * tree["cost"]["teacher"]["h_cycle"]["gflop"]
    )
    if rows == "jump":
        # From the first step on, the student is the teacher, one jump later.
        assert flops["regression"]["gflop"][0] == pytest.approx(once + aside)
        assert np.diff(flops["regression"]["gflop"]) == pytest.approx(tree["cost"]["teacher"]["act_step"]["gflop"])
        assert tree["position_types"] == ["z_H", "z_L"]
    else:
        assert flops["regression"]["gflop"][0] == pytest.approx(teacher.H_cycles * once + aside)
        assert tree["position_types"] == ["z_L", "z_L", "z_H"]


def test_a_head_of_raw_latents_on_few_noise_levels(teacher: Teacher, tmp_path: Path) -> None:
    """It has no mean latent to be compared with, and its sample is drawn in as many steps as there are levels."""
    section = DiffusionSection(name="diffusion_seed@Seed916", rows="layer", num_heads=None, expansion=None)  # type: ignore[call-arg]
    noise = NoiseSection(schedule="cosine", steps=6)
    head = build_head(section.name, head_config(section, teacher), noise, CPU).eval().requires_grad_(False)
    measure(teacher, head, "layer", tmp_path, rollout=False)
    tree = json.loads((tmp_path / "diffusion.json").read_text())
    assert set(tree["x0_error"]) == {"copy", "head, NFE 1", "head, NFE 2"}
    assert set(tree["eps_mse"]["methods"]) == {"zero", "sigma * x_t", "copy", "head"}
    assert (tmp_path / "denoising.png").exists()
    # Neither normalised nor kept on the sphere, but its samples are of the length of latents, like all others.
    sampler = HeadSampler(head, "layer", "ddim", 2, device=CPU)
    layout = RowLayout.of("layer", layout_of(teacher), act_steps=(1,))
    (rows,) = all_rows(teacher, layout)
    sample = sampler(rows.conditions, rows.types, rows.key)
    torch.testing.assert_close(sample.square().mean(-1), torch.ones(sample.shape[:-1]), rtol=0, atol=1e-3)
    assert 1 < tree["x0_error"]["head, NFE 1"]["all"] < 2


def test_flops_of_a_teacher_stopped_early(teacher: Teacher) -> None:
    cost = {"teacher": {"h_cycle": {"gflop": 10.0}, "act_step": {"gflop": 23.0}}, "head": {"a": {"gflop": 2.0}}}
    early = {"h_cycles": [1, 2, 3, 5], "exact_accuracy": [0.1, 0.2, 0.3, 0.4]}
    students = {"a": {"exact_accuracy": [0.5, 0.6, 0.7]}}
    curves = accuracy_by_flops(teacher, "layer", cost, students, early)
    assert curves["TRM stopped early"]["gflop"] == [13, 23, 36, 59]
    assert curves["a"]["gflop"] == [2 * 3 * 2 + 3, 2 * 15, 3 * 15]
    jumping = accuracy_by_flops(teacher, "jump", cost, students, {}, jump_at=1)
    assert jumping["a"]["gflop"] == [23, 23 + 5, 2 * 23 + 5]


def test_options_that_do_not_fit(teacher: Teacher) -> None:
    head = make_head(teacher, "jump")
    with pytest.raises(InputError, match="jump_to=9 must lie after"):
        measure(teacher, head, "jump", jump_to=9)
    with pytest.raises(InputError, match="name one of prediction=regression"):
        measure(teacher, head, "jump", regression=head)
    other = replace(teacher)
    with pytest.raises(InputError, match="compare heads of the same rows"):
        measure(other, head, "jump", regression=make_head(teacher, "h_cycle", prediction="regression"))


@pytest.fixture(scope="module")
def head_run(folder: Path) -> Path:
    command = [f"checkpoint={folder / 'teacher'}", "max_steps=3", "global_batch_size=4", "eval_puzzles=4", "device=cpu"]
    command += ["harvest.ring_gib=0.002", "diffusion.num_layers=1", f"checkpoint_path={folder / 'head'}"]
    assert run_cli(diffusion_train.main, command) == 0
    return folder / "head"


def test_a_head_of_another_version_of_the_code(head_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(*args: Any, **options: Any) -> Any:
        found = load_checkpoint(*args, **options)
        for group in found.groups.values():
            group.pop("stem.proj.weight", None)
        return found

    open_head(head_run, Distributed())
    monkeypatch.setattr("training.diffusion_head.load_checkpoint", fewer)
    with pytest.raises(InputError, match="has other tensors than its settings make"):
        open_head(head_run, Distributed())


def test_evaluate_takes_the_run_of_a_head(head_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [f"checkpoint={head_run}", "device=cpu", "max_eval_puzzles=8", "diffusion.puzzles=4"]
    assert run_cli(evaluate.main, [*command, "diffusion.seeds=2", "diffusion.steps=[1]", "eval_batch_size=3"]) == 0
    found = head_run / "evaluations/step_3"
    metrics = json.loads((found / "metrics.json").read_text())
    tree = json.loads((found / "diffusion.json").read_text())
    assert metrics["protocol"]["head_step"] == 3 and metrics["protocol"]["prediction"] == "x0"
    assert metrics["protocol"]["head_parameters"] > 0 and metrics["protocol"]["regression_parameters"] is None
    assert metrics["figures"]["diffusion/head_nfe_1/x0_error"] == tree["x0_error"]["head, NFE 1"]["all"]
    assert (found / "rollout-head-NFE_1/act_steps.json").exists()
    assert tree["rollout"]["TRM"]["figures"]["Sudoku/exact"] == tree["rollout"]["TRM"]["exact_accuracy"][-1]
    assert "diffusion/head_nfe_1/x0_error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("act_eval=early", "act_eval is for the evaluation of a model"),
        ("halt_max_steps=2", "halt_max_steps is for the evaluation of a model"),
        ("diffusion.steps=[1001]", "steps=1001 must lie in 1..1000"),
        ("diffusion.steps=[0]", "diffusion.steps"),
        ("diffusion.regression_checkpoint={head}", "diffusion.prediction=x0: name one with"),
        ("diffusion.teacher={head}", "not a teacher"),
        ("diffusion.sampler=euler", "diffusion.sampler"),
        ("diffusion.puzles=3", "diffusion.puzzles"),
        ("output_dir={head}/config.yaml", "output_dir"),
    ],
)
def test_wrong_keys_for_a_head(override: str, message: str, head_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(head_run.rglob("*"))
    command = [f"checkpoint={head_run}", "device=cpu", override.format(head=head_run)]
    assert run_cli(evaluate.main, command) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(head_run.rglob("*")) == before


def test_keys_of_heads_are_refused_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(evaluate.main, [f"checkpoint={folder / 'teacher'}", "diffusion.seeds=3"]) == EXIT_BAD_INPUT
    assert "diffusion.seeds=3 has no effect" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: latents in bfloat16, everything on the device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(folder: Path, compiled: bool, tmp_path: Path) -> None:
    dist = Distributed(device=torch.device("cuda"))
    teacher = open_teacher(str(folder / "teacher"), dist, max_eval_puzzles=8)
    head = make_head(teacher, "layer", exact=True)
    options = DiffusionEvalOptions(rows="layer", **SMALL, compile=compiled)
    figures = evaluate_head(head.to(dist.device), teacher, dist, options, DiffusionEvaluator(), save_dir=tmp_path)
    assert figures is not None
    assert figures["diffusion/head_nfe_1/x0_error"] < 1e-2
    assert figures["diffusion/head_nfe_1/token_agreement"] > 0.95
    cost = json.loads((tmp_path / "diffusion.json").read_text())["cost"]
    assert cost["head"]["head, NFE 1"]["peak_gb"] > 0 and cost["compiled"] is compiled
