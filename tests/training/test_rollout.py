"""The rollout against a plain loop over every row, in both modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from models.losses import IGNORE_LABEL_ID, ACTLossHead
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1
from training.rollout import UNIT, ActStatistics, Rows, rollout

STEPS, CELLS, VOCAB = 4, 6, 5


def make_model() -> ACTLossHead:
    torch.manual_seed(0)
    config: dict[str, Any] = {"batch_size": 4, "seq_len": CELLS, "vocab_size": VOCAB, "num_puzzle_identifiers": 3}
    config |= {"hidden_size": 16, "num_heads": 2, "H_cycles": 1, "L_cycles": 1, "halt_max_steps": STEPS}
    config |= {"puzzle_emb_ndim": 0, "forward_dtype": "float32"}
    model = ACTLossHead(TinyRecursiveReasoningModel_ACTV1(config), "stablemax_cross_entropy").eval()
    with torch.no_grad():  # some rows want to halt at once, some later, some never
        torch.nn.init.normal_(model.model.inner.q_head.weight, std=0.7)
        model.model.inner.q_head.bias.zero_()
    return model


def make_rows(count: int) -> Rows:
    generator = np.random.default_rng(0)
    inputs = generator.integers(0, VOCAB, (count, CELLS), dtype=np.int32)
    labels = generator.integers(0, VOCAB, (count, CELLS), dtype=np.int32)
    labels[::3, 2] = IGNORE_LABEL_ID
    identifiers = generator.integers(0, 3, count, dtype=np.int32)
    return {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers, "row_index": np.arange(count) + 100}


def in_pieces(rows: Rows, sizes: list[int]) -> Iterator[Rows]:
    start = 0
    for size in sizes:
        yield {key: value[start : start + size] for key, value in rows.items()}
        start += size


@torch.no_grad()
def reference(model: ACTLossHead, rows: Rows) -> list[list[tuple[np.ndarray, float]]]:
    """For every row alone, the prediction and halt logit after each ACT step."""
    found = []
    for row in range(len(rows["inputs"])):
        batch = {k: torch.from_numpy(v[row : row + 1]) for k, v in rows.items() if k != "row_index"}
        carry, steps = model.initial_carry(batch), []
        for _ in range(STEPS):
            carry, _, _, out, _ = model(carry=carry, batch=batch, return_keys=["preds", "q_halt_logits"])
            steps.append((out["preds"][0].numpy(), out["q_halt_logits"].item()))
        found.append(steps)
    return found


def accuracy(prediction: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    valid = labels != IGNORE_LABEL_ID
    right = (prediction == labels)[valid]
    return float(right.all()), float(right.mean())


@pytest.mark.parametrize(("early", "confidence"), [(False, 0.5), (True, 0.5), (True, 0.7)])
@pytest.mark.parametrize(("slots", "sizes"), [(4, [5, 0, 6]), (16, [11]), (1, [3, 8])])
def test_rollout_equals_solving_every_row_alone(early: bool, confidence: float, slots: int, sizes: list[int]) -> None:
    model, rows = make_model(), make_rows(sum(sizes))
    expected = reference(model, rows)
    statistics = ActStatistics(STEPS)
    pieces = list(
        rollout(
            model,
            in_pieces(rows, sizes),
            slots=slots,
            device=torch.device("cpu"),
            early=early,
            keys={"preds", "q_halt_logits"},
            statistics=statistics,
            confidence=confidence,
        )
    )
    found = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
    assert sorted(found["row_index"]) == rows["row_index"].tolist()  # each row once, none lost

    by_step, halts = np.zeros((STEPS, 2)), np.zeros(STEPS + 1)
    for position, index in enumerate(found["row_index"] - 100):
        first_halt = next((i for i, (_, q) in enumerate(expected[index]) if q > 0), None)
        enough = np.log(confidence / (1 - confidence))
        leaves = next((i for i, (_, q) in enumerate(expected[index]) if q > enough), None)
        last = leaves if early and leaves is not None else STEPS - 1
        first_halt = first_halt if first_halt is not None and first_halt <= last else None
        prediction, q_halt = expected[index][last]
        assert found["steps"][position] == last + 1
        np.testing.assert_array_equal(found["preds"][position], prediction)
        assert found["q_halt_logits"][position] == pytest.approx(q_halt, abs=1e-5)
        np.testing.assert_array_equal(found["labels"][position], rows["labels"][index])
        for step in range(STEPS):
            by_step[step] += accuracy(expected[index][min(step, last)][0], rows["labels"][index])
        halts[0 if first_halt is None else first_halt + 1] += 1
    np.testing.assert_allclose(np.stack((statistics.exact, statistics.cell), axis=1) * UNIT, by_step, atol=1e-6)
    np.testing.assert_array_equal(statistics.halt_steps, halts)
    assert statistics.rows == len(expected) and len({*found["steps"].tolist()}) > (1 if early else 0)


def test_rows_without_labels_come_out_but_count_nowhere() -> None:
    model, rows = make_model(), make_rows(5)
    rows["labels"][1] = IGNORE_LABEL_ID
    statistics = ActStatistics(STEPS)
    options: dict[str, Any] = {"slots": 2, "device": torch.device("cpu"), "early": False, "keys": {"preds"}}
    pieces = list(rollout(model, iter([rows]), statistics=statistics, **options))
    assert sum(len(piece["row_index"]) for piece in pieces) == 5
    assert statistics.rows == 4 == statistics.binned.sum()


def test_no_rows_yield_nothing() -> None:
    statistics = ActStatistics(STEPS)
    options: dict[str, Any] = {"slots": 2, "device": torch.device("cpu"), "early": False, "keys": {"preds"}}
    assert list(rollout(make_model(), iter([]), statistics=statistics, **options)) == []


def test_calibration_error_of_known_cases() -> None:
    statistics = ActStatistics(2)
    logit = np.log(3.0)  # a probability of 0.75
    statistics.add_finished(np.array([1.0, 1, 1, 0]), np.full(4, logit, dtype=np.float32), np.zeros(4, dtype=int))
    assert statistics.calibration_error == pytest.approx(0, abs=1e-6)
    statistics.add_finished(np.array([0.0] * 4), np.full(4, logit, dtype=np.float32), np.ones(4, dtype=int))
    assert statistics.calibration_error == pytest.approx(0.375, abs=1e-6)
