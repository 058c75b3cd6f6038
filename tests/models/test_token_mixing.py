"""The fused MLP over positions against the plain path, through Triton's interpreter where there is no GPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.common import InputError
from models import load_class
from models.layers import Block, rms_norm
from training.build import model_config
from training.config import load_config
from training.config_schema import PretrainConfig
from training.flops import forward_flops
from training.same_run import IDENTITY, check_settings

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="needs Triton")
from models.kernels import PLAIN, Kernels, token_mixing  # noqa: E402
from models.kernels.token_mixing import mix_tokens  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
HALF = torch.bfloat16 if ON_GPU else torch.float16  # the interpreter does not multiply bfloat16
EPS = 1e-5
SHAPES = [(2, 97, 64), (1, 37, 80), (3, 18, 16), (2, 16, 130)]  # positions and channels that fill no tile too


def plain(x: Tensor, block: Block) -> Tensor:
    turned = x.transpose(1, 2)
    return rms_norm(turned + block.mlp_t(turned), EPS).transpose(1, 2)


def block_and_input(rows: int, positions: int, channels: int, dtype: torch.dtype) -> tuple[Block, Tensor]:
    torch.manual_seed(positions)
    block = Block(channels, 1, 4, EPS, mlp_length=positions).to(DEVICE)
    return block, torch.randn(rows, positions, channels, device=DEVICE).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


Function = Callable[[Tensor, Block], Tensor]


def fused(x: Tensor, block: Block) -> Tensor:
    return mix_tokens(x, block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight, EPS)


def exact(x: Tensor, block: Block) -> Tensor:
    """In fp64, the norm too."""
    total = x.transpose(1, 2) + block.mlp_t(x.transpose(1, 2))
    return (total * torch.rsqrt(total.square().mean(-1, keepdim=True) + EPS)).transpose(1, 2)


def results(function: Function, x: Tensor, block: Block, along: Tensor) -> list[Tensor]:
    """The value and the gradients, along a direction, of x and of both weights."""
    block.zero_grad()
    own = x.detach().clone().requires_grad_()
    value = function(own, block)
    (value * along.to(torch.float64 if x.dtype == torch.float64 else torch.float32)).sum().backward()
    gradients = [own.grad, block.mlp_t.gate_up_proj.weight.grad, block.mlp_t.down_proj.weight.grad]
    return [value.detach(), *(g.clone() for g in gradients if g is not None)]


def random_shapes(number: int) -> list[tuple[int, int, int]]:
    """Rows, positions and channels, drawn from one seed."""
    draw = random.Random(0)
    return [(draw.randint(1, 4), draw.randint(3, 128), draw.randint(1, 150)) for _ in range(number)]


@pytest.mark.parametrize("shape", SHAPES + random_shapes(6), ids=str)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (HALF, 3e-2)], ids=["single", "half"])
def test_values_and_gradients_are_those_of_the_plain_path(
    shape: tuple[int, int, int], dtype: torch.dtype, limit: float
) -> None:
    """Near the truth in fp64, and no farther from it than the plain path in the same dtype."""
    block, x = block_and_input(*shape, dtype)
    along = torch.randn(shape, device=DEVICE)
    found, usual = results(fused, x, block, along), results(plain, x, block, along)
    truth = results(exact, x.double(), block.double(), along)
    assert [z.dtype for z in found] == [dtype, dtype, torch.float32, torch.float32]
    for own, other, true in zip(found, usual, truth, strict=True):
        assert error(own, true) < limit
        assert error(own, true) < 1.2 * error(other, true) + 1e-6


@pytest.mark.skipif(ON_GPU, reason="a GPU has the instruction itself, and half precision uses it above")
def test_the_hardwares_tanh_stands_for_the_sigmoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the instruction's exact value in its place, which the interpreter does not know."""
    called = []

    def tanh(code: str, constraints: str, values: Any, **_: Any) -> Any:
        called.append((code, constraints))
        return 2 * token_mixing.tl.sigmoid(2 * values[0]) - 1

    block, x = block_and_input(1, 18, 20, torch.float32)
    along = torch.randn(x.shape)
    expected = results(plain, x, block, along)
    monkeypatch.setattr(token_mixing.tl, "inline_asm_elementwise", tanh)
    monkeypatch.setattr(token_mixing, "_precision", lambda _: {"APPROXIMATE": True})
    for own, other in zip(results(fused, x, block, along), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert set(called) == {("tanh.approx.f32 $0, $1;", "=f,f")}


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = block_and_input(2, 18, 70, torch.float32)
    weights = block.mlp_t.gate_up_proj.weight.detach(), block.mlp_t.down_proj.weight.detach()
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert bool(mix_tokens(x, *weights, EPS).isfinite().all())


def test_a_transposed_input_is_read_as_it_is_shaped() -> None:
    block, x = block_and_input(2, 18, 20, torch.float32)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    weights = block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight
    torch.testing.assert_close(mix_tokens(turned, *weights, EPS), mix_tokens(x, *weights, EPS))


def test_rows_gradients_and_weights_are_read_however_they_lie() -> None:
    """In steps through something wider, transposed, and the same value for all; backwards as well."""
    block, _ = block_and_input(2, 18, 20, torch.float32)
    wide, tall, one = (torch.randn(shape, device=DEVICE) for shape in ((2, 20, 40), (2, 20, 18), ()))
    lying = [wide[:, 1:-1, ::2], tall.transpose(1, 2), one.expand(2, 18, 20)]
    assert not any(tensor.is_contiguous() for tensor in lying)
    weights = [w.detach().T.contiguous().T for w in (block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight)]
    for x, dy in ((lying[0], lying[1]), (lying[1], lying[0]), (lying[1], lying[2])):
        x, gate_up, down = (tensor.detach().requires_grad_() for tensor in (x, *weights))
        value, usual = mix_tokens(x, gate_up, down, EPS), plain(x, block)
        found = [value, *torch.autograd.grad(value, [x, gate_up, down], dy)]
        expected = [usual, *torch.autograd.grad(usual, [x, *block.mlp_t.parameters()], dy)]
        for one_of_ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one_of_ours, other, rtol=1e-4, atol=1e-5)


