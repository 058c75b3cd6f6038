"""Which rule, and which instance of it, a latent is about: asked of a language model in several ways.

A rule is told by scoring: the description of every instance, in the wording that the row is to be said in, gets a loss
a token under the row's prefix, and the instance with the lowest is the answer, its rule the rule. So the parameters
must be right as well or at least not decide; chance is 1/15 for a rule and 1/125 for an instance where all are as
likely. ``shuffled`` asks another row's prefix. ``gain`` chooses by how much the row's prefix lowers the loss of the
whole sentence below that under the mean prefix of training rows, which takes away that some sentences are likelier than
others to begin with (pointwise mutual information, Holtzman et al. 2021). ``typical`` asks that mean prefix alone.
``trained`` chooses among all training sentences: an instance is as likely as its own are on average under the row's
prefix, a rule as its instances together, and the likeliest is the answer. None of those is the one that the row was
told; ``trained_untold`` does so by the prefix of the same grid whose model was told nothing, and ``held_out`` among
the sentences that were never trained on, the told one included. Choosing among sentences is a forced choice:
``mass_trained`` and ``mass_held_out`` say how probable all sentences that were scored are together, a mean over rows.
With fewer `identify_wordings` than there are, it is the mass of those alone. ``grids`` needs no latents: it is what
input and right answer say to one who knows the rules.

    figures, details = identify(teller, rows, wording, prefixes, config)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluators.common import wilson_interval
from hybrid_pipeline.describe_schema import DescribeConfig
from hybrid_pipeline.descriptions import RULE_OF_INSTANCE, ToldRows, other_rows, sentence_table
from hybrid_pipeline.grids import crop_grid_from_eos
from hybrid_pipeline.instructed import instance_odds
from hybrid_pipeline.rules import INSTANCES, RULES
from hybrid_pipeline.teller import Teller

MAX_SAID = 24  # tokens; the longest description has 18
DECIMALS = 4  # of scores in the record


@dataclass(frozen=True)
class Prefixes:
    """What is asked: the rows' `own` and those of the same grids `untold`, [rows, prefix_tokens, width]; and the prefix
    of no row in particular, `typical` [prefix_tokens, width]."""

    own: Tensor
    untold: Tensor
    typical: Tensor


@dataclass
class Answers:
    """By name, the rule and the instance that every row was found to be about, int64 [rows] each, -1 for none; further
    figures; and the scores for the record."""

    given: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def give(self, name: str, instance: NDArray[np.int64], rule: NDArray[np.int64] | None = None) -> None:
        """`rule`: where it is not just that of the instance."""
        own = np.where(instance >= 0, RULE_OF_INSTANCE[instance], -1)
        self.given[name] = (own if rule is None else rule, instance)


def identify(
    teller: Teller, rows: ToldRows, wording: NDArray[np.int64], prefixes: Prefixes, config: DescribeConfig
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name; and for the record the truth, every answer, the scores that they come from and what is said.

    `wording` int64 [rows]: in which of its wordings each row is to be said.
    """
    answers = Answers()
    by_loss(answers, teller, rows, wording, prefixes, config)
    by_likelihood(answers, teller, prefixes, config)
    by_saying(answers, teller, prefixes.own)
    figures = {"identified_rows": float(len(rows))} | from_grids(rows) | answers.figures
    record: dict[str, list[int]] = {}
    for name, (rule, instance) in answers.given.items():
        for key, found, truth in (
            ("rule", rule, RULE_OF_INSTANCE[rows.instance]),
            ("instance", instance, rows.instance),
        ):
            key = f"said_{key}" if name == "said" else f"{key}_{name}".removesuffix("_")
            figures |= _accuracy(key, found == truth)
            record[key] = found.tolist()
    return figures, {"instance": rows.instance.tolist(), "answers": record} | answers.details


def by_loss(
    answers: Answers,
    teller: Teller,
    rows: ToldRows,
    wording: NDArray[np.int64],
    prefixes: Prefixes,
    config: DescribeConfig,
) -> None:
    """By the losses of every instance's description in the wording that the row is to be said in."""
    table, at_once = rows.sentences.T[wording], config.eval_batch_size
    lengths = np.stack([teller.said(numbers).mask.sum(1).cpu().numpy() for numbers in table])
    nats = np.stack([_scores(teller, own, numbers, at_once) for own, numbers in zip(prefixes.own, table, strict=True)])
    before = np.stack([_scores(teller, prefixes.typical, numbers, at_once) for numbers in rows.sentences.T])[wording]
    # Another row's prefix: its scores are of its own wording, so that no sentence is scored twice.
    other = other_rows(len(rows), config.seed)
    answers.give("", (nats / lengths).argmin(1))
    answers.give("shuffled", (nats / lengths)[other].argmin(1))
    answers.give("gain", (nats - before).argmin(1))
    answers.give("gain_shuffled", (nats - before)[other].argmin(1))
    answers.give("typical", (before / lengths).argmin(1))
    answers.details |= {
        "nats": np.round(nats, DECIMALS).tolist(),
        "nats_typical": np.round(before, DECIMALS).tolist(),
        "tokens": lengths.tolist(),
    }


