"""Train a recursive model that listens to a frozen language model, on one process or many.

    python hybrid_train.py                                # instructed grids, MiniLM, a CPU
    python hybrid_train.py text=shuffled                  # the same with the texts of other rows: the control
    torchrun --nproc-per-node 4 hybrid_train.py llm.model=smollm2 trm_checkpoint=runs/arc1 adapter_steps=1000
    python hybrid_train.py --help

The same command again continues the run from its newest checkpoint.
"""

from __future__ import annotations

import training.waiting  # noqa: F401

import contextlib
import sys
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from hybrid_pipeline.build import (
    build_hybrid,
    check_heard,
    check_rows,
    create_state,
    open_texts,
    read_sentences,
    set_stage,
    start_from,
)
from hybrid_pipeline.instructed import UNSEEN, best_guess
from hybrid_pipeline.pass_at_k import PassAtK
from hybrid_pipeline.schema import CONFIG, IDENTITY, KIND, HybridTrainConfig
from hybrid_pipeline.text_rows import TextData, copied_input
from training import distributed
from training.build import compile_levels, model_config
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run_cli
from training.config import load_config, validate_config
from training.distributed import Distributed
from training.evaluation import check_batch_size, evaluate, evaluation_folder, was_evaluated
from training.lock import exclusive
from training.logging import RunLogger, check_packages, open_logger
from training.manifest import read_manifest
from training.plots import plot_curves
from training.resume import checkpoint_to_resume
from training.same_run import check_kind, check_settings, compare_lengths
from training.schedule import Schedule
from training.signals import StopRequest
from training.state import GROUPS, TrainState
from training.step import train_step
from training.window import MetricWindow

SHOWN = ("lm_loss", "exact_accuracy")  # on the progress bar
HEADLINES = ("/exact_accuracy", "/pass@2")  # of an evaluation


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: HybridTrainConfig
    dist: Distributed
    data: TextData
    schedule: Schedule
    model_config: dict[str, Any]
    llm_identity: str


def main(argv: list[str]) -> None:
    config = load_config(CONFIG, argv, HybridTrainConfig)
    with distributed.init(config.device) as dist:
        run, state = prepare(config, dist)
        restore(run, state)
        if config.compile if config.compile is not None else dist.device.type == "cuda":
            compile_levels(state.model)
        with exclusive(config.run_dir, dist):
            train(run, state)


def prepare(config: HybridTrainConfig, dist: Distributed) -> tuple[Run, TrainState]:
    """Open data and language model and lay out the run; what is wrong with the input is found here or in `restore`."""
    rows = config.local_batch_size(dist.world_size)
    check_batch_size(config.eval_batch_size or config.global_batch_size, dist.world_size)
    check_packages(wandb=config.logger.wandb, tensorboard=config.logger.tensorboard)
    data = open_texts(config)
    states, identity = read_sentences(config, data)
    settings = model_config(config.arch, data.metadata, rows, dist.device) | {"text_size": states.states.shape[-1]}
    model = build_hybrid(config, settings, dist.device)
    model.model.inner.read(states)
    interval = config.eval_interval or config.max_steps
    evaluations = frozenset({*range(interval, config.max_steps, interval), config.max_steps})
    run = Run(config, dist, data, Schedule(config.max_steps, evaluations), settings, identity)
    return run, create_state(model, config, dist)


def restore(run: Run, state: TrainState) -> None:
    """Continue the run from its newest checkpoint, or start it, from a trained TRM if one is named."""
    config, dist = run.config, run.dist
    path = checkpoint_to_resume(config.resume, config.run_dir, dist)
    if path is not None:
        check_kind(path, KIND)
        manifest = read_manifest(path)
        meta = manifest.meta
        recorded = validate_config(HybridTrainConfig, meta["config"], CONFIG)
        check_settings(config, recorded, IDENTITY, path)
        check_rows(manifest, run.data, str(path))
        check_heard(manifest, run.llm_identity, str(path))
        compare_lengths(meta, config.max_steps, config.lr_min_ratio, path)
        groups = GROUPS + (("ema",) if state.ema is not None else ())
        state.restore(load_checkpoint(path, groups=groups, slots=state.slots))
    elif config.trm_checkpoint is not None:
        start_from(state.model, config.trm_checkpoint)
    dist.broadcast_module(state.model)
    if path is None and state.ema is not None:
        state.ema.reset()


