"""Diffusion heads from a configuration and a teacher, and back from a checkpoint.

opened = open_head("runs/diffusion_916-layer-sudoku-1a2b3c", dist)
opened.head(noisy, t, *conditions)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from datasets.common import InputError
from diffusion.normalisation import LatentNormalizer, LatentStatistics
from diffusion.process import NoiseProcess
from diffusion.schedule import alphas_cumprod, check_terminal_snr
from models import load_class
from models.diffusion_blocks import DiffusionHead
from training.build import kernels_on
from training.checkpoint import load_checkpoint, resolve_checkpoint
from training.config import validate_config
from training.config_errors import describe, show
from training.diffusion_schema import KIND, DiffusionSection, DiffusionTrainConfig, NoiseSection
from training.distributed import Distributed
from training.manifest import read_manifest
from training.teacher import Teacher

LATENT_TYPES = 2  # z_L and z_H

# Of an attention head where the width allows: on GPUs attention is faster by a third than with the usual 64.
HEAD_CHANNELS = 128


# Keys of ``harvest`` in older checkpoints.
GIVEN_UP = {"perturbation"}


@dataclass(frozen=True)
class OpenedHead:
    """A trained head with its averaged weights, in evaluation mode, and what its checkpoint says of it."""

    head: DiffusionHead
    config: DiffusionTrainConfig
    meta: dict[str, Any]
    path: Path
    step: int


def check_sampling() -> None:
    """`InputError` if the package that samples is missing: said before the training, whose evaluations need it."""
    if importlib.util.find_spec("diffusers") is None:
        raise InputError(
            'evaluations sample with the package diffusers, which is missing: pip install -e ".[diffusion]"'
        )


def build_process(noise: NoiseSection) -> NoiseProcess:
    """The noise process of ``noise.*``; `InputError` if it does not end in noise, which sampling starts from."""
    try:
        table = alphas_cumprod(noise.schedule, noise.steps, **noise.settings)
        check_terminal_snr(table)
        return NoiseProcess(table)
    except ValueError as error:
        raise InputError(f"noise.schedule={noise.schedule}: {error}") from error


def head_config(section: DiffusionSection, teacher: Teacher) -> dict[str, Any]:
    """The head's own keys with what the teacher and the device decide filled in."""
    arch = teacher.config
    settings = section.hyperparameters
    if settings.get("num_heads") is None:
        whole = teacher.hidden_size % HEAD_CHANNELS == 0
        settings["num_heads"] = teacher.hidden_size // HEAD_CHANNELS if whole else arch.num_heads
    if settings.get("expansion") is None:
        settings["expansion"] = arch.expansion
    if settings.get("forward_dtype", "auto") == "auto":
        settings["forward_dtype"] = "float32" if arch.forward_dtype == "float32" else "bfloat16"
    if "loops" in settings and settings["loops"] is None:
        settings["loops"] = teacher.L_cycles + 1
    # A teacher with learned positions has them in x; one that mixes by an MLP knows them without any.
    rotates = arch.pos_encodings == "rope" or (arch.pos_encodings == "none" and arch.mlp_t)
    settings |= {
        "latent_size": teacher.hidden_size,
        "length": teacher.latent_length,
        "mlp_t": arch.mlp_t,
        "pos_encodings": "rope" if rotates else "none",
        "target_blocks": {"layer": 1, "h_cycle": teacher.L_cycles + 1, "jump": 2}[section.rows],
    }
    if section.rows != "layer":
        settings["target_kind"] = section.rows
    return settings


