"""Harvest a frozen teacher's latents and train a diffusion head on them, on one process or many.

    python diffusion_train.py diffusion=diffusion_916 checkpoint=runs/quickstart-sudoku
    torchrun --nproc-per-node 4 diffusion_train.py diffusion=diffusion_9160 checkpoint=runs/arc1
    python diffusion_train.py --help

The same command again continues the run from its newest checkpoint, on the same latents: they are harvested again.
"""

from __future__ import annotations

import training.waiting  # noqa: F401

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.common import InputError
from diffusion_streaming import HCycleStreamer, JumpStreamer, LayerUpdateStreamer
from evaluators.diffusion import DiffusionEvaluator
from models.diffusion_blocks import DiffusionHead
from training import distributed
from training.build import compile_levels
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run_cli
from training.config import load_config
from training.diffusion_evaluation import DiffusionEvalOptions, evaluate_head
from training.diffusion_head import (
    OpenedHead,
    build_head,
    check_sampling,
    count_parameters,
    head_config,
    measure_latents,
    open_baseline,
)
from training.diffusion_schema import KIND, DiffusionTrainConfig
from training.diffusion_trainer import GROUPS, DiffusionTrainer916, DiffusionTrainer9160
from training.distributed import Distributed
from training.evaluation import evaluation_folder, was_evaluated
from training.flops import head_flops, teacher_flops, training_bytes
from training.lock import exclusive
from training.logging import RunLogger, check_packages, open_logger
from training.manifest import read_manifest
from training.own_path import ROWS_PER_LANE, OwnPath
from training.plots import plot_curves
from training.resume import checkpoint_to_resume
from training.same_run import check_same_head
from training.signals import StopRequest
from training.teacher import Teacher, check_accuracy, check_same_teacher, describe_teacher, open_teacher
from training.window import MetricWindow, Stopwatch

Streamer = LayerUpdateStreamer | HCycleStreamer | JumpStreamer
Trainer = DiffusionTrainer916 | DiffusionTrainer9160
STREAMERS: dict[str, type[Streamer]] = {"layer": LayerUpdateStreamer, "h_cycle": HCycleStreamer, "jump": JumpStreamer}

SHOWN = ("loss", "harvest_share")  # on the progress bar
HEADLINES = ("/x0_error", "/exact_agreement")  # of an evaluation
REPORT = "diffusion.json"  # the last file of an evaluation
LANES = "lanes"  # where the head's own paths have got to, in a checkpoint


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last. `path`: the checkpoint that the run goes on from."""

    config: DiffusionTrainConfig
    dist: Distributed
    teacher: Teacher
    streamer: Streamer
    head: DiffusionHead
    head_config: dict[str, Any]
    baseline: OpenedHead | None
    path: Path | None

    @property
    def own_path(self) -> OwnPath | None:
        """What lets the head lead to rows of its own, in a run that has such rows."""
        return self.streamer.own_path if isinstance(self.streamer, LayerUpdateStreamer) else None

    @property
    def evaluations(self) -> set[int]:
        """The steps after which the head is evaluated, always the last."""
        last = self.config.max_steps
        return {*range(0, last + 1, self.config.eval_interval or last), last} - {0}


def main(argv: list[str]) -> None:
    config = load_config("cfg_diffusion_train", argv)
    with distributed.init(config.device) as dist:
        run = prepare(config, dist)
        trainer = create_trainer(run)
        accuracy = check_accuracy(run.teacher, dist)
        with exclusive(config.run_dir, dist), open_logger(config, config.max_steps, trainer.step, dist) as logger:
            announce(run, trainer, logger, accuracy)
            if config.compile if config.compile is not None else dist.device.type == "cuda":
                compile_levels(run.teacher.model)
                trainer.compile()
            harvest(run, trainer)
            train(run, trainer, logger, accuracy)


def prepare(config: DiffusionTrainConfig, dist: Distributed) -> Run:
    """Open the teacher and lay out the run; whatever is wrong with the input is found here or in `create_trainer`."""
    config.local_batch_size(dist.world_size)
    check_packages(wandb=config.logger.wandb, tensorboard=config.logger.tensorboard)
    check_sampling()
    teacher = open_teacher(config.checkpoint, dist, data_paths=config.data_paths)
    path = checkpoint_to_resume(config.resume, config.run_dir, dist)
    options = config.harvest
    if path is not None:
        meta = read_manifest(path).meta
        check_same_head(config, meta, path)
        check_same_teacher(meta["teacher"], teacher)
        # As measured when the run began: another device rounds differently, and the draws follow the weights.
        options = options.model_copy(update={"act_step_weights": meta["harvest"]["act_step_weights"]})
    baseline = open_baseline(config, dist)
    if baseline is not None:
        check_same_teacher(baseline.meta["teacher"], teacher)
    settings = head_config(config.diffusion, teacher)
    head = build_head(config.diffusion.name, settings, config.noise, dist.device, config.seed)
    streamer = STREAMERS[config.diffusion.rows](
        teacher, dist, options, global_batch_size=config.global_batch_size, seed=config.seed
    )
    if isinstance(streamer, LayerUpdateStreamer):
        streamer.follow(head)
    return Run(config, dist, teacher, streamer, head, settings, baseline, path)


def create_trainer(run: Run) -> Trainer:
    """The head's weights and its optimiser, as they were in the checkpoint where there is one."""
    trainer_class = DiffusionTrainer916 if run.config.diffusion.rows == "layer" else DiffusionTrainer9160
    trainer = trainer_class(run.head, run.config, run.dist)
    if run.path is not None:
        trainer.restore(load_checkpoint(run.path, groups=GROUPS))
        identity = read_manifest(run.path).meta["teacher"]
        check_same_teacher(identity, run.teacher, trainer.normalizer.digest())
    return trainer


