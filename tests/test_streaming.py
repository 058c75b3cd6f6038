"""The harvester: what its rows hold, what it draws, that it can be taken up again and that it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pretrain
from datasets.common import InputError
from diffusion_streaming import (
    HCycleStreamer,
    JumpStreamer,
    LayerUpdateStreamer,
    collate_hcycle_examples,
    collate_layer_examples,
)
from models import load_class
from models.diffusion_blocks import DiffusionHead
from models.losses import ACTLossHead
from tests.models.test_models import ARCHITECTURES
from tests.training.runs import TRM, build_sudoku_4x4, overrides
from training.cli import run_cli
from training.config import load_config
from training.diffusion_head import build_head, head_config
from training.diffusion_schema import HarvestConfig
from training.distributed import Distributed
from training.harvest import (
    EntryLayout,
    LaneSchedule,
    copy_error,
    draw_rows,
    eval_batches,
    harvest_entries,
    survival_of,
)
from training.teacher import Teacher, open_teacher

BATCH, MAX_STEPS = 4, 5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trm": ("trm", {"H_cycles": 2, "L_cycles": 3, "L_layers": 1, "puzzle_emb_len": 2}),
    "trm mlp": ("trm", {"H_cycles": 2, "L_cycles": 2, "L_layers": 1, "mlp_t": True, "pos_encodings": "none"}),
    "hrm": ("hrm", {"H_cycles": 2, "L_cycles": 2, "H_layers": 1, "L_layers": 1}),
    "coarse to fine": ("trm_hierarchical_diffusion", {"H_cycles": 2, "L_cycles": 2, "L_layers": 1}),
}
STREAMERS: dict[str, Any] = {"layer": LayerUpdateStreamer, "h_cycle": HCycleStreamer, "jump": JumpStreamer}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("teacher")
    data = build_sudoku_4x4(folder / "sudoku")
    assert run_cli(pretrain.main, overrides(TRM, data, folder / "run", "max_steps=2")) == 0
    return open_teacher(str(folder / "run"), Distributed())


def variant_of(trained: Teacher, name: str, dtype: str = "float32", device: str = "cpu") -> Teacher:
    """The same data under another small model."""
    arch, changes = VARIANTS[name]
    metadata = trained.train_set.metadata
    settings = {
        "batch_size": 1,
        "seq_len": metadata.seq_len,
        "vocab_size": metadata.vocab_size,
        "num_puzzle_identifiers": metadata.num_puzzle_identifiers,
        "hidden_size": 16,
        "num_heads": 2,
        "puzzle_emb_ndim": 16,
        "halt_max_steps": MAX_STEPS,
        "forward_dtype": dtype,
    }
    torch.manual_seed(0)
    model = load_class(ARCHITECTURES[arch])(settings | changes)
    model.inner.puzzle_emb.weights.normal_()
    if arch == "trm_hierarchical_diffusion":  # untrained levels tell each other nothing
        torch.nn.init.normal_(model.inner.up.weight)
    head = ACTLossHead(model, "stablemax_cross_entropy").eval().requires_grad_(False).to(device)
    return dataclasses.replace(trained, model=head)


@pytest.fixture(scope="module", params=VARIANTS)
def teacher(request: pytest.FixtureRequest, trained: Teacher) -> Teacher:
    return variant_of(trained, request.param)


@pytest.fixture(scope="module")
def trm(trained: Teacher) -> Teacher:
    return variant_of(trained, "trm")


def make(kind: str, teacher: Teacher, dist: Distributed | None = None, seed: int = 3, **options: Any) -> Any:
    choices: dict[str, Any] = {
        "replay": 0.5,
        "act_step_weights": [1.0, 0.8, 0.6, 0.4, 0.2],
    } | options
    choices.setdefault("ring_gib", ring_gib(kind, teacher, choices, entries=6, world=dist.world_size if dist else 1))
    return STREAMERS[kind](teacher, dist or Distributed(), HarvestConfig(**choices), global_batch_size=BATCH, seed=seed)


def head_of(teacher: Teacher, device: torch.device | None = None) -> DiffusionHead:
    """A new head for single updates, which knows nothing."""
    config: Any = load_config("cfg_diffusion_train", ["checkpoint=none"])
    settings = head_config(config.diffusion, teacher)
    return build_head(config.diffusion.name, settings, config.noise, device or torch.device("cpu"))


def ring_gib(kind: str, teacher: Teacher, options: dict[str, Any], entries: int, world: int) -> float:
    """Room for so many entries of each lane."""
    latents = EntryLayout(teacher.H_cycles, teacher.L_cycles).tensors
    if kind == "jump":
        latents = 3 + 2 * len(options.get("jump_from", [0]))
    lanes = BATCH * options.get("lanes_per_row", 1) // world
    return (entries + 0.5) * lanes * latents * teacher.latent_length * teacher.hidden_size * 4 / 2**30


def trajectory_of(teacher: Teacher, puzzle: int, steps: int = MAX_STEPS) -> Tensor:
    """Entries [steps, K, P, D] of the puzzle at a position of the training stream, run alone."""
    batch = {key: torch.from_numpy(value) for key, value in teacher.train_set.train_rows(np.array([puzzle])).items()}
    return harvest_entries(teacher, batch, range(1, steps + 1))[0]


def level_output(teacher: Teacher, kind: int, prev: Tensor, other: Tensor, x: Tensor) -> Tensor:
    inner = teacher.model.model.inner
    cos_sin = None if inner.rotary is None else inner.rotary()
    if kind == 0:
        return inner.L_level(prev[None], (other + x)[None], cos_sin)[0]
    return getattr(inner, "H_level", inner.L_level)(prev[None], other[None], cos_sin)[0]


def test_entries_hold_the_latents_of_a_plain_forward_pass(teacher: Teacher) -> None:
    """Bit for bit in fp32, at every ACT step."""
    arrays = teacher.train_set.train_rows(np.arange(3))
    batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
    layout = EntryLayout(teacher.H_cycles, teacher.L_cycles)
    entries = harvest_entries(teacher, batch, [1, 2, MAX_STEPS])
    assert entries.shape == (3, 3, layout.tensors, teacher.latent_length, teacher.hidden_size)
    model, inner = teacher.model.model, teacher.model.model.inner
    carry, place = model.initial_carry(batch), 0
    for step in range(1, MAX_STEPS + 1):
        before = inner.reset_carry(carry.halted, carry.inner_carry)
        carry, _ = model(carry=carry, batch=batch)
        if step in (1, 2, MAX_STEPS):
            _, x, _ = inner.prepare(before, batch)
            last = layout.before(teacher.H_cycles)
            for k, latent in enumerate((x, before.z_H, before.z_L)):
                assert torch.equal(entries[:, place, k], latent)
            assert torch.equal(entries[:, place, last[0]], carry.inner_carry.z_H)
            assert torch.equal(entries[:, place, last[1]], carry.inner_carry.z_L)
            place += 1


def test_every_layer_row_is_an_update_of_its_puzzle(teacher: Teacher) -> None:
    streamer = make("layer", teacher)
    seen = set()
    for step in range(0, 40, 4):
        streamer.advance(step)
        batch = streamer.batch(step)
        (prev, other, x), targets, types = batch
        assert targets.shape == (BATCH, teacher.latent_length, teacher.hidden_size)
        for row in range(BATCH):
            kind, position, act_step = (int(v[row]) for v in (types, batch.position, batch.act_step))
            assert kind == (position == teacher.L_cycles)
            made = level_output(teacher, kind, prev[row], other[row], x[row])
            torch.testing.assert_close(made, targets[row], rtol=0, atol=2e-5)
            entry = trajectory_of(teacher, int(batch.puzzle[row]))[act_step - 1]
            same = [
                k for k in range(3, len(entry)) if torch.allclose(entry[k], targets[row], rtol=0, atol=1e-5)
            ]  # of that ACT step and that position
            assert any((k - 3) % (teacher.L_cycles + 1) == position for k in same)
            assert kind == 0 or not x[row].any()
            seen.add((kind, position))
    assert {position for _, position in seen} == set(range(teacher.L_cycles + 1))


def test_a_head_leads_to_every_fourth_row(teacher: Teacher) -> None:
    """Unless it may not; the other rows are what the ring holds, and all are answered by the teacher."""
    plain, led, barred = streamers = [make("layer", teacher, own_path=length) for length in (None, 1e6, 0)]
    for streamer in streamers[1:]:
        streamer.follow(head_of(teacher))
    for step in range(3):
        for streamer in streamers:
            streamer.advance(step)
        without, found, also_without = (streamer.batch(step) for streamer in streamers)
        for row in range(BATCH):
            made = level_output(teacher, int(found.types[row]), found.prev[row], found.other[row], found.x[row])
            torch.testing.assert_close(made, found.target[row], rtol=0, atol=2e-5)
            same = torch.equal(found.prev[row], without.prev[row])
            assert same == (step == 0 or row % 4 != step % 4)
        for one, other in zip(dataclasses.astuple(without), dataclasses.astuple(also_without), strict=True):
            assert torch.equal(one, other)
    assert plain.checksum() == led.checksum() == barred.checksum()


def test_h_cycle_rows_are_whole_cycles(teacher: Teacher) -> None:
    streamer = make("h_cycle", teacher)
    streamer.advance(3)
    batch = streamer.batch(3)
    (x, y_init, z_init), targets = batch
    assert targets.shape == (BATCH, teacher.L_cycles + 1, teacher.latent_length, teacher.hidden_size)
    for row in range(BATCH):
        z, y = z_init[row], y_init[row]
        for j in range(teacher.L_cycles):
            z = level_output(teacher, 0, z, y, x[row])
            torch.testing.assert_close(z, targets[row, j], rtol=0, atol=1e-4)
        torch.testing.assert_close(level_output(teacher, 1, y, z, x[row]), targets[row, -1], rtol=0, atol=1e-4)
        entry = trajectory_of(teacher, int(batch.puzzle[row]))[int(batch.act_step[row]) - 1]
        places = EntryLayout(teacher.H_cycles, teacher.L_cycles).h_cycle_rows[int(batch.h_cycle[row])]
        expected = torch.cat((x[row, None], y_init[row, None], z_init[row, None], targets[row]))
        torch.testing.assert_close(entry[places], expected, rtol=0, atol=1e-4)


def test_jumps_lead_from_the_state_before_a_step_to_a_later_one(teacher: Teacher) -> None:
    fixed = teacher.model.model.inner.fixed_x
    if not fixed:
        with pytest.raises(InputError, match="this teacher's x changes from one ACT step to the next"):
            make("jump", teacher, jump_to=3, jump_from=[2, 0])
    streamer = make("jump", teacher, jump_to=3, jump_from=[2, 0] if fixed else [0])
    sources = set()
    for step in range(6):
        streamer.advance(step)
        batch = streamer.batch(step)
        (x, y, z), targets = batch
        for row in range(BATCH):
            steps = trajectory_of(teacher, int(batch.puzzle[row]))
            before = steps[int(batch.act_step[row]) - 1]
            sources.add(int(batch.act_step[row]) - 1)
            last = EntryLayout(teacher.H_cycles, teacher.L_cycles).before(teacher.H_cycles)
            expected = torch.stack((*before[:3], steps[2][last[0]], steps[2][last[1]]))
            found = torch.stack((x[row], y[row], z[row], *targets[row]))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert sources == ({0, 2} if fixed else {0})


@pytest.mark.parametrize("kind", STREAMERS)
@pytest.mark.parametrize("lanes", [1, 2])
def test_no_two_rows_of_a_batch_are_of_one_puzzle(kind: str, lanes: int, trm: Teacher) -> None:
    streamer = make(kind, trm, lanes_per_row=lanes)
    puzzles = set()
    for step in range(30):
        streamer.advance(step)
        batch = streamer.batch(step)
        found = batch.puzzle.tolist()
        # Stratum s has lanes s * lanes and on, and lane g the positions g, total + g, ...
        assert [position % (BATCH * lanes) // lanes for position in found] == list(range(BATCH))
        puzzles |= set(found)
    assert len(puzzles) > 2 * BATCH


@pytest.mark.parametrize("kind", STREAMERS)
@pytest.mark.parametrize(("lanes", "buffer"), [(1, "auto"), (2, "host")])
def test_a_restored_ring_is_the_same_to_the_bit(kind: str, lanes: int, buffer: str, trm: Teacher) -> None:
    whole, parts = (make(kind, trm, lanes_per_row=lanes, buffer_device=buffer) for _ in range(2))
    sums = set()
    for step in (0, 40, 41, 160):
        whole.advance(step)
        parts.restore(step)
        assert parts.productions == whole.productions
        assert torch.equal(whole.ring._latents, parts.ring._latents)
        np.testing.assert_array_equal(whole.ring.puzzle, parts.ring.puzzle)
        np.testing.assert_array_equal(whole.ring.act_step, parts.ring.act_step)
        assert whole.checksum() == parts.checksum()
        for one, other in zip(*(dataclasses.astuple(s.batch(step)) for s in (whole, parts)), strict=True):
            assert torch.equal(one, other)
        sums.add(whole.checksum())
    assert len(sums) >= 3  # the ring went on meanwhile
    parts.restore(0)  # and back
    with pytest.raises(ValueError, match=r"past step 0: restore\(0\)"):
        whole.advance(0)
    with pytest.raises(ValueError, match="not that of step 160"):
        parts.batch(160)


def check_half_precision(trained: Teacher, device: str) -> None:
    """Rings on the device and in host memory hold, draw and restore the same bfloat16 latents."""
    teacher = variant_of(trained, "trm", "bfloat16", device)
    dist = Distributed(device=torch.device(device))
    places = [make("layer", teacher, dist, lanes_per_row=2, buffer_device=where) for where in ("device", "host")]
    for streamer in places:
        streamer.advance(30)
    sums = [streamer.checksum() for streamer in places]
    batches = [streamer.batch(30) for streamer in places]
    assert sums[0] == sums[1]
    for one, other in zip(*(dataclasses.astuple(batch) for batch in batches), strict=True):
        assert torch.equal(one, other) and one.device.type == device
    assert batches[0].target.dtype == batches[0].x.dtype == torch.bfloat16
    places[1].restore(30)
    assert places[1].checksum() == sums[0]
    types = torch.cat([types for _, types in places[1].latents()])
    assert types.device.type == device and set(types.tolist()) == {0, 1}


def test_bfloat16(trained: Teacher) -> None:
    check_half_precision(trained, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bfloat16_on_a_gpu(trained: Teacher) -> None:
    check_half_precision(trained, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", [*STREAMERS, "own path"])
def test_no_harvest_waits_for_the_gpu(kind: str, trained: Teacher) -> None:
    teacher = variant_of(trained, "trm", "bfloat16", "cuda")
    dist = Distributed(device=torch.device("cuda"))
    streamer = make("layer" if kind == "own path" else kind, teacher, dist)
    if kind == "own path":
        streamer.follow(head_of(teacher, dist.device))
    streamer.fill()
    streamer.batch(0)
    productions = streamer.productions
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 30):
            streamer.advance(step)
            streamer.batch(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert streamer.productions > productions


def test_the_checksum_sees_one_changed_bit_and_an_exchange(trm: Teacher) -> None:
    streamer = make("layer", trm)
    streamer.fill()
    before = streamer.checksum()
    assert streamer.checksum() == before
    bits = streamer.ring._latents.view(torch.int32)
    bits[1, 2, 3, 4, 5] ^= 1
    assert streamer.checksum() != before
    bits[1, 2, 3, 4, 5] ^= 1
    assert streamer.checksum() == before
    latents = streamer.ring._latents
    latents[0, 0, 3:5] = latents[0, 0, [4, 3]]
    assert streamer.checksum() != before


@pytest.mark.parametrize("kind", STREAMERS)
def test_two_processes_draw_the_rows_of_one(kind: str, trm: Teacher) -> None:
    one = make(kind, trm, lanes_per_row=2)
    two = [make(kind, trm, Distributed(rank, 2), lanes_per_row=2) for rank in range(2)]
    assert one.depth == two[0].depth
    for step in (0, 5, 60):
        for streamer in (one, *two):
            streamer.advance(step)
        whole = dataclasses.astuple(one.batch(step))
        shares = [dataclasses.astuple(streamer.batch(step)) for streamer in two]
        for column, parts in zip(whole, zip(*shares, strict=True), strict=True):
            both = torch.cat(parts)
            if column.is_floating_point():
                torch.testing.assert_close(column, both, rtol=0, atol=1e-4)
            else:
                assert torch.equal(column, both)


def test_the_seed_decides_what_is_drawn(trm: Teacher) -> None:
    batches = []
    for seed in (3, 3, 4):
        streamer = make("layer", trm, seed=seed)
        streamer.fill()
        batches.append(streamer.batch(0))
    assert torch.equal(batches[0].target, batches[1].target)
    assert not torch.equal(batches[0].target, batches[2].target)


@pytest.mark.parametrize(
    "weights", [[1.0, 0.5, 0.25, 0.125, 0.125], [1.0, 1.0, 1.0, 1.0, 1.0], [0.25, 1.0, 0.0, 0.5, 0.0]]
)
def test_act_steps_come_in_proportion_to_their_weights(weights: list[float], trm: Teacher) -> None:
    survival, drawing = survival_of(weights)
    schedule = LaneSchedule(0, 8, range(8), survival)
    streamer = make("layer", trm, act_step_weights=weights)
    entries = []
    for _ in range(4000):
        entries.append(schedule.state.act_step)
        schedule.advance()
    steps = np.concatenate(entries)
    counts = np.bincount(steps, weights=drawing[steps - 1], minlength=6)[1:6]
    np.testing.assert_allclose(counts / counts.sum(), np.array(weights) / sum(weights), atol=0.01)
    assert streamer.act_step_weights == weights
    found = np.zeros(5)
    for step in range(1200):  # the draws alone, from what a ring of six entries would hold
        streamer.ring.act_step[:] = np.stack(entries[step * 3 : step * 3 + 6], axis=1)[:BATCH]
        entry, _ = draw_rows(0, step, BATCH, streamer.slots, streamer._entry_weights(), 8)
        found += np.bincount(streamer.ring.act_step[np.arange(BATCH), entry], minlength=6)[1:6]
    np.testing.assert_allclose(found / found.sum(), np.array(weights) / sum(weights), atol=0.03)


def test_a_schedule_found_anew_is_the_one_that_ran() -> None:
    survival, _ = survival_of([1.0, 0.6, 0.5, 0.1])
    whole, share = LaneSchedule(7, 12, range(12), survival), LaneSchedule(7, 12, range(4, 8), survival)
    fresh = LaneSchedule(7, 12, range(12), survival)
    taken = []
    for production in range(60):
        fresh.seek(production)
        for one, other in zip(whole.state, fresh.state, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(whole.state.position[4:8], share.state.position)
        taken += whole.state.position[whole.state.act_step == 1].tolist()
        whole.advance()
        share.advance()
    assert len(set(taken)) == len(taken)  # no puzzle twice


def test_weights_follow_how_far_latents_move(trm: Teacher) -> None:
    error = copy_error(trm, Distributed(), puzzles=6)
    sums = np.zeros((3, MAX_STEPS))
    layout = EntryLayout(trm.H_cycles, trm.L_cycles)
    for puzzle in range(6):
        entries = trajectory_of(trm, puzzle)
        for previous, _, _, target in layout.layer_rows:
            old, new = entries[:, previous], entries[:, target]
            earlier = torch.cat((old[:1], new[:-1]))  # nothing comes before the first ACT step
            terms = (new - old, new - earlier, new)
            sums += torch.stack([term.square().sum((1, 2)) for term in terms]).numpy()
    np.testing.assert_allclose(error, np.sqrt(np.minimum(sums[0], sums[1]) / sums[2]), rtol=1e-4)
    assert error[0] > 2 * error[-1]  # the first step moves most
    streamer = make("layer", trm, act_step_weights="copy_error", act_step_floor=0.3)
    assert max(streamer.act_step_weights) == 1 and min(streamer.act_step_weights) >= 0.3
    assert make("layer", trm, act_step_weights="uniform").act_step_weights == [1.0] * MAX_STEPS


def test_a_harvested_row_is_used_replay_times(trm: Teacher) -> None:
    streamer = make("h_cycle", trm, replay=3.0)
    steps = 600
    produced = streamer.needed(steps) - streamer.needed(0)
    assert steps * BATCH == pytest.approx(3.0 * produced * BATCH * trm.H_cycles, rel=0.01)
    # Full of entries that are right: none of a puzzle that its lane was in the midst of at production 0.
    assert streamer.needed(0) == MAX_STEPS + streamer.depth
    jump = make("jump", trm, lanes_per_row=2)
    assert jump.needed(0) == jump.depth // 2


def test_a_recursion_that_goes_round_in_a_circle_has_nothing_new(trm: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ACT step but the first repeats the one before it, with large moves inside."""
    layout = EntryLayout(trm.H_cycles, trm.L_cycles)
    entries = [torch.randn(layout.tensors, 2, 3, 4, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    steps = [(1, list(entries[0])), *((step, list(entries[1])) for step in range(2, MAX_STEPS + 1))]
    monkeypatch.setattr("training.harvest._act_steps", lambda *args: iter(steps))
    monkeypatch.setattr("training.harvest.entry_tensors", lambda latents: latents)
    error = copy_error(trm, Distributed(), puzzles=2)
    assert (error[:2] > 1).all() and not error[2:].any()


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_first_batches_have_the_act_steps_of_later_ones(lanes: int) -> None:
    """Lanes do not go in step: at every production the ACT steps come as they survive."""
    survival, _ = survival_of([1.0, 0.8, 0.6, 0.4, 0.2])
    schedule = LaneSchedule(1, 4000 * lanes, range(4000 * lanes), survival)
    for _ in range(3 * MAX_STEPS):
        shares = np.bincount(schedule.state.act_step, minlength=MAX_STEPS + 1)[1:] / (4000 * lanes)
        np.testing.assert_allclose(shares, survival / survival.sum(), atol=0.03)
        schedule.advance()


def test_the_first_ring_is_not_in_step(trm: Teacher) -> None:
    """What it holds at step 0 is right, and each of its productions has several ACT steps."""
    streamer = make("layer", trm, act_step_weights="uniform")
    streamer.fill()
    assert (np.ptp(streamer.ring.act_step, axis=0) > 0).any()
    for stratum, entry in np.ndindex(streamer.ring.puzzle.shape):
        puzzle, act_step = (int(labels[stratum, entry]) for labels in (streamer.ring.puzzle, streamer.ring.act_step))
        expected = trajectory_of(trm, puzzle)[act_step - 1]
        torch.testing.assert_close(streamer.ring._latents[stratum, entry], expected, rtol=0, atol=1e-4)


def test_examples_have_the_shapes_of_the_first_description(trm: Teacher) -> None:
    latent = (trm.latent_length, trm.hidden_size)
    layer = make("layer", trm)
    examples = layer.fetch_examples(40)
    assert {example.type for example in examples} == {0, 1}
    for example in examples:
        assert len(example.inputs) == (3 if example.type == 0 else 2)
        assert all(tensor.shape == latent for tensor in (*example.inputs, example.target))
    again = collate_layer_examples(examples[:BATCH])
    layer.restore(0)
    for one, other in zip(dataclasses.astuple(again), dataclasses.astuple(layer.batch(0)), strict=True):
        assert torch.equal(one, other)
    inputs, targets, types = again
    assert len(inputs) == 3 and targets.shape == (BATCH, *latent) and types.shape == (BATCH,)

    cycles = make("h_cycle", trm)
    stacked = cycles.fetch_examples(BATCH)
    assert stacked[0].target.shape == (trm.L_cycles + 1, *latent)
    cycles.restore(0)
    again_cycles = collate_hcycle_examples(stacked)
    for one, other in zip(dataclasses.astuple(again_cycles), dataclasses.astuple(cycles.batch(0)), strict=True):
        assert torch.equal(one, other)
    (x, y_init, z_init), targets = again_cycles
    assert x.shape == y_init.shape == z_init.shape == (BATCH, *latent)
    assert targets.shape == (BATCH, trm.L_cycles + 1, *latent)


def test_latents_for_the_statistics_are_the_targets_of_the_ring(trm: Teacher) -> None:
    streamer = make("layer", trm)
    streamer.fill()
    found = list(streamer.latents())
    latents, types = (torch.cat(part) for part in zip(*found, strict=True))
    updates = trm.H_cycles * (trm.L_cycles + 1)
    assert latents.shape == (BATCH * streamer.depth * updates, trm.latent_length, trm.hidden_size)
    assert types.float().mean().item() == pytest.approx(1 / (trm.L_cycles + 1))
    torch.testing.assert_close(latents.square().mean(-1).sqrt(), torch.ones(latents.shape[:2]), rtol=0, atol=1e-3)
    ring = streamer.ring._latents.flatten(0, 1)
    assert torch.equal(latents.unflatten(0, (-1, updates)), ring[:, 3:])
    jump = make("jump", trm)
    jump.fill()
    assert [types.tolist() for _, types in jump.latents()] == [[1, 0]] * (BATCH * jump.depth)


def test_held_out_puzzles_are_shared_out_without_padding(trm: Teacher) -> None:
    whole = list(eval_batches(trm, Distributed(), rows=7, act_steps=[2], batch_size=4))
    assert [len(part.rows) for part in whole] == [4, 3]
    shares = [eval_batches(trm, Distributed(rank, 2), rows=7, act_steps=[2], batch_size=4) for rank in range(2)]
    rows = np.concatenate([part.rows for share in shares for part in share])
    assert sorted(rows) == np.concatenate([part.rows for part in whole]).tolist() and len(set(rows)) == 7
    sets = list(trm.test_set.test_batches(trm.test_set.num_rows, 0, 1))
    for part in whole:
        assert len(part.entries) == len(part.rows) and (part.batch["labels"] > 0).all()
        for key, value in part.batch.items():
            np.testing.assert_array_equal(value.numpy(), sets[0][1][key][part.rows])


def files_below(*folders: Path) -> Iterator[tuple[str, int]]:
    for folder in folders:
        yield from ((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def test_nothing_is_written_to_disk(trm: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trm.weights.path.parent.parent
    before = dict(files_below(run, tmp_path))
    opened: list[str] = []
    original = os.open

    def spy(path: Any, *more: Any, **options: Any) -> int:
        opened.append(str(path))
        return original(path, *more, **options)

    monkeypatch.setattr(os, "open", spy)
    streamer = make("layer", trm)
    memory = streamer.ring._latents.data_ptr(), streamer.ring_bytes
    for step in range(20):
        streamer.advance(step)
        streamer.batch(step)
    streamer.checksum()
    assert (streamer.ring._latents.data_ptr(), streamer.ring_bytes) == memory
    assert dict(files_below(run, tmp_path)) == before and opened == []


def test_the_description_names_the_size_of_what_is_not_stored(trm: Teacher) -> None:
    lines = make("layer", trm).describe()
    size = trm.train_set.num_rows * MAX_STEPS * trm.H_cycles * (trm.L_cycles + 1)
    size *= trm.latent_length * trm.hidden_size * 4
    assert f"would take {size / 1e6:.3g} MB" in lines[0] and "nothing is written" in lines[0]
    assert "4 strata x 6 entries x 11 latents" in lines[1]
    assert lines[-1] == "weights of the ACT steps: 1, 0.8, 0.6, 0.4, 0.2"


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        ("layer", {"ring_gib": 1e-6}, "harvest.ring_gib=1e-06 holds no trajectory"),
        ("layer", {"act_step_weights": [1.0, 0.5]}, "has 2 numbers for the teacher's 5 ACT steps"),
        ("jump", {"jump_to": 9}, "harvest.jump_to=9 do not fit"),
        ("jump", {"jump_from": [5]}, "harvest.jump_to=5 do not fit"),
    ],
)
def test_options_that_do_not_fit_are_named(kind: str, options: dict[str, Any], names: str, trm: Teacher) -> None:
    with pytest.raises(InputError, match=names):
        make(kind, trm, **options)


def test_a_batch_that_processes_cannot_share_is_named(trm: Teacher) -> None:
    with pytest.raises(InputError, match="global_batch_size=4 cannot be shared out over 3 processes"):
        make("layer", trm, Distributed(0, 3), ring_gib=0.1)
