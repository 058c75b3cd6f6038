"""Train a recursive model, on one process or many.

    python pretrain.py experiment=quickstart
    torchrun --nproc-per-node 4 pretrain.py experiment=arc1
    python pretrain.py --help

The same command again continues the run from its newest checkpoint.
"""

from __future__ import annotations

import training.waiting  # noqa: F401

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from evaluators import build_evaluators
from evaluators.common import Evaluator
from models.kernels import PLAIN
from training import distributed
from training.build import build_model, compile_levels, load_weights, model_config
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run_cli
from training.config import load_config
from training.config_schema import PretrainConfig
from training.curriculum import check_depths
from training.distributed import Distributed
from training.evaluation import check_batch_size, evaluate, evaluation_folder, was_evaluated
from training.lock import exclusive
from training.logging import RunLogger, check_packages, open_logger
from training.passes import check_can_record
from training.plots import plot_curves
from training.resume import checkpoint_to_resume
from training.same_run import check_same_run
from training.schedule import Schedule, make_schedule
from training.signals import StopRequest
from training.state import GROUPS, TrainState, create_state
from training.step import train_step
from training.weights import read_weights
from training.window import MetricWindow
from trajectories.capturing import capturing
from trajectories.store import FOLDER

# Figures on the progress bar, and those printed after an evaluation.
SHOWN = ("lm_loss", "exact_accuracy")
HEADLINES = ("/accuracy", "/exact_accuracy", "pass@1", "pass@2", "/exact", "/shortest_path")


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: PretrainConfig
    dist: Distributed
    train_set: PuzzleDataset
    eval_set: PuzzleDataset
    evaluators: list[tuple[str, Evaluator]]
    schedule: Schedule
    model_config: dict[str, Any]


def main(argv: list[str]) -> None:
    config = load_config("cfg_pretrain", argv)
    with distributed.init(config.device) as dist:
        run = prepare(config, dist)
        model = build_model(config.arch, run.model_config, dist.device, config.seed)
        check_depths(config.depth_curriculum, model.model.config)
        state = create_state(model, config, run.train_set.metadata, dist)
        restore(run, state)
        if config.compile if config.compile is not None else dist.device.type == "cuda":
            compile_levels(model)
        with exclusive(config.run_dir, dist):
            train(run, state)


