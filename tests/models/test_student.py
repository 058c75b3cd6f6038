"""A student whose head is the teacher itself must be the teacher, whatever it replaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.act import ACTModel
from models.losses import IGNORE_LABEL_ID, ACTLossHead
from models.recursive_reasoning.hrm import HierarchicalReasoningModel_ACTV1
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1
from models.recursive_reasoning.trm_hierarchical_diffusion import TRMHierarchicalDiffusion
from models.recursive_reasoning.trm_singlez import TinyRecursiveReasoningModel_ACTV1 as SingleZ
from models.student import KEY_STRIDE, Student, row_keys

SHAPE = {"batch_size": 4, "seq_len": 9, "vocab_size": 6, "num_puzzle_identifiers": 2, "hidden_size": 16, "num_heads": 2}
CYCLES = {"H_cycles": 2, "L_cycles": 3, "L_layers": 1, "halt_max_steps": 4, "forward_dtype": "float32"}
ROWS = 4


def make_teacher(name: str) -> ACTModel:
    torch.manual_seed(0)
    if name == "hrm":
        model: ACTModel = HierarchicalReasoningModel_ACTV1(SHAPE | CYCLES | {"H_layers": 1})
    elif name == "coarse to fine":
        model = TRMHierarchicalDiffusion(SHAPE | CYCLES)
        torch.nn.init.normal_(model.inner.up.weight)  # untrained levels tell each other nothing
    else:
        model = TinyRecursiveReasoningModel_ACTV1(SHAPE | CYCLES | {"mlp_t": name == "trm mlp"})
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
    return model.eval()


@pytest.fixture(params=["trm", "trm mlp", "hrm"])
def teacher(request: pytest.FixtureRequest) -> ACTModel:
    return make_teacher(request.param)


def make_batch(rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 6, (2, rows, 9), generator=generator, dtype=torch.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32)}


class Oracle:
    """The teacher's own recursion as a head, and a record of the calls."""

    def __init__(self, teacher: ACTModel, kind: str, steps: int = 1):
        self.inner, self.kind, self.steps = teacher.inner, kind, steps
        self.calls: list[tuple[int | None, Tensor]] = []

    def __call__(self, conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor) -> Tensor:
        inner = self.inner
        cos_sin = None if inner.rotary is None else inner.rotary()
        self.calls.append((None if types is None else int(types[0]), key))
        if self.kind == "layer":
            prev, other, x = conditions
            assert types is not None and bool((types == types[0]).all())
            if types[0] == 1:
                assert not x.any()
                level = getattr(inner, "H_level", inner.L_level)
                return level(prev, other, cos_sin).unsqueeze(1)
            return inner.L_level(prev, other + x, cos_sin).unsqueeze(1)
        x, z_H, z_L = conditions
        carry = inner.carry_class(z_H=z_H, z_L=z_L)
        if self.kind == "h_cycle":
            updates: list[Tensor] = []
            carry = inner.cycle(carry, x, cos_sin, updates)
            return torch.stack([*updates, carry.z_H], dim=1)
        for _ in range(self.steps):
            carry = inner.recur(carry, x, cos_sin)
        return torch.stack([carry.z_H, carry.z_L], dim=1)


