"""What every evaluator shares: the protocol, the gather hook, the interval around a proportion, safe writing.

An evaluator is fed batches of real rows (no padding) and, at the end, asked once for its figures. Every rank
feeds its own rows; `result` merges them through `gather`, so the number of ranks does not change the figures.

Usage: evaluator.begin_eval(); evaluator.update_batch(batch, preds); figures = evaluator.result(save_dir)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

# Every rank calls it with its own object; rank 0 gets all of them in rank order, the others get None.
Gather = Callable[[object], "list[object] | None"]

_NORMAL_QUANTILE = 1.959963984540054


@runtime_checkable
class Evaluator(Protocol):
    """Predictions in, figures and files out.

    `required_outputs` names the entries of `preds` that `update_batch` reads ("preds", "q_halt_logits").
    """

    required_outputs: frozenset[str]

    def begin_eval(self) -> None:
        """Start a new evaluation: forget what the previous one collected."""

    def update_batch(self, batch: dict[str, np.ndarray], preds: dict[str, np.ndarray]) -> None:
        """Add n real rows.

        Args:
            batch: inputs, labels [n, seq_len] int32, puzzle_identifiers [n] int32, row_index [n] int64.
            preds: preds [n, seq_len] int tokens; q_halt_logits [n] float32 where `required_outputs` names it.
        """

    def result(self, save_dir: Path | None, gather: Gather = ...) -> dict[str, float] | None:
        """Figures by name on rank 0, None on the other ranks; rank 0 writes its files into `save_dir`."""


def single_process(value: object) -> list[object] | None:
    """The gather of one process: rank 0 is the only rank."""
    return [value]


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval (low, high) of a proportion (E. B. Wilson, 1927).

    `successes` may be fractional (a sum of scores in [0, 1]): such scores vary less than 0/1 outcomes of the
    same mean, so the interval errs on the wide side. No trials give the whole of [0, 1].
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes} is not between 0 and trials={trials}")
    if trials == 0:
        return 0.0, 1.0
    mean = successes / trials
    z = _NORMAL_QUANTILE
    scale = 1 + z**2 / trials
    centre = (mean + z**2 / (2 * trials)) / scale
    half_width = z / scale * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2))
    # Rounding may leave 0 and 1 a last bit outside their own interval.
    return max(0.0, min(mean, centre - half_width)), min(1.0, max(mean, centre + half_width))


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, then renamed over `path`; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
