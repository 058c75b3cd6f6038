"""A short run on Sudoku and on ARC, evaluated with its trajectories captured, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluate
import pretrain
from datasets.build_sudoku_dataset import main as build_sudoku
from tests.training.runs import TRM, build_small_arc, overrides
from training.cli import run_cli

MIXING = ["arch.mlp_t=true", "arch.pos_encodings=none"]


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``{kind}`` (data), ``run-{kind}`` and ``seen-{kind}`` (evaluated at depth h_cycle) for Sudoku and ARC.

    The training is just long enough to solve some of the Sudokus.
    """
    folder = tmp_path_factory.mktemp("captured")
    easy = ["--size", "4", "--clues", "8", "--num-train", "64", "--num-test", "16", "--num-aug", "5"]
    assert build_sudoku(["--output-dir", str(folder / "sudoku"), *easy]) == 0
    build_small_arc(folder / "arc")
    for kind, steps in (("sudoku", 170), ("arc", 6)):
        command = overrides(TRM, folder / kind, folder / f"run-{kind}", f"max_steps={steps}", "lr=0.01", *MIXING)
        command = [part for part in command if not part.startswith(("evaluator", "max_eval_puzzles"))]
        assert run_cli(pretrain.main, [*command, f"evaluator={kind}"]) == 0
        seen = [f"output_dir={folder / f'seen-{kind}'}", "device=cpu", "eval_batch_size=7", "capture.depth=h_cycle"]
        assert run_cli(evaluate.main, [f"checkpoint={folder / f'run-{kind}'}", *seen]) == 0
    return folder
