"""The commands a user types, end to end on tiny problems: every architecture and what they can be asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import diffusion_train
import evaluate
import pretrain
from scripts import export_checkpoint
from tests.training.runs import COARSE_TO_FINE, TRM, build_small_arc, build_sudoku_4x4, overrides, records, whole_state
from training.checkpoint import load_checkpoint
from training.cli import run_cli
from training.config import config_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Sudoku data set, an ARC data set and a short run on each."""
    folder = tmp_path_factory.mktemp("entry")
    build_sudoku_4x4(folder / "sudoku")
    build_small_arc(folder / "arc")
    for name in ("sudoku", "arc"):
        evaluator = f"evaluator={name}"
        command = [*overrides(TRM, folder / name, folder / f"run-{name}", "max_steps=6"), "max_eval_puzzles=null"]
        assert run_cli(pretrain.main, [part for part in command if not part.startswith("evaluator")] + [evaluator]) == 0
    return folder


def figures(path: Path) -> dict[str, float]:
    return json.loads((path / "metrics.json").read_text())["figures"]


@pytest.mark.parametrize("arch", config_groups("cfg_pretrain")["arch"])
def test_every_architecture_trains_saves_evaluates_and_is_exported(arch: str, folder: Path, tmp_path: Path) -> None:
    data = [f"data_paths=[{folder / 'sudoku'}]", f"checkpoint_path={tmp_path / 'run'}", "device=cpu", "max_steps=3"]
    assert run_cli(pretrain.main, ["experiment=smoke", f"arch={arch}", *data]) == 0
    assert run_cli(evaluate.main, [f"checkpoint={tmp_path / 'run'}", "device=cpu", "eval_batch_size=7"]) == 0
    found = figures(tmp_path / "run/evaluations/step_3")
    assert found["all/exact_accuracy"] == found["Sudoku/exact"] and found["all/rows"] > 0
    assert found["all/accuracy"] == pytest.approx(records(tmp_path / "run", "eval/all/accuracy")[3], abs=1e-6)
    assert run_cli(export_checkpoint.main, [str(tmp_path / "run"), str(tmp_path / "weights.pt")]) == 0
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)
    saved = load_checkpoint(tmp_path / "run/checkpoints/step_3", groups=["model"]).groups["model"]
    assert set(exported) == set(saved) and all(torch.equal(exported[name], saved[name]) for name in saved)


