"""Fused products and attention against the plain path: the libraries' kernels on a GPU that has them, elsewhere the
operations around them, with PyTorch in the libraries' place."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import kernels, load_class
from models.kernels import PLAIN, Kernels, find
from models.kernels import attention as attention_kernel
from models.kernels import swiglu as swiglu_kernel
from models.kernels.attention import attend, attend_plainly
from models.kernels.swiglu import gated_mlp
from models.layers import Attention, Block, RotaryEmbedding, SwiGLU
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1Config as TRMConfig
from training.config import load_config
from training.config_schema import PretrainConfig
from training.flops import forward_flops

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
SHAPE: dict[str, Any] = {"length": 97, "hidden_size": 64, "num_heads": 2}


def swiglu(pairs: Tensor) -> Tensor:
    gate, up = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    return F.silu(gate) * up


def gemm_gated(x: Tensor, weights: Tensor, *, activation: str, store_preact: bool, config: Any) -> Any:
    assert activation == "swiglu" and config.pingpong and x.is_contiguous()
    pairs = x @ weights
    return pairs if store_preact else None, swiglu(pairs)


def gemm_dgated(
    dy: Tensor, down: Tensor, pairs: Tensor, *, activation: str, config: Any, dynamic_scheduler: bool
) -> Any:
    assert activation == "swiglu" and config.pingpong and dynamic_scheduler and dy.is_contiguous()
    gate, up = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    share, d_product = gate.sigmoid(), dy @ down
    d_pairs = torch.stack((d_product * up * share * (1 + gate * (1 - share)), d_product * gate * share), dim=-1)
    return d_pairs.flatten(-2), swiglu(pairs)


def flash_forward(query: Tensor, key: Tensor, value: Tensor, *, return_lse: bool) -> Any:
    assert return_lse
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return attend_plainly(query, key, value).contiguous(), scores.logsumexp(-1), None, None, None


def flash_backward(
    query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, d_mixed: Tensor, lse: Tensor, *, deterministic: bool
) -> Any:
    assert deterministic == torch.are_deterministic_algorithms_enabled() and d_mixed.is_contiguous()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    weights = (scores - lse[..., None]).exp()
    d_weights = torch.einsum("bqhd,bkhd->bhqk", d_mixed, value)
    d_scores = weights * (d_weights - (mixed * d_mixed).sum(-1).transpose(1, 2)[..., None]) * query.shape[-1] ** -0.5
    d_query, d_key = torch.einsum("bhqk,bkhd->bqhd", d_scores, key), torch.einsum("bhqk,bqhd->bkhd", d_scores, query)
    return d_query, d_key, torch.einsum("bhqk,bqhd->bkhd", weights, d_mixed)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch in the place of the libraries, where there is no GPU for them."""
    if not HOPPER:
        put_in_place(monkeypatch)


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, dict[str, Any]] = {
        "quack": {},
        "quack.gemm_interface": {"gemm_gated": gemm_gated, "gemm_dgated": gemm_dgated},
        "quack.gemm_config": {"GemmConfig": lambda **settings: type("Config", (), settings)},
        "flash_attn": {},
        "flash_attn.cute": {},
        "flash_attn.cute.interface": {"_flash_attn_fwd": flash_forward, "_flash_attn_bwd": flash_backward},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def device_and_dtype(package: str) -> tuple[str, torch.dtype]:
    if not HOPPER:
        return "cpu", torch.float64
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    return "cuda", torch.bfloat16


def results(module: Any, x: Tensor, *more: Any) -> list[Tensor]:
    """The value and the gradients, along a fixed direction, of the input and of every weight."""
    module.zero_grad()
    own = x.detach().clone().requires_grad_()
    value = module(own, *more)
    along = torch.linspace(-1, 1, value.numel(), device=x.device).view(value.shape)
    (value * along.to(value.dtype)).sum().backward()
    return [value.detach(), *(t.grad.clone() for t in (own, *module.parameters()) if t.grad is not None)]


def agree(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == other.dtype and own.shape == other.shape
        error = (own.double() - other.double()).norm() / other.double().norm()
        assert error < (3e-2 if dtype == torch.bfloat16 else 1e-10), error


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 97, 32), (130, 48), (1, 1, 16)], ids=str)
def test_the_gated_mlp_and_its_gradients_are_those_of_swiglu(shape: tuple[int, ...]) -> None:
    device, dtype = device_and_dtype("quack")
    torch.manual_seed(0)
    plain, fused = (SwiGLU(shape[-1], 4, use).to(device) for use in (PLAIN, Kernels(gated_mlp=gated_mlp)))
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape, device=device).to(dtype)
    expected = results(plain, x)
    agree(results(fused, x), expected, dtype)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    agree(results(compiled, x), expected, dtype)
    with torch.no_grad():
        agree([fused(x)], expected[:1], dtype)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("seed", range(8))