def train(run: Run, state: TrainState) -> None:
    """The loop: step, log, save, evaluate; it stops at the end or, after saving, at a signal."""
    config, dist, schedule = run.config, run.dist, run.schedule
    window = MetricWindow()
    with open_logger(config, schedule.total_steps, state.step, dist) as logger, StopRequest() as stop:
        announce(run, state, logger)
        due_before = state.step in schedule.evaluations and not was_evaluated(config.run_dir, state.step)
        if dist.any_true(dist.is_main and due_before):
            evaluate_now(run, state, logger)
        while state.step < schedule.total_steps:
            set_stage(state, config)
            window.add(train_step(run, state, next_batch(run, state)))
            stopping = dist.any_true(stop.requested)
            last = state.step == schedule.total_steps
            evaluating = state.step in schedule.evaluations and not stopping

            if state.step % config.log_interval == 0 or last or stopping:
                figures = window.summary(dist) | {"lr": state.learning_rate}
                logger.log(state.step, {f"train/{key}": value for key, value in figures.items()})
                logger.progress(state.step, {key: figures[key] for key in SHOWN})
            interval = config.checkpoint_interval
            if evaluating or stopping or (interval is not None and state.step % interval == 0):
                save(run, state, needed=last or stopping)
            if evaluating:
                evaluate_now(run, state, logger)
            window.resume_clock()
            if stopping:
                logger.message(f"stopped by {stop.signal_name} at step {state.step}; the same command continues")
                return
    if dist.is_main and config.logger.plots:
        plot_curves(config.run_dir)


def announce(run: Run, state: TrainState, logger: RunLogger) -> None:
    """Say what is trained on what, and what answers without text would score."""
    inner = state.model.model.inner
    adapter = sum(parameter.numel() for parameter in inner.text.parameters())
    network = sum(parameter.numel() for parameter in inner.parameters()) - adapter
    logger.message(
        f"{len(run.data.train.texts)} rows, {len(run.data.sentences) - 1} sentences, {run.llm_identity}; "
        f"{network:,} weights in the TRM and {adapter:,} in the adapter"
    )
    if UNSEEN in run.data.test:
        logger.message(f"the best guess without text would score {best_guess(run.data):.4f}")
    for name, rows in run.data.test.items():
        exact, cells = copied_input(rows)
        logger.message(f"{name}: {len(rows.texts)} rows; copied inputs would score {exact:.4f}, {cells:.4f} of cells")


def next_batch(run: Run, state: TrainState) -> dict[str, Tensor]:
    """This rank's rows of the next step, on its device."""
    arrays = run.data.train_batch(state.step, run.config.global_batch_size, state.slots, run.config.text)
    return {key: run.dist.send(torch.from_numpy(value)) for key, value in arrays.items()}


def evaluate_now(run: Run, state: TrainState, logger: RunLogger) -> None:
    """Evaluate the averaged weights (the raw ones without EMA) with the text and with both controls."""
    config = run.config
    with state.ema.applied() if state.ema is not None else contextlib.nullcontext():
        figures = evaluate(
            state.model,
            cast(Any, run.data),  # of a data set, `test_batches` is all that is asked for
            [("", PassAtK(run.data))],
            dist=run.dist,
            batch_size=config.eval_batch_size or config.global_batch_size,
            save_dir=evaluation_folder(config.run_dir, state.step),
        )
    if figures is not None:
        logger.evaluation(state.step, figures, HEADLINES)


def save(run: Run, state: TrainState, needed: bool) -> None:
    """Write the whole state of the run. A disk that refuses is an error where it is `needed`, else a warning."""
    meta = {
        "config": run.config.model_dump(mode="json"),
        "model_config": run.model_config,
        "dataset_hash": run.data.digest,
        "llm": run.llm_identity,
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
        kind=KIND,
        needed=needed,
    )


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
