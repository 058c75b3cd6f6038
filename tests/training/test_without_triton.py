"""A run with our kernels where Triton is not installed: read and evaluated anywhere, refused where it would be used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import evaluate
import pretrain
from datasets.common import InputError
from tests.training.runs import TRM, build_sudoku_4x4, overrides
from training.build import model_config
from training.cli import run_cli
from training.config import load_config
from training.config_schema import PretrainConfig
from training.weights import read_weights

FUSED = ["arch.mlp_t=true", "arch.pos_encodings=none", "arch.kernels=triton"]
NEEDED = "arch.kernels=triton needs the package triton: pip install"


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find(name, *a))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("without_triton")
def test_what_was_trained_with_it_is_evaluated_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_sudoku_4x4(tmp_path / "sudoku")
    assert run_cli(pretrain.main, overrides(TRM, data, tmp_path / "run", "max_steps=2", *FUSED)) == 0
    recorded: Any = read_weights(str(tmp_path / "run")).meta
    assert recorded["config"]["arch"]["kernels"] == "triton"
    capsys.readouterr()
    assert run_cli(evaluate.main, [f"checkpoint={tmp_path / 'run'}", "device=cpu"]) == 0
    assert "on cpu the plain path computes the same" in capsys.readouterr().err
    assert (tmp_path / "run/evaluations/step_2/metrics.json").is_file()


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("training", [True, False])
def test_a_gpu_needs_it(training: bool) -> None:
    config = load_config("cfg_pretrain", ["experiment=sudoku_mlp", "arch.kernels=triton"])
    assert isinstance(config, PretrainConfig)
    shapes: Any = SimpleNamespace(seq_len=81, vocab_size=11, num_puzzle_identifiers=2)
    with pytest.raises(InputError, match=NEEDED):
        model_config(config.arch, shapes, 4, torch.device("cuda"), training)


@pytest.mark.usefixtures("without_triton")
def test_a_run_that_is_to_interpret_it_ends_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    data = build_sudoku_4x4(tmp_path / "sudoku")
    assert run_cli(pretrain.main, overrides(TRM, data, tmp_path / "run", "max_steps=1", *FUSED)) == 2
    assert NEEDED in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
