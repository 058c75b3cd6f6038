"""The diffusion heads: what they compute from a teacher's weights, what they look at, and that everything learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from diffusion.normalisation import LatentNormalizer
from diffusion.process import NoiseProcess
from diffusion.schedule import alphas_cumprod
from models.diffusion_916 import Diffusion916
from models.diffusion_9160 import Diffusion9160
from models.diffusion_blocks import (
    DiffusionHead,
    ModulatedBlock,
    ModulatedConfig,
    StepAttention,
    compile_blocks,
    positions_together,
    timestep_embedding,
)
from models.diffusion_seed import Seed916, Seed9160
from models.layers import Block, ReasoningModule, RotaryEmbedding, rms_norm

D, P, B, T = 16, 10, 3, 50
BLOCK = {"latent_size": D, "length": P, "num_heads": 2, "expansion": 1}
LAYER_HEADS = [Diffusion916, Seed916]
TRAJECTORY_HEADS = [Diffusion9160, Seed9160]
VARIANTS: dict[str, tuple[type[DiffusionHead], dict[str, Any]]] = {
    "916": (Diffusion916, {}),
    "916_mlp": (Diffusion916, {"mlp_t": True}),
    "916_pre": (Diffusion916, {"norm": "pre", "prediction": "v"}),
    "916_sum": (Diffusion916, {"conditioning": "sum", "prediction": "eps", "sphere": False}),
    "916_checkpointing": (Diffusion916, {"checkpointing": True}),
    "9160_alternating": (Diffusion9160, {"num_layers": 3}),
    "9160_alternating_mlp": (Diffusion9160, {"mlp_t": True, "num_layers": 2}),
    "9160_looped": (Diffusion9160, {"num_layers": 3, "loops": 2}),
    "9160_full": (Diffusion9160, {"attention": "full", "num_layers": 2}),
    "9160_full_pre": (Diffusion9160, {"attention": "full", "num_layers": 2, "norm": "pre", "mlp_t": True}),
    "9160_jump": (Diffusion9160, {"target_kind": "jump", "target_blocks": 2, "num_layers": 2}),
    "seed_916": (Seed916, {}),
    "seed_9160": (Seed9160, {"num_layers": 2}),
}


def make_process() -> NoiseProcess:
    return NoiseProcess(alphas_cumprod("cosine", T))


def make_normalizer(size: int = D) -> LatentNormalizer:
    generator = torch.Generator().manual_seed(1)
    return LatentNormalizer(
        0.5 * torch.randn(2, size, generator=generator), 0.2 + torch.rand(2, size, generator=generator)
    )


def build(head: type[DiffusionHead], size: int = D, length: int = P, **changes: Any) -> DiffusionHead:
    torch.manual_seed(0)
    blocks = 3 if head in TRAJECTORY_HEADS else 1
    config = {"latent_size": size, "length": length, "target_blocks": blocks, "num_heads": 2, "expansion": 1}
    config |= {"forward_dtype": "float32"} | changes
    return head(config, make_process(), make_normalizer(size))


def tokens(head: DiffusionHead) -> int:
    return head.config.length * head.config.target_blocks


def latents(count: int, rows: int = B, length: int = P, size: int = D, seed: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(rms_norm(torch.randn(rows, length, size, generator=generator), 1e-5) for _ in range(count))


def inputs(head: DiffusionHead, rows: int = B, seed: int = 2) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Noisy targets, timesteps over the whole range and three conditions for a head."""
    config = head.config
    noisy = torch.randn(rows, tokens(head), config.latent_size, generator=torch.Generator().manual_seed(seed + 1))
    t = torch.linspace(0, T - 1, rows).long()
    return noisy, t, latents(3, rows, config.length, config.latent_size, seed)


