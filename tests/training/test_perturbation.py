"""Moved latents: how far they go, and that the target is the teacher's answer for where they went."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models import load_class
from models.losses import ACTLossHead
from tests.models.test_models import ARCHITECTURES
from training.perturbation import Perturbation
from training.teacher import Teacher

BATCH, SIZE = 12, 0.5
ARCHS: dict[str, tuple[str, dict[str, Any]]] = {
    "trm": ("trm", {"L_layers": 1, "puzzle_emb_ndim": 32, "puzzle_emb_len": 2}),
    "trm mlp": ("trm", {"L_layers": 1, "mlp_t": True, "pos_encodings": "none"}),
    "hrm": ("hrm", {"H_layers": 1, "L_layers": 1}),
}


@dataclasses.dataclass(frozen=True)
class Stub:
    """As much of a teacher as is asked."""

    model: Any
    update = Teacher.update

    @property
    def config(self) -> Any:
        return self.model.model.config


def teacher_of(name: str) -> Any:
    arch, changes = ARCHS[name]
    settings: dict[str, Any] = {"batch_size": 1, "seq_len": 7, "vocab_size": 5, "num_puzzle_identifiers": 2}
    settings |= {"hidden_size": 32, "num_heads": 2, "H_cycles": 2, "L_cycles": 2, "forward_dtype": "float32"}
    torch.manual_seed(0)
    return Stub(ACTLossHead(load_class(ARCHITECTURES[arch])(settings | changes), "stablemax_cross_entropy").eval())


def rows_of(teacher: Teacher) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents of RMS 1, x, types and targets; x is zero in rows of type 1. Both types are among the moved rows."""
    shape = (BATCH, teacher.config.latent_length, teacher.config.hidden_size)
    prev, other, x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    types = torch.arange(BATCH) // 2 % 2
    prev, other = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (prev, other))
    return prev, other, torch.where(types.view(-1, 1, 1) == 0, x, 0), types, torch.full(shape, 7.0)


def perturbation_of(teacher: Teacher, size: float = SIZE, seed: int = 3, slots: range = range(BATCH)) -> Perturbation:
    return Perturbation(teacher, size, seed, slots, torch.device("cpu"))


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("step", [4, 5])
def test_every_other_row_is_moved_and_answered_by_its_level(name: str, step: int) -> None:
    teacher = teacher_of(name)
    prev, other, x, types, given = rows_of(teacher)
    moved_prev, moved_other, target = perturbation_of(teacher)(step, prev, other, x, types, given)
    inner = teacher.model.model.inner
    cos_sin = None if inner.rotary is None else inner.rotary()
    for row in range(BATCH):
        if row % 2 != step % 2:
            for before, after in ((prev, moved_prev), (other, moved_other), (given, target)):
                assert torch.equal(before[row], after[row])
            continue
        level = inner.L_level if types[row] == 0 else getattr(inner, "H_level", inner.L_level)
        injection = moved_other[row] + x[row] if types[row] == 0 else moved_other[row]
        expected = level(moved_prev[row, None], injection[None], cos_sin)[0]
        torch.testing.assert_close(target[row], expected, rtol=0, atol=1e-5)
        unmoved = level(prev[row, None], (other[row] + x[row])[None], cos_sin)[0]
        assert (target[row] - unmoved).abs().max() > 1e-3
    assert not target.requires_grad and (given == 7).all()


def test_moves_are_of_every_distance_up_to_the_size_and_keep_lengths() -> None:
    teacher = teacher_of("trm")
    prev, other, x, types, given = rows_of(teacher)
    perturbation = perturbation_of(teacher)
    prev = prev * torch.linspace(0.5, 2, prev.shape[1])[:, None]  # initial latents are not of RMS 1
    distances = []
    for step in range(40):
        moved = perturbation(step, prev, other, x, types, given)[:2]
        for before, after in zip((prev, other), moved, strict=True):
            before, after = before[step % 2 :: 2], after[step % 2 :: 2]
            lengths = [z.square().mean(-1).sqrt() for z in (before, after)]
            torch.testing.assert_close(*lengths, rtol=1e-4, atol=0)
            cosine = (before * after).mean(-1) / lengths[0] / lengths[1]
            distances.append((1 / cosine.square() - 1).clamp(min=0).sqrt().mean(-1))  # the tangent: about the scale
    found = torch.cat(distances)
    assert found.max() < 1.3 * SIZE and found.min() < 0.1 * SIZE
    assert found.mean().item() == pytest.approx(SIZE / 2, rel=0.1)


def test_a_move_has_a_part_that_is_the_same_for_all_tokens() -> None:
    teacher = teacher_of("trm")
    prev, _, x, types, given = rows_of(teacher)
    base = torch.zeros_like(prev)
    base[..., 0] = prev.shape[-1] ** 0.5  # all tokens alike, so that what is common shows
    shares = []
    for step in range(30):
        move = (perturbation_of(teacher)(step, base, base, x, types, given)[0] - base)[step % 2 :: 2]
        shares.append(move.mean(1).square().sum(-1) / move.square().sum(-1).mean(1))
    assert torch.cat(shares).mean().item() == pytest.approx(0.5, abs=0.1)


def test_moves_depend_on_seed_step_and_slot_alone() -> None:
    teacher = teacher_of("trm")
    rows = rows_of(teacher)
    whole = perturbation_of(teacher)(5, *rows)
    again = perturbation_of(teacher)
    again(4, *rows)
    for one, other in zip(whole, again(5, *rows), strict=True):
        assert torch.equal(one, other)
    for first, last in ((0, 4), (4, 9), (9, BATCH)):  # as three processes would share them
        part = perturbation_of(teacher, slots=range(first, last))(5, *(z[first:last] for z in rows))
        for one, own in zip(whole, part, strict=True):
            torch.testing.assert_close(one[first:last], own, rtol=0, atol=1e-5)
    for elsewhere in (perturbation_of(teacher)(6, *rows), perturbation_of(teacher, seed=4)(5, *rows)):
        assert (elsewhere[0] - whole[0]).abs().amax((1, 2))[1::2].min() > 1e-3


def test_no_size_is_no_move() -> None:
    teacher = teacher_of("trm")
    prev, other, x, types, given = rows_of(teacher)
    moved = perturbation_of(teacher, size=0.0)(0, 1.7 * prev, other, x, types, given)
    torch.testing.assert_close(moved[0], 1.7 * prev, rtol=1e-4, atol=0)
    torch.testing.assert_close(moved[1], other, rtol=1e-4, atol=0)