def build_head(
    name: str, settings: dict[str, Any], noise: NoiseSection, device: torch.device, seed: int = 0
) -> DiffusionHead:
    """A head of ``module@Class`` `name`, its statistics still mean 0 and deviation 1.

    Initial weights depend on `seed` alone: they are drawn on the CPU on every rank. `InputError` for keys that do not
    suit the teacher.
    """
    process = build_process(noise)
    normalizer = LatentNormalizer.identity(LATENT_TYPES, settings["latent_size"])
    settings = settings | kernels_on(device, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            head = load_class(name)(settings, process, normalizer)
        except ValidationError as error:
            raise InputError(describe(error, (), prefix="diffusion.")) from error
    return head.to(device)


def recorded_config(meta: dict[str, Any]) -> DiffusionTrainConfig:
    """The configuration in the `meta` of a head's checkpoint, without keys that have been given up since."""
    recorded = dict(meta["config"])
    recorded["harvest"] = {key: value for key, value in recorded["harvest"].items() if key not in GIVEN_UP}
    return validate_config(DiffusionTrainConfig, recorded)


def count_parameters(head: DiffusionHead) -> int:
    """Weights that are trained."""
    return sum(parameter.numel() for parameter in head.parameters())


def measure_latents(normalizer: LatentNormalizer, latents: Iterable[tuple[Tensor, Tensor]], dist: Distributed) -> None:
    """Give the normaliser mean and deviation of all ranks' latents: tensors [n, P, D] with their types int64 [n]."""
    types, channels = normalizer.mean.shape
    statistics = LatentStatistics(types, channels, dist.device)
    for some, of_type in latents:
        statistics.add(some, of_type)
    sums = statistics.sums()
    dist.all_reduce_flat([sums])
    normalizer.set_statistics(*LatentStatistics.from_sums(sums).mean_std())


def check_kind(path: Path) -> None:
    """`InputError` unless the checkpoint in the directory `path` is that of a diffusion head."""
    kind = read_manifest(path).kind
    if kind != KIND:
        raise InputError(f"{path} is a checkpoint of kind {kind}, not of a diffusion head: name one of those")


def open_head(checkpoint: str | Path, dist: Distributed) -> OpenedHead:
    """The head of a run's folder or of one of its checkpoints, on the device; `InputError` if it is none, or one of
    another version of the code."""
    if not Path(checkpoint).is_dir():
        raise InputError(f"checkpoint {checkpoint} does not exist: name the folder of a diffusion run, or a checkpoint")
    path = resolve_checkpoint(checkpoint)
    check_kind(path)
    found = load_checkpoint(path, groups=["model", "ema"])
    config = recorded_config(found.meta)
    settings = dict(found.meta["head_config"])
    if dist.device.type != "cuda" and config.diffusion.hyperparameters.get("forward_dtype", "auto") == "auto":
        settings["forward_dtype"] = "float32"
    head = build_head(config.diffusion.name, settings, config.noise, dist.device)
    try:
        head.load_state_dict(found.groups["model"] | found.groups["ema"])
    except RuntimeError as error:
        raise InputError(
            f"{path} has other tensors than its settings make: it was written by another version of the code, "
            "train the head anew"
        ) from error
    head.requires_grad_(False)
    return OpenedHead(head.eval(), config, found.meta, path, found.step)


def open_baseline(config: DiffusionTrainConfig, dist: Distributed) -> OpenedHead | None:
    """The head of ``regression_checkpoint``, if any; `InputError` unless it is a regression on the same rows."""
    if config.regression_checkpoint is None:
        return None
    opened = open_head(config.regression_checkpoint, dist)
    theirs, ours = (_task(c) for c in (opened.config, config))
    if theirs != ours | {"diffusion.prediction": "regression"}:
        text = ", ".join(f"{key}={show(value)}" for key, value in theirs.items())
        raise InputError(
            f"regression_checkpoint={config.regression_checkpoint} is a head with {text}: name one with "
            f"diffusion.prediction=regression on the same rows as this run"
        )
    return opened


def _task(config: DiffusionTrainConfig) -> dict[str, Any]:
    """What two heads must share to be compared."""
    task = {
        "diffusion.rows": config.diffusion.rows,
        "diffusion.prediction": config.diffusion.hyperparameters.get("prediction"),
    }
    if config.diffusion.rows == "jump":
        task |= {"harvest.jump_from": sorted(config.harvest.jump_from), "harvest.jump_to": config.harvest.jump_to}
    return task
