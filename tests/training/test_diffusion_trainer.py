"""One training step of a head, computed again by hand; draws that nothing changes; what it costs, counted."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.common import InputError
from models import load_class
from training.config import load_config
from training.diffusion_head import build_head, build_process
from training.diffusion_schema import DiffusionTrainConfig, NoiseSection
from training.diffusion_trainer import MOST_SKIPPED, DiffusionTrainer916, DiffusionTrainer9160
from training.distributed import Distributed
from training.ema import EMA, warmed_up_rate
from training.flops import forward_flops, head_flops, teacher_flops, training_bytes
from training.window import MetricWindow, Stopwatch

P, D, ROWS = 5, 16, 12
TEACHER = {"latent_size": D, "length": P, "num_heads": 2, "expansion": 4, "forward_dtype": "float32"}
LINEAR = NoiseSection(schedule="linear", steps=1000, beta_start=1e-4, beta_end=0.02)


def config_of(*overrides: str) -> DiffusionTrainConfig:
    basic = ["checkpoint=none", f"global_batch_size={ROWS}", "lr_warmup_steps=0", "lr=0.01", "lr_min_ratio=1.0"]
    return load_config("cfg_diffusion_train", [*basic, *overrides])


def trainer_of(*overrides: str, dist: Distributed | None = None) -> Any:
    config = config_of(*overrides)
    settings = config.diffusion.hyperparameters | TEACHER
    layer = config.diffusion.rows == "layer"
    if not layer:
        settings |= {"target_blocks": 3, "num_layers": 2}
    dist = dist or Distributed()
    head = build_head(config.diffusion.name, settings, config.noise, dist.device, config.seed)
    trainer = (DiffusionTrainer916 if layer else DiffusionTrainer9160)(head, config, dist)
    trainer.normalizer.set_statistics(torch.full((2, D), 0.25), torch.tensor([[0.5], [2.0]]).expand(2, D))
    return trainer


def batch_of(trainer: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def latents(*shape: int) -> Tensor:
        z = torch.randn(*shape, P, D, generator=generator)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True))

    conditions = (latents(ROWS), latents(ROWS), latents(ROWS))
    if isinstance(trainer, DiffusionTrainer916):
        return SimpleNamespace(conditions=conditions, target=latents(ROWS), types=torch.arange(ROWS) % 2)
    return SimpleNamespace(conditions=conditions, target=latents(ROWS, 3))


def snapshot(trainer: Any) -> dict[str, Tensor]:
    return {f"{g}/{k}": v.clone() for g, tensors in trainer.replicated().items() for k, v in tensors.items()}


# The loss


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [*itertools.product(["x0", "eps", "v"], ["uniform", "min_snr", "snr"]), ("regression", "uniform")],
)
@pytest.mark.parametrize("head", ["diffusion_916", "diffusion_9160"])
def test_the_loss_of_a_head_that_outputs_zero(head: str, prediction: str, weighting: str) -> None:
    """A new head's output is zero, so its loss is the weighted mean square of what it should have predicted."""
    overrides = [f"diffusion={head}", f"diffusion.prediction={prediction}", f"diffusion.loss.weighting={weighting}"]
    trainer = trainer_of(*overrides, "noise=cosine")
    batch = batch_of(trainer)
    t = trainer.timesteps()
    types = batch.types if head == "diffusion_916" else torch.tensor([0, 0, 1])
    std = torch.tensor([0.5, 2.0])[types].view(-1, 1, 1)
    z = ((batch.target.double() - 0.25) / std).flatten(1, -2)
    noise = trainer.noise(z.shape[1:]).double()
    signal = trainer.process.alphas_cumprod[t].view(-1, 1, 1)
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    wanted = {"eps": noise, "v": alpha * noise - sigma * z}.get(prediction, z)
    snr = (signal / (1 - signal)).flatten()
    clipped = {"uniform": None, "snr": snr, "min_snr": snr.clamp(max=5)}[weighting]
    # Errors in eps and v are those in x0 times sqrt(snr) and sqrt(snr + 1).
    scale = {"eps": snr, "v": snr + 1}.get(prediction, torch.ones_like(snr))
    weight = torch.ones_like(snr) if clipped is None else clipped / scale
    expected = (weight * wanted.square().flatten(1).mean(1)).sum()
    found = trainer.train_step(batch)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-4)
    assert (float(found["rows"]), float(found["count"]), float(found["skipped"])) == (ROWS, 1, 0)


