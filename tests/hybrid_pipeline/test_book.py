"""A book of sentences: the same answers as one by one, how well a sentence explains a pair, and the order by that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hybrid_pipeline.book import IMPOSSIBLE, THEN, RankingProposer, SentenceBook
from hybrid_pipeline.grids import Grid, compute_loss_with_crop, text_of_task, tokens_of_grid
from hybrid_pipeline.llm import StubEncoder
from hybrid_pipeline.planner import Answer, HybridAnswerer, solve
from models.losses import ACTLossHead
from tests.hybrid_pipeline.test_model import build
from tests.hybrid_pipeline.test_planner import BY_SENTENCE, ERASE, FLIP, GRIDS, Doing, demonstrations

SENTENCES = ["Nothing is known.", ERASE, FLIP]


@pytest.fixture
def model() -> ACTLossHead:
    torch.manual_seed(1)
    model = ACTLossHead(build(), "softmax_cross_entropy")
    torch.nn.init.normal_(model.model.inner.q_head.weight)  # zero at first: it would be as sure of anything
    return model


def book_of(model: ACTLossHead) -> SentenceBook:
    return SentenceBook(model, SENTENCES, StubEncoder().encode(["", *SENTENCES]))


def test_a_book_answers_as_sentences_do_one_by_one(model: ACTLossHead) -> None:
    grids = GRIDS[:2]
    found = {sentence: book_of(model).answer(sentence, grids) for sentence in SENTENCES}
    for sentence in SENTENCES:
        for one, other in zip(
            found[sentence], HybridAnswerer(model, StubEncoder()).answer(sentence, grids), strict=True
        ):
            assert np.array_equal(one.grid, other.grid) and one.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert len({answers[0].confidence for answers in found.values()}) == 3


def test_the_likelihood_of_an_output_is_the_loss_it_would_have(model: ACTLossHead) -> None:
    book = book_of(model)
    given, wanted = GRIDS[0], np.array([[5, 6]], np.uint8)
    scores, _ = book.outputs(given)
    tokens = torch.from_numpy(tokens_of_grid(wanted, book.side))
    expected = [-compute_loss_with_crop(torch.from_numpy(row), tokens).item() * 5 for row in scores]  # 5 cells
    assert book.log_likelihood(given, wanted) == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3


def test_two_sentences_are_done_one_after_the_other(model: ACTLossHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same steps taken singly. An untrained network's answers are grids often enough."""
    monkeypatch.setattr("hybrid_pipeline.book.ROWS_AT_ONCE", 6)  # two grids at once
    book, given, wanted = book_of(model), GRIDS[0], np.array([[5, 6]], np.uint8)
    found = book.log_likelihood_of_two(given, wanted)
    possible = 0
    for first, one in enumerate(SENTENCES):
        (between,) = book.answer(one, [given])
        for second, other in enumerate(SENTENCES):
            (both,) = book.answer(one + THEN + other, [given])
            if between.grid.size == 0:
                assert both == between and found[first, second] == IMPOSSIBLE
                continue
            possible += 1
            (alone,) = book.answer(other, [between.grid])
            assert np.array_equal(both.grid, alone.grid)
            assert both.confidence == pytest.approx(between.confidence * alone.confidence)
            assert found[first, second] == pytest.approx(book.log_likelihood(between.grid, wanted)[second], rel=1e-4)
    assert possible > 0


class Explaining(SentenceBook):
    """A book without a network, in which the right plan explains its pairs, and others do by their place."""

    def __init__(self) -> None:
        self.sentences, self.place = SENTENCES, {sentence: number for number, sentence in enumerate(SENTENCES)}
        self.rules = [BY_SENTENCE.get(sentence) for sentence in SENTENCES]

    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
        for sentence in plan.split(THEN):
            grids = [answer.grid for answer in Doing().answer(sentence, grids)]
        return [Answer(grid, 0.5) for grid in grids]

    def log_likelihood(self, given: Grid, wanted: Grid) -> np.ndarray:
        fits = [rule is not None and np.array_equal(rule.apply(given), wanted) for rule in self.rules]
        return np.array([10.0 * fit - place for place, fit in enumerate(fits)], np.float32)

    def log_likelihood_of_two(self, given: Grid, wanted: Grid) -> np.ndarray:
        made = [given if rule is None else rule.apply(given) for rule in self.rules]
        return np.stack([self.log_likelihood(grid, wanted) - place for place, grid in enumerate(made)])


def test_the_best_explanation_comes_first_and_none_twice() -> None:
    proposer = RankingProposer(Explaining(), two_steps=False)
    problem = text_of_task(demonstrations(FLIP), GRIDS[0])
    assert proposer.propose(problem, []) == FLIP
    assert proposer.propose(problem, [f"Tried: {FLIP}\nExample 1: wrong."]) == SENTENCES[0]
    tried = [f"Tried: {sentence}\nExample 1: wrong." for sentence in SENTENCES]
    assert proposer.propose(problem, tried[:1] + tried[2:]) == ERASE
    assert proposer.propose(problem, tried) == FLIP


def test_a_second_sentence_joins_in_where_the_first_fails() -> None:
    rules = BY_SENTENCE[ERASE], BY_SENTENCE[FLIP]
    pairs = [(grid, rules[1].apply(rules[0].apply(grid))) for grid in GRIDS]
    book = Explaining()
    outcome = solve(pairs, GRIDS[0], book, RankingProposer(book), max_attempts=3)
    plans = [attempt.plan for attempt in outcome.attempts]
    assert THEN not in plans[0] and plans[1] in (ERASE + THEN + FLIP, FLIP + THEN + ERASE) and len(plans) == 2
    assert np.array_equal(outcome.answer, pairs[0][1])
    outcome = solve(pairs, GRIDS[0], book, RankingProposer(book, two_steps=False), max_attempts=3)
    assert not any(attempt.verdict.passed for attempt in outcome.attempts)


def test_what_is_held_out_does_not_rank() -> None:
    """Two pairs, each explained by another sentence: the one that is held out would have brought its own."""
    book = Explaining()
    pairs = [demonstrations(FLIP)[0], demonstrations(ERASE)[1]]
    outcome = solve(pairs, GRIDS[0], book, RankingProposer(book, two_steps=False), max_attempts=2)
    assert [(attempt.held_out, attempt.plan) for attempt in outcome.attempts] == [(0, ERASE), (1, FLIP)]
