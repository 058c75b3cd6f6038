"""Tiny runs of ``hybrid_describe.py`` for tests."""

from __future__ import annotations

from pathlib import Path

import hybrid_describe
from hybrid_pipeline.describe_schema import CONFIG, DescribeConfig
from training.cli import run_cli
from training.config import load_config

SMALL = [
    "speaker.model=stub",
    "adapter.bottleneck=16",
    "adapter.vae_size=4",
    "latent_rows=32",
    "word_steps=2",
    "word_batch_size=8",
    "global_batch_size=4",
    "identify_rows=3",
    "eval_batch_size=4",
    "lr_warmup_steps=1",
    "log_interval=1",
    "device=cpu",
    "logger.plots=false",
    "logger.progress_bar=false",
]


def run(teller: Path, folder: Path, *more: str) -> int:
    return run_cli(hybrid_describe.main, [*SMALL, f"checkpoint={teller}", f"checkpoint_path={folder}", *more])


def make(teller: Path | str, *more: str) -> DescribeConfig:
    return load_config(CONFIG, [*SMALL, f"checkpoint={teller}", "max_steps=4", *more], DescribeConfig)