def test_literal_heads_learn_raw_latents() -> None:
    trainer = trainer_of("diffusion=d916_seed_eps")
    batch = batch_of(trainer)
    seen = {}

    def network(noisy: Tensor, t: Tensor, conditions: Any, types: Tensor) -> Tensor:
        alpha, sigma = trainer.process.coefficients(t, noisy)
        seen["x0"] = (noisy - sigma * trainer.noise(noisy.shape[1:])) / alpha
        return noisy * next(trainer.head.parameters()).sum()

    trainer.head.network = network
    trainer.config = trainer.config.model_copy(update={"noise": LINEAR.model_copy(update={"steps": 10})})
    trainer.timesteps = lambda: torch.full((ROWS,), 100)
    trainer.train_step(batch)
    torch.testing.assert_close(seen["x0"], batch.target, atol=1e-4, rtol=1e-4)


def test_a_regression_head_sees_no_noise() -> None:
    trainer = trainer_of("diffusion=d916_regression")
    with torch.no_grad():
        trainer.head.output.proj.weight.normal_()
    batch = batch_of(trainer)
    losses = []
    for seed in (0, 1):
        trainer.config = trainer.config.model_copy(update={"seed": seed, "lr": 1e-12})
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["base_lr"] = 0.0
        losses.append(float(trainer.train_step(batch)["loss"]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("head", ["diffusion_916", "diffusion_9160"])
def test_noise_on_the_heads_own_estimates(head: str, step: int) -> None:
    """Every other row is what DDIM goes on with after its first evaluation; the answer asked for is the truth."""
    trainer = trainer_of(f"diffusion={head}", "diffusion.own_estimates=true", "noise=cosine")
    trainer.step = step
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = batch_of(trainer)
    target, types = trainer.target(batch)
    t = trainer.timesteps()
    truth = trainer.normalizer.normalize(target, types).flatten(1, -2)
    noise = trainer.noise(truth.shape[1:])
    with torch.no_grad():
        first = trainer.head.predict(noise, torch.full_like(t, 999), *batch.conditions, types=types).x0
    network, seen = trainer.head.network, []

    def recorded(noisy: Tensor, *arguments: Any) -> Tensor:
        seen.append((noisy.clone(), network(noisy, *arguments)))
        return seen[-1][1]

    trainer.head.network = recorded
    loss = trainer.train_step(batch)["loss"]
    noisy, output = seen[-1]
    own = (torch.arange(ROWS) % 2 == step).view(-1, 1, 1)
    assert (first - truth).abs().mean() > 0.1
    torch.testing.assert_close(noisy, trainer.process.add_noise(torch.where(own, first, truth), noise, t))
    assert float(loss) == pytest.approx(float((output - truth).square().flatten(1).mean(1).sum()), rel=1e-4)


@pytest.mark.parametrize(("rank", "world_size"), [(1, 4), (4, 12), (5, 12)])
def test_own_estimates_are_those_of_the_same_slots_of_one_process(rank: int, world_size: int) -> None:
    """Processes that begin at an odd slot, and processes of a single row."""
    found = []
    for dist in (Distributed(), Distributed(rank, world_size)):
        trainer = trainer_of("diffusion=diffusion_916", "diffusion.own_estimates=true", dist=dist)
        batch, slots = batch_of(trainer), trainer.slots
        target = batch.target[slots.start : slots.stop]
        conditions = tuple(z[slots.start : slots.stop] for z in batch.conditions)
        types = batch.types[slots.start : slots.stop]
        t, noise = trainer.timesteps(), trainer.noise(target.shape[1:])
        with torch.no_grad():
            noisy = trainer.process.add_noise(target, noise, t)
            found.append(trainer._of_own_estimates(noisy, noise, t, conditions, types))
    local = ROWS // world_size
    torch.testing.assert_close(found[1], found[0][rank * local : (rank + 1) * local])


@pytest.mark.parametrize(("optim", "rate"), [("adamw", 0.01), ("muon", 0.02)])
def test_training_reaches_what_it_is_shown(optim: str, rate: float) -> None:
    """On one batch for ever the error must fall far below that of saying nothing."""
    trainer = trainer_of("diffusion=diffusion_916", "ema_rate=0.9", f"optim={optim}")
    batch = batch_of(trainer)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(150)]
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.learning_rate == rate
    assert not any(torch.equal(trainer.ema.shadow[name], p) for name, p in trainer.head.named_parameters())


# Draws


@pytest.mark.parametrize("timesteps", ["stratified", "lognormal"])
def test_draws_do_not_depend_on_the_number_of_processes(timesteps: str) -> None:
    alone = trainer_of(f"noise.timesteps={timesteps}")
    ranks = [trainer_of(f"noise.timesteps={timesteps}", dist=Distributed(rank, 3)) for rank in range(3)]
    for step in (0, 7):
        for trainer in (alone, *ranks):
            trainer.step = step
        shape = torch.Size((P, D))
        assert torch.equal(alone.timesteps(), torch.cat([rank.timesteps() for rank in ranks]))
        assert torch.equal(alone.noise(shape), torch.cat([rank.noise(shape) for rank in ranks]))


def test_timesteps_are_one_in_every_interval_in_an_order_of_their_own() -> None:
    trainer = trainer_of("noise.steps=1200")  # a multiple of the rows: intervals of 100
    drawn = []
    for trainer.step in range(40):
        drawn.append(trainer.timesteps().numpy())
        assert sorted(drawn[-1] // 100) == list(range(ROWS))
    # Slot 0 sees the whole range over time, not one interval.
    assert len({int(t[0]) // 100 for t in drawn}) > ROWS // 2
    again = trainer_of("seed=1")
    assert not np.array_equal(again.timesteps().numpy(), drawn[0])


def test_noise_is_standard_normal_and_of_its_step() -> None:
    trainer = trainer_of()
    noise = trainer.noise(torch.Size((200, D)))
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    rows = noise.flatten(1)
    correlation = (rows @ rows.T / rows.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 0.1  # no two rows share their noise
    trainer.step = 1
    assert not torch.equal(trainer.noise(torch.Size((200, D))), noise)


# Updates


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_an_update_that_is_not_finite_is_left_out_and_many_end_the_run(optim: str) -> None:
    trainer = trainer_of(f"optim={optim}", "weight_decay=0.1")
    trainer.train_step(batch_of(trainer))
    spoilt = batch_of(trainer, 1)
    spoilt.target[3, 2, 1] = math.nan
    before = snapshot(trainer)
    found = trainer.train_step(spoilt)
    assert {key: float(found[key]) for key in ("skipped", "loss", "grad_norm")} == {
        "skipped": 1,
        "loss": 0,
        "grad_norm": 0,
    }
    after = snapshot(trainer)
    unchanged = [name for name in after if not name.startswith("ema/")]
    assert all(torch.equal(before[name], after[name]) for name in unchanged)
    assert all(bool(value.isfinite().all()) for value in after.values())
    for _ in range(MOST_SKIPPED - 2):
        trainer.train_step(spoilt)
    trainer.check_progress()
    trainer.train_step(spoilt)
    with pytest.raises(InputError, match=rf"step {MOST_SKIPPED + 1}: .* last {MOST_SKIPPED} steps were not finite"):
        trainer.check_progress()
    trainer.train_step(batch_of(trainer, 2))  # and it recovers
    trainer.check_progress()
    assert not torch.equal(snapshot(trainer)["model/output.proj.weight"], after["model/output.proj.weight"])


def test_gradients_are_clipped_after_they_are_measured() -> None:
    norms: list[float] = []
    for clip in ("0.001", "null"):
        trainer = trainer_of(f"optim.grad_clip={clip}", "optim=adamw")
        (optimizer,) = trainer.optimizers
        step = optimizer.step

        def measured(step: Any = step, trainer: Any = trainer) -> None:
            norms.append(float(trainer.gradients.norm()))
            step()

        optimizer.step = measured
        norms.append(float(trainer.train_step(batch_of(trainer))["grad_norm"]))
    clipped, reported, whole, also = norms
    assert clipped == pytest.approx(0.001, rel=1e-2)
    assert reported == pytest.approx(whole) == pytest.approx(also) and reported > 0.01


def test_averages_warm_up() -> None:
    assert [warmed_up_rate(0.999, n) for n in (0, 1, 8)] == [0.1, 2 / 11, 0.5]
    assert warmed_up_rate(0.999, 10**6) == 0.999
    weight = torch.zeros(3)
    average = EMA({"w": weight}, 0.999)
    weight.fill_(1.0)
    average.update(warmed_up_rate(0.999, 1))
    torch.testing.assert_close(average.shadow["w"], torch.full((3,), 9 / 11))
    average.update()
    torch.testing.assert_close(average.shadow["w"], torch.full((3,), 9 / 11 + 0.001 * 2 / 11))


def test_a_noise_process_that_does_not_end_in_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"noise.schedule=linear: .*SNR .*raise noise.steps or noise.beta_end"):
        build_process(LINEAR.model_copy(update={"steps": 100}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head", ["diffusion_916", "diffusion_9160", "d916_seed_eps", "d916_regression"])
def test_no_step_waits_for_the_gpu(head: str) -> None:
    dist = Distributed(device=torch.device("cuda"))
    trainer = trainer_of(f"diffusion={head}", dist=dist)
    batch = batch_of(trainer)
    moved = {key: value.cuda() for key, value in vars(batch).items() if isinstance(value, Tensor)}
    batch = SimpleNamespace(conditions=tuple(z.cuda() for z in batch.conditions), **moved)
    trainer.train_step(batch)  # the optimiser's state and the kernels come with the first
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            found = trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(float(found["loss"])) and float(found["skipped"]) == 0


# What it costs


def test_operations_of_the_teacher_on_arc() -> None:
    """Closed formula: 4 projections, attention, and a gated MLP of 1536 on 916 tokens of 512, twice."""
    arch = {"seq_len": 900, "vocab_size": 12, "num_puzzle_identifiers": 3, "batch_size": 1, "puzzle_emb_ndim": 512}
    arch |= {"hidden_size": 512, "num_heads": 8, "H_cycles": 3, "L_cycles": 6, "L_layers": 2, "puzzle_emb_len": 16}
    with torch.device("meta"):
        model = load_class("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1")(arch)
    found = teacher_flops(SimpleNamespace(model=SimpleNamespace(model=model)))
    tokens, size, inner = 916, 512, 1536
    block = 2 * tokens * (4 * size**2 + 3 * size * inner) + 4 * tokens**2 * size
    assert found["application"] == 2 * block
    assert found["h_cycle"] == 7 * 2 * block
    assert found["act_step"] == pytest.approx(21 * 2 * block, rel=1e-3)
    assert found["trajectory"] == 16 * found["act_step"]


def test_operations_and_memory_of_heads() -> None:
    settings = {"latent_size": 64, "length": 32, "num_heads": 4, "target_blocks": 7, "num_layers": 4}

    def head_of(**more: Any) -> Any:
        return build_head("diffusion_9160@Diffusion9160", settings | more, LINEAR, torch.device("cpu"))

    head = head_of(attention="full")
    tokens, size, inner = 10 * 32, 64, 256
    block = 2 * tokens * (4 * size**2 + 3 * size * inner) + 4 * tokens**2 * size
    in_and_out = 2 * tokens * size**2 + 2 * 7 * 32 * size**2
    found = head_flops(head)
    unread = 2 * 3 * 32 * 3 * size * inner  # the last MLP leaves the condition tokens out
    assert found["forward"] == pytest.approx(4 * block - unread + in_and_out, rel=0.01)  # the rest is modulation
    assert found["training"] == 3 * found["forward"]
    weights = sum(p.numel() for p in head.parameters()) * 20
    one, two, three = (training_bytes(head, rows) for rows in (1, 2, 3))
    assert three - two == two - one > 4 * 8 * tokens * size  # each layer keeps many tensors of this size
    assert weights < one < weights + 2 * (two - one) + weights
    small = head_of(attention="full", checkpointing=True)
    assert training_bytes(small, 3) - training_bytes(small, 2) < 0.2 * (three - two)
    # The weights are as they were.
    assert next(head.parameters()).device.type == "cpu"


def test_literal_head_is_counted_too() -> None:
    settings = {"latent_size": 64, "length": 32, "num_heads": 4, "target_blocks": 7, "num_layers": 2}
    head = build_head("diffusion_seed@Seed9160", settings, LINEAR, torch.device("cpu"))
    tokens, size = 10 * 32, 64
    layer = 2 * tokens * (4 * size**2 + 2 * 4 * size**2) + 4 * tokens**2 * size
    assert head_flops(head)["forward"] == pytest.approx(2 * layer, rel=0.05)
    assert forward_flops(torch.matmul, torch.empty(2, 3, device="meta"), torch.empty(3, 5, device="meta")) == 60


# Records


def test_shares_of_steps_and_time() -> None:
    window = MetricWindow()
    for skipped in (0.0, 1.0):
        one = torch.ones(())
        loss = 6.0 * (1 - skipped) * one
        window.add({"loss": loss, "rows": 2 * one, "grad_norm": one, "skipped": skipped * one, "count": one})
    figures = window.summary(Distributed())
    assert (figures["loss"], figures["skipped"], figures["grad_norm"]) == (1.5, 0.5, 1.0)
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            pass
    assert 0 < watch.mean_ms() < 50
    assert watch.mean_ms() == 0
