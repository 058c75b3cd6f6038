"""The coarse-to-fine model: TRM with one level, and with more what each level reads, says and when it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from models import load_class
from models.grid_levels import coarse_targets
from models.losses import ACTLossHead, stablemax_cross_entropy
from tests.models.test_models import ARCHITECTURES, SMALL, TRM
from training.build import GRAPHS_OF_A_LEVEL
from training.optim import AdamATan2

SPEC = ARCHITECTURES["trm_hierarchical_diffusion"]
CELLS: dict[str, Any] = {"seq_len": 36, "H_cycles": 2, "L_cycles": 2, "L_layers": 1}
LEVELS: dict[str, Any] = {"levels": [[1, 1], [2, 3], [6, 6]]}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"mlp_t": True, "pos_encodings": "none"},
    {"H_layers": 1},
    {"H_layers": 1, "mlp_t": True, "pos_encodings": "none"},
    {"tie_levels": False, "H_layers": 1},
    {"tie_levels": False, "mlp_t": True, "pos_encodings": "learned"},
    {"puzzle_emb_ndim": 0},
    {"forward_dtype": "bfloat16"},
]


def build(spec: str = SPEC, **changes: Any) -> ACTLossHead:
    torch.manual_seed(0)
    return ACTLossHead(load_class(spec)(SMALL | CELLS | changes), "stablemax_cross_entropy")


def awake(**changes: Any) -> ACTLossHead:
    """With levels that tell each other something, and heads that say something."""
    model = build(**(LEVELS | changes))
    inner = model.model.inner
    with torch.no_grad():
        for linear in (inner.up, inner.down, inner.position_context, inner.q_head, *(c.q_head for c in inner.coarse)):
            linear.weight.normal_(std=0.3)
        if model.model.puzzle_emb is not None:
            model.model.puzzle_emb.weights.normal_()
    return model


def make_batch(seed: int = 0, rows: int = 4) -> dict[str, Tensor]:
    """Grids of 4x5 to 6x6 cells, PAD around them; labels of other sizes."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randint(1, 6, (2, rows, 6, 6), generator=generator, dtype=torch.int32)
    for row in range(rows):
        inputs[row, 4 + row % 3 :] = 0
        inputs[row, :, 5 + row % 2 :] = 0
        labels[row, 6 - row % 3 :] = -100
    puzzles = torch.randint(0, 5, (rows,), generator=generator, dtype=torch.int32)
    return {"inputs": inputs.flatten(1), "labels": labels.flatten(1), "puzzle_identifiers": puzzles}


