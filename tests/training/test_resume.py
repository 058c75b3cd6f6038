"""A run that was killed and continued is the run that was not, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pretrain
from tests.training.runs import (
    COARSE_TO_FINE,
    HRM,
    TRM,
    build_small_arc,
    build_sudoku_4x4,
    differences,
    overrides,
    records,
    whole_state,
)
from training.cli import run_cli

ROOT = Path(pretrain.__file__).parent

# Kills its own process, without a chance to clean up, once some steps are done.
KILLED = """
import os, signal, sys
import pretrain
step = pretrain.train_step
def train_step(run, state, batch):
    if state.step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, state, batch)
pretrain.train_step = train_step
pretrain.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sudoku_4x4(tmp_path_factory.mktemp("data") / "sudoku")


@pytest.mark.parametrize("arch", [TRM, HRM, COARSE_TO_FINE], ids=["trm", "hrm", "coarse-to-fine"])
def test_ten_steps_a_kill_and_ten_more_equal_twenty(arch: list[str], sudoku: Path, tmp_path: Path) -> None:
    more = ["max_steps=20", "checkpoint_interval=10", "arch.halt_exploration_prob=0.5"]
    assert run_cli(pretrain.main, overrides(arch, sudoku, tmp_path / "whole", *more)) == 0

    command = overrides(arch, sudoku, tmp_path / "parts", *more)
    killed = subprocess.run([sys.executable, "-c", KILLED, "14", *command], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "parts/checkpoints/step_20").exists()
    halfway = whole_state(tmp_path / "parts", 10)
    assert run_cli(pretrain.main, command) == 0

    whole, parts = whole_state(tmp_path / "whole", 20), whole_state(tmp_path / "parts", 20)
    assert differences(whole, parts) == []
    assert {"carry/latent.z_H", "carry/data.inputs", "carry/halted"} <= set(whole)
    assert any(name.endswith("exp_avg_sq") for name in whole)
    assert "model/model.inner.puzzle_emb.weights" in whole
    # The comparison can fail: half-way nearly everything was different.
    assert len(differences(whole, halfway)) > len(whole) / 2
    # Steps 11 to 14, which were lost, are recorded once.
    assert records(tmp_path / "whole", "train/loss") == records(tmp_path / "parts", "train/loss")


def test_arc_with_micro_batches_adamw_and_clipping_resumes_exactly(tmp_path: Path) -> None:
    data = build_small_arc(tmp_path / "arc")
    more = ["max_steps=8", "checkpoint_interval=4", "micro_batch_size=4", "optim=adamw", "optim.grad_clip=0.5"]
    assert run_cli(pretrain.main, overrides(TRM, data, tmp_path / "whole", *more)) == 0
    assert run_cli(pretrain.main, [*overrides(TRM, data, tmp_path / "parts", *more), "keep_last=5"]) == 0
    (tmp_path / "parts/checkpoints/latest").unlink()
    os.rename(tmp_path / "parts/checkpoints/step_8", tmp_path / "lost")
    assert run_cli(pretrain.main, overrides(TRM, data, tmp_path / "parts", *more)) == 0
    assert differences(whole_state(tmp_path / "whole", 8), whole_state(tmp_path / "parts", 8)) == []


def test_micro_batches_change_nothing_but_rounding(sudoku: Path, tmp_path: Path) -> None:
    for name, more in {"one": [], "four": ["micro_batch_size=2"]}.items():
        command = overrides(TRM, sudoku, tmp_path / name, "max_steps=6", *more)
        assert run_cli(pretrain.main, command) == 0
    one, four = (records(tmp_path / name, "train/loss") for name in ("one", "four"))
    assert one == pytest.approx(four, abs=1e-5)
    inputs = [whole_state(tmp_path / name, 6)["carry/data.inputs"] for name in ("one", "four")]
    assert inputs[0].equal(inputs[1])


def test_a_signal_saves_and_exits_with_zero(sudoku: Path, tmp_path: Path) -> None:
    command = overrides(TRM, sudoku, tmp_path / "run", "max_steps=100000", "epochs=100000")
    process = subprocess.Popen([sys.executable, "pretrain.py", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped by SIGTERM" in errors
    step = int(os.readlink(tmp_path / "run/checkpoints/latest").removeprefix("step_"))
    assert 0 < step < 100000 and whole_state(tmp_path / "run", step)


def test_a_finished_run_has_nothing_left_to_do(sudoku: Path, tmp_path: Path) -> None:
    command = overrides(TRM, sudoku, tmp_path / "run", "max_steps=3")
    assert run_cli(pretrain.main, command) == 0
    before = whole_state(tmp_path / "run", 3)
    assert run_cli(pretrain.main, command) == 0
    assert differences(before, whole_state(tmp_path / "run", 3)) == []
    assert sorted(records(tmp_path / "run", "train/loss")) == [1, 2, 3]


def test_evaluation_leaves_the_training_state_alone(sudoku: Path, tmp_path: Path) -> None:
    often = ["epochs=4", "eval_interval=1", "checkpoint_every_eval=false"]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "often", *often)) == 0
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "once", "epochs=4")) == 0
    assert len(records(tmp_path / "often", "eval/all/accuracy")) == 4
    assert len(records(tmp_path / "once", "eval/all/accuracy")) == 1
    assert differences(whole_state(tmp_path / "often", 16), whole_state(tmp_path / "once", 16)) == []


def test_a_staggered_start_spreads_the_ends_of_the_first_rows(sudoku: Path, tmp_path: Path) -> None:
    """Eight slots of rows that may take nine steps and never halt early: together, or one after the other."""
    never = ["max_steps=16", "arch.halt_max_steps=9", "arch.halt_exploration_prob=1.0"]
    ends = {}
    for staggered in ("false", "true"):
        run_dir = tmp_path / staggered
        assert run_cli(pretrain.main, overrides(TRM, sudoku, run_dir, *never, f"staggered_start={staggered}")) == 0
        state = whole_state(run_dir, 16)
        ends[staggered] = (9 - state["carry/steps"]).tolist()
    assert ends["false"] == [2] * 8
    assert ends["true"] == [(2 - slot) % 9 for slot in range(8)]


def test_a_loss_that_is_not_finite_stops_before_the_update(
    sudoku: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {}
    step = pretrain.train_step

    def train_step(run, state, batch):
        if state.step == 4:
            held["before"] = {name: value.clone() for name, value in state.model.state_dict().items()}
            held["state"] = state
            state.carries[0].inner_carry.z_H[0] = float("nan")
            state.carries[0].halted[:] = False
        return step(run, state, batch)

    monkeypatch.setattr(pretrain, "train_step", train_step)
    command = overrides(TRM, sudoku, tmp_path / "run", "max_steps=8", "checkpoint_interval=3")
    assert run_cli(pretrain.main, command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step 5:") and "not finite" in error
    assert differences(held["before"], held["state"].model.state_dict()) == []
    assert os.readlink(tmp_path / "run/checkpoints/latest") == "step_3"


def test_an_evaluation_that_fails_loses_no_steps_and_is_made_up_for(
    sudoku: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = overrides(TRM, sudoku, tmp_path / "run", "max_steps=4")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "evaluate", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            pretrain.main(command)
    assert whole_state(tmp_path / "run", 4)
    assert records(tmp_path / "run", "eval/all/accuracy") == {}
    assert run_cli(pretrain.main, command) == 0
    assert set(records(tmp_path / "run", "eval/all/accuracy")) == {4}
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert run_cli(pretrain.main, command) == 0
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
