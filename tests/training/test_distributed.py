"""Two processes under torchrun compute what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
import pretrain
from tests.training.runs import TRM, build_small_arc, overrides, records, whole_state
from training.cli import run_cli
from trajectories.store import open_capture

ROOT = Path(pretrain.__file__).parent
VOTES = ("submission.json", "tasks.csv", "attempts.json")


def torchrun(script: str, arguments: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, script, *arguments], cwd=ROOT, env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of 20 steps in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    data = build_small_arc(folder / "arc")
    more = ["max_steps=20", "max_eval_puzzles=null", "arch.halt_exploration_prob=0.5"]
    assert run_cli(pretrain.main, overrides(TRM, data, folder / "one", *more)) == 0
    torchrun("pretrain.py", overrides(TRM, data, folder / "two", *more))
    return folder


def test_the_same_samples_and_the_same_losses(runs: Path) -> None:
    one, two = (whole_state(runs / name, 20) for name in ("one", "two"))
    for name in ("carry/data.inputs", "carry/data.labels", "carry/data.puzzle_identifiers", "carry/steps"):
        assert one[name].equal(two[name]), name
    losses = [records(runs / name, "train/loss") for name in ("one", "two")]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in one.items():
        if tensor.is_floating_point():
            assert (tensor - two[name]).abs().max() < 1e-4, name


def test_the_same_votes_and_figures(runs: Path) -> None:
    files = [runs / name / "eval" / "step_20" for name in ("one", "two")]
    for name in VOTES:
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes(), name
    for key in ("eval/ARC/pass@1", "eval/ARC/pass@2", "eval/ARC/pass@1000", "eval/all/exact_accuracy", "eval/all/rows"):
        one, two = (records(runs / name, key) for name in ("one", "two"))
        assert one == two, key


def test_one_checkpoint_evaluated_by_one_process_and_by_two(runs: Path, tmp_path: Path) -> None:
    command = [f"checkpoint={runs / 'one'}", "device=cpu", "capture.depth=h_cycle"]
    assert run_cli(evaluate.main, [*command, f"output_dir={tmp_path / 'one'}"]) == 0
    torchrun("evaluate.py", [*command, f"output_dir={tmp_path / 'two'}"])
    for name in (*VOTES, "act_steps.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    one, two = (open_capture(tmp_path / name) for name in ("one", "two"))
    assert {chunk.file[:5] for chunk in two.header.chunks} == {"rank0", "rank1"}
    for name in one.names:
        np.testing.assert_allclose(one.array(name), two.array(name), atol=1e-3, err_msg=name)
    assert one.complete and two.complete and (one.row_index == two.row_index).all()
    # The run evaluated itself with the same weights on the same rows.
    assert (tmp_path / "one" / "submission.json").read_bytes() == (
        runs / "one" / "eval" / "step_20" / "submission.json"
    ).read_bytes()


def test_a_run_of_two_processes_goes_on_in_one(runs: Path) -> None:
    data = runs / "arc"
    longer = ["max_steps=24", "max_eval_puzzles=null", "arch.halt_exploration_prob=0.5"]
    losses = []
    for name in ("one", "two"):
        assert run_cli(pretrain.main, overrides(TRM, data, runs / name, *longer)) == 0
        losses.append([loss for step, loss in records(runs / name, "train/loss").items() if step > 20])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