def announce(run: Run, trainer: Trainer, logger: RunLogger, accuracy: float) -> None:
    """Say what is about to happen and what it will take."""
    config, streamer = run.config, run.streamer
    logger.message(describe_teacher(run.teacher))
    logger.message(f"teacher's exact accuracy, measured again: {accuracy:.4f}")
    for line in streamer.describe():
        logger.message(line)
    parameters = count_parameters(trainer.head)
    need = training_bytes(trainer.head, len(trainer.slots)) + streamer.ring_bytes
    own = head_flops(trainer.head)
    step = own["training"] * config.global_batch_size
    if config.diffusion.noises_own_estimates:
        step += own["forward"] * config.global_batch_size / 2
    # An entry of the ring is an ACT step, or, for jumps, all of them up to where the jump ends.
    act_steps = (config.harvest.jump_to or run.teacher.halt_max_steps) if config.diffusion.rows == "jump" else 1
    entries = config.global_batch_size / (config.harvest.replay * streamer.rows_per_entry)
    teaching = teacher_flops(run.teacher)
    taught = teaching["act_step"] * act_steps * entries
    if run.own_path is not None:
        taught += (teaching["application"] + own["forward"]) * config.global_batch_size / ROWS_PER_LANE
    logger.message(
        f"{config.diffusion.name}: {parameters:,} parameters; a step of {config.global_batch_size} rows takes "
        f"{step / 1e9:,.4g} GFLOP and {taught / 1e9:,.4g} GFLOP of harvest; about {need / 2**30:.3g} GiB in a process"
    )


def harvest(run: Run, trainer: Trainer) -> None:
    """Fill the ring: for a new run, whose latents are then measured, or as it was at the checkpoint."""
    streamer, dist = run.streamer, run.dist
    if run.path is not None:
        streamer.restore(trainer.step)
        if run.own_path is not None:
            run.own_path.load(load_checkpoint(run.path, groups=(LANES,), slots=run.own_path.places).shards[LANES])
        if streamer.checksum() != read_manifest(run.path).meta["harvest"]["checksum"]:
            raise InputError(
                f"{run.path}: the latents harvested again for step {trainer.step} are not those of the run; continue "
                "on the same kind of device, with the same number of processes, versions and compile, or start a new "
                "run_name"
            )
        return
    streamer.fill()
    if trainer.head.normalizes:
        measure_latents(trainer.normalizer, streamer.latents(), dist)
    dist.broadcast_module(trainer.head)
    trainer.ema.reset()