def break_zero_init(head: DiffusionHead) -> None:
    """Weights after some training: nothing is exactly zero any more."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.abs().max() == 0:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def make_level(mlp_t: bool, layers: int = 2, expansion: float = 1) -> ReasoningModule:
    torch.manual_seed(5)
    return ReasoningModule([Block(D, 2, expansion, 1e-5, P if mlp_t else None) for _ in range(layers)])


@pytest.mark.parametrize("mlp_t", [False, True], ids=["attention", "mlp"])
@pytest.mark.parametrize("prediction", ["x0", "regression"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_starts_as_the_teachers_update(mlp_t: bool, prediction: str, dtype: str) -> None:
    """From pure noise, and from any other x_t, x0 is the teacher's next latent, for both types in one batch."""
    level, head = make_level(mlp_t), build(Diffusion916, mlp_t=mlp_t, prediction=prediction, forward_dtype=dtype)
    assert isinstance(head, Diffusion916)
    break_zero_init(head)
    head.init_from_level(level)
    rows = 16
    prev, other, x = latents(3, rows)
    x = 1.3 * x  # input embeddings have no unit RMS
    cos_sin = None if mlp_t else RotaryEmbedding(D // 2, P, 10000.0)()
    with torch.no_grad():
        expected = level(prev, other + x, cos_sin), level(prev, other, cos_sin)
        if dtype == "float32":
            limits = [1e-5, 1e-5]
        else:
            # bf16 through two blocks costs about 1 %, the teacher as well as the head, which adds next to nothing.
            halves = [z.to(torch.bfloat16) for z in (prev, other, x)]
            rounded = level(halves[0], halves[1] + halves[2], cos_sin), level(*halves[:2], cos_sin)
            limits = [1.1 * relative_error(a.float(), b) for a, b in zip(rounded, expected, strict=True)]
            assert max(limits) < 1.5e-2
        types = torch.arange(rows) % 2
        target = torch.where(types[:, None, None] == 0, *expected)
        for step in (T - 1, 7):
            t = torch.full((rows,), step)
            found = head.predict(torch.randn(rows, P, D), t, prev, other, x, types=types).x0
            assert relative_error(head.normalizer.denormalize(found, types), target) < max(limits)
        # S0's interface: the number of conditions says the type.
        for kind, conditions in enumerate(((prev, other, x), (prev, other))):
            found = head.predict(torch.randn(rows, P, D), t, *conditions).x0
            found = head.normalizer.denormalize(found, torch.full((rows,), kind))
            assert relative_error(found, expected[kind]) < limits[kind]


def test_refuses_a_level_of_another_shape() -> None:
    head = build(Diffusion916)
    with pytest.raises(ValueError, match=r"3 layers: set diffusion\.num_layers"):
        head.init_from_level(make_level(False, layers=3))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"self_attn\.qkv_proj\.weight is not there"):
        head.init_from_level(make_level(True))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"mlp.*has shape.*expansion"):
        head.init_from_level(make_level(False, expansion=64))  # type: ignore[operator]
    with pytest.raises(ValueError, match="conditioning=sum"):
        build(Diffusion916, conditioning="sum").init_from_level(make_level(False))  # type: ignore[operator]


