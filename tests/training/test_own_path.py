"""The head's own path: where a lane leads, that the teacher answers for it, and when it starts anew."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.normalisation import LatentNormalizer
from diffusion.process import NoiseProcess
from diffusion.schedule import alphas_cumprod
from models import load_class
from models.diffusion_916 import Diffusion916
from models.losses import ACTLossHead
from tests.models.test_models import ARCHITECTURES
from training.distributed import Distributed
from training.harvest_batches import LayerBatch
from training.own_path import ROWS_PER_LANE, OwnPath
from training.teacher import Teacher

BATCH, H, L, LAST = 16, 2, 2, 3
BLOCKS = L + 1


@dataclasses.dataclass(frozen=True)
class Stub:
    """As much of a teacher as is asked."""

    model: Any
    H_cycles: int = H
    L_cycles: int = L
    halt_max_steps: int = LAST
    update = Teacher.update

    @property
    def config(self) -> Any:
        return self.model.model.config


def teacher(arch: str = "trm", **changes: Any) -> Any:
    settings: dict[str, Any] = {"batch_size": 1, "seq_len": 7, "vocab_size": 5, "num_puzzle_identifiers": 2}
    settings |= {"hidden_size": 32, "num_heads": 2, "H_cycles": H, "L_cycles": L, "forward_dtype": "float32"}
    torch.manual_seed(0)
    model = load_class(ARCHITECTURES[arch])(settings | {"L_layers": 1} | changes)
    return Stub(ACTLossHead(model, "stablemax_cross_entropy").eval())


def head_of(teacher: Any, perfect: bool = True) -> Diffusion916:
    """A head that is the teacher's update, or one that knows nothing."""
    config = teacher.config
    normalizer = LatentNormalizer.identity(2, config.hidden_size)
    settings: dict[str, Any] = {"latent_size": config.hidden_size, "length": config.latent_length, "num_heads": 2}
    settings |= {"num_layers": 1, "forward_dtype": "float32"}
    torch.manual_seed(0)
    head = Diffusion916(settings, NoiseProcess(alphas_cumprod("linear", 100)), normalizer)
    if perfect:
        head.init_from_level(teacher.model.model.inner.L_level)
    return head


def rows_of(teacher: Any, seed: int = 1) -> tuple[LayerBatch, Tensor, Tensor]:
    """A batch of harvested rows, all x, and which updates of their ACT steps they are."""
    shape = (BATCH, teacher.config.latent_length, teacher.config.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    prev, other, x = torch.randn(3, *shape, generator=generator)
    prev, other = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (prev, other))
    row = torch.arange(BATCH) % (H * BLOCKS)
    types = (row % BLOCKS == L).to(torch.int64)
    read = torch.where(types.view(-1, 1, 1) == 0, x, 0)
    numbers = torch.full((BATCH,), 1), row % BLOCKS, torch.arange(BATCH) + 10 * seed
    return LayerBatch(prev, other, read, teacher.update(prev, other + read, types), types, *numbers), x, row


def own_path(teacher: Any, head: Any, updates: float = 1e9, slots: range = range(BATCH), seed: int = 3) -> OwnPath:
    return OwnPath(teacher, head, updates, seed, slots, Distributed())


