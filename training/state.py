"""Everything a run consists of besides its configuration, and how it goes into a checkpoint and comes back.

What depends on the rank (the ACT carry) is stored by global batch slot, so that another number of processes can
take it up. Random draws need no state: they are functions of (seed, step, slot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.common import PuzzleDatasetMetadata
from models.act import ACTCarry
from models.losses import ACTLossHead
from training.checkpoint import Checkpoint
from training.config_schema import PretrainConfig
from training.distributed import Distributed, FlatGradients
from training.ema import EMA
from training.optim import SignSGD, build_optimizers
from training.passes import GraphedPass, Pass, differentiate

GROUPS = ("model", "optim", "carry")
EXPLORATION_STREAM = 100  # tells the draws for halting from those of the data, which count from 0


@dataclass
class TrainState:
    """A run in progress on one rank. `carries`: one for each micro-batch, in slot order; `step`: updates made."""

    model: ACTLossHead
    dense: list[Optimizer]
    sparse: SignSGD | None
    gradients: FlatGradients
    ema: EMA | None
    carries: list[ACTCarry]
    slots: range
    step: int = 0
    differentiate: Pass = differentiate

    @property
    def optimizers(self) -> list[Optimizer]:
        return self.dense + ([] if self.sparse is None else [self.sparse])

    @property
    def learning_rate(self) -> float:
        """Of the last update: the weights', or the puzzle table's where the weights are frozen."""
        return self.optimizers[0].param_groups[0]["lr"]

    def replicated(self) -> dict[str, dict[str, Tensor]]:
        """Tensors that are equal on every rank."""
        groups = {"model": dict(self.model.state_dict()), "optim": optimizer_tensors(self.dense, self.model)}
        return groups if self.ema is None else groups | {"ema": self.ema.shadow}

    def sharded(self) -> dict[str, tuple[range, dict[str, Tensor]]]:
        """Tensors with a row for each of this rank's slots."""
        parts = [carry.named_tensors() for carry in self.carries]
        return {"carry": (self.slots, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint read with `groups` and this rank's slots."""
        self.step = checkpoint.step
        self.model.load_state_dict(checkpoint.groups["model"])
        load_optimizer_tensors(self.dense, self.model, checkpoint.groups["optim"])
        if self.ema is not None:
            self.ema.load(checkpoint.groups["ema"])
        tensors = checkpoint.shards["carry"]
        offset = 0
        for carry in self.carries:
            rows = len(carry.steps)
            _load_carry(carry, {name: value[offset : offset + rows] for name, value in tensors.items()})
            offset += rows


def stagger(carry: ACTCarry, first_slot: int, max_steps: int) -> None:
    """Count as many more ACT steps for the row in each slot as the slot's number says, so that rows which all began
    together do not all end together. `first_slot`: the global slot of the carry's first row."""
    slots = torch.arange(first_slot, first_slot + len(carry.steps), device=carry.steps.device)
    carry.steps = carry.steps + (slots % max(1, max_steps - 1)).to(carry.steps.dtype)


def optimizer_tensors(optimizers: Sequence[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """What the optimisers remember of each parameter, as ``{optimiser}.{parameter}.{key}``."""
    names = _names(model)
    return {
        f"{index}.{names[id(parameter)]}.{key}": value
        for index, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizers: Sequence[Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimisers back what `optimizer_tensors` took from them."""
    names = _names(model)
    for index, optimizer in enumerate(optimizers):
        saved = optimizer.state_dict()
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for position, parameter in enumerate(ordered):
            prefix = f"{index}.{names[id(parameter)]}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                saved["state"][position] = state
        optimizer.load_state_dict(saved)


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


class TableSettings(Protocol):
    """What is asked of a run's configuration for the puzzle table."""

    @property
    def puzzle_emb_lr(self) -> float: ...
    @property
    def puzzle_emb_weight_decay(self) -> float: ...


def puzzle_optimizer(model: ACTLossHead, config: TableSettings, dist: Distributed) -> SignSGD | None:
    """What updates the rows of the puzzle table that a batch touches, where there is a table."""
    table = model.model.puzzle_emb
    if table is None:
        return None
    return SignSGD(
        table,
        base_lr=config.puzzle_emb_lr,
        weight_decay=config.puzzle_emb_weight_decay,
        gather=dist.all_gather_rows,
    )


def create_state(
    model: ACTLossHead, config: PretrainConfig, metadata: PuzzleDatasetMetadata, dist: Distributed
) -> TrainState:
    """A run before its first step: fresh optimisers, averages equal to the weights, every slot halted."""
    model.requires_grad_(not config.freeze_weights)
    table = model.model.puzzle_emb
    averaged = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if config.ema_puzzle_emb and table is not None:
        averaged["model.inner.puzzle_emb.weights"] = table.weights
    local, micro = config.local_batch_size(dist.world_size), config.rows_at_once(dist.world_size)
    rows = torch.zeros(micro, metadata.seq_len, dtype=torch.int32, device=dist.device)
    blank = {"inputs": rows, "labels": rows, "puzzle_identifiers": rows[:, 0]}
    return TrainState(
        model=model,
        dense=build_optimizers(config, model),
        sparse=puzzle_optimizer(model, config, dist),
        gradients=FlatGradients(model.parameters()),
        ema=EMA(averaged, config.ema_rate) if config.ema and averaged else None,
        carries=[model.initial_carry(blank) for _ in range(local // micro)],
        slots=range(dist.rank * local, (dist.rank + 1) * local),
        differentiate=GraphedPass() if config.cuda_graph else differentiate,
    )


def exploration(seed: int, step: int, global_batch_size: int, slots: range) -> Tensor:
    """Two uniforms in [0, 1) for each slot, fp32 [2, len(slots)]: the same for any division into processes."""
    generator = np.random.Generator(np.random.Philox(key=[seed, EXPLORATION_STREAM], counter=[0, 0, 0, step]))
    return torch.from_numpy(generator.random((2, global_batch_size), dtype=np.float32)[:, slots.start : slots.stop])


def _load_carry(carry: ACTCarry, tensors: dict[str, Tensor]) -> None:
    def moved(name: str, like: Tensor) -> Tensor:
        return tensors[name].to(device=like.device, dtype=like.dtype)

    carry.steps, carry.halted = moved("steps", carry.steps), moved("halted", carry.halted)
    latents: Any = {name: moved(f"latent.{name}", value) for name, value in vars(carry.inner_carry).items()}
    carry.inner_carry = type(carry.inner_carry)(**latents)
    carry.current_data = {name: moved(f"data.{name}", value) for name, value in carry.current_data.items()}
