"""Weights to evaluate or to start from: of one of our checkpoints, or a file of the original code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets.common import InputError
from training.checkpoint import load_checkpoint, resolve_checkpoint
from training.legacy import read_torch_checkpoint
from training.manifest import read_manifest


@dataclass(frozen=True)
class Weights:
    """`meta`, `step` and `path` are None, 0 and the file for weights of the original code, which hold nothing else."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] | None = None
    step: int = 0
    averaged: bool = False


def read_weights(source: str, use_ema: bool = True) -> Weights:
    """The averaged weights where the checkpoint has them and `use_ema`, else the raw ones.

    `source`: a run's folder, one of its checkpoints, or an original ``.pt`` file; else `InputError`.
    """
    path = Path(source)
    if path.is_file():
        return Weights(path, read_torch_checkpoint(path))
    if not path.is_dir():
        raise InputError(f"checkpoint {source} does not exist: name a run's folder, a checkpoint or an original file")
    directory = resolve_checkpoint(path)
    manifest = read_manifest(directory)
    if manifest.kind != "training":
        raise InputError(
            f"checkpoint {source} is of kind {manifest.kind!r}, not a teacher nor another model that solves puzzles: "
            "name a run of pretrain.py"
        )
    groups = {record.group for record in manifest.files.values()}
    averaged = use_ema and "ema" in groups
    checkpoint = load_checkpoint(directory, groups=["model", "ema"] if averaged else ["model"])
    tensors = checkpoint.groups["model"] | (checkpoint.groups["ema"] if averaged else {})
    return Weights(directory, tensors, checkpoint.meta, checkpoint.step, averaged)
