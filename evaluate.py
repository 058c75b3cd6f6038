"""Evaluate a checkpoint under its own configuration.

python evaluate.py checkpoint=runs/quickstart-sudoku
torchrun --nproc-per-node 2 evaluate.py checkpoint=runs/arc1/checkpoints/step_518071 act_eval=early
python evaluate.py checkpoint=step_518071.pt arch=trm arch.L_cycles=4 data=arc1
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets.common import InputError, check_folder
from datasets.puzzle_dataset import PuzzleDataset
from evaluators import build_evaluators
from models.losses import ACTLossHead
from training import distributed
from training.build import build_model, load_weights, model_config
from training.cli import run_cli
from training.config import load_config, validate_config
from training.config_schema import ArchConfig, EvaluateConfig, PretrainConfig
from training.distributed import Distributed
from training.evaluation import check_batch_size, evaluate
from training.files import written_aside
from training.weights import Weights, read_weights

DEFAULT_BATCH_SIZE = 768


def main(argv: list[str]) -> None:
    config = load_config("cfg_evaluate", argv)
    with distributed.init(config.device) as dist:
        weights = read_weights(config.checkpoint, config.use_ema)
        trained = _recorded_config(weights)
        arch = _architecture(config, trained, weights)
        output_dir = Path(config.output_dir) if config.output_dir else _output_dir(weights)
        check_folder(output_dir, f"output_dir={output_dir}")
        batch_size = config.eval_batch_size or _default_batch_size(trained, dist)
        check_batch_size(batch_size, dist.world_size)
        dataset = open_data(config, trained)
        model = open_model(config, arch, weights, dataset, batch_size // dist.world_size, dist)
        specs = config.evaluators if config.evaluators is not None or trained is None else trained.evaluators
        figures = evaluate(
            model,
            dataset,
            build_evaluators([spec.model_dump() for spec in specs or []], dataset.sources),
            dist=dist,
            batch_size=batch_size,
            act_eval=config.act_eval,
            save_outputs=config.eval_save_outputs,
            save_dir=output_dir,
        )
        if figures is not None:
            report(figures, config, weights, dataset, model, output_dir)


def open_data(config: EvaluateConfig, trained: PretrainConfig | None) -> PuzzleDataset:
    """The data named on the command line, else what the run was evaluated on."""
    seed = config.seed if config.seed is not None else trained.seed if trained else 0
    maximum = config.max_eval_puzzles or (trained.max_eval_puzzles if trained else None)
    if config.data_paths is not None or trained is None:
        return PuzzleDataset(config.data_paths or [], "test", seed=seed, max_puzzles=maximum)
    train_set = PuzzleDataset(trained.data_paths, "train", seed=trained.seed, max_puzzles=trained.max_train_puzzles)
    paths = trained.data_paths_test or trained.data_paths
    return PuzzleDataset(paths, "test", seed=seed, max_puzzles=maximum, subset_of=train_set)


def open_model(
    config: EvaluateConfig,
    arch: ArchConfig,
    weights: Weights,
    dataset: PuzzleDataset,
    rows: int,
    dist: Distributed,
) -> ACTLossHead:
    """The model that the weights are of, for the data at hand."""
    settings = model_config(arch, dataset.metadata, rows, dist.device)
    if weights.meta is not None:
        _check_data(weights, settings, dataset)
    if config.halt_max_steps is not None:
        settings["halt_max_steps"] = config.halt_max_steps
    model = build_model(arch, settings, dist.device)
    load_weights(model, weights.tensors, str(weights.path))
    return model


def report(
    figures: dict[str, float],
    config: EvaluateConfig,
    weights: Weights,
    dataset: PuzzleDataset,
    model: ACTLossHead,
    output_dir: Path,
) -> None:
    """Print the figures with what they were measured on, and write them to ``metrics.json``."""
    protocol: dict[str, Any] = {
        "checkpoint": weights.path.name,
        "step": weights.step,
        "weights": "EMA" if weights.averaged else "raw",
        "data": [str(source.path) for source in dataset.sources],
        "data_hash": dataset.dataset_hash,
        "rows": dataset.num_rows,
        "act_eval": config.act_eval,
        "act_steps": model.model.config.halt_max_steps,
    }
    with written_aside(output_dir / "metrics.json") as aside:
        aside.write_text(json.dumps({"protocol": protocol, "figures": figures}, indent=2), encoding="utf-8")
    for key, value in (protocol | figures).items():
        print(f"{key:<28} {value:.6g}" if isinstance(value, float) else f"{key:<28} {value}")
    print(f"files in {output_dir}")


def _recorded_config(weights: Weights) -> PretrainConfig | None:
    return None if weights.meta is None else validate_config(PretrainConfig, weights.meta["config"])


def _architecture(config: EvaluateConfig, trained: PretrainConfig | None, weights: Weights) -> ArchConfig:
    if config.arch is not None:
        return config.arch
    if trained is None:
        raise InputError(f"{weights.path} holds nothing but weights: say arch=trm (and its keys) and data_paths=[...]")
    return trained.arch


def _default_batch_size(trained: PretrainConfig | None, dist: Distributed) -> int:
    size = DEFAULT_BATCH_SIZE if trained is None else trained.eval_batch_size or trained.global_batch_size
    return -(-size // dist.world_size) * dist.world_size


def _check_data(weights: Weights, settings: dict[str, Any], dataset: PuzzleDataset) -> None:
    assert weights.meta is not None
    for key in ("vocab_size", "seq_len", "num_puzzle_identifiers"):
        theirs = weights.meta["model_config"][key]
        if settings[key] != theirs:
            raise InputError(
                f"{weights.path} was trained on data with {key}={theirs}, data_paths has {settings[key]}: "
                "evaluate it on data of the same build"
            )
    if weights.meta["identifiers_hash"] != dataset.identifiers_hash:
        raise InputError(
            f"{weights.path} was trained on data with other puzzles under the identifiers of data_paths: "
            "evaluate it on data of the same build"
        )


def _output_dir(weights: Weights) -> Path:
    if weights.meta is None:
        return weights.path.with_name(f"{weights.path.stem}-evaluation")
    return weights.path.parent.parent / "eval" / f"step_{weights.step}"


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
