"""Every decision about which rule a latent is of, against scores for which each has an answer of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_pipeline.describing import build_teller
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
from hybrid_pipeline.identifying import Prefixes, from_grids, identify, meaning
from hybrid_pipeline.instructed import UNSEEN, instance_odds
from hybrid_pipeline.rules import INSTANCES, RULES
from hybrid_pipeline.speaker import Said, StubSpeaker
from hybrid_pipeline.teller import Teller
from hybrid_pipeline.telling import evaluate, losses
from tests.hybrid_pipeline.describe_runs import make

ROWS, TYPICAL = 60, 2 * 60  # prefixes are numbered: those of rows, those of rows untold, the typical one
DECISIONS = [
    *("", "shuffled", "gain", "gain_shuffled", "typical"),
    *("trained", "trained_shuffled", "trained_untold", "held_out", "held_out_shuffled"),
]


def argmin(values: list[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


class Reference:
    """Random scores of every sentence under every prefix, and each decision about them, written out."""

    def __init__(self, teller: Teller, wordings: int, wording: np.ndarray, seed: int):
        draws = np.random.default_rng(0)
        self.nats = draws.gamma(2.0, 6.0, size=(2 * ROWS + 1, len(teller.sentences) + 1))
        # Sentences differ in likelihood whatever the prefix, or taking that away would change nothing.
        self.nats += draws.gamma(2.0, 8.0, size=self.nats.shape[1])
        self.lengths = [0, *teller.sentences.mask.sum(1).tolist()]
        self.said, self.wordings, self.other = wording, wordings, other_rows(ROWS, seed)

    def scores(self, teller: Any, prefix: torch.Tensor, numbers: np.ndarray, at_once: int) -> np.ndarray:
        return self.nats[int(prefix.flatten()[0]), numbers]

    def likelihood(self, prefix: int, instance: int, held_out: bool) -> float:
        """The mean over those wordings that are asked, evenly spread."""
        own = sentence_table(held_out)[instance]
        places = [round(place) for place in np.linspace(0, len(own) - 1, min(self.wordings, len(own)))]
        return sum(math.exp(-self.nats[prefix, own[place]]) for place in places) / len(places)

    def instance(self, decision: str, row: int) -> int:
        """Of the decisions by the loss."""
        asked = int(self.other[row]) if "shuffled" in decision else row
        numbers = sentence_table(True)[:, self.said[asked]]
        own, typical = self.nats[asked, numbers], self.nats[TYPICAL, numbers]
        by_token = [1 / self.lengths[number] for number in numbers]
        if decision.startswith("gain"):
            return argmin([a - b for a, b in zip(own, typical, strict=True)])
        asked_of = typical if decision == "typical" else own
        return argmin([nats * share for nats, share in zip(asked_of, by_token, strict=True)])

    def answer(self, decision: str, row: int) -> tuple[int, int]:
        """Rule and instance."""
        if not decision.startswith(("trained", "held_out")):
            found = self.instance(decision, row)
            return int(RULE_OF_INSTANCE[found]), found
        asked = int(self.other[row]) if "shuffled" in decision else row + ROWS * ("untold" in decision)
        likely = [-self.likelihood(asked, i, decision.startswith("held_out")) for i in range(len(INSTANCES))]
        rules = [sum(p for p, own in zip(likely, RULE_OF_INSTANCE, strict=True) if own == r) for r in range(len(RULES))]
        return argmin(rules), argmin(likely)


@pytest.mark.parametrize("wordings", [2, 99])
def test_every_decision_is_the_one_that_it_is_said_to_be(
    listener: Listener, wordings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(listener.path, f"identify_wordings={wordings}", "seed=3")
    teller = build_teller(config, listener, StubSpeaker())
    some, _ = rows_to_test(listener.data, UNSEEN, 10)
    heard = np.arange(ROWS) % 3
    wording = (heard + 1 + np.arange(ROWS) // 3 % 2) % 3
    reference = Reference(teller, wordings, wording, config.seed)
    answers = {name: [reference.answer(name, row) for row in range(ROWS)] for name in DECISIONS}
    assert len({tuple(found) for found in answers.values()}) == len(DECISIONS), "no two decide alike"

    # Each decision is right in some rows: by turns the truth is what one of them says.
    truth = np.array([answers[DECISIONS[row % 7]][row][1] for row in range(ROWS)])
    truth[:3] = len(INSTANCES) - 1
    grids = np.arange(ROWS) % 10
    rows = ToldRows(some.inputs[grids], some.labels[grids], truth, heard, held_out=True)
    prefix = torch.arange(2 * ROWS + 1).float().view(-1, 1, 1).expand(-1, 4, 24)
    said = ["Good morning."] * ROWS  # of the last instance too, which -1 would be as an index
    same_rule = [n for n, rule in enumerate(RULE_OF_INSTANCE) if rule == RULE_OF_INSTANCE[truth[3]]]
    said[3] = INSTANCES[same_rule[0] if same_rule[0] != truth[3] else same_rule[-1]].sentences(False)[2]
    said[4] = INSTANCES[truth[4]].sentences(True)[0]
    meant = [meaning(text) for text in said]
    expected_said = [(-1 if found < 0 else int(RULE_OF_INSTANCE[found]), found) for found in meant]

    monkeypatch.setattr("hybrid_pipeline.identifying._scores", reference.scores)
    monkeypatch.setattr(teller.speaker, "say", lambda prefix, most: said if int(prefix[0, 0, 0]) == 0 else [])
    prefixes = Prefixes(prefix[:ROWS], prefix[ROWS : 2 * ROWS], prefix[TYPICAL])
    figures, details = identify(teller, rows, wording, prefixes, config)

    for name, found in (answers | {"said": expected_said}).items():
        keys = ("said_rule", "said_instance") if name == "said" else (f"rule_{name}", f"instance_{name}")
        for place, (key, true) in enumerate(zip(keys, (RULE_OF_INSTANCE[truth], truth), strict=True)):
            given = [answer[place] for answer in found]
            assert details["answers"][key.removesuffix("_")] == given, key
            share = sum(a == b for a, b in zip(given, true, strict=True)) / ROWS
            assert figures[key.removesuffix("_")] == pytest.approx(share), key
            assert figures[key.removesuffix("_") + "_low"] <= share <= figures[key.removesuffix("_") + "_high"]
    assert (figures["said_rule"], figures["said_instance"]) == (pytest.approx(2 / ROWS), pytest.approx(1 / ROWS))
    assert details["instance"] == truth.tolist() and details["said"] == said

    for name, held_out in (("trained", False), ("held_out", True)):
        count = min(wordings, sentence_table(held_out).shape[1])
        table = [[reference.likelihood(row, i, held_out) for i in range(len(INSTANCES))] for row in range(ROWS)]
        assert figures[f"mass_{name}"] == pytest.approx(sum(map(sum, table)) * count / ROWS)
        assert np.array(details[f"log_likelihood_{name}"]) == pytest.approx(np.log(table), abs=1e-4)
    numbers = sentence_table(True).T[wording]
    assert np.array(details["nats"]) == pytest.approx(reference.nats[np.arange(ROWS)[:, None], numbers], abs=1e-4)
    assert np.array(details["nats_typical"]) == pytest.approx(reference.nats[TYPICAL][numbers], abs=1e-4)
    assert details["tokens"] == np.array(reference.lengths)[numbers].tolist()


def test_an_evaluation_asks_what_it_names(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(listener.path, "identify_rows=4", "eval_rows=6")
    teller = build_teller(config, listener, StubSpeaker())
    scored: list[tuple[Said, torch.Tensor, torch.Tensor]] = []
    asked: list[tuple[ToldRows, np.ndarray, Prefixes]] = []

    def losses(teller: Teller, said: Said, own: torch.Tensor, untold: torch.Tensor, config: Any) -> Any:
        scored.append((said, own, untold))
        return {}, {}

    def identify(teller: Teller, rows: ToldRows, wording: np.ndarray, prefixes: Prefixes, config: Any) -> Any:
        asked.append((rows, wording, prefixes))
        return {}, {}

    monkeypatch.setattr("hybrid_pipeline.telling.losses", losses)
    monkeypatch.setattr("hybrid_pipeline.telling.identify", identify)
    evaluate(teller, listener, config)

    def prefix(rows: ToldRows, silent: bool = False) -> torch.Tensor:
        with torch.no_grad():
            return teller.prefix(*listener.latents(rows, silent=silent))[0]

    assert len(scored) == len(listener.data.test)
    for name, (said, own, untold) in zip(listener.data.test, scored, strict=True):
        rows, wording = rows_to_test(listener.data, name, 6)
        assert torch.equal(said.ids, teller.said(sentence_table(name == UNSEEN)[rows.instance, wording]).ids)
        assert torch.equal(own, prefix(rows)) and torch.equal(untold, prefix(rows, silent=True))
    ((rows, wording, prefixes),) = asked
    expected, expected_wording = rows_to_test(listener.data, UNSEEN, 4)
    assert np.array_equal(rows.told, expected.told) and np.array_equal(wording, expected_wording)
    assert torch.equal(prefixes.own, prefix(rows)) and torch.equal(prefixes.untold, prefix(rows, silent=True))
    assert not torch.equal(prefixes.own, prefixes.untold)
    typical = prefix(rows_to_train(listener.data, 256, config.seed)).mean(0)
    torch.testing.assert_close(prefixes.typical, typical)


def test_what_grids_alone_say_is_right_where_the_odds_are(listener: Listener) -> None:
    rows, _ = rows_to_test(listener.data, UNSEEN, None)
    right = 0
    for given, made, instance in zip(rows.inputs, rows.labels, rows.instance, strict=True):
        odds = instance_odds(crop_grid_from_eos(given), crop_grid_from_eos(made))
        of_rules = [-sum(odds[rule == RULE_OF_INSTANCE]) for rule in range(len(RULES))]
        right += argmin(of_rules) == RULE_OF_INSTANCE[instance]
    assert from_grids(rows)["rule_grids"] == pytest.approx(right / len(rows)) and right / len(rows) > 0.6


def test_the_error_of_a_loss_is_that_of_a_ratio(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(listener.path)
    teller = build_teller(config, listener, StubSpeaker())
    lengths = torch.tensor([2, 3, 5, 9, 4])
    said = Said(torch.ones(5, 9, dtype=torch.int64), torch.arange(9) < lengths.unsqueeze(1))
    own, noise = 1.5 * lengths, torch.tensor([0.5, -1.0, 2.0, 0.25, -0.75])
    prefix, untold = torch.zeros(5, 1, 1), torch.full((5, 1, 1), -1.0)
    prefix[:, 0, 0] = torch.arange(5)

    def nats(teller: Any, asked: torch.Tensor | None, said: Said, at_once: int) -> torch.Tensor:
        if asked is None:
            return own + 2.0 * lengths  # as much above in every token: certain
        if asked[0, 0, 0] < 0:
            return own + 2.0 * lengths + noise
        return own if torch.equal(asked, prefix) else own + asked[:, 0, 0]

    monkeypatch.setattr("hybrid_pipeline.telling._row_nats", nats)
    figures, by_row = losses(teller, said, prefix, untold, config)
    assert figures["loss"] == pytest.approx(1.5) and figures["loss_none_above"] == pytest.approx(2.0)
    assert figures["loss_none_above_se"] == pytest.approx(0, abs=1e-6)
    total, ratio = 23.0, 2 + noise.sum().item() / 23
    residuals = (2.0 * lengths + noise - ratio * lengths).tolist()
    spread = sum(value**2 for value in residuals) / 4  # their mean is 0, as that of residuals of a ratio is
    assert figures["loss_untold_above_se"] == pytest.approx(math.sqrt(5 * spread) / total, rel=1e-4)
    other = other_rows(5, config.seed)
    assert by_row["loss_shuffled"] == pytest.approx((own + torch.from_numpy(other)).tolist())
    assert by_row["loss_untold"] == pytest.approx((own + 2.0 * lengths + noise).tolist())
    assert by_row["loss"] == own.tolist() and by_row["tokens"] == lengths.tolist()
