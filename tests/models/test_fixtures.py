"""Step for step against numbers computed with the published implementation (fp32, CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import load_class
from models.losses import ACTLossHead
from training.ema import EMA
from training.optim import AdamATan2, SignSGD, learning_rate

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["trm_att", "trm_mlp_t", "trm_singlez", "trm_hier6", "hrm", "transformers_baseline"]
ACT_STEPS, TRAIN_STEPS = 4, 12


class Fixture:
    def __init__(self, name: str):
        self.arrays = dict(np.load(FIXTURES / f"{name}.npz", allow_pickle=False))
        self.meta = json.loads(bytes(self.arrays["meta_json"]).decode())

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def model(self) -> ACTLossHead:
        cls = load_class(f"{self.meta['module']}@{self.meta['cls']}")
        model = ACTLossHead(cls(self.meta["cfg"]), self.meta["loss"])
        state = self.tensors("sd/")
        assert set(model.state_dict()) == set(state)  # the published parameter names
        model.load_state_dict(state)
        return model

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        return self.tensors(f"batch/{index}/")


@pytest.fixture(params=NAMES)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.param)


def assert_metrics(metrics: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), abs=atol), name


def test_evaluation_steps(fixture: Fixture) -> None:
    model = fixture.model().eval()
    batch = fixture.batch(0)
    carry = model.initial_carry(batch)
    for step in range(ACT_STEPS):
        with torch.no_grad():
            carry, loss, metrics, outputs, all_finish = model(
                carry=carry, batch=batch, return_keys={"logits", "q_halt_logits", "preds"}
            )
        expected = fixture.tensors(f"eval/{step}/")
        torch.testing.assert_close(outputs["logits"], expected["logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs["q_halt_logits"], expected["q_halt_logits"], atol=1e-5, rtol=0)
        assert torch.equal(outputs["preds"], expected["preds"])
        assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
        assert_metrics(metrics, fixture.tensors(f"eval/{step}/metrics/"), atol=1e-5)
        assert bool(all_finish) == bool(expected["all_finish"]) == (step == ACT_STEPS - 1)


def test_twelve_optimisation_steps(fixture: Fixture) -> None:
    meta, model = fixture.meta, fixture.model().train()
    dense = AdamATan2(model.parameters(), betas=tuple(meta["betas"]), weight_decay=meta["weight_decay"])
    sparse = SignSGD(model.model.puzzle_emb, weight_decay=meta["puzzle_emb_weight_decay"])
    ema = EMA(dict(model.named_parameters()), meta["ema_rate"])
    carry = model.initial_carry(fixture.batch(0))
    for step in range(TRAIN_STEPS):
        batch = fixture.batch(step)
        carry, loss, metrics, _, _ = model(carry=carry, batch=batch)
        (loss / len(batch["inputs"])).backward()
        expected = fixture.tensors(f"train/{step}/")
        assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5 if step == 0 else 1e-4)
        assert torch.equal(carry.halted, expected["halted"])
        assert torch.equal(carry.steps, expected["steps"])
        assert_metrics(metrics, fixture.tensors(f"train/{step}/metrics/"), atol=1e-4)
        if step == 0:
            gradients = fixture.tensors("train/0/grad/")
            for name, parameter in model.named_parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(gradient, gradients.pop(name), atol=1e-5, rtol=0, msg=name)
            assert not gradients
        for optimizer, base in ((dense, meta["lr"]), (sparse, meta["puzzle_emb_lr"])):
            optimizer.param_groups[0]["lr"] = learning_rate(
                step + 1, base=base, warmup_steps=meta["warmup_steps"], total_steps=TRAIN_STEPS, min_ratio=1.0
            )
            optimizer.step()
        dense.zero_grad()
        ema.update()

    for name, value in fixture.tensors("final/").items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-4, rtol=0, msg=name)
    averages = fixture.tensors("final_ema/")
    assert set(averages) == set(ema.shadow)
    for name, value in averages.items():
        torch.testing.assert_close(ema.shadow[name], value, atol=1e-4, rtol=0, msg=name)
