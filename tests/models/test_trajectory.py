"""Recording a trajectory changes nothing, and what it records is what the recursion passed through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.losses import ACTLossHead
from tests.models.test_models import ARCHITECTURES, build, make_batch

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trm attention": ("trm", {"H_cycles": 3, "L_cycles": 4, "no_ACT_continue": False}),
    "trm mlp": ("trm", {"H_cycles": 2, "L_cycles": 2, "mlp_t": True, "pos_encodings": "none"}),
    "trm two levels": ("trm", {"H_cycles": 2, "L_cycles": 3, "H_layers": 1}),
    "hrm": ("hrm", {"H_cycles": 2, "L_cycles": 3, "H_layers": 1, "L_layers": 1}),
    "coarse to fine": ("trm_hierarchical_diffusion", {"H_cycles": 2, "L_cycles": 2}),
}


def make(variant: str) -> ACTLossHead:
    arch, changes = VARIANTS[variant]
    model = build(ARCHITECTURES[arch], **changes)
    with torch.no_grad():  # an untrained table is zero, an untrained halting head says nothing
        model.model.puzzle_emb.weights.normal_()
        model.model.inner.q_head.weight.normal_()
        if arch == "trm_hierarchical_diffusion":  # untrained levels tell each other nothing
            model.model.inner.up.weight.normal_()
    return model


def results(model: ACTLossHead, store: Any, calls: int = 4) -> list[Tensor]:
    """Losses, outputs, carries and gradients of some ACT steps, in which rows halt and take the next puzzle."""
    found = []
    carry = model.initial_carry(make_batch())
    minimum = torch.tensor([0, 2, 3, 0], dtype=torch.int32)
    for call in range(calls):
        options = {"min_halt_steps": minimum, "store_diffusion_trajectory": store}
        carry, loss, _, preds, _ = model(
            carry=carry, batch=make_batch(seed=call), return_keys=["logits", "q_halt_logits"], **options
        )
        loss.backward()
        found += [loss.detach(), *preds.values(), carry.inner_carry.z_H, carry.inner_carry.z_L, carry.halted]
    ids, rows = model.model.puzzle_emb.take_touched() if model.training else (carry.steps, loss.detach())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values()), gradients.keys()
    return [*found, ids, rows, *(gradient for gradient in gradients.values() if gradient is not None)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_recording_changes_no_output_and_no_gradient(variant: str, training: bool) -> None:
    plain = results(make(variant).train(training), False)
    for store in (True, [2], ()):
        recorded = results(make(variant).train(training), store)
        assert len(plain) == len(recorded) > 20
        assert all(torch.equal(one, other) for one, other in zip(plain, recorded, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_record_is_what_the_levels_returned(variant: str) -> None:
    model = make(variant).eval()
    inner, config = model.model.inner, model.model.config
    returned: list[Tensor] = []
    for level in {inner.L_level, getattr(inner, "H_level", inner.L_level)}:
        level.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
    finest = config.latent_length
    batch = make_batch()
    carry = model.initial_carry(batch)
    for _ in range(2):
        returned.clear()
        before = carry
        carry, outputs = model.model(carry=carry, batch=batch, store_diffusion_trajectory=True)
        cycles = outputs["trajectory"]["all_h_cycles"]
        of_finest = [output for output in returned if output.shape[1] == finest]
        recorded = [z for cycle in cycles for z in (*cycle["z_L_list"], cycle["z_H"])]
        assert len(cycles) == config.H_cycles
        assert len(recorded) == len(of_finest) == config.H_cycles * (config.L_cycles + 1)
        for z, output in zip(recorded, of_finest, strict=True):
            assert z.data_ptr() == output.data_ptr() and torch.equal(z, output)  # by reference, not a copy
            assert not z.requires_grad
        initial = inner.reset_carry(before.halted, before.inner_carry)
        assert torch.equal(cycles[0]["input_embeddings"], inner.prepare(initial, carry.current_data)[1])
        assert all(cycle["input_embeddings"] is cycles[0]["input_embeddings"] for cycle in cycles)
        assert torch.equal(cycles[-1]["z_H"], carry.inner_carry.z_H)
        assert torch.equal(cycles[-1]["z_L_list"][-1], carry.inner_carry.z_L)
        assert outputs["trajectory"]["steps"] is carry.steps
        assert torch.equal(outputs["trajectory"]["initial_z_H"], initial.z_H)
        assert torch.equal(outputs["trajectory"]["initial_z_L"], initial.z_L)


def test_a_subset_of_the_act_steps() -> None:
    model = make("trm attention").eval().model
    batch = make_batch()
    carry, seen = model.initial_carry(batch), []
    for call in range(5):
        carry, outputs = model(carry=carry, batch=batch, store_diffusion_trajectory={1, 3})
        trajectory = outputs["trajectory"]
        seen.append((trajectory["steps"].tolist(), trajectory["rows"].tolist()))
        if call == 0:  # two rows start anew, so that the steps differ within the batch
            carry.halted[:2] = True
    assert seen[1] == ([1, 1, 2, 2], [True, True, False, False])
    assert seen[2] == ([2, 2, 3, 3], [False, False, True, True])
    assert seen[3] == ([3, 3, 1, 1], [True] * 4)
    carry, outputs = model(carry=carry, batch=batch, store_diffusion_trajectory=True)
    assert outputs["trajectory"]["rows"].all() and outputs["trajectory"]["rows"].dtype == torch.bool


def test_the_loss_head_hands_the_trajectory_out() -> None:
    model = make("hrm").train()
    batch = make_batch()
    *_, preds, _ = model(
        carry=model.initial_carry(batch), batch=batch, store_diffusion_trajectory=True, return_keys=["trajectory"]
    )
    assert len(preds["trajectory"]["all_h_cycles"]) == 2


@pytest.mark.parametrize("arch", ["trm_singlez", "trm_hier6", "transformers_baseline"])
def test_other_latents_are_refused_by_name(arch: str) -> None:
    model = build(ARCHITECTURES[arch]).eval().model
    batch = make_batch()
    with pytest.raises(ValueError, match=f"{arch}@.*has the latents z_.*z_H and z_L"):
        model(carry=model.initial_carry(batch), batch=batch, store_diffusion_trajectory=True)
    model(carry=model.initial_carry(batch), batch=batch)


def test_read_out_is_what_the_forward_pass_reads() -> None:
    model = make("trm attention").eval().model
    batch = make_batch()
    carry, outputs = model(carry=model.initial_carry(batch), batch=batch)
    found = model.inner.read_out(carry.inner_carry)
    assert set(found) == {"logits", "q_halt_logits", "q_continue_logits"} and found["logits"].shape == (4, 9, 6)
    assert all(torch.equal(found[name], outputs[name]) for name in found)
