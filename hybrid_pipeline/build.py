"""From a configuration and its data to a hybrid model that has read its sentences, and to a run's first state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from datasets.common import InputError
from hybrid_pipeline.coarse_to_fine import HybridHierarchicalModel
from hybrid_pipeline.instructed import instructed_grids
from hybrid_pipeline.larc import larc_tasks
from hybrid_pipeline.llm import LanguageModel, TextStates, read_texts
from hybrid_pipeline.model import HybridTRMModel
from hybrid_pipeline.schema import COARSE_TO_FINE, CONFIG, KIND, TRM, HybridTrainConfig, LarcSection
from hybrid_pipeline.text_rows import TextData
from models.losses import ACTLossHead
from training.build import kernels_on, load_weights
from training.checkpoint import load_checkpoint, resolve_checkpoint
from training.config import validate_config
from training.distributed import Distributed, FlatGradients
from training.ema import EMA
from training.manifest import Manifest, read_manifest
from training.optim import build_optimizers
from training.state import TrainState, puzzle_optimizer
from training.weights import read_weights

MODELS: dict[str, type[HybridTRMModel]] = {TRM: HybridTRMModel, COARSE_TO_FINE: HybridHierarchicalModel}
ADAPTER = "model.inner.text."  # the adapter's weights in a checkpoint


def open_texts(config: HybridTrainConfig) -> TextData:
    """The rows and sentences that `config.texts` names."""
    section = config.texts
    options = section.model_dump(exclude={"kind"}) | {"seed": config.seed}
    return larc_tasks(**options) if isinstance(section, LarcSection) else instructed_grids(**options)


def read_sentences(config: HybridTrainConfig, data: TextData) -> tuple[TextStates, str]:
    """The language model's states of all sentences, and what tells that model from others."""
    return read_texts(asked_of(config), data.sentences, cache_of(config))


def cache_of(config: HybridTrainConfig) -> Path | None:
    """The folder of states that were computed before, if there is to be one."""
    return None if config.llm.cache_dir is None else Path(config.llm.cache_dir)


def asked_of(config: HybridTrainConfig) -> LanguageModel:
    """The language model that `config.llm` names."""
    llm = config.llm
    return LanguageModel(llm.model, llm.use_chat_template, llm.max_tokens, llm.dtype, llm.device_map)


def build_hybrid(config: HybridTrainConfig, settings: dict[str, Any], device: torch.device) -> ACTLossHead:
    """The model in its loss head, from `settings` of `training.build.model_config` and the language model's width.

    Initial weights depend on the seed alone. `InputError` for a key that does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = MODELS[config.arch.name](settings | config.hybrid.model_dump())
        except ValidationError as error:
            raise InputError(
                f"hybrid: {'; '.join(part['msg'].removeprefix('Value error, ') for part in error.errors())}"
            ) from error
    return ACTLossHead(model, config.arch.loss.loss_type).to(device)


def start_from(model: ACTLossHead, checkpoint: str) -> None:
    """Give the TRM the weights of a trained one; the adapter keeps its own. `InputError` where they do not fit."""
    weights = dict(read_weights(checkpoint).tensors)
    if model.model.puzzle_emb is None:
        weights.pop("model.inner.puzzle_emb.weights", None)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(ADAPTER)}
    load_weights(model, weights | own, checkpoint)


def open_recorded(checkpoint: str) -> tuple[Path, Manifest, HybridTrainConfig]:
    """The checkpoint that a run's folder or a checkpoint's stands for, its manifest and the run's configuration."""
    path = resolve_checkpoint(checkpoint)
    manifest = read_manifest(path)
    if manifest.kind != KIND:
        raise InputError(f"checkpoint={checkpoint} is of kind {manifest.kind}: give a run of hybrid_train.py")
    return path, manifest, validate_config(HybridTrainConfig, manifest.meta["config"], CONFIG)


def trained_model(path: Path, manifest: Manifest, config: HybridTrainConfig, device: torch.device) -> ACTLossHead:
    """The model of `open_recorded` in evaluation mode, with its averaged weights where it has them."""
    settings = manifest.meta["model_config"] | ({} if device.type == "cuda" else {"forward_dtype": "float32"})
    model = build_hybrid(config, settings | kernels_on(device, settings), device)
    groups = ["model", "ema"] if config.ema else ["model"]
    found = load_checkpoint(path, groups=groups).groups
    model.load_state_dict(found["model"] | found.get("ema", {}))
    return model.eval()


def weights_hash(manifest: Manifest) -> str:
    """Of everything in a checkpoint that is equal on every rank."""
    return ",".join(sorted(record.sha256 for record in manifest.files.values() if record.slots is None))


def check_rows(manifest: Manifest, data: TextData, source: str) -> None:
    """`InputError` where a checkpoint was trained on other rows."""
    if manifest.meta["dataset_hash"] != data.digest:
        raise InputError(
            f"{source} was trained on other rows than its texts.* keys and files give now: put the same files there, "
            "or train it anew"
        )


def check_heard(manifest: Manifest, llm_identity: str, source: str) -> None:
    """`InputError` where a checkpoint heard another language model."""
    if manifest.meta["llm"] != llm_identity:
        raise InputError(
            f"{source} heard the language model {manifest.meta['llm']}, and here is {llm_identity}: "
            "install the same one"
        )


def create_state(model: ACTLossHead, config: HybridTrainConfig, dist: Distributed) -> TrainState:
    """A run before its first step. The optimisers of the adapter come first, then those of the TRM."""
    inner = model.model.inner
    trm = nn.ModuleDict({name: child for name, child in inner.named_children() if name != "text"})
    local = config.local_batch_size(dist.world_size)
    rows = torch.zeros(local, inner.config.seq_len, dtype=torch.int32, device=dist.device)
    blank: dict[str, Tensor] = {"inputs": rows, "labels": rows, "puzzle_identifiers": rows[:, 0], "texts": rows[:, 0]}
    return TrainState(
        model=model,
        dense=[*build_optimizers(config, inner.text), *build_optimizers(config, trm)],
        sparse=puzzle_optimizer(model, config, dist),
        gradients=FlatGradients(model.parameters()),
        ema=EMA(dict(model.named_parameters()), config.ema_rate) if config.ema else None,
        carries=[model.initial_carry(blank)],
        slots=range(dist.rank * local, (dist.rank + 1) * local),
    )


def set_stage(state: TrainState, config: HybridTrainConfig) -> None:
    """Before a step: hold the TRM still as long as the adapter is trained alone.

    A rate of 0 leaves every weight as it is to the bit, decay included, while the moments warm up.
    """
    frozen = state.step < config.adapter_share
    adapters = len(state.dense) // 2  # one optimiser each, or, under muon, two
    for optimizer in state.optimizers[adapters:]:
        for group in optimizer.param_groups:
            group.setdefault("trained_lr", group["base_lr"])
            group["base_lr"] = 0.0 if frozen else group["trained_lr"]
