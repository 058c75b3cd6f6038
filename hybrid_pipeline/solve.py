"""Tasks without text: a proposer says what the rule might be, a trained hybrid tries it, demonstrations are the judge.

    python -m hybrid_pipeline.solve runs/hybrid --attempts 125             # instructed grids, sentences in random order
    python -m hybrid_pipeline.solve runs/larc --arc evaluation --writer smollm2    # ARC, plans written by a model

Writes ``attempts.json`` and ``attempts.png``: exact answers by the number of attempts, chosen by verification, and,
drawn apart, the upper bound of an oracle that reads the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datasets.arc import Task, load_subset
from datasets.common import InputError, check_folder
from hybrid_pipeline.build import open_trained_hybrid
from hybrid_pipeline.grids import Grid
from hybrid_pipeline.instructed import instructed_tasks
from hybrid_pipeline.larc import SOURCE
from hybrid_pipeline.llm import PACKAGED, LanguageModel, open_writer
from hybrid_pipeline.planner import (
    MAX_ATTEMPTS,
    ORACLE,
    VERIFIED,
    Answerer,
    HybridAnswerer,
    Proposer,
    SentenceProposer,
    WritingProposer,
    choose,
    solve,
    solve_with_oracle,
)
from hybrid_pipeline.rules import INSTANCES
from training.cli import run_cli
from training.files import written_aside

DEMONSTRATIONS = 3
PROPOSAL_STREAM = 320


def main(argv: list[str]) -> None:
    options = _parse(argv)
    output = Path(options.output or Path(options.checkpoint) / "attempts")
    check_folder(output, f"--output {output}")
    model, encoder, seed = open_trained_hybrid(options.checkpoint)
    answerer = HybridAnswerer(model, encoder)
    tasks = _tasks(options, answerer.side, seed)
    if options.writer is not None:
        writer = WritingProposer(*open_writer(LanguageModel(options.writer, max_tokens=4096)))
        curves = by_attempts(tasks, answerer, lambda _: writer, options.attempts)
    else:
        curves = by_attempts(tasks, answerer, lambda number: _sentences(seed, number), options.attempts)
    record = {
        "checkpoint": options.checkpoint,
        "tasks": len(tasks),
        "of": f"ARC-1 {options.arc}" if options.arc else f"instructed grids, seed {seed}, held-out sentences",
        "proposer": options.writer or f"{len(INSTANCES)} sentences in random order",
        "exact_by_attempts": curves,
    }
    output.mkdir(parents=True, exist_ok=True)
    with written_aside(output / "attempts.json") as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")
    draw(curves, output / "attempts.png")
    for label, curve in curves.items():
        print(f"{label}: {curve[0]:.3f} after 1 attempt, {curve[-1]:.3f} after {len(curve)}, of {len(tasks)} tasks")


def by_attempts(
    tasks: Sequence[Task], answerer: Answerer, proposer_of: Callable[[int], Proposer], max_attempts: int
) -> dict[str, list[float]]:
    """Share of exact answers after 1, 2, .. `max_attempts` attempts, by verification and by the labelled oracle."""
    verified, oracle = np.zeros(max_attempts), np.zeros(max_attempts)
    for number, task in enumerate(tasks):
        demonstrations = [(given, wanted) for given, wanted in task.train if wanted is not None]
        test_input, answer = task.test[0]
        attempts = solve(demonstrations, test_input, answerer, proposer_of(number), max_attempts).attempts
        kept = [choose(attempts[: count + 1]) for count in range(max_attempts)]
        verified += [_right(attempts[index].answer.grid, answer) for index in kept]
        assert answer is not None
        bound = solve_with_oracle(demonstrations, test_input, answerer, proposer_of(number), answer, max_attempts)
        if _right(bound.answer, answer):
            oracle[len(bound.attempts) - 1 :] += 1
    return {VERIFIED: (verified / len(tasks)).tolist(), ORACLE: (oracle / len(tasks)).tolist()}


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The curves as a picture; the oracle is dashed and grey."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, curve in curves.items():
        colour, style = ("#9ca3af", "--") if label == ORACLE else ("#1f4e79", "-")
        axes.plot(range(1, len(curve) + 1), curve, label=label, color=colour, linestyle=style)
    axes.set(xlabel="attempts", ylabel="exact answers", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def _right(grid: Grid, answer: Grid | None) -> bool:
    return answer is not None and np.array_equal(grid, answer)


def _sentences(seed: int, number: int) -> SentenceProposer:
    """One held-out sentence of every instance, in an order of this task's own."""
    draws = np.random.Generator(np.random.Philox(key=[seed, PROPOSAL_STREAM], counter=[0, 0, 0, number]))
    said = [found.sentences(held_out=True) for found in INSTANCES]
    return SentenceProposer([said[index][draws.integers(len(said[index]))] for index in draws.permutation(len(said))])


def _tasks(options: argparse.Namespace, side: int, seed: int) -> list[Task]:
    if options.arc is None:
        return instructed_tasks(options.tasks, DEMONSTRATIONS, side - 1, seed)
    fits = [
        task
        for task in load_subset(options.arc, SOURCE)
        if task.solved and all(max(grid.shape) <= side for grid in task.grids())
    ]
    if not fits:
        raise InputError(f"--arc {options.arc}: no task fits the model's rows of {side}x{side}")
    return fits[: options.tasks]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hybrid_pipeline.solve", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="a run of hybrid_train.py, or one of its checkpoints")
    parser.add_argument("--tasks", type=_positive, default=100, help="tasks to solve (default 100)")
    parser.add_argument("--attempts", type=_positive, default=MAX_ATTEMPTS, help="most attempts at a task (default 16)")
    parser.add_argument("--arc", choices=("training", "evaluation"), help="tasks of ARC-1 instead of instructed grids")
    names = ", ".join(PACKAGED)
    parser.add_argument("--writer", help=f"a causal language model that writes the plans ({names}, a folder, a name)")
    parser.add_argument("--output", help="folder of the figures (default: attempts/ in the checkpoint's)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