def trained(model: ACTLossHead, steps: int) -> list[Tensor]:
    """Losses, metrics, latents and gradients of some steps of training, then all weights."""
    found: list[Tensor] = []
    optimizer = AdamATan2(model.parameters(), lr=3e-3)
    carry = model.initial_carry(make_batch())
    for step in range(steps):
        batch, minimum = make_batch(step), torch.tensor([0, 2, 3, 0], dtype=torch.int32)
        carry, loss, metrics, preds, _ = model(
            carry=carry, batch=batch, min_halt_steps=minimum, return_keys=["logits", "q_halt_logits"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [loss.detach(), *metrics.values(), *preds.values(), carry.inner_carry.z_H, carry.inner_carry.z_L]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*found, *model.state_dict().values()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_t": True, "pos_encodings": "none"},
        {"H_layers": 1, "pos_encodings": "learned"},
        {"no_ACT_continue": False},
        {"forward_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_one_level_is_trm_to_the_bit(changes: dict[str, Any]) -> None:
    trm, one = build(TRM, **changes), build(levels=[[6, 6]], **changes)
    assert list(trm.state_dict()) == list(one.state_dict())
    expected, found = trained(trm, 6), trained(one, 6)
    assert len(expected) == len(found) > 100
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_several_levels_begin_as_trm() -> None:
    """The finest answers of untrained models of one seed are equal: levels tell each other nothing yet."""
    outputs = []
    for model in (build(TRM), build(**LEVELS)):
        batch = make_batch()
        *_, preds, _ = model(carry=model.initial_carry(batch), batch=batch, return_keys=["logits", "q_halt_logits"])
        outputs.append(preds)
    assert all(torch.equal(outputs[0][key], outputs[1][key]) for key in outputs[0])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_parameter_learns_at_every_level(changes: dict[str, Any]) -> None:
    model = awake(**changes).train()
    batch = make_batch()
    _, loss, *_ = model(carry=model.initial_carry(batch), batch=batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_finest_loss_teaches_the_coarse_levels() -> None:
    """Without losses of their own, all that coarse levels compute for the finest learns from it."""
    model = awake(coarse_loss_weight=0.0, tie_levels=False).train()
    batch = make_batch()
    _, loss, *_ = model(carry=model.initial_carry(batch), batch=batch)
    loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == {
        "model.inner.coarse_head.weight",
        *(f"model.inner.coarse.{level}.q_head.{kind}" for level in (0, 1) for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize(
    ("data", "changes", "most"),
    [
        ({"seq_len": 900, "vocab_size": 12}, {}, 1.15),
        ({"seq_len": 81, "vocab_size": 11}, {}, 1.15),
        ({"seq_len": 81, "vocab_size": 11}, {"mlp_t": True, "pos_encodings": "none"}, 1.15),
        ({"seq_len": 900, "vocab_size": 12}, {"mlp_t": True, "pos_encodings": "none"}, 1.15),
    ],
)
def test_parameters_stay_within_fifteen_percent_of_trm(
    data: dict[str, Any], changes: dict[str, Any], most: float
) -> None:
    counts = []
    with torch.device("meta"):
        for spec in (TRM, SPEC):
            model = load_class(spec)(
                {"batch_size": 1, "num_puzzle_identifiers": 3, "puzzle_emb_ndim": 512} | data | changes
            )
            counts.append(sum(p.numel() for p in model.parameters()))
    assert counts[0] < counts[1] < most * counts[0]
    with torch.device("meta"):
        untied = load_class(SPEC)(
            {"batch_size": 1, "num_puzzle_identifiers": 3, "puzzle_emb_ndim": 512, "tie_levels": False} | data | changes
        )
    assert sum(p.numel() for p in untied.parameters()) > 1.5 * counts[0]


def test_shared_networks_are_in_the_state_once() -> None:
    model = awake(mlp_t=True, pos_encodings="none")
    names = list(model.state_dict())
    assert len(names) == len({id(tensor) for tensor in model.state_dict(keep_vars=True).values()})
    channel = [name for name in names if ".mlp." in name]
    assert channel and all("inner.L_level" in name for name in channel)
    inner = model.model.inner
    batch = make_batch()
    before = inner.prepare(inner.empty_carry(4), batch)[2]["coarse_logits"]
    with torch.no_grad():
        inner.L_level.layers[0].mlp.down_proj.weight.add_(0.1)
    assert not torch.allclose(before, inner.prepare(inner.empty_carry(4), batch)[2]["coarse_logits"])


def test_levels_have_puzzle_tokens_and_lengths_of_their_own() -> None:
    model = awake(puzzle_emb_len=3)
    inner = model.model.inner
    assert inner.lengths == [3 + 1, 3 + 6]
    batch = make_batch()
    carry, outputs = model.model(carry=model.initial_carry(batch), batch=batch)
    assert carry.inner_carry.coarse_z_H.shape == carry.inner_carry.coarse_z_L.shape == (4, 13, 16)
    assert carry.inner_carry.coarse_halted.shape == (4, 2) and carry.inner_carry.z_H.shape == (4, 39, 16)
    assert outputs["coarse_logits"].shape == (4, 7, 7) and outputs["coarse_q_halt_logits"].shape == (4, 2)
    assert outputs["coarse_q_halt_logits"].dtype == torch.float32
    # The puzzle is known at the coarsest level: another identifier, another answer.
    other = batch | {"puzzle_identifiers": (batch["puzzle_identifiers"] + 1) % 5}
    differs = outputs["coarse_logits"] != model.model(carry=model.initial_carry(other), batch=other)[1]["coarse_logits"]
    assert differs[:, 0].any(-1).all() and differs[:, 1:].any(-1).all()


def test_coarse_levels_tell_finer_ones_and_not_the_other_way_round() -> None:
    inner = awake().model.inner
    batch, carry = make_batch(), None
    outputs = []
    for level in (None, 0, 1):
        carry = inner.empty_carry(4)
        if level is not None:
            start = 0 if level == 0 else inner.lengths[0]
            changed = carry.coarse_z_L.clone()
            changed[:, start : start + inner.lengths[level]] += torch.randn(16)
            carry.coarse_z_L = changed
        outputs.append(inner.prepare(carry, batch))
    plain, of_first, of_second = (
        (out["coarse_logits"][:, :1], out["coarse_logits"][:, 1:], x) for _, x, out in outputs
    )
    assert not any(torch.allclose(a, b) for a, b in zip(plain, of_first, strict=True))
    assert torch.equal(plain[0], of_second[0])
    assert not torch.allclose(plain[1], of_second[1]) and not torch.allclose(plain[2], of_second[2])


def test_what_lies_under_pad_reaches_no_coarse_level() -> None:
    """The latent of the finest level is read where the grid is, and nowhere else."""
    inner = awake().model.inner
    batch = make_batch()
    carry = inner.empty_carry(4)
    cells = torch.cat((torch.zeros(4, 2, dtype=torch.bool), batch["inputs"] != 0), dim=1).unsqueeze(-1)
    plain = inner.prepare(carry, batch)[2]
    noise = torch.randn(4, 38, 16)
    carry.z_H = torch.where(cells, carry.z_H, carry.z_H + noise * (torch.arange(38) >= 2).view(1, -1, 1))
    hidden = inner.prepare(carry, batch)[2]
    assert all(torch.equal(plain[key], hidden[key]) for key in plain)
    carry.z_H = torch.where(cells, carry.z_H + noise, carry.z_H)
    assert not torch.allclose(plain["coarse_logits"], inner.prepare(carry, batch)[2]["coarse_logits"])


def test_a_coarse_halt_freezes_its_level_while_finer_ones_go_on() -> None:
    model = awake(halt_max_steps=8).eval()
    inner, first = model.model.inner, awake().model.inner.lengths[0]
    with torch.no_grad():
        for level, bias in zip(inner.coarse, (9.0, -9.0), strict=True):
            level.q_head.weight.zero_()
            level.q_head.bias.fill_(bias)
    batch = make_batch()
    carry, _ = model.model(carry=model.initial_carry(batch), batch=batch)
    for _ in range(3):
        assert carry.inner_carry.coarse_halted.tolist() == [[True, False]] * 4
        before, (carry, outputs) = carry.inner_carry, model.model(carry=carry, batch=batch)
        after = carry.inner_carry
        for name in ("coarse_z_H", "coarse_z_L"):
            assert torch.equal(getattr(before, name)[:, :first], getattr(after, name)[:, :first])
            assert not torch.isclose(getattr(before, name)[:, first:], getattr(after, name)[:, first:]).all(-1).any()
        assert not torch.isclose(before.z_H, after.z_H).all(-1).any()
    assert "coarse_logits" in outputs
    # The next puzzle wakes the level up, in the rows that take it.
    carry.halted = torch.tensor([True, False, False, True])
    woken = inner.reset_carry(carry.halted, carry.inner_carry)
    assert woken.coarse_halted.tolist() == [[False, False], [True, False], [True, False], [False, False]]
    assert torch.equal(woken.coarse_z_H[0], inner.H_init.expand_as(woken.coarse_z_H[0]))
    assert torch.equal(woken.coarse_z_L[1], carry.inner_carry.coarse_z_L[1])


def test_a_level_waits_for_the_coarser_ones() -> None:
    """It halts in the step in which they do, and not before, however sure it is."""
    inner = awake().model.inner
    batch = make_batch()
    for coarsest, expected in ((-9.0, [False, False]), (9.0, [True, True])):
        with torch.no_grad():
            for level, bias in zip(inner.coarse, (coarsest, 9.0), strict=True):
                level.q_head.weight.zero_()
                level.q_head.bias.fill_(bias)
        carry, _, outputs = inner.prepare(inner.empty_carry(4), batch)
        assert carry.coarse_halted.tolist() == [expected] * 4
        assert outputs["coarse_q_halt_logits"].tolist() == [[coarsest, 9.0]] * 4
    carry.coarse_halted = torch.ones_like(carry.coarse_halted)
    with torch.no_grad():
        inner.coarse[0].q_head.bias.fill_(-9.0)
    assert inner.prepare(carry, batch)[0].coarse_halted.all()  # for good


def test_coarse_levels_need_not_halt() -> None:
    inner = awake(coarse_halting=False).model.inner
    with torch.no_grad():
        for level in inner.coarse:
            level.q_head.weight.zero_()
            level.q_head.bias.fill_(9.0)
    assert not inner.prepare(inner.empty_carry(4), make_batch())[0].coarse_halted.any()


def test_losses_of_the_levels_by_hand() -> None:
    weight = 0.3
    model, plain = awake(coarse_loss_weight=weight).eval(), awake(coarse_loss_weight=0.0).eval()
    batch = make_batch()
    batch["labels"][3] = -100  # a row of padding counts nowhere
    keys = ["coarse_logits", "coarse_q_halt_logits"]
    _, loss, metrics, found, _ = model(carry=model.initial_carry(batch), batch=batch, return_keys=keys)
    _, without, *_ = plain(carry=plain.initial_carry(batch), batch=batch)
    expected = torch.zeros((), dtype=torch.float64)
    for index, (grid, cells) in enumerate((((1, 1), slice(0, 1)), ((2, 3), slice(1, 7)))):
        targets = coarse_targets(batch["labels"], grid, (6, 6), 6)[:3]
        logits, q_halt = found["coarse_logits"][:3, cells], found["coarse_q_halt_logits"][:3, index]
        lm_loss = stablemax_cross_entropy(logits, targets).mean(-1).sum()
        right = (logits.argmax(-1) == targets).all(-1).float()
        q_loss = F.binary_cross_entropy_with_logits(q_halt, right, reduction="sum")
        expected += weight * (lm_loss + 0.5 * q_loss)
        name = f"level_{grid[0]}x{grid[1]}"
        torch.testing.assert_close(metrics[f"{name}_lm_loss"], lm_loss)
        torch.testing.assert_close(metrics[f"{name}_q_halt_loss"], q_loss)
    torch.testing.assert_close(loss - without, expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": [[3, 3], [9, 9]]}, "ends with 9x9, which is 81 cells, and the data has 36"),
        ({"levels": [[4, 4], [6, 6]]}, "4x4 does not divide 6x6"),
        ({"levels": [[3], [6, 6]]}, "levels.0"),
        ({"levels": []}, "levels"),
        ({"seq_len": 24}, "24 cells are no square grid"),
    ],
)
def test_levels_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**changes)


def test_a_graph_for_each_kind_of_call_at_each_level() -> None:
    """Compiled once: without gradients, with them, and with them in the state too; no more in later steps."""
    model = awake(H_cycles=3).train()
    graphs = CompileCounter()
    model.model.inner.L_level.compile(backend=graphs, fullgraph=True, dynamic=False)
    carry, counts = model.initial_carry(make_batch()), []
    with torch._dynamo.config.patch(recompile_limit=GRAPHS_OF_A_LEVEL):
        for step in range(3):
            carry, loss, *_ = model(carry=carry, batch=make_batch(step))
            loss.backward()
            counts.append(graphs.frame_count)
    assert counts == [3 * 3] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("changes", [{}, {"mlp_t": True, "pos_encodings": "none"}], ids=str)
def test_the_host_waits_for_no_level(changes: dict[str, Any]) -> None:
    model = awake(**changes, forward_dtype="bfloat16").cuda().train()
    batch = {key: value.cuda() for key, value in make_batch().items()}
    minimum = torch.zeros(4, dtype=torch.int32, device="cuda")
    carry = model.initial_carry(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            carry, loss, *_ = model(carry=carry, batch=batch, min_halt_steps=minimum)
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