def test_sums_of_weight_gradients_do_not_depend_on_the_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = block_and_input(5, 18, 130, torch.float32)
    gradients = []
    for splits in (1, 4):
        monkeypatch.setattr(token_mixing, "SPLITS", splits)
        block.zero_grad()
        mixed = mix_tokens(x, block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight, EPS)
        mixed.square()[:, 3].sum().backward()
        gradients.append([p.grad.clone() for p in block.mlp_t.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_weights_may_have_any_dtype_and_their_gradients_have_it() -> None:
    block, x = block_and_input(2, 18, 20, HALF)
    along = torch.randn(x.shape, device=DEVICE)
    single, half = results(fused, x, block, along), results(fused, x, block.to(HALF), along)
    assert [z.dtype for z in half] == [HALF] * 4
    for own, other in zip(half, single, strict=True):
        assert error(own, other) < 3e-3  # of rounding the result: products take the weights in the dtype of x anyway


def test_a_block_and_a_compiled_block_may_use_it() -> None:
    """With the same weights under the same names; tracing sees one operation, forwards and backwards."""
    plain_block, x = block_and_input(2, 18, 64, torch.float32)
    block = Block(64, 1, 4, EPS, mlp_length=18, kernels=Kernels(mix_tokens)).to(DEVICE)
    block.load_state_dict(plain_block.state_dict())
    along = torch.ones_like(x)
    expected = results(lambda z, b: b(z, None), x, plain_block, along)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for found in (
        results(lambda z, b: b(z, None), x, block, along),
        results(lambda z, b: compiled(z, None), x, block, along),
    ):
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_a_model_trains_with_it_as_without() -> None:
    settings: dict[str, Any] = {
        "batch_size": 2,
        "seq_len": 16,
        "vocab_size": 6,
        "num_puzzle_identifiers": 2,
        "hidden_size": 32,
    }
    settings |= {"num_heads": 2, "mlp_t": True, "pos_encodings": "none", "forward_dtype": "float32"}
    settings |= {"H_cycles": 2, "L_cycles": 2, "L_layers": 1, "puzzle_emb_ndim": 32}
    batch = {"inputs": torch.randint(0, 6, (2, 16)), "puzzle_identifiers": torch.tensor([0, 1])}
    found = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        model = load_class("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1")(settings | {"kernels": kernels})
        model = model.to(DEVICE)
        on_device = {key: value.to(DEVICE) for key, value in batch.items()}
        _, outputs = model(model.initial_carry(on_device), on_device, torch.zeros(2, device=DEVICE))
        outputs["logits"].square().sum().backward()
        found.append([outputs["logits"].detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 5
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="100 inner features"):
        mix_tokens(torch.zeros(1, 8, 4), torch.zeros(200, 8), torch.zeros(8, 100), EPS)


def test_its_operations_are_counted_as_those_of_the_plain_path() -> None:
    counts = []
    for kernels in (PLAIN, Kernels(mix_tokens)):
        block = Block(64, 1, 4, EPS, mlp_length=97, kernels=kernels).to("meta")
        with torch.no_grad():
            counts.append(forward_flops(block, torch.empty(3, 97, 64, device="meta"), None))
    assert counts[0] == counts[1] > 2 * 3 * 64 * 97 * 3 * 512


def test_a_run_may_change_its_kernels_on_the_way() -> None:
    plain_config, fused_config = (
        load_config("cfg_pretrain", ["experiment=sudoku_mlp", *more]) for more in ([], ["arch.kernels=triton"])
    )
    assert isinstance(plain_config, PretrainConfig) and isinstance(fused_config, PretrainConfig)
    check_settings(fused_config, plain_config, IDENTITY, Path("step_1"))
    wider = load_config("cfg_pretrain", ["experiment=sudoku_mlp", "arch.hidden_size=256"])
    with pytest.raises(InputError, match=r"arch\.hidden_size"):
        check_settings(wider, plain_config, IDENTITY, Path("step_1"))


def test_a_machine_without_a_gpu_takes_the_plain_path_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("cfg_pretrain", ["experiment=sudoku_mlp", "arch.kernels=triton"])
    assert isinstance(config, PretrainConfig)
    shapes: Any = SimpleNamespace(seq_len=81, vocab_size=11, num_puzzle_identifiers=2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert model_config(config.arch, shapes, 4, torch.device("cuda"))["kernels"] == "triton"
    assert model_config(config.arch, shapes, 4, torch.device("cpu"))["kernels"] == "torch"
    assert "arch.kernels=triton is for GPUs" in capsys.readouterr().err


def test_an_architecture_without_such_an_mlp_is_refused() -> None:
    with pytest.raises(InputError, match=r"has a kernel for arch\.mlp_t=true only"):
        load_config("cfg_pretrain", ["arch=trm", "arch.kernels=triton"])
