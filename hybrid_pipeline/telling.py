"""How well descriptions are told from latents: loss with its controls, which rule a latent came from, what is said.

All figures are of test grids. A row's loss is taken with its own prefix, with that of another row (``shuffled``), with
the prefix of the same grid whose model was told nothing (``untold``), and without any (``none``): the same tokens each
time. Losses are nats a token.

A rule is told by scoring: the description of every instance, in the wording that the row is to be said in, gets a loss
a token under the row's prefix, and the instance with the lowest is the answer, its rule the rule. So the parameters
must be right as well or at least not decide; chance is 1/15 for a rule and 1/125 for an instance where all are as
likely. ``shuffled`` asks another row's prefix. ``gain`` chooses by how much the row's prefix lowers the loss of the
whole sentence below that under the mean prefix of training rows, which takes away that some sentences are likelier than
others to begin with (pointwise mutual information, Holtzman et al. 2021). ``typical`` asks that mean prefix alone.
``trained`` asks what would be said: an instance is as likely as its training sentences are on average under the row's
prefix, a rule as its instances together, and the likeliest is the answer. None of those is the one that the row was
told; ``held_out`` asks the same of the sentences that were never trained on, the told one among them.
``grids`` needs no latents: it is what input and right answer say to one who knows the rules.

    figures, details = evaluate(teller, listener, config)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.common import wilson_interval
from hybrid_pipeline.adapters.latent_to_text import LatentToTextAdapter
from hybrid_pipeline.adapters.vae_adapter import Collapse
from hybrid_pipeline.describe_schema import DescribeConfig
from hybrid_pipeline.descriptions import (
    RULE_OF_INSTANCE,
    Listener,
    ToldRows,
    other_rows,
    rows_to_test,
    rows_to_train,
    sentence_table,
)
from hybrid_pipeline.grids import crop_grid_from_eos
from hybrid_pipeline.instructed import UNSEEN, instance_odds
from hybrid_pipeline.rules import INSTANCES, RULES
from hybrid_pipeline.speaker import Said, Speaker

MAX_SAID = 24  # tokens; the longest description has 18
EXAMPLES = 10
TYPICAL = 256  # training rows whose mean prefix is that of no row in particular


@dataclass(frozen=True)
class Teller:
    """Adapter and language model. `sentences`: the tokens of all sentences but the empty one, in their order."""

    adapter: LatentToTextAdapter
    speaker: Speaker
    sentences: Said
    level: int
    constant: bool

    def said(self, numbers: NDArray[np.int64]) -> Said:
        return self.sentences[torch.from_numpy(numbers - 1).to(self.sentences.ids.device)]

    def prefix(self, z: Tensor, mask: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What `LatentToTextAdapter` makes of latents and of where to read them; of nothing in a `constant` run."""
        if self.constant:
            z, mask = torch.zeros_like(z), torch.ones_like(mask)
        return self.adapter(z, mask, noise)


