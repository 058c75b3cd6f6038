"""A trained diffusion head with its teacher, opened for an evaluation: what ``evaluate.py`` does with a head's run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.common import InputError
from models.diffusion_blocks import DiffusionHead
from training.checkpoint import resolve_checkpoint
from training.diffusion_eval_options import DiffusionEvalOptions
from training.diffusion_head import OpenedHead, count_parameters, open_baseline, open_head
from training.diffusion_schema import KIND
from training.distributed import Distributed
from training.evaluate_schema import CaptureConfig, DiffusionEvalConfig, EvaluateConfig
from training.manifest import read_manifest
from training.teacher import Teacher, check_same_teacher, open_teacher

# What can be said of a model's evaluation, but not of a head's, with the value that leaves it unsaid.
NOT_FOR_HEADS: dict[str, Any] = {
    "arch": None,
    "use_ema": True,
    "act_eval": "fixed",
    "act_eval_confidence": 0.5,
    "halt_max_steps": None,
    "eval_save_outputs": [],
    "capture": CaptureConfig(),
}


@dataclass(frozen=True)
class TrainedHead:
    """Everything that `training.diffusion_evaluation.evaluate_head` is given, and where its files go."""

    opened: OpenedHead
    teacher: Teacher
    regression: DiffusionHead | None
    options: DiffusionEvalOptions
    output_dir: Path
    protocol: dict[str, Any]


def is_head(checkpoint: str) -> bool:
    """Whether a run's folder or a checkpoint is that of a diffusion head; whatever else it is, others say."""
    return Path(checkpoint).is_dir() and read_manifest(resolve_checkpoint(checkpoint)).kind == KIND


def check_no_head_keys(config: EvaluateConfig) -> None:
    """`InputError` where keys for heads are given for another checkpoint."""
    default, given = DiffusionEvalConfig().model_dump(), config.diffusion.model_dump()
    for key, value in given.items():
        if value != default[key]:
            raise InputError(
                f"diffusion.{key}={value} has no effect: checkpoint={config.checkpoint} is no diffusion head; drop it"
            )


def open_trained_head(config: EvaluateConfig, dist: Distributed) -> TrainedHead:
    """Head, teacher and held-out data. Raises `InputError` where they, or keys of `config`, do not fit."""
    for key, default in NOT_FOR_HEADS.items():
        if getattr(config, key) != default:
            raise InputError(
                f"{key} is for the evaluation of a model, and checkpoint={config.checkpoint} is a diffusion head: "
                "drop it (the diffusion.* keys are for heads)"
            )
    wanted = config.diffusion
    opened = open_head(config.checkpoint, dist)
    run = opened.config
    teacher = open_teacher(
        wanted.teacher or run.checkpoint,
        dist,
        data_paths=config.data_paths or run.data_paths,
        max_eval_puzzles=config.max_eval_puzzles,
    )
    normalizer: Any = opened.head.normalizer
    check_same_teacher(opened.meta["teacher"], teacher, normalizer.digest())
    if wanted.regression_checkpoint is not None:
        run = run.model_copy(update={"regression_checkpoint": wanted.regression_checkpoint})
    baseline = open_baseline(run, dist)
    if baseline is not None:
        check_same_teacher(baseline.meta["teacher"], teacher)
    options = DiffusionEvalOptions(
        rows=run.diffusion.rows,
        jump_from=tuple(run.harvest.jump_from),
        jump_to=run.harvest.jump_to,
        steps=tuple(wanted.steps or run.sampler.steps),
        sampler=wanted.sampler or run.sampler.name,
        puzzles=wanted.puzzles,
        timesteps=wanted.timesteps,
        seeds=wanted.seeds,
        rollout=wanted.rollout,
        rollout_steps=tuple(wanted.rollout_steps),
        compile=dist.device.type == "cuda" if wanted.compile is None else wanted.compile,
        batch_size=config.eval_batch_size and config.eval_batch_size // dist.world_size,
        seed=run.seed if config.seed is None else config.seed,
    )
    default_dir = opened.path.parent.parent / "evaluations" / f"step_{opened.step}"
    return TrainedHead(
        opened=opened,
        teacher=teacher,
        regression=None if baseline is None else baseline.head,
        options=options,
        output_dir=Path(config.output_dir) if config.output_dir is not None else default_dir,
        protocol={
            "head": run.diffusion.name,
            "prediction": opened.head.config.prediction,
            "head_checkpoint": str(opened.path),
            "head_step": opened.step,
            "head_weights": "EMA",
            "head_parameters": count_parameters(opened.head),
            "regression_checkpoint": run.regression_checkpoint,
            "regression_parameters": None if baseline is None else count_parameters(baseline.head),
        },
    )
