"""Whether a checkpoint belongs to the run that wants to continue from it; asked before a tensor is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.common import InputError
from training.cli import warn
from training.config import leaves, validate_config
from training.config_errors import show
from training.config_schema import PretrainConfig, Section
from training.diffusion_head import recorded_config
from training.diffusion_schema import KIND, DiffusionTrainConfig
from training.manifest import read_manifest

# Settings that make a run what it is; others, such as how long it is or what is logged, may change on the way.
IDENTITY = {
    "arch",
    "seed",
    "global_batch_size",
    "ema",
    "ema_puzzle_emb",
    "freeze_weights",
    "staggered_start",
    "depth_curriculum",
    "optim",
}
HEAD_IDENTITY = {"diffusion", "noise", "harvest", "seed", "global_batch_size", "optim"}
# Where something lies or how it is computed, not what it is.
PLACEMENT = {
    *("harvest.buffer_device", "arch.kernels", "diffusion.kernels"),
    *("llm.cache_dir", "llm.device_map", "speaker.device_map", "texts.path", "texts.test_tasks"),
}


def check_same_run(config: PretrainConfig, dataset_hash: str, total_steps: int, path: Path) -> None:
    """`InputError` naming the first setting, or the data, that makes it another run; a warning for the schedule."""
    check_kind(path, "training")
    meta = read_manifest(path).meta
    check_settings(config, validate_config(PretrainConfig, meta["config"]), IDENTITY, path)
    if meta["dataset_hash"] != dataset_hash:
        data = ", ".join(f"{key}={show(getattr(config, key))}" for key in ("data_paths", "max_train_puzzles"))
        raise InputError(
            f"{path} was trained on other data than {data} gives now: continue with the same data, or set another "
            "run_name to start anew"
        )
    compare_lengths(meta, total_steps, config.lr_min_ratio, path)


def check_same_head(config: DiffusionTrainConfig, meta: dict[str, Any], path: Path) -> None:
    """The same for a diffusion head, whose teacher is compared elsewhere, by its hashes."""
    check_kind(path, KIND)
    check_settings(config, recorded_config(meta), HEAD_IDENTITY, path)
    compare_lengths(meta, config.max_steps, config.lr_min_ratio, path)


def check_kind(path: Path, wanted: str) -> None:
    """`InputError` where a checkpoint is of another kind than `wanted`."""
    kind = read_manifest(path).kind
    if kind != wanted:
        raise InputError(
            f"{path} is of kind {kind}, and this run's checkpoints are of kind {wanted}: set another checkpoint_path "
            "or resume"
        )


def check_settings(config: Section, recorded: Section, identity: set[str], path: Path) -> None:
    """`InputError` naming the first key of the `identity` that differs from what was recorded."""
    theirs, ours = (dict(leaves(c.model_dump(mode="json", include=identity))) for c in (recorded, config))
    for key in theirs | ours:
        if key not in PLACEMENT and ours.get(key) != theirs.get(key):
            raise InputError(
                f"{path} was trained with {key}={show(theirs.get(key))}, this run has {show(ours.get(key))}: "
                "continue with the same value, or set another run_name to start anew"
            )


def compare_lengths(meta: dict[str, Any], total_steps: int, min_ratio: float, path: Path) -> None:
    """A warning where the run has another length, and so another schedule, than it was begun with."""
    if meta["total_steps"] != total_steps and min_ratio < 1:
        warn(
            f"{path} was to end at step {meta['total_steps']}, this run at {total_steps}: "
            "the learning rate follows another cosine from here on"
        )
