"""Properties of the architectures and of the ACT wrapper that the published numbers do not cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models import load_class
from models.losses import ACTLossHead, log_stablemax, softmax_cross_entropy, stablemax_cross_entropy

TRM = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"
ARCHITECTURES = {
    "trm": TRM,
    "trm_singlez": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "recursive_reasoning.transformers_baseline@Model_ACTV2",
    "trm_hierarchical_diffusion": "recursive_reasoning.trm_hierarchical_diffusion@TRMHierarchicalDiffusion",
}
SMALL = {
    "batch_size": 4,
    "seq_len": 9,
    "vocab_size": 6,
    "num_puzzle_identifiers": 5,
    "hidden_size": 16,
    "num_heads": 2,
    "puzzle_emb_ndim": 16,
    "puzzle_emb_len": 2,
    "halt_max_steps": 3,
    "halt_exploration_prob": 0.0,
    "forward_dtype": "float32",
}


def build(spec: str = TRM, **changes: Any) -> ACTLossHead:
    torch.manual_seed(0)
    return ACTLossHead(load_class(spec)(SMALL | changes), "stablemax_cross_entropy")


def make_batch(rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 6, (rows, 9), generator=generator, dtype=torch.int32),
        "labels": torch.randint(1, 6, (rows, 9), generator=generator, dtype=torch.int32),
        "puzzle_identifiers": torch.randint(0, 5, (rows,), generator=generator, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("arch", "config", "parameters"),
    [
        ("trm", {}, 6_829_058),
        ("trm", {"vocab_size": 11, "seq_len": 81}, 6_828_034),
        ("trm", {"vocab_size": 11, "seq_len": 81, "mlp_t": True, "pos_encodings": "none"}, 5_028_866),
        ("trm", {"H_layers": 2}, 6_829_058 + 2 * 3_407_872),
        ("hrm", {}, 27_276_290),
        ("transformers_baseline", {"num_heads": 12}, 27_145_218),
    ],
)
def test_parameter_counts_outside_the_puzzle_table(arch: str, config: dict[str, Any], parameters: int) -> None:
    data = {
        "batch_size": 1,
        "seq_len": 900,
        "vocab_size": 12,
        "num_puzzle_identifiers": 3,
        "puzzle_emb_ndim": 512,
    }
    with torch.device("meta"):
        model = load_class(ARCHITECTURES[arch])(data | config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.latent_length == data["seq_len"] + 16 if not config and arch == "trm" else True


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pos_encodings": "learned"},
        {"pos_encodings": "none"},
        {"mlp_t": True, "pos_encodings": "none"},
        {"puzzle_emb_ndim": 0},
        {"puzzle_emb_len": 0, "puzzle_emb_ndim": 24},
        {"no_ACT_continue": True},
        {"no_ACT_continue": False},
    ],
    ids=str,
)
def test_every_parameter_learns(arch: str, changes: dict[str, Any]) -> None:
    """Every variant trains: after a step off the initial zeros of the halting head, all parameters get a gradient."""
    model = build(ARCHITECTURES[arch], **changes).train()
    torch.nn.init.normal_(model.model.inner.q_head.weight)
    if model.model.puzzle_emb is not None:
        torch.nn.init.normal_(model.model.puzzle_emb.weights)
    batch = make_batch()
    _, loss, metrics, _, _ = model(carry=model.initial_carry(batch), batch=batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    trains_continue = not model.model.config.no_ACT_continue and model.model.config.trains_q_continue
    assert ("q_continue_loss" in metrics) == trains_continue
    if model.model.puzzle_emb is not None:
        ids, gradients = model.model.puzzle_emb.take_touched()
        assert torch.equal(ids, batch["puzzle_identifiers"]) and gradients.abs().sum() > 0


def test_only_the_last_cycle_carries_gradients() -> None:
    """Detaching the latents before the last cycle by hand gives the same gradients."""
    model = build(H_cycles=3, L_cycles=2)
    inner, batch = model.model.inner, make_batch()
    reference = {}
    for by_hand in (False, True):
        model.zero_grad()
        carry = inner.empty_carry(4)
        x = inner.input_embeddings(batch["inputs"], batch["puzzle_identifiers"])
        if by_hand:
            for _ in range(2):
                carry = inner.cycle(carry, x.detach(), inner.rotary())
                carry = inner.carry_class(carry.z_H.detach(), carry.z_L.detach())
            carry = inner.cycle(carry, x, inner.rotary())
        else:
            carry = inner.recur(carry, x, inner.rotary())
        carry.z_H.square().sum().backward()
        reference[by_hand] = inner.embed_tokens.embedding_weight.grad.clone()
    torch.testing.assert_close(reference[True], reference[False], rtol=0, atol=0)


def test_split_levels_use_their_own_network() -> None:
    shared, split = build(), build(H_layers=2)
    assert not any("H_level" in name for name in shared.state_dict())
    batch = make_batch()

    def logits(model: ACTLossHead) -> torch.Tensor:
        return model(carry=model.initial_carry(batch), batch=batch, return_keys=["logits"])[3]["logits"]

    before = logits(split.eval())
    with torch.no_grad():
        for parameter in split.model.inner.H_level.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(before, logits(split))
    # With the H-level equal to the L-level the split model is the shared one.
    split.load_state_dict(shared.state_dict(), strict=False)
    split.model.inner.H_level.load_state_dict(shared.model.inner.L_level.state_dict())
    assert torch.equal(logits(split), logits(shared.eval()))


def test_running_rows_keep_their_puzzle_and_halted_rows_take_the_next() -> None:
    model = build().eval()
    first, second = make_batch(seed=0), make_batch(seed=1)
    carry = model.initial_carry(first)
    carry, *_ = model(carry=carry, batch=first)
    carry.halted = torch.tensor([True, False, False, True])
    before = carry.inner_carry
    carry, *_ = model(carry=carry, batch=second)
    assert carry.steps.tolist() == [1, 2, 2, 1]
    for key in first:
        expected = torch.where(
            torch.tensor([1, 0, 0, 1]).bool().view(-1, *[1] * (first[key].ndim - 1)), second[key], first[key]
        )
        assert torch.equal(carry.current_data[key], expected)
    # A reset row computes exactly what a fresh carry computes on the same puzzle.
    fresh, *_ = model(carry=model.initial_carry(second), batch=second)
    assert torch.equal(carry.inner_carry.z_H[0], fresh.inner_carry.z_H[0])
    assert not torch.equal(carry.inner_carry.z_H[1], fresh.inner_carry.z_H[1])
    assert torch.equal(before.z_H[1], before.z_H[1])


def test_evaluation_runs_exactly_halt_max_steps_even_when_sure() -> None:
    model = build().eval()
    with torch.no_grad():
        model.model.inner.q_head.bias.fill_(9)
    batch = make_batch()
    carry = model.initial_carry(batch)
    for step in range(1, 4):
        carry, _, metrics, _, all_finish = model(carry=carry, batch=batch)
        assert bool(all_finish) == (step == 3)
        assert metrics["count"].item() == (4 if step == 3 else 0)


def test_training_halts_when_sure_but_not_before_the_explored_minimum() -> None:
    model = build().train()
    with torch.no_grad():
        model.model.inner.q_head.bias.fill_(9)
    batch = make_batch()
    minimum = torch.tensor([0, 2, 3, 0], dtype=torch.int32)
    carry = model.initial_carry(batch)
    halted = []
    for _ in range(3):
        carry, *_ = model(carry=carry, batch=batch, min_halt_steps=minimum)
        halted.append(carry.halted.tolist())
    assert halted == [[True, False, False, True], [True, True, False, True], [True, False, True, True]]


def test_exploration_is_uniform_over_two_to_the_maximum_inclusive() -> None:
    model = build(halt_max_steps=5, halt_exploration_prob=0.25).model
    grid = torch.linspace(0, 0.999999, 4001)
    explored = model.explore(torch.stack((torch.zeros_like(grid), grid)))
    values, counts = explored.unique(return_counts=True)
    assert values.tolist() == [2, 3, 4, 5]
    assert counts.max() - counts.min() <= 2
    assert model.explore(torch.tensor([[0.24, 0.25], [0.5, 0.5]])).tolist() == [4, 0]


def test_padding_rows_count_nowhere() -> None:
    model = build().train()
    with torch.no_grad():  # all rows halt, so that all could count
        model.model.inner.q_head.bias.fill_(9)
    batch = make_batch()
    batch["labels"][2:] = -100
    half = {key: value[:2] for key, value in batch.items()}
    minimum = torch.zeros(4, dtype=torch.int32)
    _, loss, metrics, _, _ = model(carry=model.initial_carry(batch), batch=batch, min_halt_steps=minimum)
    _, half_loss, half_metrics, _, _ = model(carry=model.initial_carry(half), batch=half, min_halt_steps=minimum[:2])
    assert loss.item() == pytest.approx(half_loss.item(), rel=1e-6)
    assert metrics["count"] == 2
    for name in metrics:
        assert metrics[name].item() == pytest.approx(half_metrics[name].item(), rel=1e-5), name


def test_token_losses_against_definitions() -> None:
    logits = torch.tensor([[[0.0, 2.0, -3.0], [5.0, -1.0, 0.5]]], dtype=torch.float64)
    labels = torch.tensor([[1, -100]])
    stablemax = torch.tensor([1.0, 3.0, 1 / 4])
    assert stablemax_cross_entropy(logits, labels)[0, 0].item() == pytest.approx(
        -torch.log(stablemax[1] / stablemax.sum()).item()
    )
    expected = -torch.log_softmax(logits[0, 0], -1)[1].item()
    assert softmax_cross_entropy(logits, labels)[0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert stablemax_cross_entropy(logits, labels)[0, 1] == softmax_cross_entropy(logits, labels)[0, 1] == 0
    extreme = torch.tensor([1.0, 1e30, -1e30], requires_grad=True)
    log_stablemax(extreme.double())[2].backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("bias", [-1e30, 1e30])
def test_halting_loss_stays_finite(bias: float) -> None:
    model = build(no_ACT_continue=False, forward_dtype="bfloat16").train()
    with torch.no_grad():
        model.model.inner.q_head.bias.fill_(bias)
    batch = make_batch()
    _, loss, metrics, _, _ = model(carry=model.initial_carry(batch), batch=batch)
    loss.backward()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"hiden_size": 3}, "hiden_size"),
        ({"L_cycles": 0}, "L_cycles"),
        ({"hidden_size": 18, "num_heads": 6}, "odd head size"),
        ({"hidden_size": 16, "num_heads": 3}, "not a multiple"),
        ({"pos_encodings": "rotary"}, "pos_encodings"),
        ({"forward_dtype": "int8"}, "forward_dtype"),
        ({"halt_exploration_prob": 1.5}, "halt_exploration_prob"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        build(**changes)


def test_hier6_has_six_scratchpads_and_no_more() -> None:
    with pytest.raises(ValidationError, match="L_cycles"):
        build(ARCHITECTURES["trm_hier6"], L_cycles=7)
    model = build(ARCHITECTURES["trm_hier6"], L_cycles=4).eval()
    batch = make_batch()
    carry, *_ = model(carry=model.initial_carry(batch), batch=batch)
    inner = model.model.inner
    assert torch.equal(carry.inner_carry.z_L5, inner.L5_init.expand_as(carry.inner_carry.z_L5))
    assert not torch.equal(carry.inner_carry.z_L4, inner.L4_init.expand_as(carry.inner_carry.z_L4))


@pytest.mark.parametrize("spec", ["recursive_reasoning.trm", "nothing@Class", "a.b@C", "losses@Missing"])
def test_unknown_classes_are_named(spec: str) -> None:
    with pytest.raises(ValueError, match=spec.split("@")[-1]):
        load_class(spec)
