"""Does a plan do on the demonstrations what they show? The only judge of the loop in `hybrid_pipeline.planner`.

A verdict is made of demonstration pairs and of answers to their inputs. The answer to the test is no argument of
anything here.

Usage: ``verdict = verify(answers, demonstrations, held_out=0); print(verdict.feedback)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_pipeline.grids import Grid, Pair

MOST_CELLS = 5  # wrong cells named for one example


@dataclass(frozen=True)
class Verdict:
    """`held_out_solved`: the pair that the plan was not shown; `solved` and `cells`: shares over all pairs of grids
    and, in grids of the right shape, of cells that are right. `feedback` says what is wrong, in words."""

    held_out_solved: bool
    solved: float
    cells: float
    feedback: str

    @property
    def passed(self) -> bool:
        """Whether every demonstration came out right."""
        return self.solved == 1

    @property
    def rank(self) -> tuple[float, ...]:
        """Larger is better."""
        return float(self.held_out_solved), self.solved, self.cells


def verify(answers: Sequence[Grid], demonstrations: Sequence[Pair], held_out: int) -> Verdict:
    """Compare answers to the demonstrations' inputs with their outputs; number `held_out` was kept from the plan."""
    assert len(answers) == len(demonstrations) > 0
    solved, cells, lines = [], [], []
    for number, (answer, (_, wanted)) in enumerate(zip(answers, demonstrations, strict=True), start=1):
        fits = answer.shape == wanted.shape
        wrong = np.argwhere(answer != wanted) if fits else np.zeros((0, 2), int)
        solved.append(fits and len(wrong) == 0)
        cells.append(1 - len(wrong) / wanted.size if fits else 0.0)
        if not solved[-1]:
            lines.append(f"Example {number}: {_fault(answer, wanted, wrong)}")
    return Verdict(solved[held_out], float(np.mean(solved)), float(np.mean(cells)), "\n".join(lines))


def _fault(answer: Grid, wanted: Grid, wrong: np.ndarray) -> str:
    if answer.shape != wanted.shape:
        found, expected = ("x".join(map(str, grid.shape)) for grid in (answer, wanted))
        return f"the grid has {found} cells instead of {expected}."
    named = [
        f"row {row + 1}, column {column + 1} is {answer[row, column]} instead of {wanted[row, column]}"
        for row, column in wrong[:MOST_CELLS]
    ]
    more = f"; and {len(wrong) - MOST_CELLS} more" if len(wrong) > MOST_CELLS else ""
    return f"{'; '.join(named)}{more}."