def prepare(config: PretrainConfig, dist: Distributed) -> Run:
    """Open the data and lay out the run; whatever is wrong with the input is found here or in `restore`."""
    train_set = PuzzleDataset(config.data_paths, "train", seed=config.seed, max_puzzles=config.max_train_puzzles)
    eval_set = PuzzleDataset(
        config.data_paths_test or config.data_paths,
        "test",
        seed=config.seed,
        max_puzzles=config.max_eval_puzzles,
        subset_of=train_set,
    )
    for key in ("vocab_size", "seq_len"):
        theirs, ours = getattr(eval_set.metadata, key), getattr(train_set.metadata, key)
        if theirs != ours:
            raise InputError(f"data_paths_test has {key}={theirs} and data_paths {ours}: they must agree")
    check_batch_size(config.evaluation_rows(dist.world_size), dist.world_size)
    if config.cuda_graph:
        local = config.local_batch_size(dist.world_size)
        check_can_record(dist.device, micro_batches=local // config.rows_at_once(dist.world_size))
    check_packages(wandb=config.logger.wandb, tensorboard=config.logger.tensorboard)
    return Run(
        config=config,
        dist=dist,
        train_set=train_set,
        eval_set=eval_set,
        evaluators=build_evaluators([spec.model_dump() for spec in config.evaluators], eval_set.sources),
        schedule=make_schedule(config, train_set.rows_per_epoch),
        model_config=model_config(config.arch, train_set.metadata, config.rows_at_once(dist.world_size), dist.device),
    )


def restore(run: Run, state: TrainState) -> None:
    """Continue the run from its newest checkpoint, or start it, from given weights if there are any."""
    config, dist = run.config, run.dist
    path = checkpoint_to_resume(config.resume, config.run_dir, dist)
    if path is not None:
        check_same_run(config, run.train_set.dataset_hash, run.schedule.total_steps, path)
        groups = GROUPS + (("ema",) if state.ema is not None else ())
        state.restore(load_checkpoint(path, groups=groups, slots=state.slots))
    elif config.load_checkpoint is not None:
        weights = read_weights(config.load_checkpoint)
        same_puzzles = weights.meta is None or weights.meta["identifiers_hash"] == run.train_set.identifiers_hash
        load_weights(state.model, weights.tensors, config.load_checkpoint, same_puzzles)
    dist.broadcast_module(state.model)
    if path is None and state.ema is not None:
        state.ema.reset()


def train(run: Run, state: TrainState) -> None:
    """The loop: step, log, evaluate, save; it stops at the end or, after saving, at a signal."""
    config, dist, schedule = run.config, run.dist, run.schedule
    window = MetricWindow()
    with open_logger(config, schedule.total_steps, state.step, dist) as logger, StopRequest() as stop:
        if (kernels := state.model.model.config.find_kernels()) != PLAIN:
            logger.message(f"kernels: {kernels}")
        due_before = state.step in schedule.evaluations and not was_evaluated(config.run_dir, state.step)
        if dist.any_true(dist.is_main and due_before):
            evaluate_now(run, state, logger)
        if state.step >= schedule.total_steps:
            logger.message(f"step {state.step} of {schedule.total_steps}: nothing left to train; raise epochs for more")
        for batch in _batches(run, state):
            window.add(train_step(run, state, batch))
            stopping = dist.any_true(stop.requested)
            last = state.step == schedule.total_steps
            evaluating = state.step in schedule.evaluations and not stopping

            if state.step % config.log_interval == 0 or last or stopping:
                figures = window.summary(dist) | {"lr": state.learning_rate}
                logger.log(state.step, {f"train/{key}": value for key, value in figures.items()})
                logger.progress(state.step, {key: figures[key] for key in SHOWN})
            interval = config.checkpoint_interval
            due = interval is not None and state.step % interval == 0
            if due or (evaluating and config.checkpoint_every_eval) or last or stopping:
                # Before the evaluation: whatever goes wrong there, the steps are not lost.
                save(run, state, needed=last or stopping)
            if evaluating:
                evaluate_now(run, state, logger)
            window.resume_clock()
            if stopping:
                logger.message(f"stopped by {stop.signal_name} at step {state.step}; the same command continues")
                return
    if dist.is_main and config.logger.plots:
        plot_curves(config.run_dir)


def evaluate_now(run: Run, state: TrainState, logger: RunLogger) -> None:
    """Evaluate the averaged weights (the raw ones without EMA); the training state is as before afterwards."""
    config, save_dir = run.config, evaluation_folder(run.config.run_dir, state.step)
    rows = config.evaluation_rows(run.dist.world_size)
    with (
        state.ema.applied() if state.ema is not None else contextlib.nullcontext(),
        capturing(
            save_dir / FOLDER,
            state.model,
            run.eval_set,
            run.dist,
            slots=rows // run.dist.world_size,
            depth="eval" if config.eval_save_outputs else None,
            outputs=config.eval_save_outputs,
            provenance={"run": config.run_label, "step": state.step, "act_eval": config.act_eval},
            evaluators=[spec.model_dump() for spec in config.evaluators],
        ) as capture,
    ):
        figures = evaluate(
            state.model,
            run.eval_set,
            run.evaluators,
            dist=run.dist,
            batch_size=rows,
            act_eval=config.act_eval,
            save_dir=save_dir,
            capture=capture,
        )
        if figures is not None:  # before the capture is closed, for which the disk may have no room
            logger.evaluation(state.step, figures, HEADLINES)


def save(run: Run, state: TrainState, needed: bool) -> None:
    """Write the whole state of the run. A disk that refuses is an error where it is `needed`, else a warning."""
    meta = {
        "config": run.config.model_dump(mode="json"),
        "model_config": run.model_config,
        "dataset_hash": run.train_set.dataset_hash,
        "identifiers_hash": run.train_set.identifiers_hash,
        "total_steps": run.schedule.total_steps,
    }
    save_checkpoint(
        run.config.run_dir,
        state.step,
        replicated=state.replicated(),
        sharded=state.sharded(),
        meta=meta,
        keep_last=run.config.keep_last,
        dist=run.dist,
        needed=needed,
    )


def _batches(run: Run, state: TrainState) -> Iterator[dict[str, Tensor]]:
    """This rank's rows of every step to come, on its device."""
    batches = run.train_set.train_batches(
        state.step, run.schedule.total_steps, run.config.global_batch_size, state.slots
    )
    with contextlib.closing(batches):  # type: ignore[type-var]
        for arrays in batches:
            yield {key: run.dist.send(torch.from_numpy(value)) for key, value in arrays.items()}


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