def by_likelihood(answers: Answers, teller: Teller, prefixes: Prefixes, config: DescribeConfig) -> None:
    """By how likely all sentences of an instance are, the trained ones and the held-out ones; and their mass."""
    asked = (
        ("trained", False, prefixes.own),
        ("trained_untold", False, prefixes.untold),
        ("held_out", True, prefixes.own),
    )
    other = other_rows(len(prefixes.own), config.seed)
    for name, held_out, prefix in asked:
        sentences = some_wordings(held_out, config.identify_wordings)
        likely = log_likelihoods(teller, prefix, sentences, config.eval_batch_size)
        rules = _of_rules(likely, np.logaddexp)
        answers.give(name, likely.argmax(1), rules.argmax(1))
        answers.details[f"log_likelihood_{name}"] = np.round(likely, DECIMALS).tolist()
        if prefix is prefixes.own:
            answers.give(f"{name}_shuffled", likely[other].argmax(1), rules[other].argmax(1))
            answers.figures[f"mass_{name}"] = float(np.exp(likely).sum(1).mean()) * sentences.shape[1]


def by_saying(answers: Answers, teller: Teller, prefix: Tensor) -> None:
    """By what is said greedily, where it is a sentence of an instance."""
    said = teller.speaker.say(prefix, MAX_SAID)
    answers.give("said", np.array([meaning(text) for text in said]))
    answers.details["said"] = said


def from_grids(rows: ToldRows) -> dict[str, float]:
    """What one would tell who sees input and right answer and knows how rows are drawn: latents may hold no more."""
    pairs = [(crop_grid_from_eos(a), crop_grid_from_eos(b)) for a, b in zip(rows.inputs, rows.labels, strict=True)]
    odds = np.stack([instance_odds(grid, made) for grid, made in pairs])
    return _accuracy("rule_grids", _of_rules(odds).argmax(1) == RULE_OF_INSTANCE[rows.instance]) | _accuracy(
        "instance_grids", odds.argmax(1) == rows.instance
    )


def some_wordings(held_out: bool, count: int) -> NDArray[np.int64]:
    """Numbers of so many sentences of every instance, or of all that there are, int64 [instances, wordings]."""
    table = sentence_table(held_out)
    return table[:, np.linspace(0, table.shape[1] - 1, min(count, table.shape[1])).round().astype(int)]


def log_likelihoods(teller: Teller, prefix: Tensor, sentences: NDArray[np.int64], at_once: int) -> NDArray[np.float64]:
    """Logarithm of how likely the sentences of each instance [instances, wordings] are on average under each prefix
    [rows, prefix_tokens, width]: fp64 [rows, instances]."""
    nats = np.stack([_scores(teller, own, sentences.reshape(-1), at_once) for own in prefix])
    return np.logaddexp.reduce(-nats.reshape(len(prefix), *sentences.shape), axis=2) - np.log(sentences.shape[1])


def _of_rules(of_instances: NDArray[np.float64], add: np.ufunc = np.add) -> NDArray[np.float64]:
    """Sums [rows, rules] over the instances of each rule [rows, instances]."""
    return np.stack([add.reduce(of_instances[:, rule == RULE_OF_INSTANCE], axis=1) for rule in range(len(RULES))], 1)


def _scores(teller: Teller, prefix: Tensor, numbers: NDArray[np.int64], at_once: int) -> NDArray[np.float64]:
    return teller.speaker.candidate_losses(prefix, teller.said(numbers), at_once).double().sum(1).cpu().numpy()


def _accuracy(name: str, right: NDArray[np.bool_]) -> dict[str, float]:
    low, high = wilson_interval(int(right.sum()), len(right))
    return {name: float(right.mean()), f"{name}_low": low, f"{name}_high": high}


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def meaning(text: str) -> int:
    """The instance that one of its sentences states, trained or held out; -1 for any other text."""
    return _meanings().get(_normal(text), -1)


@functools.cache
def _meanings() -> dict[str, int]:
    return {
        _normal(text): number
        for number, found in enumerate(INSTANCES)
        for held_out in (False, True)
        for text in found.sentences(held_out)
    }