@torch.no_grad()
def evaluate(teller: Teller, listener: Listener, config: DescribeConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and for the record the scores, the answers and some of what was said."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"kl": {}}
    for name in listener.data.test:
        rows, wording = rows_to_test(listener.data, name, config.eval_rows)
        prefix, kl = teller.prefix(*listener.latents(rows, teller.level))
        untold, _ = teller.prefix(*listener.latents(rows, teller.level, silent=True))
        said = teller.said(rows.sentences[rows.instance, wording])
        found = losses(teller, said, prefix, untold, config)
        figures |= {f"{name}/{key}": value for key, value in found.items()}
        if kl is not None:
            figures |= {f"{name}/{key}": value for key, value in Collapse(kl.mean(0)).figures().items()}
            details["kl"][name] = kl.mean(0).tolist()
    if config.identify_rows:
        rows, wording = rows_to_test(listener.data, UNSEEN, config.identify_rows)
        prefix, _ = teller.prefix(*listener.latents(rows, teller.level))
        trained, _ = teller.prefix(*listener.latents(rows_to_train(listener.data, TYPICAL, config.seed), teller.level))
        told, answers = identify(teller, rows, wording, prefix, trained.mean(0), config)
        figures |= {f"{UNSEEN}/{key}": value for key, value in told.items()}
        details |= answers
    return figures, details


def losses(teller: Teller, said: Said, prefix: Tensor, untold: Tensor, config: DescribeConfig) -> dict[str, float]:
    """Nats a token of what the rows should say, under the prefix and the controls; how far each control lies ``above``,
    and the standard error of that over rows."""
    other = torch.from_numpy(other_rows(len(said), config.seed)).to(prefix.device)
    tokens = float(said.mask.sum())
    controls: dict[str, Tensor | None] = {
        "loss": prefix,
        "loss_shuffled": prefix[other],
        "loss_untold": untold,
        "loss_none": None,
    }
    found = {key: _row_nats(teller, used, said, config.eval_batch_size) for key, used in controls.items()}
    figures = {key: float(nats.sum()) / tokens for key, nats in found.items()}
    for key, nats in found.items():
        if key != "loss":
            above = nats - found["loss"]
            ratio = figures[f"{key}_above"] = float(above.sum()) / tokens
            residual = above - ratio * said.mask.sum(1).cpu()  # of a ratio of two sums (Cochran 1977, section 2.11)
            figures[f"{key}_above_se"] = float(residual.std()) * len(said) ** 0.5 / tokens
    return figures | {"tokens": tokens, "rows": len(said)}


def _row_nats(teller: Teller, prefix: Tensor | None, said: Said, batch_size: int) -> Tensor:
    """Nats of each row's description, fp32 [rows]; rows of like length are scored together."""
    nats = torch.zeros(len(said))
    for part in said.mask.sum(1).argsort().split(batch_size):
        own = None if prefix is None else prefix[part]
        nats[part.cpu()] = teller.speaker.losses(own, said[part]).sum(1).cpu()
    return nats


def identify(
    teller: Teller,
    rows: ToldRows,
    wording: NDArray[np.int64],
    prefix: Tensor,
    typical: Tensor,
    config: DescribeConfig,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Which rule and which instance, by every description's loss; and what is said, greedily.

    `typical` [prefix_tokens, width]: the prefix of no row in particular.
    """
    table = rows.sentences.T[wording]
    lengths = np.stack([teller.said(numbers).mask.sum(1).cpu().numpy() for numbers in table])
    at_once = config.eval_batch_size
    nats = np.stack([_scores(teller, own, numbers, at_once) for own, numbers in zip(prefix, table, strict=True)])
    before = np.stack([_scores(teller, typical, numbers, at_once) for numbers in rows.sentences.T])[wording]
    other = other_rows(len(rows), config.seed)
    answers = {
        "": (nats / lengths).argmin(1),
        "_shuffled": (nats / lengths)[other].argmin(1),
        "_gain": (nats - before).argmin(1),
        "_gain_shuffled": (nats - before)[other].argmin(1),
        "_typical": (before / lengths).argmin(1),
    }
    figures: dict[str, float] = {"identified_rows": len(rows)} | _from_grids(rows)
    details: dict[str, Any] = {}
    for name, answer in answers.items():
        figures |= _accuracy(f"rule{name}", RULE_OF_INSTANCE[answer] == RULE_OF_INSTANCE[rows.instance])
        figures |= _accuracy(f"instance{name}", answer == rows.instance)
    for name, held_out in (("trained", False), ("held_out", True)):
        likely = log_likelihoods(teller, prefix, some_wordings(held_out, config.identify_wordings), at_once)
        for control, asked in (("", likely), ("_shuffled", likely[other])):
            rule = _of_rules(asked, np.logaddexp).argmax(1)
            figures |= _accuracy(f"rule_{name}{control}", rule == RULE_OF_INSTANCE[rows.instance])
            figures |= _accuracy(f"instance_{name}{control}", asked.argmax(1) == rows.instance)
        details[f"log_likelihood_{name}"] = np.round(likely, 2).tolist()
    said = teller.speaker.say(prefix, MAX_SAID)
    meant = np.array([meaning(text) for text in said])
    known = meant >= 0
    figures |= _accuracy("said_rule", known & (RULE_OF_INSTANCE[meant] == RULE_OF_INSTANCE[rows.instance]))
    figures |= _accuracy("said_instance", meant == rows.instance)
    details |= {
        "examples": [
            {"instance": _name(instance), "said": text}
            for instance, text in zip(rows.instance[:EXAMPLES], said, strict=False)
        ],
        "instance": rows.instance.tolist(),
        "answer": answers[""].tolist(),
        "answer_gain": answers["_gain"].tolist(),
        "nats": np.round(nats, 3).tolist(),
        "nats_typical": np.round(before, 3).tolist(),
    }
    return figures, details


def _from_grids(rows: ToldRows) -> dict[str, float]:
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


def _name(instance: int) -> str:
    found = INSTANCES[instance]
    return " ".join([found.rule, *(value for _, value in found.arguments)])


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
