"""A book of sentences as plans: a trained hybrid tries all of them on a grid at once, and tells which explain a pair.

`SentenceBook` answers as `hybrid_pipeline.planner.HybridAnswerer` does, but for the sentences of its book only, and
keeps what it computed. `RankingProposer` proposes the sentence under which the model finds the outputs of the shown
demonstrations likeliest, leaving out what was tried. It is told the problem as any proposer is: without the
demonstration that is held out, and without the test's answer.

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

KEPT_GRIDS = 64  # whose outputs are remembered: those of a task and more


class SentenceBook:
    """`sentences` and a model that holds their `states`; an `Answerer` whose plans are these sentences."""

    def __init__(self, model: ACTLossHead, sentences: Sequence[str], states: TextStates):
        self.model, self.sentences = model.eval(), list(sentences)
        self.place = {sentence: number for number, sentence in enumerate(self.sentences)}
        self.side = math.isqrt(model.model.config.seq_len)
        assert len(states.mask) == 1 + len(self.sentences)
        model.model.inner.read(states)
        self._known: dict[bytes, tuple[NDArray[np.float32], list[float]]] = {}

    def answer(self, plan: str, grids: Sequence[Grid]) -> list[Answer]:
        """What the model makes of each grid under a sentence of the book."""
        place = self.place[plan]
        found = (self._outputs(grid) for grid in grids)
        return [Answer(crop_grid_from_eos(scores[place].argmax(-1)), sure[place]) for scores, sure in found]

    def log_likelihood(self, given: Grid, wanted: Grid) -> NDArray[np.float32]:
        """Of the output `wanted`, EOS border included, under each sentence: fp32 [sentences]."""
        label = label_of_grid(wanted, self.side)
        cells = np.flatnonzero(label != IGNORE_LABEL_ID)
        scores, _ = self._outputs(given)
        return scores[:, cells, label[cells]].sum(1)

    @torch.no_grad()
    def _outputs(self, grid: Grid) -> tuple[NDArray[np.float32], list[float]]:
        """Under each sentence: log probabilities fp32 [sentences, cells, tokens], and the halting head's confidence."""
        key = bytes(grid.shape) + grid.tobytes()
        if key in self._known:
            return self._known[key]
        inner, config = self.model.model.inner, self.model.model.config
        device, count = inner.mask.device, len(self.sentences)
        tokens = torch.from_numpy(tokens_of_grid(grid, self.side)).to(device).expand(count, -1)
        batch = {
            "inputs": tokens,
            "labels": torch.full_like(tokens, IGNORE_LABEL_ID),
            "puzzle_identifiers": torch.zeros_like(tokens[:, 0]),
            "texts": torch.arange(1, count + 1, dtype=torch.int32, device=device),
        }
        carry = self.model.initial_carry(batch)
        for _ in range(config.halt_max_steps):
            carry, outputs = self.model.model(carry=carry, batch=batch)
        scores = outputs["logits"].float().log_softmax(-1).cpu().numpy()
        while len(self._known) >= KEPT_GRIDS:
            del self._known[next(iter(self._known))]
        self._known[key] = scores, torch.sigmoid(outputs["q_halt_logits"].float()).tolist()
        return self._known[key]


class RankingProposer:
    """Proposes the sentences of a book by how well they explain the demonstrations that are shown, each once."""

    def __init__(self, book: SentenceBook):
        self.book = book

    def propose(self, problem: str, feedback: Sequence[str]) -> str:
        """Once all were tried, the best is proposed again."""
        shown, _ = task_of_text(problem)
        scores = sum((self.book.log_likelihood(*pair) for pair in shown), np.zeros(len(self.book.sentences)))
        tried = {told.partition("\n")[0].removeprefix(TRIED) for told in feedback}
        untried = [place for sentence, place in self.book.place.items() if sentence not in tried]
        return self.book.sentences[max(untried or range(len(scores)), key=lambda place: scores[place])]
