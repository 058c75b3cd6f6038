"""Text reaches the recursion and gradients reach the adapter, in every mode that claims it and in no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_pipeline.llm import StubEncoder, TextStates
from hybrid_pipeline.model import HybridTRMModel
from models.losses import ACTLossHead
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1

SENTENCES = ["", "Paint the top edge red.", "Erase blue.", "Swap the colours red and blue, please."]
CELLS = 9


SETTINGS: dict[str, Any] = {
    "batch_size": 3,
    "seq_len": CELLS,
    "vocab_size": 12,
    "num_puzzle_identifiers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "H_cycles": 2,
    "L_cycles": 1,
    "L_layers": 1,
    "halt_max_steps": 3,
    "forward_dtype": "float32",
    "text_size": StubEncoder().width,
    "bottleneck": 16,
    "text_slots": 2,
}


def build(**keys: Any) -> HybridTRMModel:
    torch.manual_seed(0)
    model = HybridTRMModel(SETTINGS | keys)
    model.inner.read(StubEncoder().encode(SENTENCES))
    return model


def batch(*texts: int) -> dict[str, Tensor]:
    rows = len(texts)
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randint(2, 12, (rows, CELLS), generator=draws, dtype=torch.int32)
    return {
        "inputs": inputs,
        "labels": inputs.flip(1),
        "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32),
        "texts": torch.tensor(texts, dtype=torch.int32),
    }


def logits(model: Any, rows: dict[str, Tensor], steps: int = 1) -> Tensor:
    carry = model.initial_carry(rows)
    for _ in range(steps):
        carry, outputs = model(carry=carry, batch=rows)
    return outputs["logits"].detach()


def gradients(model: HybridTRMModel, steps: int = 1) -> dict[str, float]:
    """The largest gradient of each parameter after the loss of the last of so many ACT steps."""
    # The halting head reads nothing while its weights are zero, as they start.
    torch.nn.init.normal_(model.inner.q_head.weight)
    head, rows = ACTLossHead(model, "softmax_cross_entropy"), batch(1, 2, 3)
    model.train()
    carry = head.initial_carry(rows)
    for _ in range(steps):
        model.zero_grad()
        carry, loss, *_ = head(carry=carry, batch=rows, min_halt_steps=torch.full((3,), 9))
    loss.backward()
    named = model.named_parameters()
    return {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in named}


MODES: list[dict[str, Any]] = [
    {"injection": injection, "use_cross_attention_bridge": bridge, "puzzle_emb_ndim": puzzle, "puzzle_emb_len": 1}
    for injection in ("input", "puzzle_slots")
    for bridge in (True, False)
    for puzzle in (0, 16)
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
def test_gradients_reach_every_parameter_at_every_act_step(mode: dict[str, Any], positions: str) -> None:
    for steps in (1, 2):
        found = gradients(build(**mode, pos_encodings=positions, mlp_t=positions == "none"), steps)
        assert {name for name, size in found.items() if size == 0} == set()


def test_the_carry_gets_no_gradient_but_for_a_single_cycle() -> None:
    """The seeds' way: what lies before cycles without gradients cannot learn from the loss behind them."""

    def reached(**keys: Any) -> bool:
        return any(
            size > 0 for name, size in gradients(build(injection="carry", **keys)).items() if "inner.text" in name
        )

    assert not reached(H_cycles=2) and not reached(H_cycles=3)
    assert reached(H_cycles=1)


@pytest.mark.parametrize("injection", ["input", "puzzle_slots", "carry"])
def test_text_changes_the_answer_at_every_act_step(injection: str) -> None:
    model = build(injection=injection).eval()
    for steps in (1, 3):
        one, other = (logits(model, batch(text, text), steps) for text in (1, 2))
        assert (one - other).abs().max() > 1e-4
        assert torch.equal(logits(model, batch(1, 2), steps)[0], one[0]), "a row hears its own text alone"


@pytest.mark.parametrize("injection", ["input", "carry"])
def test_without_text_it_is_the_plain_trm(injection: str) -> None:
    model = build(injection=injection).eval()
    keys = TinyRecursiveReasoningModel_ACTV1.config_class.model_fields
    plain = TinyRecursiveReasoningModel_ACTV1({key: getattr(model.config, key) for key in keys})
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("inner.text.")})
    rows = batch(0, 0)
    expected = logits(plain.eval(), {key: value for key, value in rows.items() if key != "texts"}, 2)
    assert torch.equal(logits(model, rows, 2), expected)


@pytest.mark.parametrize("bridge", [True, False])
def test_text_means_something_else_at_every_position(bridge: bool) -> None:
    """Not one vector added to all cells: the difference that a text makes differs from cell to cell."""
    adapter: Any = build(use_cross_attention_bridge=bridge).eval().inner.text
    states = StubEncoder().encode(SENTENCES)
    said = adapter(states.states, states.mask).detach()
    difference = said[1] - said[2]
    spread = (difference - difference.mean(0)).norm() / difference.norm()
    assert spread > 0.3
    assert torch.equal(said[0], torch.zeros_like(said[0]))


def test_padding_says_nothing() -> None:
    adapter = build().eval().inner.text
    short = StubEncoder().encode(SENTENCES[2:3])
    padded = TextStates(
        torch.cat((short.states, torch.randn(1, 4, short.states.shape[2])), 1),
        torch.cat((short.mask, torch.zeros(1, 4, dtype=torch.bool)), 1),
    )
    expected = adapter(short.states, short.mask)
    assert torch.allclose(adapter(padded.states, padded.mask), expected, atol=1e-6)


def test_slots_come_after_the_puzzle() -> None:
    model = build(injection="puzzle_slots", puzzle_emb_ndim=16, puzzle_emb_len=1)
    assert model.config.puzzle_tokens == 3 and model.config.latent_length == CELLS + 3
    _, x, _ = model.inner.prepare(model.inner.empty_carry(2), batch(0, 0))
    _, told, _ = model.inner.prepare(model.inner.empty_carry(2), batch(1, 2))
    changed = (x != told).any(-1).any(0)
    assert changed.tolist() == [False, True, True, *[False] * CELLS]
    assert logits(model, batch(1)).shape == (1, CELLS, 12)


def test_rows_keep_their_text_until_they_halt() -> None:
    model = build().eval()
    carry = model.initial_carry(batch(1, 2))
    carry, _ = model(carry=carry, batch=batch(1, 2))
    carry, _ = model(carry=carry, batch=batch(3, 3))
    assert carry.current_data["texts"].tolist() == [1, 2]


def test_a_carry_is_told_once() -> None:
    """Only rows that start: later steps would add the same text on top of what became of it."""
    model = build(injection="carry")
    model.inner.starting = torch.tensor([True, False])
    before = model.inner.empty_carry(2)
    after, _, _ = model.inner.prepare(before, batch(1, 1))
    for name in ("z_H", "z_L"):
        changed = (getattr(before, name) != getattr(after, name)).flatten(1).any(1)
        assert changed.tolist() == [True, False]