def test_the_gated_mlp_at_random_shapes(seed: int) -> None:
    device, dtype = device_and_dtype("quack")
    draw = random.Random(seed)
    shape = *(draw.randint(1, 40) for _ in range(draw.randint(1, 2))), 16 * draw.randint(1, 12)
    torch.manual_seed(seed)
    plain, fused = (SwiGLU(shape[-1], 4, use).to(device) for use in (PLAIN, Kernels(gated_mlp=gated_mlp)))
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(shape, device=device).to(dtype)
    agree(results(fused, x), results(plain, x), dtype)


@pytest.mark.usefixtures("libraries")
def test_the_gated_mlp_takes_tokens_and_gradients_however_they_lie() -> None:
    """In steps through something wider, transposed, and the same value for all."""
    device, dtype = device_and_dtype("quack")
    torch.manual_seed(0)
    plain, fused = (SwiGLU(32, 4, use).to(device) for use in (PLAIN, Kernels(gated_mlp=gated_mlp)))
    fused.load_state_dict(plain.state_dict())
    wide, tall, one = (torch.randn(shape, device=device).to(dtype) for shape in ((21, 64), (32, 21), ()))
    lying = [wide[:, ::2], tall.T, one.expand(21, 32)]
    assert not any(tensor.is_contiguous() for tensor in lying)
    for x, dy in itertools.product(lying[:2], lying):
        x = x.detach().requires_grad_()
        found, expected = (torch.autograd.grad(mlp(x), [x, *mlp.parameters()], dy) for mlp in (fused, plain))
        with torch.no_grad():
            agree([fused(x), *found], [plain(x), *expected], dtype)


@pytest.mark.usefixtures("libraries")
def test_gate_and_up_are_kept_for_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    device, dtype = device_and_dtype("quack")
    kept, up = [], swiglu_kernel._up

    def recorded(x: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
        kept.append(keep)
        return up(x, weights, keep)

    monkeypatch.setattr(swiglu_kernel, "_up", recorded)
    mlp = SwiGLU(16, 4, Kernels(gated_mlp=gated_mlp)).to(device)
    x = torch.randn(4, 16, device=device).to(dtype)
    with torch.no_grad():
        mlp(x)
    mlp(x)
    assert kept == [False, True]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("length", [20, 97, 130])
def test_attention_and_its_gradients_are_those_of_pytorch(length: int) -> None:
    device, dtype = device_and_dtype("flash_attn")
    torch.manual_seed(0)
    plain, fused = (Attention(128, 2, use).to(device) for use in (PLAIN, Kernels(attention=attend)))
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, length, 128, device=device).to(dtype)
    cos_sin = RotaryEmbedding(64, length, 1e4).to(device)()
    expected = results(plain, x, cos_sin)
    agree(results(fused, x, cos_sin), expected, dtype)
    agree(results(torch.compile(fused, backend="aot_eager", fullgraph=True), x, cos_sin), expected, dtype)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("seed", range(8))
def test_attention_at_random_shapes(seed: int) -> None:
    device, dtype = device_and_dtype("flash_attn")
    draw = random.Random(seed)
    rows, length, heads = draw.randint(1, 4), draw.randint(1, 150), draw.randint(1, 4)
    torch.manual_seed(seed)
    plain, fused = (Attention(64 * heads, heads, use).to(device) for use in (PLAIN, Kernels(attention=attend)))
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(rows, length, 64 * heads, device=device).to(dtype)
    agree(results(fused, x, None), results(plain, x, None), dtype)


