"""A book of sentences as plans: a trained hybrid tries all of them on a grid at once, and tells which explain a pair.

`SentenceBook` answers as `hybrid_pipeline.planner.HybridAnswerer` does, but to plans made of the sentences of its book:
one, or two of them, of which the second is done to what the first one made. `RankingProposer` proposes the plan under
which the model finds the outputs of the shown demonstrations likeliest, leaving out what was tried; where its first
sentence fails, plans of two join in. It is told the problem as any proposer is: without the demonstration that is held
out, and without the test's answer.

    book = SentenceBook(model, sentences, states)         # TextStates of ["", *sentences]
    outcome = solve(task.train, test_input, book, RankingProposer(book))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.common import IGNORE_LABEL_ID
from hybrid_pipeline.grids import Grid, crop_grid_from_eos, label_of_grid, task_of_text, tokens_of_grid
from hybrid_pipeline.llm import TextStates
from hybrid_pipeline.planner import TRIED, Answer
from models.losses import ACTLossHead

Scores = NDArray[np.float32]

THEN = " Then: "  # between the sentences of a plan
KEPT = 64  # grids and pairs whose outcomes are remembered: those of a task and more
ROWS_AT_ONCE = 2048
IMPOSSIBLE = -1e9  # the log likelihood of any output where the first sentence leaves no grid


class SentenceBook:
    """`sentences` and a model that holds their `states`; an `Answerer` for plans of these sentences."""

    def __init__(self, model: ACTLossHead, sentences: Sequence[str], states: TextStates):
        self.model, self.sentences = model.eval(), list(sentences)
        self.place = {sentence: number for number, sentence in enumerate(self.sentences)}
        self.side = math.isqrt(model.model.config.seq_len)
        assert len(states.mask) == 1 + len(self.sentences)
        model.model.inner.read(states)
        self._outputs: dict[bytes, tuple[Scores, NDArray[np.float32]]] = {}
        self._second_steps: dict[bytes, Scores] = {}

    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
        """What the model makes of each grid under a plan; as sure as it is of all the plan's steps together."""
        return [self._carry_out(plan, grid) for grid in grids]

    def _carry_out(self, plan: str, grid: Grid) -> Answer:
        confidence = 1.0
        for sentence in plan.split(THEN):
            if grid.size == 0:
                break
            place = self.place[sentence]
            scores, sure = self.outputs(grid)
            grid, confidence = crop_grid_from_eos(scores[place].argmax(-1)), confidence * float(sure[place])
        return Answer(grid, confidence)

    def log_likelihood(self, given: Grid, wanted: Grid) -> Scores:
        """Of the output `wanted`, EOS border included, under each sentence: fp32 [sentences]."""
        return self._of_output(self.outputs(given)[0], wanted)

    def log_likelihood_of_two(self, given: Grid, wanted: Grid) -> Scores:
        """The same under each two sentences, the first one's answer being the second one's input: [first, second]."""
        key = _key(given) + _key(wanted)
        if key not in self._second_steps:
            made = [crop_grid_from_eos(scores.argmax(-1)) for scores in self.outputs(given)[0]]
            different = {_key(grid): grid for grid in made if grid.size > 0}
            parts = max(1, ROWS_AT_ONCE // len(self.sentences))
            grids, found = list(different.values()), {}
            for start in range(0, len(grids), parts):
                for grid, (scores, _) in zip(grids[start:], self._forward(grids[start : start + parts]), strict=False):
                    found[_key(grid)] = self._of_output(scores, wanted)
            nothing = np.full(len(self.sentences), IMPOSSIBLE, np.float32)
            _remember(self._second_steps, key, np.stack([found.get(_key(grid), nothing) for grid in made]))
        return self._second_steps[key]

    def outputs(self, grid: Grid) -> tuple[Scores, NDArray[np.float32]]:
        """Under each sentence: log probabilities fp32 [sentences, cells, tokens], and the halting head's confidence."""
        if _key(grid) not in self._outputs:
            _remember(self._outputs, _key(grid), self._forward([grid])[0])
        return self._outputs[_key(grid)]

    def _of_output(self, scores: Scores, wanted: Grid) -> Scores:
        label = label_of_grid(wanted, self.side)
        cells = np.flatnonzero(label != IGNORE_LABEL_ID)
        return scores[:, cells, label[cells]].sum(1)

    @torch.no_grad()
    def _forward(self, grids: Sequence[Grid]) -> list[tuple[Scores, NDArray[np.float32]]]:
        """What `outputs` gives, for several grids in one batch."""
        config, device, count = self.model.model.config, self.model.model.inner.mask.device, len(self.sentences)
        tokens = torch.from_numpy(np.stack([tokens_of_grid(grid, self.side) for grid in grids])).to(device)
        tokens = tokens.repeat_interleave(count, dim=0)
        batch = {
            "inputs": tokens,
            "labels": torch.full_like(tokens, IGNORE_LABEL_ID),
            "puzzle_identifiers": torch.zeros_like(tokens[:, 0]),
            "texts": torch.arange(1, count + 1, dtype=torch.int32, device=device).repeat(len(grids)),
        }
        carry = self.model.initial_carry(batch)
        for _ in range(config.halt_max_steps):
            carry, outputs = self.model.model(carry=carry, batch=batch)
        scores = outputs["logits"].float().log_softmax(-1).cpu().numpy()
        sure = torch.sigmoid(outputs["q_halt_logits"].float()).cpu().numpy()
        return list(zip(np.split(scores, len(grids)), np.split(sure, len(grids)), strict=True))


class RankingProposer:
    """Proposes plans of a book's sentences by how well they explain the shown demonstrations, each once.

    All sentences are thought equally probable beforehand, so that a second one must be worth log(sentences). Only one
    is used with `two_steps=False`.
    """

    def __init__(self, book: SentenceBook, two_steps: bool = True):
        self.book, self.two_steps = book, two_steps

    def propose(self, problem: str, feedback: Sequence[str]) -> str:
        """Once all were tried, the best is proposed again."""
        shown, _ = task_of_text(problem)
        sentences = self.book.sentences
        scores = sum((self.book.log_likelihood(*pair) for pair in shown), np.zeros(len(sentences)))
        plans = [(float(score), sentence) for score, sentence in zip(scores, sentences, strict=True)]
        if self.two_steps and feedback:
            none = np.zeros((len(sentences), len(sentences)))
            of_two = sum((self.book.log_likelihood_of_two(*pair) for pair in shown), none) - math.log(len(sentences))
            best = np.unravel_index(np.argsort(-of_two, axis=None)[: len(feedback) + 1], of_two.shape)
            plans += [
                (float(of_two[first, second]), sentences[first] + THEN + sentences[second])
                for first, second in zip(*best, strict=True)
            ]
        tried = {told.partition("\n")[0].removeprefix(TRIED) for told in feedback}
        untried = [found for found in plans if found[1] not in tried]
        return max(untried or plans, key=lambda found: found[0])[1]


def _key(grid: Grid) -> bytes:
    return bytes(grid.shape) + grid.tobytes()


def _remember(known: dict, key: bytes, value: object) -> None:
    """Forgetting what came first where there is too much."""
    while len(known) >= KEPT:
        del known[next(iter(known))]
    known[key] = value
