"""Tiny runs of the entry points for tests: data sets, overrides, and what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from datasets.build_arc_dataset import main as build_arc
from datasets.build_sudoku_dataset import main as build_sudoku
from training.checkpoint import load_checkpoint

ARCHITECTURE = [
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.H_cycles=2",
    "arch.L_cycles=2",
    "arch.halt_max_steps=3",
]
TRM = ["arch=trm", "arch.L_layers=1", "arch.puzzle_emb_len=2", *ARCHITECTURE]
HRM = ["arch=hrm", "arch.H_layers=1", "arch.L_layers=1", *ARCHITECTURE]
COARSE_TO_FINE = ["arch=trm_hierarchical_diffusion", *TRM[1:]]
SCHEDULE = ["epochs=40", "eval_interval=null", "global_batch_size=8", "lr=0.003", "lr_warmup_steps=4", "log_interval=1"]
QUIET = ["device=cpu", "logger.plots=false", "max_eval_puzzles=8", "ema=true", "ema_rate=0.9"]


def build_sudoku_4x4(folder: Path) -> Path:
    arguments = ["--size", "4", "--num-train", "32", "--num-test", "16", "--num-aug", "5"]
    assert build_sudoku(["--output-dir", str(folder), *arguments]) == 0
    return folder


def build_small_arc(folder: Path) -> Path:
    arguments = ["--subsets", "evaluation", "--test-set-name", "evaluation", "--grid-size", "5", "--num-aug", "3"]
    assert build_arc(["--output-dir", str(folder), *arguments]) == 0
    return folder


def overrides(arch: list[str], data: Path, run_dir: Path, *more: str) -> list[str]:
    evaluators = "evaluators=[]" if "sudoku" in data.name else "evaluator=arc"
    paths = [f"data_paths=[{data}]", evaluators, f"checkpoint_path={run_dir}"]
    return [*arch, *SCHEDULE, *QUIET, *paths, *more]


def whole_state(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: weights, averages, optimisers and carry."""
    path = run_dir / "checkpoints" / f"step_{step}"
    checkpoint = load_checkpoint(path, groups=["model", "ema", "optim", "carry"])
    groups = checkpoint.groups | checkpoint.shards
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal to the bit."""
    assert set(one) == set(other)
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


def records(run_dir: Path, key: str) -> dict[int, float]:
    """A figure by step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}