@pytest.mark.parametrize("repeatable", [False, True])
def test_attention_is_as_repeatable_as_pytorch_is_told_to_be(repeatable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)
    told, backward = [], flash_backward

    def recorded(*tensors: Tensor, deterministic: bool) -> Any:
        told.append(deterministic)
        return backward(*tensors, deterministic=deterministic)

    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], "_flash_attn_bwd", recorded)
    x = torch.randn(1, 5, 2, 8, dtype=torch.float64, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(repeatable)
    try:
        attend(x, x, x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert told == [repeatable]


@pytest.mark.parametrize(("ours", "pytorch", "chosen"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False)])
def test_attention_is_chosen_where_it_takes_less_time(
    ours: float, pytorch: float, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def timed(attention: Any, shape: tuple[int, ...]) -> float:
        asked.append(shape)
        return {attend: ours, attend_plainly: pytorch}[attention]

    monkeypatch.setattr(attention_kernel, "_time", timed)
    assert attention_kernel.is_faster.__wrapped__(97, 2, 64) is chosen  # what is remembered is left alone
    assert asked == [(attention_kernel.ROWS, 97, 3, 2, 64)] * 2


def test_operations_are_counted_as_those_of_the_plain_path() -> None:
    for use in (Kernels(gated_mlp=gated_mlp), Kernels(attention=attend)):
        counts = []
        for kernels_of_block in (PLAIN, use):
            block = Block(64, 2, 4, 1e-5, kernels=kernels_of_block).to("meta")
            for grad in (torch.no_grad(), torch.enable_grad()):
                with grad:
                    counts.append(forward_flops(block, torch.empty(3, 97, 64, device="meta"), None))
        assert len(set(counts)) == 1 and counts[0] > 0


def pretend(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: set[str], faster: bool = True
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(kernels, "_imports", lambda name: name in installed)
    monkeypatch.setattr(kernels, "is_faster", lambda *_: faster)


EVERYTHING = {"triton", "quack.gemm_interface", "flash_attn.cute.interface"}


@pytest.mark.parametrize(
    ("installed", "faster", "changes", "names"),
    [
        (EVERYTHING, True, {}, "gated_mlp, attention"),
        (EVERYTHING, False, {}, "gated_mlp"),
        ({"flash_attn.cute.interface"}, True, {}, "attention"),
        (EVERYTHING, True, {"mlp_t": True}, "mix_tokens, gated_mlp"),
        (EVERYTHING, True, {"mlp_t": True, "length": 128}, "mix_tokens, gated_mlp"),
        (EVERYTHING, True, {"mlp_t": True, "length": 129}, "gated_mlp"),
        ({"triton"}, True, {"mlp_t": True}, "mix_tokens"),
        (EVERYTHING, True, {"hidden_size": 48, "num_heads": 6}, "gated_mlp, attention"),
        (EVERYTHING, True, {"hidden_size": 40, "num_heads": 5}, "attention"),
        (EVERYTHING, True, {"hidden_size": 512, "num_heads": 12}, "gated_mlp"),  # heads of 42 channels
        (EVERYTHING, True, {"hidden_size": 512, "num_heads": 2}, "gated_mlp"),  # of 256
        (set(), True, {}, "plain"),
    ],
)
def test_auto_takes_what_is_installed_fits_and_is_faster(
    installed: set[str], faster: bool, changes: dict[str, Any], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    pretend(monkeypatch, (9, 0), installed, faster)
    assert str(find("auto", torch.bfloat16, **SHAPE | {"mlp_t": False} | changes)) == names


def test_auto_is_the_plain_path_where_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0), EVERYTHING)
    assert find("auto", torch.float32, **SHAPE, mlp_t=False) == PLAIN
    assert find("torch", torch.bfloat16, **SHAPE, mlp_t=False) == PLAIN
    pretend(monkeypatch, (8, 0), EVERYTHING)
    assert find("auto", torch.bfloat16, **SHAPE, mlp_t=False) == PLAIN


def test_a_package_that_does_not_import_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('undefined symbol: cuInit')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not kernels._imports("no_such_kernels")
    assert capsys.readouterr().err == ""
    assert not kernels._imports("broken_kernels") and not kernels._imports("broken_kernels")
    assert capsys.readouterr().err == "warning: kernels=auto goes without broken_kernels: undefined symbol: cuInit\n"
    assert kernels._imports("json")


def test_our_kernel_is_refused_where_its_tile_has_no_room() -> None:
    config = load_config("cfg_pretrain", ["experiment=sudoku_mlp", "arch.kernels=triton"])
    assert isinstance(config, PretrainConfig)
    shapes: Any = {"batch_size": 1, "vocab_size": 11, "num_puzzle_identifiers": 2}
    for cells, fits in ((112, True), (113, False)):  # and 16 puzzle tokens
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="128 positions at most"):
            TRMConfig(**config.arch.hyperparameters | shapes | {"seq_len": cells, "forward_dtype": "bfloat16"})


def test_coarse_levels_are_asked_about_at_their_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    pretend(monkeypatch, (9, 0), EVERYTHING)
    monkeypatch.setattr(kernels, "is_faster", lambda length, *_: asked.append(length))
    settings: dict[str, Any] = {"batch_size": 1, "seq_len": 36, "vocab_size": 8, "num_puzzle_identifiers": 2}
    settings |= {"hidden_size": 32, "num_heads": 2, "kernels": "auto", "puzzle_emb_ndim": 32}
    load_class("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1")(settings).inner.build_level(1, 5)
    assert asked == [36 + 16, 5]  # cells and puzzle tokens
