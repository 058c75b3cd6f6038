"""A curriculum on recursion depth: the first steps of a run recur less, and so cost less.

The progressive depth curriculum of CGAR (Qasim and Zhang 2025, arXiv 2511.08653): (H, L) cycles of (1, 2) for the first
30 % of the steps, (2, 4) up to 60 %, then the model's own (3, 6). Evaluations are always at the model's own depth.

    with at_depth(model.model.inner, stages, progress=step / total_steps):
        model(...)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.common import InputError
from training.config_errors import describe


class DepthStage(BaseModel):
    """What a model's cycles are while less than `until` of the run's steps are done."""

    model_config = ConfigDict(extra="forbid")

    until: float = Field(gt=0, lt=1)
    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)


def check_stages(stages: Sequence[DepthStage], hyperparameters: dict[str, Any]) -> None:
    """ValueError unless the stages follow one another and the architecture has such cycles."""
    if stages and not {"H_cycles", "L_cycles"} <= hyperparameters.keys():
        raise ValueError("depth_curriculum is for architectures with H_cycles and L_cycles: leave it at []")
    for one, other in pairwise(stages):
        if other.until <= one.until:
            raise ValueError(f"depth_curriculum: until={other.until} does not come after until={one.until}")


def spans(stages: Sequence[DepthStage]) -> list[tuple[float, float]]:
    """Where each stage begins and its share of the run, both in [0, 1]; the last is what comes after all stages."""
    starts = [0.0, *(stage.until for stage in stages)]
    return [(start, end - start) for start, end in pairwise([*starts, 1.0])]


def check_depths(stages: Sequence[DepthStage], config: BaseModel) -> None:
    """`InputError` for a stage that the architecture, whose model has this `config`, cannot recur in."""
    for stage in stages:
        depth = stage.model_dump(exclude={"until"})
        try:
            type(config)(**config.model_dump() | depth)
        except ValidationError as error:
            said = describe(error, ())
            raise InputError(f"depth_curriculum: the stage until={stage.until}, {depth}: {said}") from error


def depth_of(inner: Any) -> tuple[int, ...]:
    """The cycles of `inner` now: all that a curriculum changes."""
    return tuple(getattr(inner.config, name) for name in ("H_cycles", "L_cycles") if hasattr(inner.config, name))


@contextlib.contextmanager
def at_depth(inner: Any, stages: Sequence[DepthStage], progress: float) -> Iterator[None]:
    """`inner` recurs as the stage of `progress` in [0, 1) says, inside; after the last stage as it always does."""
    stage = next((stage for stage in stages if progress < stage.until), None)
    if stage is None:  # not every architecture has such cycles
        yield
        return
    config = inner.config
    own = config.H_cycles, config.L_cycles
    config.H_cycles, config.L_cycles = stage.H_cycles, stage.L_cycles
    try:
        yield
    finally:
        config.H_cycles, config.L_cycles = own
