"""Whether a checkpoint belongs to the run that wants to continue from it; asked before a tensor is read."""

from __future__ import annotations

from pathlib import Path

from datasets.common import InputError
from training.cli import warn
from training.config import leaves, validate_config
from training.config_errors import show
from training.config_schema import PretrainConfig
from training.manifest import read_manifest

# Settings that make a run what it is; others, such as how long it is or what is logged, may change on the way.
IDENTITY = {"arch", "seed", "global_batch_size", "ema", "ema_puzzle_emb", "freeze_weights", "optim"}


def check_same_run(config: PretrainConfig, dataset_hash: str, total_steps: int, path: Path) -> None:
    """`InputError` naming the first setting, or the data, that makes it another run; a warning for the schedule."""
    meta = read_manifest(path).meta
    recorded = validate_config(PretrainConfig, meta["config"])
    theirs, ours = (dict(leaves(c.model_dump(mode="json", include=IDENTITY))) for c in (recorded, config))
    for key in theirs | ours:
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{path} was trained with {key}={show(theirs.get(key))}, this run has {show(ours.get(key))}: "
                "continue with the same value, or set another run_name to start anew"
            )
    if meta["dataset_hash"] != dataset_hash:
        data = ", ".join(f"{key}={show(getattr(config, key))}" for key in ("data_paths", "max_train_puzzles"))
        raise InputError(
            f"{path} was trained on other data than {data} gives now: continue with the same data, or set another "
            "run_name to start anew"
        )
    if meta["total_steps"] != total_steps and config.lr_min_ratio < 1:
        warn(
            f"{path} was to end at step {meta['total_steps']}, this run at {total_steps}: "
            "the learning rate follows another cosine from here on"
        )
