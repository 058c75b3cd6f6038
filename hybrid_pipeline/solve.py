"""Tasks without text: a proposer says what the rule might be, a trained hybrid tries it, demonstrations are the judge.

    python -m hybrid_pipeline.solve runs/hybrid                      # instructed grids
    python -m hybrid_pipeline.solve runs/hybrid --arc training       # real tasks, as far as they fit the model's rows
    python -m hybrid_pipeline.solve runs/larc --arc evaluation --writer smollm2    # plans written by a language model

Without a writer, sentences of the instructed rules are proposed: by how well the model explains the shown
demonstrations with one or two of them, with one, and, for comparison, in random orders. Writes ``attempts.json`` and
``attempts.png``: exact answers by the number of attempts, chosen by verification, and, drawn apart, the upper bound of
an oracle that reads the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from datasets.arc import load_subset
from datasets.common import InputError, check_folder
from hybrid_pipeline.book import RankingProposer, SentenceBook
from hybrid_pipeline.build import asked_of, cache_of, check_heard, open_recorded, trained_model, weights_hash
from hybrid_pipeline.grids import Grid, Pair
from hybrid_pipeline.instructed import SMALLEST, instructed_tasks
from hybrid_pipeline.larc import SOURCE
from hybrid_pipeline.llm import PACKAGED, LanguageModel, open_encoder, open_writer, read_texts
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
from hybrid_pipeline.schema import HybridTrainConfig, LarcSection
from training.cli import run_cli
from training.files import written_aside

DEMONSTRATIONS = 3
PROPOSAL_STREAM = 320

TWO_STEPS, RANKED, RANDOM = "one or two sentences, ranked", "one sentence, ranked", "one sentence, random order"
RULES_FIT = "rules done by a program that reads the answer (an upper bound)"
COLOURS = ("#1f4e79", "#0f766e", "#c2410c")


@dataclass(frozen=True)
class Question:
    """A test input of a task, its demonstrations and, for scoring alone, its answer."""

    name: str
    demonstrations: list[Pair]
    given: Grid
    answer: Grid


@dataclass(frozen=True)
class Curves:
    """Over 1, 2, .. attempts: shares of exact answers by how they are chosen, and of questions with an attempt that
    does right by every demonstration. `solved`: by question, whether it is in the end, by verification; of one that
    was asked more than once, whether it ever is."""

    exact: dict[str, list[float]]
    passed: list[float]
    solved: dict[str, bool]


def main(argv: list[str]) -> None:
    options = _parse(argv)
    output = Path(options.output or Path(options.checkpoint) / "attempts")
    check_folder(output, f"--output {output}")
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    path, manifest, config = open_recorded(options.checkpoint)
    model = trained_model(path, manifest, config, device)
    questions = _questions(options, config)
    if options.writer is not None:
        encoder = open_encoder(asked_of(config))
        check_heard(manifest, encoder.identity, options.checkpoint)
        answerer = HybridAnswerer(model, encoder)
        writer = WritingProposer(*open_writer(LanguageModel(options.writer, max_tokens=4096, key="--writer")))
        curves = {options.writer: by_attempts(questions, answerer, lambda _: writer, options.attempts)}
    else:
        sentences = [found.sentences(held_out=True)[0] for found in INSTANCES]
        states, identity = read_texts(asked_of(config), ["", *sentences], cache_of(config))
        check_heard(manifest, identity, options.checkpoint)
        book = SentenceBook(model, sentences, states)
        curves = compare_orders(questions, book, options.attempts, options.steps == 2, options.orders, config.seed)
    record: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "step": manifest.step,
        "weights": weights_hash(manifest),
        "of": f"ARC-1 {options.arc}" if options.arc else f"instructed grids, seed {config.seed}",
        "questions": len(questions),
        "copied_inputs": float(np.mean([_right(question.given, question.answer) for question in questions])),
        RULES_FIT: {steps: float(np.mean([_rules_fit(q, steps) for q in questions])) for steps in (1, 2)},
        "exact_by_attempts": {proposer: found.exact for proposer, found in curves.items()},
        "passed_by_attempts": {proposer: found.passed for proposer, found in curves.items()},
        "solved": {proposer: [name for name, right in f.solved.items() if right] for proposer, f in curves.items()},
    }
    output.mkdir(parents=True, exist_ok=True)
    with written_aside(output / "attempts.json") as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")
    draw(curves, f"{record['of']}: {len(questions)} questions", output / "attempts.png")
    print(
        f"{len(questions)} questions of {record['of']}; copied inputs answer {record['copied_inputs']:.3f}, "
        f"{RULES_FIT}: {record[RULES_FIT][1]:.3f} with one, {record[RULES_FIT][2]:.3f} with up to two"
    )
    for proposer, found in curves.items():
        for label, curve in found.exact.items():
            print(f"{proposer}, {label}: {curve[0]:.3f} after 1 attempt, {curve[-1]:.3f} after {len(curve)}")


def by_attempts(
    questions: Sequence[Question], answerer: Answerer, proposer_of: Callable[[int], Proposer], max_attempts: int
) -> Curves:
    """What `max_attempts` attempts at each question come to, by verification and by the labelled oracle."""
    verified, oracle, passed = np.zeros(max_attempts), np.zeros(max_attempts), np.zeros(max_attempts)
    solved: dict[str, bool] = {}
    for number, question in enumerate(questions):
        demonstrations, given, answer = question.demonstrations, question.given, question.answer
        attempts = solve(demonstrations, given, answerer, proposer_of(number), max_attempts).attempts
        kept = [choose(attempts[: count + 1]) for count in range(max_attempts)]
        right = [_right(attempts[index].answer.grid, answer) for index in kept]
        verified += right
        passed += [attempts[index].verdict.passed for index in kept]
        solved[question.name] = solved.get(question.name, False) or right[-1]
        bound = solve_with_oracle(demonstrations, given, answerer, proposer_of(number), answer, max_attempts)
        if _right(bound.answer, answer):
            oracle[len(bound.attempts) - 1 :] += 1
    share = 1 / len(questions)
    return Curves(
        {VERIFIED: (verified * share).tolist(), ORACLE: (oracle * share).tolist()}, (passed * share).tolist(), solved
    )


def compare_orders(
    questions: Sequence[Question], book: SentenceBook, max_attempts: int, two_steps: bool, orders: int, seed: int
) -> dict[str, Curves]:
    """Plans ranked by the model, of up to two sentences and of one, and the mean of so many random orders."""
    parts: dict[str, list[Curves]] = {TWO_STEPS: [], RANKED: [], RANDOM: []}
    for number, question in enumerate(questions):  # one question at a time: the book keeps its grids
        for name in (TWO_STEPS, RANKED) if two_steps else (RANKED,):
            ranking = RankingProposer(book, two_steps=name == TWO_STEPS)
            parts[name].append(by_attempts([question], book, [ranking].__getitem__, max_attempts))
        draws = np.random.Generator(np.random.Philox(key=[seed, PROPOSAL_STREAM], counter=[0, 0, 0, number]))
        permutations = [draws.permutation(len(book.sentences)) for _ in range(orders)]
        proposers = [SentenceProposer([book.sentences[place] for place in order]) for order in permutations]
        if proposers:
            parts[RANDOM].append(by_attempts([question] * orders, book, proposers.__getitem__, max_attempts))
    return {name: _mean(found) for name, found in parts.items() if found}


def _mean(parts: Sequence[Curves]) -> Curves:
    solved = {name: right for part in parts for name, right in part.solved.items()}
    exact = {label: np.mean([part.exact[label] for part in parts], axis=0).tolist() for label in parts[0].exact}
    return Curves(exact, np.mean([part.passed for part in parts], axis=0).tolist(), solved)


def draw(curves: dict[str, Curves], title: str, path: Path) -> None:
    """The curves as a picture, a panel for what the loop reaches and one for the oracle."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, label, style in zip(panels, (VERIFIED, ORACLE), ("-", "--"), strict=True):
        for (proposer, found), colour in zip(curves.items(), COLOURS, strict=False):
            attempts = range(1, len(found.exact[label]) + 1)
            shares = 100 * np.array(found.exact[label])
            axes.plot(attempts, shares, style, color=colour, marker=".", label=proposer)
        axes.set_title(label.replace(" (", "\n("), fontsize=8)
        axes.set_xlabel("attempts")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_facecolor("white" if label == VERIFIED else "#f3f4f6")
    panels[0].set(ylabel="exact answers, %")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def _right(grid: Grid, answer: Grid) -> bool:
    return np.array_equal(grid, answer)


