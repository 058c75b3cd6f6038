"""A trained model with the data it can be evaluated on, opened from a checkpoint's own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from models.losses import ACTLossHead
from training.build import build_model, load_weights, model_config
from training.config import validate_config
from training.config_schema import PretrainConfig
from training.distributed import Distributed
from training.evaluate_schema import EvaluateConfig
from training.weights import Weights, read_weights

DEFAULT_BATCH_SIZE = 768
SHAPING = ("vocab_size", "seq_len", "num_puzzle_identifiers")  # what data decides of a model's weights


@dataclass(frozen=True)
class Trained:
    """`recorded`: the configuration of the run, None for weights of the original code; `batch_size` is global."""

    weights: Weights
    recorded: PretrainConfig | None
    dataset: PuzzleDataset
    model: ACTLossHead
    batch_size: int

    @property
    def output_dir(self) -> Path:
        """Where figures go unless told otherwise: in the run's folder (training's own are in ``eval``), or beside
        the file of weights."""
        path = self.weights.path
        if self.recorded is None:
            return path.with_name(f"{path.stem}-evaluation")
        return path.parent.parent / "evaluations" / f"step_{self.weights.step}"

    @property
    def protocol(self) -> dict[str, Any]:
        """Which weights, on which data: said beside everything that is found out about them."""
        run = {} if self.recorded is None else {"run": self.weights.path.resolve().parent.parent.name}
        return run | {
            "checkpoint": self.weights.path.name,
            "step": self.weights.step,
            "weights": "EMA" if self.weights.averaged else "as saved",
            "data": [str(source.path) for source in self.dataset.sources],
            "data_hash": self.dataset.dataset_hash,
            "tasks_or_puzzles": self.dataset.metadata.total_groups,
            "dtype": self.model.model.config.forward_dtype,
            "act_steps": self.model.model.config.halt_max_steps,
        }


def open_trained(config: EvaluateConfig, dist: Distributed) -> Trained:
    """Model (in evaluation mode) and test data. Raises `InputError` where they or the files do not fit."""
    weights = read_weights(config.checkpoint, config.use_ema)
    recorded = None if weights.meta is None else validate_config(PretrainConfig, weights.meta["config"])
    arch = config.arch or (recorded.arch if recorded is not None else None)
    if arch is None:
        raise InputError(f"{weights.path} holds nothing but weights: say arch=trm (and its keys) and data_paths=[...]")
    dataset = _open_data(config, recorded)
    batch_size = config.eval_batch_size or _default_batch_size(recorded, dist)
    settings = model_config(arch, dataset.metadata, max(1, batch_size // dist.world_size), dist.device, training=False)
    if weights.meta is not None:
        for key in SHAPING:
            if settings[key] != weights.meta["model_config"][key]:
                raise InputError(
                    f"{weights.path} was trained on data with {key}={weights.meta['model_config'][key]}, data_paths "
                    f"has {settings[key]}: evaluate it on data of the same build"
                )
        if weights.meta["identifiers_hash"] != dataset.identifiers_hash:
            raise InputError(
                f"{weights.path} was trained on data with other puzzles under the identifiers of data_paths: "
                "evaluate it on data of the same build"
            )
    if config.halt_max_steps is not None:
        settings["halt_max_steps"] = config.halt_max_steps
    model = build_model(arch, settings, dist.device)
    load_weights(model, weights.tensors, str(weights.path))
    return Trained(weights, recorded, dataset, model.eval(), batch_size)


def _open_data(config: EvaluateConfig, recorded: PretrainConfig | None) -> PuzzleDataset:
    """The data named in `config`, else what the run was evaluated on."""
    seed = config.seed if config.seed is not None else recorded.seed if recorded else 0
    if config.data_paths is not None or recorded is None:
        return PuzzleDataset(config.data_paths or [], "test", seed=seed, max_puzzles=config.max_eval_puzzles)
    most = config.max_eval_puzzles or recorded.max_eval_puzzles
    train_set = PuzzleDataset(recorded.data_paths, "train", seed=recorded.seed, max_puzzles=recorded.max_train_puzzles)
    paths = recorded.data_paths_test or recorded.data_paths
    return PuzzleDataset(paths, "test", seed=seed, max_puzzles=most, subset_of=train_set)


def _default_batch_size(recorded: PretrainConfig | None, dist: Distributed) -> int:
    size = DEFAULT_BATCH_SIZE
    if recorded is not None:
        size = recorded.eval_batch_size or min(
            recorded.global_batch_size, (recorded.micro_batch_size or DEFAULT_BATCH_SIZE) * dist.world_size
        )
    return -(-size // dist.world_size) * dist.world_size
