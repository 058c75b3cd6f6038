"""What an evaluation of a diffusion head may be told, and what it asks of the evaluator that it hands its rows to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.student import HeadRows


@dataclass(frozen=True)
class DiffusionEvalOptions:
    """`rows`, `jump_from`, `jump_to`: what the head learnt, as in its configuration.

    `steps`: sampling steps, each of which is a column of the report; `rollout_steps`: those of students. `act_steps`:
    where rows are taken from, by default 1, 2, 4 and the last. `puzzles`, `timestep_puzzles`, `seed_puzzles`: held-out
    rows for the measures, for those by timestep (at `timesteps` evenly spaced ones, beside the first and the last), and
    for the spread over `seeds` noise seeds with the fewest steps. `batch_size`: puzzles at once in a
    process, None for as many as suit the device. `compile`: compile teacher and heads, and so time them as training
    runs them; it takes a minute or two. `quick` leaves out students, cost and spread.
    """

    rows: HeadRows
    jump_from: Sequence[int] = (0,)
    jump_to: int | None = None
    steps: Sequence[int] = (1, 4)
    sampler: str = "ddim"
    puzzles: int = 256
    timesteps: int = 10
    timestep_puzzles: int = 64
    seeds: int = 8
    seed_puzzles: int = 32
    act_steps: Sequence[int] | None = None
    rollout: bool = True
    rollout_steps: Sequence[int] = (1,)
    batch_size: int | None = None
    seed: int = 0
    compile: bool = False
    quick: bool = False


class DiffusionEvaluator(Protocol):
    """What `evaluators.diffusion.DiffusionEvaluator` does, as far as it is used here."""

    def begin(
        self,
        act_steps: Sequence[int],
        h_cycles: int,
        position_types: Sequence[int],
        timesteps: Sequence[int],
        snr: Sequence[float],
        early: Sequence[int],
        device: torch.device,
    ) -> None: ...
    def add_latents(self, method: str, cells: Tensor, estimate: Tensor, target: Tensor) -> None: ...
    def add_noise_level(
        self, method: str, level: int, cells: Tensor, eps_error: Tensor, x0_error: Tensor | None, target: Tensor
    ) -> None: ...
    def add_baseline_levels(
        self,
        cells: Tensor,
        target: Tensor,
        noise: Tensor,
        copied: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        centred: bool = True,
    ) -> None: ...
    def add_decoded(self, method: str, cells: Tensor, decoded: Any, teacher: Any, labels: Tensor) -> None: ...
    def add_early(self, place: int, answers: Any, labels: Tensor) -> None: ...
    def add_spread(self, method: str, cells: Tensor, samples: Tensor) -> None: ...
    def squared_error(self, estimate: Tensor, target: Tensor) -> Tensor: ...
    def result(self, gather: Any = ...) -> dict[str, Any] | None: ...
    def figures(self, measures: dict[str, Any]) -> dict[str, float]: ...
    def write(self, measures: dict[str, Any], folder: Path) -> list[Path]: ...
    def draw_denoising(self, film: dict[str, Any], metadata: Any, path: Path) -> Path: ...