def _rules_fit(question: Question, steps: int) -> bool:
    """Whether up to so many rules, done by a program, make of every input its output: what plans could reach."""
    pairs = [*question.demonstrations, (question.given, question.answer)]
    if min(min(given.shape) for given, _ in pairs) < SMALLEST:
        return False
    for first in [None, *(INSTANCES if steps == 2 else [])]:
        made = [(given if first is None else first.apply(given), wanted) for given, wanted in pairs]
        if any(all(np.array_equal(last.apply(given), wanted) for given, wanted in made) for last in INSTANCES):
            return True
    return False


def _questions(options: argparse.Namespace, config: HybridTrainConfig) -> list[Question]:
    """Of tasks whose grids are none larger than those that the model was trained on."""
    largest = config.texts.side if isinstance(config.texts, LarcSection) else config.texts.sizes[1]
    if options.arc is None:
        tasks = instructed_tasks(options.tasks or 100, DEMONSTRATIONS, largest, config.seed)
    else:
        fits = (task for task in load_subset(options.arc, SOURCE) if max(max(g.shape) for g in task.grids()) <= largest)
        tasks = list(fits)[: options.tasks]
    found = []
    for task in tasks:
        shown = [(given, wanted) for given, wanted in task.train if wanted is not None]
        for number, (given, answer) in enumerate(task.test):
            if answer is not None:
                found.append(Question(f"{task.task_id}/{number}", shown, given, answer))
    if not found:
        raise InputError(f"--arc {options.arc}: no task has grids of at most {largest}x{largest}, as the model has")
    return found


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hybrid_pipeline.solve", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="a run of hybrid_train.py, or one of its checkpoints")
    parser.add_argument("--tasks", type=_positive, help="tasks to solve at most (default: all of ARC, or 100)")
    parser.add_argument("--attempts", type=_positive, default=MAX_ATTEMPTS, help="most attempts at a task (default 16)")
    parser.add_argument("--arc", choices=("training", "evaluation"), help="tasks of ARC-1 instead of instructed grids")
    parser.add_argument(
        "--steps",
        type=int,
        choices=(1, 2),
        default=1,
        help="sentences of a plan at most (default 1)",
    )
    parser.add_argument(
        "--orders", type=_count, default=8, help="random orders of the sentences, averaged; 0 for none (default 8)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes a GPU where there is one")
    names = ", ".join(PACKAGED)
    parser.add_argument("--writer", help=f"a causal language model that writes the plans ({names}, a folder, a name)")
    parser.add_argument("--output", help="folder of the figures (default: attempts/ in the checkpoint's)")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("expected 0 or more")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
