"""Plan, carry out, verify, try again: text proposed from the demonstrations, done by a TRM, judged on demonstrations.

Each attempt keeps one demonstration from the plan, in turn, and verifies on all of them; what was wrong is told to the
next attempt. The attempt that is kept is the best one by the verdict, then by the halting head's confidence. The test's
answer is not an argument of the loop, so it cannot steer it.

`solve_with_oracle` is the loop that reads the answer and stops at the first attempt that has it. It is an upper bound
of what a perfect verifier would reach with the same proposals, never a result, and its outcomes say so.

    outcome = solve(task.train, test_input, answerer, proposer, max_attempts=16)
    print(outcome.label, outcome.answer)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from datasets.common import IGNORE_LABEL_ID
from hybrid_pipeline.grids import Grid, Pair, crop_grid_from_eos, text_of_task, tokens_of_grid
from hybrid_pipeline.llm import Encoder
from hybrid_pipeline.verifier import Verdict, verify
from models.losses import ACTLossHead

MAX_ATTEMPTS = 16
ORACLE = "oracle (reads the answer: an upper bound, not a result)"
VERIFIED = "verified on demonstrations"
TRIED = "Tried: "  # how feedback begins; the plan follows, on one line


@dataclass(frozen=True)
class Answer:
    """A grid, and the halting head's probability that it is right."""

    grid: Grid
    confidence: float


class Answerer(Protocol):
    """Does to grids what a text says."""

    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]: ...


class Proposer(Protocol):
    """Says what the rule might be, given the demonstrations that are shown and what came of earlier attempts."""

    def propose(self, problem: str, feedback: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Attempt:
    """`held_out`: the demonstration that the plan was made without."""

    plan: str
    held_out: int
    verdict: Verdict
    answer: Answer

    @property
    def feedback(self) -> str:
        """For the next attempt."""
        return f"{TRIED}{self.plan}\n{self.verdict.feedback or 'All examples came out right.'}"


@dataclass(frozen=True)
class Outcome:
    """All attempts in order, the number of the one that is kept, and by which rule it was."""

    attempts: tuple[Attempt, ...]
    kept: int
    label: str

    @property
    def answer(self) -> Grid:
        return self.attempts[self.kept].answer.grid


def solve(
    demonstrations: Sequence[Pair],
    test_input: Grid,
    answerer: Answerer,
    proposer: Proposer,
    max_attempts: int = MAX_ATTEMPTS,
) -> Outcome:
    """Attempts until one does right by every demonstration, at most so many."""
    attempts: list[Attempt] = []
    while len(attempts) < max_attempts and not (attempts and attempts[-1].verdict.passed):
        attempts.append(_attempt(demonstrations, test_input, answerer, proposer, attempts))
    return Outcome(tuple(attempts), choose(attempts), VERIFIED)


def choose(attempts: Sequence[Attempt]) -> int:
    """The number of the attempt to keep: the best by its verdict, then by its confidence, then the first."""
    ranks = [(*attempt.verdict.rank, attempt.answer.confidence) for attempt in attempts]
    return ranks.index(max(ranks))


def solve_with_oracle(
    demonstrations: Sequence[Pair],
    test_input: Grid,
    answerer: Answerer,
    proposer: Proposer,
    answer: Grid,
    max_attempts: int = MAX_ATTEMPTS,
) -> Outcome:
    """The same attempts, stopped and chosen by the answer itself. An upper bound only."""
    attempts: list[Attempt] = []
    while len(attempts) < max_attempts and not (attempts and np.array_equal(attempts[-1].answer.grid, answer)):
        attempts.append(_attempt(demonstrations, test_input, answerer, proposer, attempts))
    return Outcome(tuple(attempts), len(attempts) - 1, ORACLE)


def _attempt(
    demonstrations: Sequence[Pair],
    test_input: Grid,
    answerer: Answerer,
    proposer: Proposer,
    earlier: Sequence[Attempt],
) -> Attempt:
    held_out = len(earlier) % len(demonstrations)
    shown = [pair for number, pair in enumerate(demonstrations) if number != held_out]
    plan = proposer.propose(text_of_task(shown, test_input), [attempt.feedback for attempt in earlier])
    *tried, answer = answerer.answer(plan, [given for given, _ in demonstrations] + [test_input])
    return Attempt(plan, held_out, verify([found.grid for found in tried], demonstrations, held_out), answer)


class SentenceProposer:
    """Proposes given sentences, in their order, and says them again when there are no more."""

    def __init__(self, sentences: Sequence[str]):
        self.sentences = sentences

    def propose(self, problem: str, feedback: Sequence[str]) -> str:
        return self.sentences[len(feedback) % len(self.sentences)]


class WritingProposer:
    """A causal language model, asked in words; what it writes is the plan."""

    QUESTION = "Say in one sentence what turns every input grid into its output. Numbers are colours."

    def __init__(self, tokenizer: Any, model: Any, max_new_tokens: int = 48):
        self.tokenizer, self.model, self.max_new_tokens = tokenizer, model, max_new_tokens

    def prompt(self, problem: str, feedback: Sequence[str]) -> str:
        """Everything the model is told: the demonstrations that are shown, and what was tried."""
        return "\n\n".join([self.QUESTION, problem, *feedback])

    @torch.no_grad()
    def propose(self, problem: str, feedback: Sequence[str]) -> str:
        prompt = self.prompt(problem, feedback)
        if self.tokenizer.chat_template is not None:
            message = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        batch = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(self.model.device)
        written = self.model.generate(**batch, max_new_tokens=self.max_new_tokens, do_sample=False)
        text = self.tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(text.split())


class HybridAnswerer:
    """A trained hybrid model as an `Answerer`: reads the plan, runs all its ACT steps, crops what it says."""

    def __init__(self, model: ACTLossHead, encoder: Encoder):
        self.model, self.encoder = model.eval(), encoder
        self.side = math.isqrt(model.model.config.seq_len)

    @torch.no_grad()
    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
        """The model holds the states of this plan afterwards, no longer those that it held before."""
        inner, config = self.model.model.inner, self.model.model.config
        states = self.encoder.encode(["", plan])
        inner.read(states)
        tokens = torch.from_numpy(np.stack([tokens_of_grid(grid, self.side) for grid in grids])).to(inner.mask.device)
        batch = {
            "inputs": tokens,
            "labels": torch.full_like(tokens, IGNORE_LABEL_ID),
            "puzzle_identifiers": torch.zeros_like(tokens[:, 0]),
            "texts": torch.ones_like(tokens[:, 0]),
        }
        carry = self.model.initial_carry(batch)
        for _ in range(config.halt_max_steps):
            carry, outputs = self.model.model(carry=carry, batch=batch)
        predictions = outputs["logits"].argmax(-1).cpu()
        confidences = torch.sigmoid(outputs["q_halt_logits"].float()).tolist()
        return [Answer(crop_grid_from_eos(row), value) for row, value in zip(predictions, confidences, strict=True)]
