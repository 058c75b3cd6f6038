"""From a validated configuration and the data's metadata to a model on a device."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from datasets.common import InputError, PuzzleDatasetMetadata
from models import load_class
from models.kernels.fp8 import CAPABILITY
from models.layers import ReasoningModule
from models.losses import ACTLossHead
from training.cli import warn
from training.config_errors import describe
from training.config_schema import ArchConfig

# With and without gradients, for each level of a coarse-to-fine model and for evaluations: more than torch allows.
GRAPHS_OF_A_LEVEL = 64


def model_config(
    arch: ArchConfig, metadata: PuzzleDatasetMetadata, batch_size: int, device: torch.device, training: bool = True
) -> dict[str, Any]:
    """The architecture's own keys with what the data and the device decide filled in; without what only `training`
    does, unless it is for that."""
    settings = arch.hyperparameters | {
        "batch_size": batch_size,
        "seq_len": metadata.seq_len,
        "vocab_size": metadata.vocab_size,
        "num_puzzle_identifiers": metadata.num_puzzle_identifiers,
    }
    if settings.get("forward_dtype") == "auto":
        settings["forward_dtype"] = "bfloat16" if device.type == "cuda" else "float32"
    if not training:
        settings.pop("fp8_passes", None)
    elif settings.get("fp8_passes"):
        _check_fp8(device)
    return settings | kernels_on(device, settings)


def _check_fp8(device: torch.device) -> None:
    """`InputError` for a device without products in fp8."""
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if device.type not in ("cpu", "cuda") or (found is not None and found < CAPABILITY):
        least, has = (".".join(map(str, version)) for version in (CAPABILITY, found or ("none",)))
        raise InputError(
            f"arch.fp8_passes=true needs a GPU of compute capability {least} or more, and {device} has {has}: "
            "leave it out"
        )


def kernels_on(device: torch.device, settings: dict[str, Any]) -> dict[str, str]:
    """The key ``kernels`` of `settings`, if it is there, as it is on `device`: the plain path where there is no GPU,
    unless Triton is told to interpret its own. `InputError` where Triton is to be used and is not installed."""
    kind = settings.get("kernels", "torch")
    interpreted = kind == "triton" and os.environ.get("TRITON_INTERPRET")
    if kind == "torch" or device.type == "cuda" or interpreted:
        # Here and not where the configuration is checked: what was trained with Triton is evaluated without it.
        if kind == "triton" and importlib.util.find_spec("triton") is None:
            raise InputError('arch.kernels=triton needs the package triton: pip install -e ".[kernels]"')
        return {}
    if kind == "triton":
        warn(f"arch.kernels=triton is for GPUs: on {device.type} the plain path computes the same")
    return {"kernels": "torch"}


def build_model(arch: ArchConfig, config: dict[str, Any], device: torch.device, seed: int = 0) -> ACTLossHead:
    """The model in its loss head. Initial weights depend on `seed` alone: they are drawn on the CPU on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = load_class(arch.name)(config)
        except ValidationError as error:
            raise InputError(describe(error, (), prefix="arch.")) from error
        if config.get("fp8_passes") and not any(getattr(part, "fp8_passes", False) for part in model.modules()):
            raise InputError(
                "arch.fp8_passes=true finds no product to compute so: kernels have taken their place, or no width is a "
                "multiple of 16; leave it out"
            )
        head = load_class(arch.loss.name)(model, arch.loss.loss_type)
    return head.to(device)


def compile_levels(model: ACTLossHead) -> None:
    """Compile the recursion's unit in place: a few graphs to build instead of one with every cycle unrolled."""
    from torch._dynamo import config as dynamo  # here, because importing it takes a second

    dynamo.recompile_limit = max(GRAPHS_OF_A_LEVEL, dynamo.recompile_limit)
    for module in model.modules():
        if isinstance(module, ReasoningModule):
            module.compile(fullgraph=True, dynamic=False)


def load_weights(model: ACTLossHead, weights: dict[str, Tensor], source: str, same_puzzles: bool = True) -> None:
    """Copy weights in; raises `InputError` naming the first that is missing, unknown or of another shape.

    A puzzle table for other puzzles (another number of identifiers, or not `same_puzzles`) cannot be carried over row
    by row: every row then starts as the mean of the old ones, and a line on stderr says so.
    """
    state = model.state_dict()
    weights = dict(weights)
    table = next((name for name in state if name.endswith("puzzle_emb.weights")), None)
    if table is not None and table in weights and weights[table].shape[1:] == state[table].shape[1:]:
        theirs, ours = len(weights[table]), len(state[table])
        if theirs != ours or not same_puzzles:
            warn(
                f"{source} has embeddings of {theirs} puzzle identifiers that are not the data's {ours}: "
                "every puzzle starts from the mean of the old embeddings"
            )
            weights[table] = weights[table].float().mean(0, keepdim=True).expand_as(state[table])
    for name, tensor in state.items():
        if name not in weights:
            raise InputError(
                f"{source} has no tensor {name}: it is of another architecture (see arch.name and its keys)"
            )
        if weights[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, this model's is {tuple(tensor.shape)}: "
                "the arch.* keys or the data differ"
            )
    unknown = sorted(set(weights) - set(state))
    if unknown:
        raise InputError(f"{source} has a tensor {unknown[0]} that this model does not: the arch.* keys differ")
    model.load_state_dict(weights)
