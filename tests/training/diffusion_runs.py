"""Tiny runs of ``diffusion_train.py`` on tiny teachers, for tests."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import pretrain
from tests.training.runs import TRM, overrides
from training.checkpoint import load_checkpoint
from training.cli import run_cli

TINY = ["experiment=diffusion_smoke", "device=cpu", "max_steps=16", "checkpoint_interval=8", "eval_puzzles=4"]
QUIET = ["sampler.steps=[1]", "logger.progress_bar=false", "logger.plots=false", "lr=0.003"]


def train_teacher(folder: Path, data: Path, *more: str, arch: list[str] = TRM) -> Path:
    assert run_cli(pretrain.main, overrides(arch, data, folder, "max_steps=6", *more)) == 0
    return folder


def head_command(teacher: Path, run_dir: Path, *more: str) -> list[str]:
    return [*TINY, *QUIET, f"checkpoint={teacher}", f"checkpoint_path={run_dir}", *more]


def head_state(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a head's checkpoint."""
    groups = load_checkpoint(run_dir / "checkpoints" / f"step_{step}", groups=["model", "ema", "optim"]).groups
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