def test_original_weights_come_and_go(folder: Path, tmp_path: Path) -> None:
    """Exported weights are the averaged ones under the published names; evaluated as a file they give the same."""
    for more in ([], ["--compiled-prefix"]):
        out = tmp_path / f"weights{len(more)}.pt"
        assert run_cli(export_checkpoint.main, [str(folder / "run-arc"), str(out), "--ema", *more]) == 0
        state = torch.load(out, weights_only=True)
        prefix = "_orig_mod." if more else ""
        saved = whole_state(folder / "run-arc", 6)
        assert torch.equal(state[f"{prefix}model.inner.lm_head.weight"], saved["ema/model.inner.lm_head.weight"])
        assert torch.equal(state[f"{prefix}model.inner.H_init"], saved["model/model.inner.H_init"])
        named = [part for part in TRM if part.startswith("arch")]
        command = [f"checkpoint={out}", *named, f"data_paths=[{folder / 'arc'}]", "evaluator=arc", "device=cpu"]
        assert run_cli(evaluate.main, [*command, f"output_dir={tmp_path / 'file'}"]) == 0
        assert run_cli(evaluate.main, [f"checkpoint={folder / 'run-arc'}", f"output_dir={tmp_path / 'run'}"]) == 0
        assert figures(tmp_path / "file") == figures(tmp_path / "run")
        assert (tmp_path / "file/submission.json").read_text() == (tmp_path / "run/submission.json").read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("act_eval_confidence=0.9", "act_eval_confidence=0.9 has no effect with act_eval=fixed: drop it, or"),
        ("act_eval_confidence=1", "act_eval_confidence=1: expected less than 1"),
    ],
)
def test_a_confidence_that_means_nothing_is_refused(
    override: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(evaluate.main, [f"checkpoint={folder / 'run-sudoku'}", override]) == 2
    assert said in capsys.readouterr().err


def test_more_steps_and_early_halting_at_evaluation(folder: Path, tmp_path: Path) -> None:
    command = [f"checkpoint={folder / 'run-sudoku'}", "halt_max_steps=5"]
    assert run_cli(evaluate.main, [*command, f"output_dir={tmp_path / 'fixed'}"]) == 0
    early = ["act_eval=early", "act_eval_confidence=0.9", f"output_dir={tmp_path / 'early'}"]
    assert run_cli(evaluate.main, [*command, *early]) == 0
    assert figures(tmp_path / "fixed")["all/steps"] == 5
    assert figures(tmp_path / "early")["all/steps"] <= 5
    by_step = json.loads((tmp_path / "fixed/act_steps.json").read_text())["all"]["cell_accuracy_by_step"]
    assert len(by_step) == 5 and by_step[-1] == pytest.approx(figures(tmp_path / "fixed")["all/accuracy"])


def test_a_new_run_starts_from_given_weights_and_can_train_the_table_alone(folder: Path, tmp_path: Path) -> None:
    start = [f"load_checkpoint={folder / 'run-arc'}", "freeze_weights=true", "ema_puzzle_emb=true"]
    assert run_cli(pretrain.main, overrides(TRM, folder / "arc", tmp_path / "run", "max_steps=4", *start)) == 0
    before, after = whole_state(folder / "run-arc", 6), whole_state(tmp_path / "run", 4)
    frozen = [name for name in after if name.startswith("model/") and "puzzle_emb" not in name]
    for name in frozen:
        given = before.get(name.replace("model/", "ema/"), before[name])
        assert torch.equal(after[name], given), name
    table = "model/model.inner.puzzle_emb.weights"
    assert not torch.equal(after[table], before[table])
    assert not torch.equal(after["ema/model.inner.puzzle_emb.weights"], after[table])


def test_averages_start_from_the_given_weights(folder: Path, tmp_path: Path) -> None:
    """One step at a rate of next to nothing leaves them as they were, averaged or not."""
    still = ["max_steps=1", "lr=1e-12", "puzzle_emb_lr=0", f"load_checkpoint={folder / 'run-arc'}", "ema_rate=0.999"]
    assert run_cli(pretrain.main, overrides(TRM, folder / "arc", tmp_path / "run", *still)) == 0
    before, after = whole_state(folder / "run-arc", 6), whole_state(tmp_path / "run", 1)
    for name in [name for name in after if name.startswith("ema/")]:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0, msg=name)


def test_frozen_weights_need_no_averages(folder: Path, tmp_path: Path) -> None:
    frozen = ["freeze_weights=true", f"load_checkpoint={folder / 'run-arc'}", "max_steps=2"]
    for _ in range(2):  # and once more, which resumes
        assert run_cli(pretrain.main, overrides(TRM, folder / "arc", tmp_path / "run", *frozen)) == 0