@pytest.mark.parametrize("mlp_t", [False, True], ids=["attention", "mlp"])
def test_a_block_with_open_gates_is_the_teachers(mlp_t: bool) -> None:
    config = ModulatedConfig.model_validate(BLOCK | {"mlp_t": mlp_t})
    plain, cos_sin = make_level(mlp_t).layers[0], RotaryEmbedding(D // 2, P, 10000.0)()
    block = ModulatedBlock(config, "mlp" if mlp_t else "space")
    block.load_state_dict(plain.state_dict(), strict=False)
    x, c = latents(1)[0], torch.randn(B, D)
    with torch.no_grad():
        # Zero at the start: the block only normalises, over channels (after mixing by an MLP, over positions first).
        start = rms_norm(x.transpose(1, 2), 1e-5).transpose(1, 2) if mlp_t else rms_norm(x, 1e-5)
        torch.testing.assert_close(block(x[:, None], c, cos_sin)[:, 0], rms_norm(start, 1e-5))
        bias = block.modulation.proj.bias
        assert bias is not None
        bias.view(6, D)[[2, 5]] = 1
        torch.testing.assert_close(block(x[:, None], c, cos_sin)[:, 0], plain(x, cos_sin), rtol=1e-6, atol=1e-6)
        # What the last layer drops changes nothing in what it keeps.
        stack = torch.stack((x, x.flip(0), x.flip(1)), dim=1)
        torch.testing.assert_close(block(stack, c, cos_sin, 2), block(stack, c, cos_sin)[:, 2:])


def test_modulation_is_as_dit_has_it() -> None:
    """The pre-norm block against DiT's equations written out, with the channel MLP alone."""
    config = ModulatedConfig.model_validate(BLOCK | {"norm": "pre"})
    block = ModulatedBlock(config, "space")
    nn.init.zeros_(block.self_attn.o_proj.weight)  # the attention adds nothing
    nn.init.normal_(block.modulation.proj.weight)
    (x,), c = latents(1), torch.randn(B, D)
    shift, scale, gate = (block.modulation.proj(nn.functional.silu(c)).view(B, 6, 1, D)[:, part] for part in (3, 4, 5))
    expected = x + gate * block.mlp(rms_norm(x, 1e-5) * (1 + scale) + shift)
    torch.testing.assert_close(block(x[:, None], c, None)[:, 0], expected)


@pytest.mark.parametrize(("rows", "positions", "blocks"), [(2, 5, 7), (4, 16, 5), (1, 97, 10), (2, 3, 130)])
def test_step_attention_sees_its_own_position_only(rows: int, positions: int, blocks: int) -> None:
    """However many positions share a sequence, each is attended to alone: against one call a position."""
    attention = StepAttention(D, 2)
    x = torch.randn(rows, blocks, positions, D)
    plain = [super(StepAttention, attention).forward(x[:, :, p], None) for p in range(positions)]
    torch.testing.assert_close(attention(x), torch.stack(plain, dim=2), rtol=1e-4, atol=1e-6)


def test_positions_that_share_a_sequence_fill_a_tile() -> None:
    assert positions_together(8 * 916, 10) == 8
    assert positions_together(12 * 97, 10) == 12
    assert positions_together(97, 10) == 1
    assert positions_together(4, 500) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns(name: str) -> None:
    kind, changes = VARIANTS[name]
    head = build(kind, **changes).train()
    break_zero_init(head)
    noisy, t, conditions = inputs(head)
    types = torch.tensor([0, 1, 0]) if kind in LAYER_HEADS else None
    output = head.network(noisy, t, conditions, types)
    assert output.shape == noisy.shape and output.dtype == torch.float32
    (output * torch.randn_like(output)).sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_noise_of_predict(name: str) -> None:
    """The three forms agree with each other and with x_t = alpha x0 + sigma eps; x0 is on the sphere where asked."""
    kind, changes = VARIANTS[name]
    head = build(kind, **changes)
    break_zero_init(head)
    noisy, t, conditions = inputs(head)
    with torch.no_grad():
        prediction = head.predict(noisy, t, *conditions)
        torch.testing.assert_close(head(noisy, t, *conditions), prediction.eps)
        raw = head.network(noisy, t, conditions)
    alpha, sigma = make_process().coefficients(t, noisy)
    scale = prediction.x0.abs().max()
    torch.testing.assert_close(
        (alpha * prediction.x0 + sigma * prediction.eps) / scale, noisy / scale, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(prediction.v, alpha * prediction.eps - sigma * prediction.x0)
    if head.config.sphere:
        types = head.default_types(B, conditions)
        blocks = prediction.x0.unflatten(1, (-1, P)) if types.dim() == 2 else prediction.x0
        rms = head.normalizer.denormalize(blocks, types).square().mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(getattr(prediction, head.output_kind), raw)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_bf16_is_close_to_fp32(name: str, training: bool) -> None:
    kind, changes = VARIANTS[name]
    outputs = []
    for dtype in ("float32", "bfloat16"):
        head = build(kind, **(changes | {"forward_dtype": dtype})).train(training)
        break_zero_init(head)
        noisy, t, conditions = inputs(head)
        with torch.set_grad_enabled(training):
            outputs.append(head.network(noisy, t, conditions))
    assert outputs[1].dtype == torch.float32
    assert 0 < relative_error(outputs[1], outputs[0]) < 0.03


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        head = build(Diffusion9160, num_layers=2, checkpointing=checkpointing)
        break_zero_init(head)
        noisy, t, conditions = inputs(head)
        head.network(noisy, t, conditions).square().sum().backward()
        gradients.append([parameter.grad for parameter in head.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("length", [20, 97])
@pytest.mark.parametrize("L_cycles", [2, 4, 6])
@pytest.mark.parametrize(
    "name", ["916", "916_mlp", "9160_alternating", "9160_full", "9160_alternating_mlp", "seed_9160"]
)
def test_any_number_of_cycles_and_length(name: str, L_cycles: int, length: int) -> None:
    kind, changes = VARIANTS[name]
    blocks = L_cycles + 1 if kind in TRAJECTORY_HEADS else 1
    head = build(kind, size=8, length=length, target_blocks=blocks, **changes)
    noisy, t, conditions = inputs(head, rows=2)
    with torch.no_grad():
        assert head(noisy, t, *conditions).shape == (2, blocks * length, 8)
    if isinstance(head, Diffusion9160):
        assert head.target_types().tolist() == [0] * L_cycles + [1]


@pytest.mark.parametrize("kind", [Diffusion916, Diffusion9160, Seed916, Seed9160])
def test_the_length_of_arc(kind: type[DiffusionHead]) -> None:
    blocks = 7 if kind in TRAJECTORY_HEADS else 1
    layers = 2 if kind is Diffusion9160 else 1
    head = build(kind, size=4, length=916, target_blocks=blocks, num_layers=layers, num_heads=1)
    noisy, t, conditions = inputs(head, rows=1)
    with torch.no_grad():
        assert head(noisy, t, *conditions).shape == (1, blocks * 916, 4)


@pytest.mark.parametrize("name", ["9160_alternating", "9160_looped", "9160_full", "9160_alternating_mlp", "9160_jump"])
def test_conditions_have_roles(name: str) -> None:
    """Swapping any two conditions changes the output, and every target block looks at every condition."""
    kind, changes = VARIANTS[name]
    head = build(kind, **changes)
    break_zero_init(head)
    noisy, t, (x, y, z) = inputs(head)
    blocks = (-1, P)
    with torch.no_grad():
        before = head.network(noisy, t, (x, y, z)).unflatten(1, blocks)
        for changed in ((x, z, y), (y, x, z), (z, y, x), (x, y, -z), (x, -y, z), (-x, y, z)):
            after = head.network(noisy, t, changed).unflatten(1, blocks)
            assert ((after - before).flatten(2).norm(dim=-1) > 1e-3 * before.flatten(2).norm(dim=-1)).all()


def test_the_seeds_sum_cannot_tell_its_conditions_apart() -> None:
    head = build(Seed916)
    noisy, t, (prev, other, x) = inputs(head)
    with torch.no_grad():
        torch.testing.assert_close(head(noisy, t, prev, other, x), head(noisy, t, other, x, prev), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "equivariant"),
    [("9160_full", False), ("9160_alternating", False), ("9160_no_rope", True), ("seed_9160", True)],
)
def test_positions_within_a_block_are_told_apart(name: str, equivariant: bool) -> None:
    """Permuting the positions of all blocks alike permutes the output only where nothing marks positions."""
    kind, changes = VARIANTS.get(name, (Diffusion9160, {"attention": "full", "num_layers": 2, "pos_encodings": "none"}))
    head = build(kind, **changes)
    break_zero_init(head)
    noisy, t, conditions = inputs(head)
    order = torch.randperm(P, generator=torch.Generator().manual_seed(0))
    permuted_noisy = noisy.unflatten(1, (-1, P))[:, :, order].flatten(1, 2)
    with torch.no_grad():
        before = head.network(noisy, t, conditions).unflatten(1, (-1, P))[:, :, order].flatten(1, 2)
        after = head.network(permuted_noisy, t, tuple(z[:, order] for z in conditions))
    assert (relative_error(after, before) < 1e-4) == equivariant


@pytest.mark.parametrize(("target_kind", "blocks", "replaced"), [("h_cycle", 3, "zzy"), ("jump", 2, "yz")])
def test_noisy_blocks_start_from_the_latent_they_replace(target_kind: str, blocks: int, replaced: str) -> None:
    head = build(Diffusion9160, target_kind=target_kind, target_blocks=blocks)
    noisy, _, (x, y_init, z_init) = inputs(head)
    stem: Any = head.stem
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.zero_()
        stem.start_latent_proj.weight.copy_(torch.eye(D))
        stem.start_x_proj.weight.copy_(0.5 * torch.eye(D))
        stem.start_other_proj.weight.copy_(0.25 * torch.eye(D))
        h = stem(noisy, (x, y_init, z_init), head.default_types(B, (x, y_init, z_init)))
    for block, name in zip(h[:, 3:].unbind(1), replaced, strict=True):
        own, other = (y_init, z_init) if name == "y" else (z_init, y_init)
        torch.testing.assert_close(block, own + 0.5 * x + 0.25 * other)
    assert (h[:, :3] == 0).all()


def test_a_looped_head_applies_its_layers_to_what_they_made_and_to_the_start() -> None:
    head = build(Diffusion9160, num_layers=3, loops=3)
    assert [layer.mixing for layer in head.layers] == ["steps", "space", "space"]
    break_zero_init(head)
    noisy, t, conditions = inputs(head)
    parts: Any = head
    with torch.no_grad():
        c, cos_sin = parts.time(t), parts.rotary()
        start = h = parts.stem(noisy, conditions, head.default_types(B, conditions))
        for loop in range(3):
            h = h + start if loop else h
            for layer in parts.layers:
                h = layer(h, c, cos_sin)
        expected = parts.output(h[:, 3:], c)
        torch.testing.assert_close(head.network(noisy, t, conditions), expected, rtol=1e-4, atol=1e-5)


def test_noisy_blocks_have_roles() -> None:
    """Exchanging two noisy blocks does not just exchange their outputs."""
    for attention in ("full", "alternating"):
        head = build(Diffusion9160, attention=attention, num_layers=2)
        break_zero_init(head)
        noisy, t, conditions = inputs(head)
        with torch.no_grad():
            before = head.network(noisy, t, conditions).unflatten(1, (-1, P))
            after = head.network(noisy.unflatten(1, (-1, P)).flip(1).flatten(1, 2), t, conditions).unflatten(1, (-1, P))
        assert relative_error(after.flip(1), before) > 1e-2


@pytest.mark.parametrize("name", ["9160_alternating", "9160_full", "seed_9160"])
def test_outputs_are_in_the_order_of_the_noisy_blocks(name: str) -> None:
    """A change to a noisy block changes its own output most: the condition blocks are dropped, not the targets."""
    kind, changes = VARIANTS[name]
    head = build(kind, **changes)
    nn.init.normal_(head.get_parameter("output.proj.weight" if name != "seed_9160" else "out_proj.weight"))
    noisy, t, conditions = inputs(head)
    with torch.no_grad():
        before = head.network(noisy, t, conditions).unflatten(1, (-1, P))
        for block in range(3):
            changed = noisy.unflatten(1, (-1, P)).clone()
            changed[:, block] *= -1
            after = head.network(changed.flatten(1, 2), t, conditions).unflatten(1, (-1, P))
            moved = (after - before).square().mean((0, 2, 3))
            assert moved.argmax() == block and moved[block] > 2 * moved.sum() / 3


def test_types_time_and_the_null_input_matter() -> None:
    head = build(Diffusion916)
    assert isinstance(head, Diffusion916)
    break_zero_init(head)
    noisy, t, (prev, other, x) = inputs(head)
    zeros, ones = torch.zeros(B, dtype=torch.int64), torch.ones(B, dtype=torch.int64)
    with torch.no_grad():
        latent = head.network(noisy, t, (prev, other, x), zeros)
        answer = head.network(noisy, t, (prev, other, x), ones)
        assert relative_error(answer, latent) > 1e-2
        assert relative_error(head.network(noisy, t.flip(0), (prev, other, x), zeros), latent) > 1e-3
        # A z_H row has no x, whatever stands in its slot; two conditions mean the same.
        assert torch.equal(head.network(noisy, t, (prev, other, 0 * x), ones), answer)
        assert torch.equal(head.network(noisy, t, (prev, other)), answer)
        assert torch.equal(head.network(noisy, t, (prev, other, x)), latent)
        mixed = head.network(noisy, t, (prev, other, x), torch.tensor([0, 1, 0]))
        torch.testing.assert_close(mixed, torch.stack((latent[0], answer[1], latent[2])))
        head.stem.null_x.add_(1)
        assert relative_error(head.network(noisy, t, (prev, other, x), ones), answer) > 1e-2
        assert torch.equal(head.network(noisy, t, (prev, other, x), zeros), latent)


@pytest.mark.parametrize("kind", [Diffusion916, Diffusion9160])
def test_regression_looks_at_the_conditions_only(kind: type[DiffusionHead]) -> None:
    regression, denoiser = build(kind, prediction="regression"), build(kind)
    for head in (regression, denoiser):
        break_zero_init(head)
    noisy, t, conditions = inputs(regression)
    last = torch.full_like(t, T - 1)
    with torch.no_grad():
        found = regression.network(noisy, t, conditions)
        assert torch.equal(found, regression.network(-noisy, t.flip(0), conditions))
        assert torch.equal(found, denoiser.network(torch.zeros_like(noisy), last, conditions))
        assert not torch.equal(denoiser.network(noisy, last, conditions), found)
        prediction = regression.predict(noisy, t, *conditions)
        torch.testing.assert_close(prediction.x0, regression.predict(-noisy, last, *conditions).x0)


def test_seed_916_is_the_specification() -> None:
    """S0 section 3 written out again."""
    head = build(Seed916)
    noisy, t, conditions = inputs(head)
    with torch.no_grad():
        hidden = rms_norm(noisy + sum(conditions) + head.time(t)[:, None], 1e-5)  # type: ignore[operator]
        for layer in head.layers:
            hidden = layer(hidden, RotaryEmbedding(D // 2, P, 10000.0)())
        torch.testing.assert_close(head(noisy, t, *conditions), hidden, rtol=1e-5, atol=1e-5)
        rms = head(noisy, t, *conditions).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0)
    assert not head.normalizes and not head.config.sphere and head.output_kind == "eps"


def test_a_new_head_predicts_nothing() -> None:
    """Zero-initialised outputs: x0 is the mean latent (brought to the sphere), whatever goes in."""
    for kind in (Diffusion916, Diffusion9160):
        head = build(kind, sphere=False)
        noisy, t, conditions = inputs(head)
        with torch.no_grad():
            assert torch.equal(head.predict(noisy, t, *conditions).x0, torch.zeros_like(noisy))


def test_timestep_embedding() -> None:
    """Against the formula at single entries: cos and sin of t / 10000^(i / half)."""
    found = timestep_embedding(torch.tensor([0, 3]), 8)
    torch.testing.assert_close(found[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    angles = torch.tensor([3.0, 0.3, 0.03, 0.003])
    torch.testing.assert_close(found[1], torch.cat((angles.cos(), angles.sin())))


@pytest.mark.parametrize(("name", "kinds"), [("916", 3), ("9160_alternating", 5), ("9160_full", 4), ("seed_9160", 1)])
def test_compiled_heads_build_few_graphs(name: str, kinds: int) -> None:
    """One graph for each kind of unit, however many layers, with the same numbers; also at evaluation's batch sizes."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    kind, changes = VARIANTS[name]
    head = build(kind, **(changes | {"num_layers": 6}))
    break_zero_init(head)
    noisy, t, conditions = inputs(head)
    expected = head.network(noisy, t, conditions)
    compile_blocks(head, backend=graphs)
    torch.testing.assert_close(head.network(noisy, t, conditions), expected)
    # 9160: stem, output, and of the blocks space, steps, and the last one, which drops the conditions.
    assert graphs.frame_count == kinds
    with torch.no_grad():
        for rows in (2, 4, 5):
            head.predict(*inputs(head, rows)[:2], *inputs(head, rows)[2])
    assert graphs.frame_count == 4 * kinds
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Diffusion916, {"num_heads": 3}, "num_heads=3 does not divide"),
        (Diffusion916, {"num_heads": 16}, "odd number"),
        (Diffusion916, {"layers": 2}, "Extra inputs"),
        (Seed9160, {"attention": "full"}, "Extra inputs"),
        (Diffusion9160, {"attention": "full", "token_mixing": "mlp"}, "use attention=alternating"),
        (Diffusion9160, {"num_layers": 1}, "no layer that looks across blocks"),
        (Diffusion9160, {"target_kind": "jump"}, "2 target blocks"),
    ],
)
def test_refuses_what_cannot_be_built(kind: type[DiffusionHead], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(kind, **changes)