def train(run: Run, trainer: Trainer, logger: RunLogger, accuracy: float) -> None:
    """The loop: harvest, step, log, save, evaluate; it stops at the end or, after saving, at a signal."""
    config, dist = run.config, run.dist
    window, harvesting = MetricWindow(), Stopwatch(dist.device)
    with StopRequest() as stop:
        due_before = trainer.step in run.evaluations and not was_evaluated(config.run_dir, trainer.step, REPORT)
        if dist.any_true(dist.is_main and due_before):
            evaluate_now(run, trainer, logger)
        if trainer.step >= config.max_steps:
            logger.message(f"step {trainer.step} of {config.max_steps}: nothing left to train; raise max_steps")
        while trainer.step < config.max_steps:
            with harvesting:
                run.streamer.advance(trainer.step)
                batch = run.streamer.batch(trainer.step)
            window.add(trainer.train_step(batch))
            stopping = dist.any_true(stop.requested)
            last = trainer.step == config.max_steps
            evaluating = trainer.step in run.evaluations and not stopping

            if trainer.step % config.log_interval == 0 or last or stopping:
                log(trainer, window, harvesting, logger)
            interval = config.checkpoint_interval
            if evaluating or stopping or (interval is not None and trainer.step % interval == 0):
                # Before the evaluation: whatever goes wrong there, the steps are not lost.
                save(run, trainer, accuracy, needed=last or stopping)
            if evaluating:
                evaluate_now(run, trainer, logger)
            window.resume_clock()
            if stopping:
                logger.message(f"stopped by {stop.signal_name} at step {trainer.step}; the same command continues")
                return
    if dist.is_main and config.logger.plots:
        plot_curves(config.run_dir)


def log(trainer: Trainer, window: MetricWindow, harvesting: Stopwatch, logger: RunLogger) -> None:
    """Record the steps since the last record; `harvest_share` is the part of their time that the latents took."""
    trainer.check_progress()
    figures = window.summary(trainer.dist) | {"lr": trainer.learning_rate, "harvest_ms": harvesting.mean_ms()}
    figures["harvest_share"] = figures["harvest_ms"] / figures["ms_per_step"]
    logger.log(trainer.step, {f"train/{key}": value for key, value in figures.items()})
    logger.progress(trainer.step, {key: figures[key] for key in SHOWN})


def evaluate_now(run: Run, trainer: Trainer, logger: RunLogger) -> None:
    """Evaluate the averaged weights; training goes on afterwards as if nothing had happened."""
    config = run.config
    options = DiffusionEvalOptions(
        rows=config.diffusion.rows,
        jump_from=tuple(config.harvest.jump_from),
        jump_to=config.harvest.jump_to,
        puzzles=config.eval_puzzles,
        steps=tuple(config.sampler.steps),
        sampler=config.sampler.name,
        seed=config.seed,
        quick=True,
    )
    with trainer.ema.applied():
        figures = evaluate_head(
            trainer.head,
            run.teacher,
            run.dist,
            options,
            DiffusionEvaluator(),
            regression=None if run.baseline is None else run.baseline.head,
            save_dir=evaluation_folder(run.config.run_dir, trainer.step),
            protocol={
                "head": config.diffusion.name,
                "prediction": run.head.config.prediction,
                "head_run": str(config.run_dir),
                "head_step": trainer.step,
                "head_weights": "EMA",
                "head_parameters": count_parameters(run.head),
                "regression_checkpoint": config.regression_checkpoint,
            },
        )
    if figures is not None:
        logger.evaluation(trainer.step, figures, HEADLINES)


def save(run: Run, trainer: Trainer, accuracy: float, needed: bool) -> None:
    """Write the whole state of the run. A disk that refuses is an error where it is `needed`, else a warning."""
    run.streamer.advance(trainer.step)  # the ring that the next step finds, and that `restore` brings about
    meta = {
        "config": run.config.model_dump(mode="json"),
        "head_config": run.head_config,
        "teacher": run.teacher.identity | {"statistics": trainer.normalizer.digest()},
        "teacher_accuracy": None if math.isnan(accuracy) else accuracy,
        "harvest": {
            "productions": run.streamer.productions,
            "checksum": run.streamer.checksum(),
            "act_step_weights": run.streamer.act_step_weights,
        },
        "total_steps": run.config.max_steps,
    }
    save_checkpoint(
        run.config.run_dir,
        trainer.step,
        replicated=trainer.replicated(),
        sharded={} if run.own_path is None else {LANES: run.own_path.saved()},
        meta=meta,
        keep_last=run.config.keep_last,
        dist=run.dist,
        kind=KIND,
        needed=needed,
    )


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
