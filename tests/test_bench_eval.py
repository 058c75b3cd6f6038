"""The bench of evaluations: its figures on a tiny model, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pretrain
from scripts import bench_eval, bench_train
from tests.training.runs import TRM, build_sudoku_4x4, overrides
from training import distributed
from training.cli import run_cli


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    data = build_sudoku_4x4(folder / "sudoku")
    assert run_cli(pretrain.main, overrides(TRM, data, folder / "run", "max_steps=2")) == 0
    return folder / "run"


def test_the_table(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_eval.main([f"checkpoint={run_dir}", "device=cpu", "max_eval_puzzles=4", "eval_batch_size=4"])
    fixed, *early = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in (fixed, *early)] == ["never", "0.5", "0.9", "0.95", "0.98", "0.99"]
    assert fixed[1] == "4" and fixed[3] == "1.00" and fixed[4] == "3.00"  # all three ACT steps
    assert all(1 <= float(row[4]) <= 3 and float(row[2]) > 0 for row in early)


def test_it_is_for_one_process(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = distributed.init
    monkeypatch.setattr(distributed, "init", lambda device: replace(one(device), world_size=2))
    assert run_cli(bench_eval.main, [f"checkpoint={run_dir}", "device=cpu"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_a_profile_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(bench_train.main, ["--tiny", "--profile", "3"]) == 2
    assert "--profile shows kernels of a GPU" in capsys.readouterr().err
