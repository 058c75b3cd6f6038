"""How many updates a run makes and after which of them it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.common import InputError
from training.cli import warn
from training.config_schema import PretrainConfig


@dataclass(frozen=True)
class Schedule:
    """`evaluations` are step numbers, counted from 1; the last step is always one of them."""

    total_steps: int
    evaluations: frozenset[int]


def make_schedule(config: PretrainConfig, rows_per_epoch: float) -> Schedule:
    """An epoch is one augmentation of every puzzle. Raises `InputError` where not a single step would come of it."""

    def steps(epochs: int) -> int:
        return int(epochs * rows_per_epoch // config.global_batch_size)

    total = steps(config.epochs) if config.max_steps is None else min(steps(config.epochs), config.max_steps)
    if total == 0:
        raise InputError(
            f"epochs={config.epochs} of {rows_per_epoch:g} rows do not fill one batch of "
            f"global_batch_size={config.global_batch_size}: raise epochs or lower global_batch_size"
        )
    if total < config.lr_warmup_steps:
        warn(
            f"the run has {total} steps, fewer than lr_warmup_steps={config.lr_warmup_steps}: "
            "the learning rate never reaches lr"
        )
    evaluations = {total}
    if config.eval_interval is not None:
        every = range(config.eval_interval, config.epochs + 1, config.eval_interval)
        evaluations |= {steps(epoch) for epoch in every[config.min_eval_interval :]} & set(range(1, total))
    return Schedule(total, frozenset(evaluations))
