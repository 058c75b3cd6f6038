"""Optimisers, schedule and weight averages against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.sparse_embedding import CastedSparseEmbedding
from training.config import load_config
from training.ema import EMA
from training.optim import AdamATan2, BatchedMuon, SignSGD, build_optimizers, learning_rate, set_learning_rates
from training.state import exploration


def test_adam_atan2_against_its_formula() -> None:
    beta1, beta2, decay, lr = 0.9, 0.95, 0.1, 0.05
    generator = np.random.default_rng(0)
    value = generator.normal(size=7)
    parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    optimizer = AdamATan2([parameter], lr=lr, betas=(beta1, beta2), weight_decay=decay)
    m, v = np.zeros(7), np.zeros(7)
    for t in range(1, 6):
        gradient = generator.normal(size=7) * (t != 3)  # a step of zeros must not divide by zero
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        value = value * (1 - lr * decay)
        value = value - lr / (1 - beta1**t) * np.arctan2(m, np.sqrt(v) / math.sqrt(1 - beta2**t))
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_adam_atan2_stays_finite_on_zero_gradients() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    AdamATan2([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(parameter.detach(), torch.ones(3))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_muon_in_batches_of_one_shape_is_muon(decay: float) -> None:
    shapes = [(12, 5), (5, 12), (12, 5), (7, 7), (12, 5), (5, 12)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs, ours = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": decay}
    optimizers = [torch.optim.Muon(theirs, **settings), BatchedMuon(ours, **settings)]
    for step in range(4):
        for one, other in zip(theirs, ours, strict=True):
            one.grad = torch.randn(one.shape, generator=generator) * 10.0**step
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(theirs, ours, start, strict=True):
        moved = (one - before).norm()
        assert (other - one).norm() < 0.02 * moved  # both compute in bf16
        assert moved > 0.1
        momentum = (
            optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(optimizers, (one, other), strict=True)
        )
        torch.testing.assert_close(*momentum)


def make_table() -> CastedSparseEmbedding:
    torch.manual_seed(0)
    return CastedSparseEmbedding(6, 4, init_std=1.0, cast_to=torch.float32).train()


def test_sign_sgd_updates_touched_rows_by_the_sign_of_their_summed_gradient() -> None:
    table = make_table()
    before = table.weights.clone()
    ids = torch.tensor([4, 1, 4, 2], dtype=torch.int32)
    weight = torch.tensor([[1.0, -3.0, 1.0, 0.0], [2, 2, -2, 0], [1, 1, -1, 0], [-1, -1, 5, 0]])
    (table(ids) * weight).sum().backward()
    SignSGD(table, base_lr=0.1, weight_decay=0.5).step()
    expected = before.clone()
    for row, gradient in {4: weight[0] + weight[2], 1: weight[1], 2: weight[3]}.items():
        expected[row] = before[row] * (1 - 0.1 * 0.5) - 0.1 * gradient.sign()
    torch.testing.assert_close(table.weights, expected)
    assert torch.equal(table.weights[[0, 3, 5]], before[[0, 3, 5]])
    assert len(table.take_touched()[0]) == 0  # a step forgets what it used


def test_sign_sgd_does_not_depend_on_the_order_of_rows() -> None:
    """Equal identifiers whose gradients nearly cancel: in fp32 the sign of the sum would depend on the order."""
    ids = torch.zeros(64, dtype=torch.int32)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(64, 4, generator=generator)
    gradients[-1] = -gradients[:-1].double().sum(0).float() + 1e-6
    results = []
    for _ in range(5):
        order = torch.randperm(64, generator=generator)
        table = make_table()
        (table(ids) * gradients[order]).sum().backward()
        SignSGD(table, base_lr=0.1, weight_decay=0.0).step()
        results.append(table.weights.clone())
    assert all(torch.equal(result, results[0]) for result in results)


def test_evaluation_and_no_grad_lookups_leave_no_trace() -> None:
    table = make_table()
    with torch.no_grad():
        table(torch.tensor([1]))
    table.eval()(torch.tensor([2]))
    assert len(table.take_touched()[0]) == 0


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, 0.25), (4, 1.0), (5, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 8))), (8, 0.55), (12, 0.1), (20, 0.1)],
)
def test_schedule_warms_up_and_follows_a_cosine(step: int, expected: float) -> None:
    rate = learning_rate(step, base=1.0, warmup_steps=4, total_steps=12, min_ratio=0.1)
    assert rate == pytest.approx(expected)


def test_schedule_is_constant_by_default_and_starts_without_warmup() -> None:
    assert learning_rate(1, base=2.0, warmup_steps=0, total_steps=10, min_ratio=1.0) == 2.0
    assert learning_rate(9999, base=2.0, warmup_steps=5, total_steps=10, min_ratio=1.0) == 2.0


def test_averages_follow_the_weights_and_never_touch_them() -> None:
    model = nn.Linear(3, 2)
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    ema = EMA(dict(model.named_parameters()), rate=0.75)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update()
    moved = {name: p.detach().clone() for name, p in model.named_parameters()}
    addresses = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), 0.75 * raw[name] + 0.25 * moved[name])
        raise RuntimeError("inside")
    assert all(torch.equal(p, moved[name]) for name, p in model.named_parameters())
    assert [p.data_ptr() for p in model.parameters()] == addresses


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.level = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 5, bias=False)


@pytest.mark.parametrize("name", ["adam_atan2", "adamw", "muon"])
def test_every_optimiser_trains_every_weight_at_its_rate(name: str) -> None:
    config = load_config("cfg_pretrain", [f"optim={name}", "lr=0.01"])
    model = TwoParts()
    optimizers = build_optimizers(config, model)
    owned = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    set_learning_rates(optimizers, 1, warmup_steps=2, total_steps=10, min_ratio=1.0)
    rates = {id(p): group["lr"] for o in optimizers for group in o.param_groups for p in group["params"]}
    muon_rate = config.optim.muon_lr if name == "muon" else config.lr
    assert muon_rate is not None
    assert rates[id(model.level.weight)] == pytest.approx(muon_rate / 2)
    assert rates[id(model.lm_head.weight)] == rates[id(model.embed_tokens.weight)] == pytest.approx(0.005)
    before = [p.detach().clone() for p in model.parameters()]
    model.lm_head(model.level(model.embed_tokens(torch.arange(5)))).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_exploration_depends_on_seed_step_and_slot_alone() -> None:
    whole = exploration(3, 17, 8, range(8))
    halves = torch.cat((exploration(3, 17, 8, range(4)), exploration(3, 17, 8, range(4, 8))), dim=1)
    assert torch.equal(whole, halves)
    assert not torch.equal(whole, exploration(3, 18, 8, range(8)))
    assert not torch.equal(whole, exploration(4, 17, 8, range(8)))
    draws = torch.cat([exploration(0, step, 64, range(64)) for step in range(50)], dim=1)
    assert abs(draws.mean().item() - 0.5) < 0.02 and draws.min() >= 0 and draws.max() < 1
