"""Train an adapter that lets a frozen language model say which rule a hybrid model's latents are about.

    python hybrid_train.py run_name=teller seed=2                   # first a model that listens
    python hybrid_describe.py checkpoint=runs/teller                # SmolLM2, a CPU
    python hybrid_describe.py checkpoint=runs/teller adapter.use_vae_adapter=true
    python hybrid_describe.py checkpoint=runs/teller latents=constant    # one prefix for all rows: the control
    python hybrid_describe.py --help

The same command again continues the run from its newest checkpoint.
"""

from __future__ import annotations

import training.waiting  # noqa: F401

import json
import sys
from dataclasses import dataclass
from typing import Any

from datasets.common import InputError
from hybrid_pipeline.build import weights_hash
from hybrid_pipeline.describe_schema import CONFIG, IDENTITY, KIND, DescribeConfig
from hybrid_pipeline.describing import GROUPS, Trainer, build_teller
from hybrid_pipeline.descriptions import Listener, open_listener
from hybrid_pipeline.speaker import open_speaker
from hybrid_pipeline.telling import evaluate
from training import distributed
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run_cli
from training.config import load_config, validate_config
from training.config_errors import show
from training.distributed import Distributed
from training.evaluation import evaluation_folder, was_evaluated
from training.files import written_aside
from training.lock import exclusive
from training.logging import RunLogger, check_packages, open_logger
from training.manifest import read_manifest
from training.plots import plot_curves
from training.resume import checkpoint_to_resume
from training.same_run import check_kind, check_settings, compare_lengths
from training.signals import StopRequest
from training.window import MetricWindow

SHOWN = ("lm_nats",)  # on the progress bar
HEADLINES = ("/loss", "/loss_shuffled", "/loss_none", "/rule", "/rule_trained", "/used_dimensions")  # of an evaluation
REPORT = "descriptions.json"  # the last file of an evaluation


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: DescribeConfig
    dist: Distributed
    listener: Listener

    @property
    def heard(self) -> dict[str, str | int]:
        """Which model's latents these are."""
        weights = weights_hash(read_manifest(self.listener.path))
        return {"path": str(self.listener.path), "step": self.listener.step, "weights": weights}


def main(argv: list[str]) -> None:
    config = load_config(CONFIG, argv, DescribeConfig)
    if config.compile:
        raise InputError("compile=true: nothing is compiled here, the language model stays as it is: leave it out")
    with distributed.init(config.device) as dist:
        if dist.world_size > 1:
            raise InputError("hybrid_describe.py runs in one process: start it without torchrun")
        check_packages(wandb=config.logger.wandb, tensorboard=config.logger.tensorboard)
        run = Run(config, dist, open_listener(config.checkpoint, dist.device))
        trainer = create_trainer(run)
        with exclusive(config.run_dir, dist):
            train(run, trainer)


def create_trainer(run: Run) -> Trainer:
    """Adapter, language model and optimiser, as they were in the checkpoint where there is one."""
    config = run.config
    path = checkpoint_to_resume(config.resume, config.run_dir, run.dist)
    if path is not None:
        check_kind(path, KIND)
        meta = read_manifest(path).meta
        check_settings(config, validate_config(DescribeConfig, meta["config"], CONFIG), IDENTITY, path)
        compare_lengths(meta, config.max_steps, config.lr_min_ratio, path)
        if meta["heard"]["weights"] != run.heard["weights"]:
            raise InputError(
                f"{path} was trained on latents of {meta['heard']['path']}, not of the weights of "
                f"checkpoint={config.checkpoint}: give the same model, or another run_name to start anew"
            )
    device_map = config.speaker.device_map or str(run.dist.device)
    speaker = open_speaker(config.speaker.model, config.speaker.dtype, device_map)
    trainer = Trainer(build_teller(config, run.listener, speaker), run.listener, config)
    if path is not None:
        if meta["speaker"] != speaker.identity:
            raise InputError(
                f"{path} was trained before {meta['speaker']}, and speaker.model={config.speaker.model} is now "
                f"{speaker.identity}: install the same model"
            )
        trainer.restore(load_checkpoint(path, groups=GROUPS))
    return trainer


def train(run: Run, trainer: Trainer) -> None:
    """The loop: step, log, save, and evaluate at the end; it stops there or, after saving, at a signal."""
    config, window = run.config, MetricWindow()
    adapter = sum(parameter.numel() for parameter in trainer.adapter.parameters())
    with open_logger(config, config.max_steps, trainer.step, run.dist) as logger, StopRequest() as stop:
        logger.message(f"{adapter:,} weights in the adapter, before the frozen {trainer.teller.speaker.identity}")
        while trainer.step < config.max_steps:
            window.add(trainer.train_step())
            last = trainer.step == config.max_steps
            if trainer.step % config.log_interval == 0 or last or stop.requested:
                figures = window.summary(run.dist) | {"lr": trainer.learning_rate}
                logger.log(trainer.step, {f"train/{key}": value for key, value in figures.items()})
                logger.progress(trainer.step, {key: figures[key] for key in SHOWN})
            interval = config.checkpoint_interval
            if last or stop.requested or (interval is not None and trainer.step % interval == 0):
                save(run, trainer, needed=last or stop.requested)
            window.resume_clock()
            if stop.requested and not last:
                logger.message(f"stopped by {stop.signal_name} at step {trainer.step}; the same command continues")
                return
        if evaluation_is_due(run, trainer.step, logger):
            evaluate_now(run, trainer, logger)
    if config.logger.plots:
        plot_curves(config.run_dir)


def evaluation_is_due(run: Run, step: int, logger: RunLogger) -> bool:
    """Whether there is none of this step, or one with other settings, which is said."""
    if not was_evaluated(run.config.run_dir, step, REPORT):
        return True
    path = evaluation_folder(run.config.run_dir, step) / REPORT
    recorded = json.loads(path.read_text(encoding="utf-8")).get("settings", {})  # older records lack them
    asked = run.config.evaluation_settings
    other = [
        f"{key}={show(value)} ({f'was {show(recorded[key])}' if key in recorded else 'not recorded'})"
        for key, value in asked.items()
        if key not in recorded or recorded[key] != value
    ]
    if other:
        logger.message(f"step {step} is evaluated again, {path} is replaced: {', '.join(other)}")
    return bool(other)


def evaluate_now(run: Run, trainer: Trainer, logger: RunLogger) -> None:
    """Evaluate the averaged weights, with all controls, and keep the figures and what was said beside them."""
    with trainer.ema.applied():
        figures, details = evaluate(trainer.teller, run.listener, run.config)
    folder = evaluation_folder(run.config.run_dir, trainer.step)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"heard": run.heard, "speaker": trainer.teller.speaker.identity}
    record |= {"settings": run.config.evaluation_settings, "figures": figures} | details
    with written_aside(folder / REPORT) as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")
    logger.evaluation(trainer.step, figures, HEADLINES)


def save(run: Run, trainer: Trainer, needed: bool) -> None:
    """Write the whole state of the run. A disk that refuses is an error where it is `needed`, else a warning."""
    meta = {
        "config": run.config.model_dump(mode="json"),
        "heard": run.heard,
        "speaker": trainer.teller.speaker.identity,
        "total_steps": run.config.max_steps,
    }
    save_checkpoint(
        run.config.run_dir,
        trainer.step,
        replicated=trainer.replicated(),
        sharded={},
        meta=meta,
        keep_last=run.config.keep_last,
        dist=run.dist,
        kind=KIND,
        needed=needed,
    )


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
