"""One optimisation step of a recursive model: ACT step, gradients, clipping, updates, average.

totals = train_step(run, state, batch)
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from training.config_schema import OptimConfig
from training.curriculum import DepthStage, at_depth
from training.distributed import Distributed
from training.guard import assert_finite
from training.optim import set_learning_rates
from training.schedule import Schedule
from training.state import TrainState, exploration, stagger


class StepConfig(Protocol):
    """What a step asks of a run's configuration."""

    @property
    def seed(self) -> int: ...
    @property
    def global_batch_size(self) -> int: ...
    @property
    def lr_warmup_steps(self) -> int: ...
    @property
    def lr_min_ratio(self) -> float: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def depth_curriculum(self) -> list[DepthStage]: ...
    @property
    def staggered_start(self) -> bool: ...


class Setting(Protocol):
    """What a step takes from a run and leaves alone."""

    @property
    def config(self) -> StepConfig: ...
    @property
    def dist(self) -> Distributed: ...
    @property
    def schedule(self) -> Schedule: ...


def train_step(run: Setting, state: TrainState, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """One update on this rank's rows of the global batch; returns sums of metrics over its rows."""
    config, model, step = run.config, state.model, state.step
    progress = step / run.schedule.total_steps
    uniform = run.dist.send(exploration(config.seed, step, config.global_batch_size, state.slots))
    totals: dict[str, Tensor] = {}
    start = 0
    for index, carry in enumerate(state.carries):
        rows = slice(start, start := start + len(carry.steps))
        with at_depth(model.model.inner, config.depth_curriculum, progress):
            part = {key: value[rows] for key, value in batch.items()}
            earliest = model.model.explore(uniform[:, rows])
            state.carries[index], metrics = state.differentiate(model, carry, part, earliest, config.global_batch_size)
        if config.staggered_start and step == 0:
            stagger(state.carries[index], state.slots.start + rows.start, model.model.config.halt_max_steps)
        for key, value in metrics.items():
            totals[key] = totals[key] + value if key in totals else value

    state.gradients.all_reduce(run.dist)
    norm = state.gradients.norm().to(run.dist.device)
    assert_finite(torch.stack((norm, totals["loss"].to(norm.dtype))), step + 1)
    if config.optim.grad_clip is not None:
        for flat in state.gradients.tensors:
            flat.mul_((config.optim.grad_clip / (norm + 1e-6)).clamp_max(1.0))
    state.step += 1
    set_learning_rates(
        state.optimizers,
        state.step,
        warmup_steps=config.lr_warmup_steps,
        total_steps=run.schedule.total_steps,
        min_ratio=config.lr_min_ratio,
    )
    for optimizer in state.optimizers:
        optimizer.step()
    state.gradients.zero()
    if state.ema is not None:
        state.ema.update()
    return totals | {"grad_norm": norm, "rows": torch.tensor(float(start))}