def run(model: Any, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """One call a batch, with the carry going on."""
    carry, found = model.initial_carry(batches[0]), []
    with torch.no_grad():
        for batch in batches:
            carry, outputs = model(carry=carry, batch=batch)
            found.append({**outputs, "steps": carry.steps, "halted": carry.halted})
    assert "steps" not in carry.current_data
    return found


@pytest.mark.parametrize("kind", ["layer", "h_cycle"])
@pytest.mark.parametrize("name", ["trm", "trm mlp", "hrm", "coarse to fine"])
def test_replacing_updates_by_themselves_changes_nothing(name: str, kind: Any) -> None:
    """Over more ACT steps than a puzzle has, so that puzzles are swapped, and to the bit. Coarse levels stay."""
    teacher = make_teacher(name)
    batches = [make_batch(seed=step) for step in range(6)]
    expected, found = run(teacher, batches), run(Student(teacher, kind, Oracle(teacher, kind)), batches)
    for theirs, ours in zip(expected, found, strict=True):
        for key in ("logits", "q_halt_logits", "steps", "halted"):
            assert torch.equal(theirs[key], ours[key]), key


def test_a_jump_is_read_out_and_gone_on_from(teacher: ACTModel) -> None:
    """ACT step 1 of the student is the teacher's third, and the fourth is the student's second."""
    batch = make_batch()
    teacher.config.halt_max_steps = 8
    expected = run(teacher, [batch] * 4)
    found = run(Student(teacher, "jump", Oracle(teacher, "jump", steps=3)), [batch] * 2)
    assert torch.equal(found[0]["logits"], expected[2]["logits"])
    assert torch.equal(found[1]["logits"], expected[3]["logits"])
    assert found[1]["steps"].tolist() == [2] * ROWS


def test_a_later_jump_starts_from_the_teacher(teacher: ACTModel) -> None:
    teacher.config.halt_max_steps = 8
    expected = run(teacher, [make_batch()] * 5)
    oracle = Oracle(teacher, "jump", steps=3)
    found = run(Student(teacher, "jump", oracle, jump_at=1), [make_batch()] * 3)
    assert torch.equal(found[0]["logits"], expected[0]["logits"])
    assert torch.equal(found[1]["logits"], expected[3]["logits"])
    assert torch.equal(found[2]["logits"], expected[4]["logits"])
    assert len(oracle.calls) == 1


def test_rows_that_start_anew_jump_alone() -> None:
    teacher = make_teacher("trm")
    student = Student(teacher, "jump", Oracle(teacher, "jump", steps=2))
    old, new = make_batch(), make_batch(seed=1)
    carry, _ = student(carry=student.initial_carry(old), batch=old)
    carry.halted = torch.tensor([False, True, False, True])
    _, mixed = student(carry=carry, batch=new)
    fresh, going = run(student, [new])[0], run(student, [old, old])[1]
    assert torch.allclose(mixed["logits"][1::2], fresh["logits"][1::2], atol=1e-6)
    assert torch.allclose(mixed["logits"][::2], going["logits"][::2], atol=1e-6)
    assert not torch.allclose(mixed["logits"][::2], fresh["logits"][::2], atol=1e-3)


def test_a_wrong_head_shows() -> None:
    teacher = make_teacher("trm")

    def constant(conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor) -> Tensor:
        return torch.ones_like(conditions[0]).unsqueeze(1)

    found = run(Student(teacher, "layer", constant), [make_batch()])[0]["logits"]
    assert torch.allclose(found, found[:1, :1].expand_as(found))
    assert not torch.allclose(found, run(teacher, [make_batch()])[0]["logits"], atol=1e-2)


def test_keys_name_the_puzzle_and_the_update() -> None:
    teacher = make_teacher("trm")
    batch = make_batch(64)
    keys = row_keys(batch["inputs"])
    assert len(keys.unique()) == 64 and bool((keys >= 0).all())
    order = torch.arange(63, -1, -1)
    assert torch.equal(row_keys(batch["inputs"][order]), keys[order])
    oracle = Oracle(teacher, "layer")
    run(Student(teacher, "layer", oracle), [batch])
    updates = CYCLES["H_cycles"] * (CYCLES["L_cycles"] + 1)  # type: ignore[operator]
    assert [kind for kind, _ in oracle.calls] == [0, 0, 0, 1] * 2
    assert [int(key[5] - keys[5]) for _, key in oracle.calls] == [KEY_STRIDE * place for place in range(updates)]


def test_runs_under_the_loss_head() -> None:
    teacher = make_teacher("trm")
    student = ACTLossHead(Student(teacher, "h_cycle", Oracle(teacher, "h_cycle")), "softmax_cross_entropy").eval()
    batch = make_batch()
    batch["labels"][0] = IGNORE_LABEL_ID
    carry = student.initial_carry(batch)
    for _ in range(4):
        carry, loss, metrics, preds, finished = student(carry=carry, batch=batch, return_keys=("preds",))
    assert bool(finished) and int(metrics["count"]) == 3 and preds["preds"].shape == (4, 9)
    assert not teacher.training and not loss.requires_grad


def test_refusals() -> None:
    teacher = make_teacher("trm")
    student = Student(teacher, "layer", Oracle(teacher, "layer"))
    batch = make_batch()
    carry = student.initial_carry(batch)
    with pytest.raises(ValueError, match="store the trajectory of its teacher"):
        student(carry=carry, batch=batch, store_diffusion_trajectory=True)
    with pytest.raises(ValueError, match="cannot be trained"):
        student.train()(carry=carry, batch=batch)
    with pytest.raises(ValueError, match="rows='layers' is unknown; choose one of layer, h_cycle, jump"):
        Student(teacher, "layers", Oracle(teacher, "layer"))  # type: ignore[arg-type]
    singlez = SingleZ(SHAPE | CYCLES)
    with pytest.raises(ValueError, match="z_H and z_L"):
        Student(singlez, "layer", Oracle(teacher, "layer"))