def test_embeddings_of_other_puzzles_are_not_taken_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another sample of tasks, cut to the same number of identifiers: the counts agree, the puzzles do not."""
    identifiers = json.loads((folder / "arc/identifiers.json").read_text())
    renamed = [identifiers[0], *(f"x{name}" for name in identifiers[1:])]
    other = tmp_path / "other"
    shutil.copytree(folder / "arc", other)
    (other / "identifiers.json").write_text(json.dumps(renamed))
    tasks = json.loads((other / "test_puzzles.json").read_text())
    (other / "test_puzzles.json").write_text(json.dumps({f"x{name}": task for name, task in tasks.items()}))
    start = ["max_steps=1", "puzzle_emb_lr=0", f"load_checkpoint={folder / 'run-arc'}"]
    assert run_cli(pretrain.main, overrides(TRM, other, tmp_path / "run", *start)) == 0
    assert "starts from the mean" in capsys.readouterr().err
    table = whole_state(tmp_path / "run", 1)["model/model.inner.puzzle_emb.weights"]
    assert table.std(0).max() < 1e-6


def test_two_data_sets_in_one_run_do_not_collide(folder: Path, tmp_path: Path) -> None:
    other = build_small_arc(tmp_path / "again")
    command = overrides(TRM, folder / "arc", tmp_path / "run", "max_steps=2", f"data_paths=[{folder / 'arc'},{other}]")
    assert run_cli(pretrain.main, command) == 0
    one = whole_state(folder / "run-arc", 6)["model/model.inner.puzzle_emb.weights"]
    both = whole_state(tmp_path / "run", 2)["model/model.inner.puzzle_emb.weights"]
    assert len(both) == 2 * len(one) - 1  # the blank identifier is shared
    assert {f"eval/{name}/ARC/pass@1" for name in ("arc", "again")} <= set(_keys(tmp_path / "run"))


def test_a_subset_of_the_puzzles_is_evaluated_on_its_own_tasks(folder: Path, tmp_path: Path) -> None:
    command = overrides(TRM, folder / "arc", tmp_path / "run", "max_steps=2", "max_train_puzzles=3")
    assert run_cli(pretrain.main, command) == 0
    assert records(tmp_path / "run", "eval/ARC/tasks") == {2: 3.0}


def test_a_head_learns_from_a_coarse_to_fine_teacher(folder: Path, tmp_path: Path) -> None:
    teacher = overrides(COARSE_TO_FINE, folder / "sudoku", tmp_path / "teacher", "max_steps=2")
    assert run_cli(pretrain.main, teacher) == 0
    command = ["experiment=diffusion_smoke", f"checkpoint={tmp_path / 'teacher'}", "device=cpu", "max_steps=2"]
    command += ["diffusion.num_layers=2", "harvest.ring_gib=0.002", "sampler.steps=[1]"]
    assert run_cli(diffusion_train.main, [*command, f"checkpoint_path={tmp_path / 'head'}"]) == 0
    out = [f"output_dir={tmp_path / 'out'}", "device=cpu", "diffusion.puzzles=8"]
    assert run_cli(evaluate.main, [f"checkpoint={tmp_path / 'head'}", *out]) == 0
    assert (tmp_path / "out/diffusion.json").exists()


@pytest.mark.parametrize(("head", "teacher"), [("diffusion_916", "sudoku"), ("d9160_jump", "arc")])
def test_a_head_and_its_baseline_train_and_are_evaluated(
    head: str, teacher: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = "d916_regression" if head == "diffusion_916" else "d9160_jump_regression"
    common = ["experiment=diffusion_smoke", f"checkpoint={folder / f'run-{teacher}'}", "device=cpu", "max_steps=4"]
    common += ["diffusion.num_layers=2", "harvest.ring_gib=0.002", "sampler.steps=[1,2]"]
    first = [*common, f"diffusion={baseline}", f"checkpoint_path={tmp_path / 'baseline'}"]
    assert run_cli(diffusion_train.main, first) == 0
    second = [*common, f"diffusion={head}", f"checkpoint_path={tmp_path / 'head'}"]
    assert run_cli(diffusion_train.main, [*second, f"regression_checkpoint={tmp_path / 'baseline'}"]) == 0
    said = capsys.readouterr().err
    for part in ("teacher ", "exact accuracy", "ring: ", "would take", "GFLOP", "parameters", "GiB"):
        assert part in said, part
    measured = json.loads((tmp_path / "head/metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/diffusion/head_nfe_1/x0_error", "eval/diffusion/regression/x0_error"} <= set(measured)
    assert (tmp_path / "head/curves.png").exists()

    out = tmp_path / "out"
    command = [f"checkpoint={tmp_path / 'head'}", f"output_dir={out}", "device=cpu", "diffusion.puzzles=8"]
    assert run_cli(evaluate.main, command) == 0
    report = json.loads((out / "diffusion.json").read_text())
    assert report["protocol"]["rows"] == ("layer" if head == "diffusion_916" else "jump")


def _keys(run_dir: Path) -> list[str]:
    return [key for line in (run_dir / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)]