def recursion(teacher: Any, z_L: Tensor, z_H: Tensor, x: Tensor, row: int) -> Any:
    """The states z_L, z_H before update `row` of an ACT step and all that follow, one row alone."""
    while True:
        yield z_L, z_H, row
        kind = torch.tensor([int(row % BLOCKS == L)])
        if kind == 1:
            z_H = teacher.update(z_H[None], z_L[None], kind)[0]
        else:
            z_L = teacher.update(z_L[None], (z_H + x)[None], kind)[0]
        row = (row + 1) % (H * BLOCKS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "changes"),
    [("trm", {}), ("trm", {"mlp_t": True, "pos_encodings": "none"}), ("hrm", {"H_layers": 1})],
    ids=["attention", "mlp", "two levels"],
)
def test_the_teacher_answers_each_row_by_the_level_of_its_type(arch: str, changes: dict[str, Any]) -> None:
    trm = teacher(arch, **changes)
    batch, _, _ = rows_of(trm)
    inner = trm.model.model.inner
    cos_sin = None if inner.rotary is None else inner.rotary()
    for row in range(BATCH):
        level = inner.L_level if batch.types[row] == 0 else getattr(inner, "H_level", inner.L_level)
        expected = level(batch.prev[row, None], (batch.other + batch.x)[row, None], cos_sin)[0]
        torch.testing.assert_close(batch.target[row], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_perfect_head_leads_along_the_teachers_path() -> None:
    """Types, ACT steps and both latents follow the recursion, over the ends of H-cycles and of ACT steps."""
    trm = teacher()
    lanes = own_path(trm, head_of(trm))
    batch, x, row = rows_of(trm)
    paths = []
    for slot in range(0, BATCH, ROWS_PER_LANE):
        states = (batch.other, batch.prev) if batch.types[slot] else (batch.prev, batch.other)
        paths.append(recursion(trm, states[0][slot], states[1][slot], x[slot], int(row[slot])))
    for step in range(2 * H * BLOCKS):
        found = lanes(step, *rows_of(trm, seed=1 + step))
        for lane, path in enumerate(paths):
            z_L, z_H, at = next(path)
            first = ROWS_PER_LANE * lane
            slot = first + step % ROWS_PER_LANE
            assert found.position[slot] == at % BLOCKS and found.types[slot] == (at % BLOCKS == L)
            assert found.act_step[slot] == 1 + (int(row[first]) + step) // (H * BLOCKS)
            assert found.puzzle[slot] == batch.puzzle[first]
            expected = (z_H, z_L) if found.types[slot] else (z_L, z_H)
            for ours, theirs in zip((found.prev[slot], found.other[slot]), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            read = 0 if found.types[slot] else x[first]
            torch.testing.assert_close(found.x[slot], torch.zeros_like(z_L) + read)


@torch.no_grad()
def test_the_teacher_answers_for_where_a_poor_head_leads() -> None:
    trm = teacher()
    lanes = own_path(trm, head_of(trm, perfect=False))
    for step in range(7):
        given, x, row = rows_of(trm, seed=1 + step)
        found = lanes(step, copy.deepcopy(given), x, row)
        own = torch.arange(BATCH) % ROWS_PER_LANE == step % ROWS_PER_LANE
        for field in dataclasses.fields(LayerBatch):
            assert torch.equal(getattr(found, field.name)[~own], getattr(given, field.name)[~own]), field.name
        torch.testing.assert_close(found.target, trm.update(found.prev, found.other + found.x, found.types))
        if step:  # it is off the teacher's path, and not where the batch was
            assert (found.prev[own] - given.prev[own]).abs().amax((1, 2)).min() > 0.1


@torch.no_grad()
def test_lanes_start_anew_from_the_rows_they_replace() -> None:
    trm = teacher()
    head = head_of(trm, perfect=False)
    always = own_path(trm, head, updates=1e-9)
    for step in range(3):
        given, x, row = rows_of(trm, seed=1 + step)
        found = always(step, copy.deepcopy(given), x, row)
        for field in dataclasses.fields(LayerBatch):
            torch.testing.assert_close(getattr(found, field.name), getattr(given, field.name), rtol=0, atol=1e-5)
    lanes = own_path(trm, head, updates=4.0)
    ages, age = [], torch.zeros(BATCH // ROWS_PER_LANE)
    for step in range(400):
        given, x, row = rows_of(trm, seed=1 + step % 7)
        given = dataclasses.replace(given, act_step=torch.full((BATCH,), -100))  # far from the last
        found = lanes(step, copy.deepcopy(given), x, row)
        fresh = (found.prev == given.prev)[step % ROWS_PER_LANE :: ROWS_PER_LANE].all((1, 2))
        ages += age[fresh].tolist() if step else []
        age = torch.where(fresh, 1, age + 1)
    assert sum(ages) / len(ages) == pytest.approx(1 + 4.0, rel=0.15)  # the state it started from, and four updates


@torch.no_grad()
def test_no_lane_goes_beyond_the_last_act_step() -> None:
    trm = teacher()
    lanes = own_path(trm, head_of(trm, perfect=False))
    steps = [lanes(step, *rows_of(trm)).act_step.max() for step in range(3 * LAST * H * BLOCKS)]
    reached = torch.stack(steps)
    assert reached.max() == LAST
    assert (reached.diff() < 0).sum() >= 2  # and it began again


@torch.no_grad()
def test_lanes_depend_on_the_slot_and_go_on_from_what_was_saved() -> None:
    trm = teacher()
    head = head_of(trm, perfect=False)
    whole, saved = own_path(trm, head, updates=3.0), own_path(trm, head, updates=3.0)
    parts = [own_path(trm, head, updates=3.0, slots=slots) for slots in (range(4), range(4, BATCH))]
    for step in range(6):
        given, x, row = rows_of(trm, seed=1 + step)
        found = whole(step, copy.deepcopy(given), x, row)
        for part, slots in zip(parts, (slice(0, 4), slice(4, BATCH)), strict=True):
            own = LayerBatch(*(getattr(given, field.name)[slots].clone() for field in dataclasses.fields(LayerBatch)))
            torch.testing.assert_close(part(step, own, x[slots], row[slots]).prev, found.prev[slots])
        if step == 3:
            places, tensors = whole.saved()
            assert places == range(BATCH // ROWS_PER_LANE)
            saved.load({name: tensor.clone() for name, tensor in tensors.items()})
        elif step > 3:
            again = saved(step, given, x, row)
            assert all(torch.equal(getattr(again, f.name), getattr(found, f.name)) for f in dataclasses.fields(again))
    other = own_path(trm, head, updates=3.0, seed=4)
    assert not torch.equal(other._restarts(5), whole._restarts(5)) or not torch.equal(
        other._restarts(6), whole._restarts(6)
    )
