"""Evaluate a checkpoint under its own configuration.

python evaluate.py checkpoint=runs/quickstart-sudoku
torchrun --nproc-per-node 2 evaluate.py checkpoint=runs/arc1/checkpoints/step_518071 act_eval=early
python evaluate.py checkpoint=step_518071.pt arch=trm arch.L_cycles=4 data=arc1
python evaluate.py checkpoint=runs/diffusion_916-layer-sudoku-1a2b3c diffusion.puzzles=1000
"""

from __future__ import annotations

import training.waiting  # noqa: F401

import json
import sys
from pathlib import Path
from typing import Any

from datasets.common import InputError, check_folder
from evaluators import build_evaluators
from evaluators.diffusion import DiffusionEvaluator
from training import distributed
from training.cli import run_cli
from training.config import load_config
from training.diffusion_evaluation import evaluate_head
from training.diffusion_trained import check_no_head_keys, is_head, open_trained_head
from training.distributed import Distributed
from training.evaluate_schema import EvaluateConfig
from training.evaluation import METRICS_FILE, check_batch_size, evaluate
from training.files import written_aside
from training.trained import Trained, open_trained
from trajectories.capturing import capturing
from trajectories.store import FOLDER


def main(argv: list[str]) -> None:
    config = load_config("cfg_evaluate", argv)
    with distributed.init(config.device) as dist:
        if is_head(config.checkpoint):
            evaluate_diffusion(config, dist)
        else:
            check_no_head_keys(config)
            evaluate_model(config, dist)


def evaluate_model(config: EvaluateConfig, dist: Distributed) -> None:
    """A model that solves puzzles."""
    if config.act_eval == "fixed" and config.act_eval_confidence != 0.5:
        raise InputError(
            f"act_eval_confidence={config.act_eval_confidence:g} has no effect with act_eval=fixed: drop it, or "
            "act_eval=early"
        )
    trained = open_trained(config, dist)
    specs = config.evaluators
    if specs is None:
        specs = trained.recorded.evaluators if trained.recorded is not None else []
    output_dir = Path(config.output_dir) if config.output_dir is not None else trained.output_dir
    check_folder(output_dir, f"output_dir={output_dir}")
    named = [spec.model_dump() for spec in specs]
    evaluators = build_evaluators(named, trained.dataset.sources)
    protocol = describe(config, trained)
    with capturing(
        output_dir / FOLDER,
        trained.model,
        trained.dataset,
        dist,
        slots=trained.batch_size // dist.world_size,
        depth=config.capture_depth,
        outputs=config.eval_save_outputs,
        rows=config.capture.rows,
        provenance=protocol,
        evaluators=named,
    ) as capture:
        figures = evaluate(
            trained.model,
            trained.dataset,
            evaluators,
            dist=dist,
            batch_size=trained.batch_size,
            act_eval=config.act_eval,
            act_eval_confidence=config.act_eval_confidence,
            save_dir=output_dir,
            capture=capture,
        )
        if figures is not None:  # before the capture is closed, for which the disk may have no room
            write_metrics(protocol, figures, output_dir)


def evaluate_diffusion(config: EvaluateConfig, dist: Distributed) -> None:
    """A diffusion head, against the teacher whose latents it learnt."""
    if config.eval_batch_size is not None:
        check_batch_size(config.eval_batch_size, dist.world_size)
    trained = open_trained_head(config, dist)
    check_folder(trained.output_dir, f"output_dir={trained.output_dir}")
    specs = config.evaluators if config.evaluators is not None else trained.teacher.recorded.evaluators
    # Votes are never pooled over evaluations here: those of the teacher would be counted for the students.
    options = [spec.model_dump() | ({"pool_evaluations": False} if spec.name == "arc@ARC" else {}) for spec in specs]
    figures = evaluate_head(
        trained.opened.head,
        trained.teacher,
        dist,
        trained.options,
        DiffusionEvaluator(),
        regression=trained.regression,
        save_dir=trained.output_dir,
        evaluators=build_evaluators(options, trained.teacher.test_set.sources),
        protocol=trained.protocol,
    )
    if figures is not None:
        write_metrics(trained.protocol, figures, trained.output_dir)


def describe(config: EvaluateConfig, trained: Trained) -> dict[str, Any]:
    """What the figures are measured on."""
    return trained.protocol | {
        "act_eval": config.act_eval,
        "act_eval_confidence": config.act_eval_confidence if config.act_eval == "early" else None,
    }


def write_metrics(protocol: dict[str, Any], figures: dict[str, float], output_dir: Path) -> None:
    """Print the figures with what they were measured on, and write them to `METRICS_FILE`."""
    with written_aside(output_dir / METRICS_FILE) as aside:
        aside.write_text(json.dumps({"protocol": protocol, "figures": figures}, indent=2), encoding="utf-8")
    for key, value in (protocol | figures).items():
        print(f"{key:<28} {value:.6g}" if isinstance(value, float) else f"{key:<28} {value}")
    print(f"files in {output_dir}")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
