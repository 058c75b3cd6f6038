"""Products in fp8: close to the exact ones, in the passes without gradients alone, and refused where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pretrain
from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from models.act import ACTConfig
from models.kernels import PLAIN, Kernels
from models.kernels.fp8 import LARGEST, fits, fp8_linear
from models.layers import Block, ReasoningModule
from tests.training.runs import TRM, build_sudoku_4x4, overrides
from training.build import build_model, model_config
from training.cli import run_cli
from training.config import load_config


@pytest.fixture
def level() -> ReasoningModule:
    torch.manual_seed(0)
    return ReasoningModule([Block(64, 2, 4, 1e-5, mlp_length=17)]).use_fp8_passes()


@pytest.mark.parametrize("shape", [(7, 32, 48), (2, 5, 64, 16)])
def test_a_product_is_close_to_the_exact_one(shape: tuple[int, ...]) -> None:
    *rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, inputs, generator=generator).bfloat16()
    weight = 1e-3 * torch.randn(outputs, inputs, generator=generator)
    y, exact = fp8_linear(x, weight), F.linear(x.double(), weight.double())
    assert y.shape == exact.shape and y.dtype == torch.bfloat16
    error = float((y.double() - exact).norm() / exact.norm())
    assert 0.005 < error < 0.05  # three bits of mantissa on both sides: 4 % in the mean, and never nothing


def test_values_beyond_the_range_become_its_ends_and_zero_weights_give_zero() -> None:
    weight = torch.eye(16)
    x = torch.full((1, 16), 1e4).bfloat16()
    assert torch.equal(fp8_linear(x, weight), torch.full((1, 16), LARGEST).bfloat16())
    assert torch.equal(fp8_linear(x, 0 * weight), torch.zeros(1, 16).bfloat16())


def test_it_is_for_training_passes_without_gradients_alone(level: ReasoningModule, monkeypatch: Any) -> None:
    seen: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return fp8_linear(x, weight)

    monkeypatch.setattr("models.layers.fp8_linear", counted)
    state, injection = (torch.randn(2, 17, 64).bfloat16() for _ in range(2))
    with_gradients = level(state, injection, None)
    level.eval()
    with torch.no_grad():
        evaluated = level(state, injection, None)
    assert seen == [] and torch.equal(with_gradients, evaluated)
    level.train()
    with torch.no_grad():
        narrow = level(state, injection, None)
    # The MLP over 17 positions is of no size that fits.
    shapes = {name: tuple(parameter.shape) for name, parameter in level.named_parameters()}
    assert seen == [shapes["layers.0.mlp.gate_up_proj.weight"], shapes["layers.0.mlp.down_proj.weight"]]
    error = float((narrow - evaluated).detach().float().norm() / evaluated.detach().float().norm())
    assert 0 < error < 0.1


def test_widths_that_fit() -> None:
    assert fits(512, 3072) and not fits(97, 512) and not fits(512, 97)


def test_what_is_refused_is_named(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sudoku = build_sudoku_4x4(tmp_path / "sudoku")
    arguments = overrides(TRM, sudoku, tmp_path / "run", "arch.fp8_passes=true")
    assert run_cli(pretrain.main, [*arguments, "arch.forward_dtype=float32"]) == 2
    assert "arch.fp8_passes=true is for arch.forward_dtype=bfloat16, and this is float32" in capsys.readouterr().err
    assert run_cli(pretrain.main, [*arguments, "arch=transformers_baseline", "~arch.L_layers", "~arch.L_cycles"]) == 2
    assert "arch.fp8_passes=true has no meaning here, where all passes have gradients" in capsys.readouterr().err
    assert run_cli(pretrain.main, [*arguments, "arch.forward_dtype=bfloat16", "arch.hidden_size=24"]) == 2
    assert "arch.fp8_passes=true finds no product to compute so" in capsys.readouterr().err
    config, metadata = load_config("cfg_pretrain", arguments), PuzzleDataset([str(sudoku)], "train").metadata
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for device, has in (("cuda", "8.0"), ("mps", "none")):
        with pytest.raises(InputError, match=rf"compute capability 8.9 or more, and {device} has {has}: leave it out"):
            model_config(config.arch, metadata, 8, torch.device(device))


def test_a_run_trains_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    calls = 0

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return fp8_linear(x, weight)

    monkeypatch.setattr("models.layers.fp8_linear", counted)
    sudoku = build_sudoku_4x4(tmp_path / "sudoku")
    more = ["arch.fp8_passes=true", "arch.forward_dtype=bfloat16", "max_steps=2"]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "run", *more)) == 0
    # Two steps of one H-cycle without gradients: three applications of one layer with four products each.
    assert calls == 2 * 3 * 4


def test_what_was_trained_with_it_is_evaluated_anywhere(tmp_path: Path) -> None:
    sudoku = build_sudoku_4x4(tmp_path / "sudoku")
    config = load_config("cfg_pretrain", overrides(TRM, sudoku, tmp_path / "run", "arch.fp8_passes=true"))
    metadata = PuzzleDataset([str(sudoku)], "train").metadata
    settings = model_config(config.arch, metadata, 8, torch.device("cpu"), training=False)
    build_model(config.arch, settings, torch.device("cpu"))
    with pytest.raises(InputError, match="this is float32"):
        settings = model_config(config.arch, metadata, 8, torch.device("cpu"))
        build_model(config.arch, settings, torch.device("cpu"))


def test_products_of_kernels_are_left_to_them() -> None:
    kernels = Kernels(gated_mlp=lambda x, gate_up, down: x)
    level = ReasoningModule([Block(64, 2, 4, 1e-5, kernels=kernels)]).use_fp8_passes()
    narrow = {name for name, part in level.named_modules() if getattr(part, "fp8_passes", False)}
    assert narrow == {"layers.0.self_attn.qkv_proj", "layers.0.self_attn.o_proj"}


def test_the_products_of_the_mlp_over_positions_are_its_kernels(tmp_path: Path, monkeypatch: Any) -> None:
    """Though 16 positions are a length that would fit."""
    over_positions = {"layers.0.mlp_t.gate_up_proj", "layers.0.mlp_t.down_proj"}
    over_channels = {"layers.0.mlp.gate_up_proj", "layers.0.mlp.down_proj"}
    kernels = Kernels(mix_tokens=lambda x, *_: x)
    for use, expected in ((PLAIN, over_positions | over_channels), (kernels, over_channels)):
        level = ReasoningModule([Block(64, 2, 4, 1e-5, mlp_length=16, kernels=use)]).use_fp8_passes()
        assert {name for name, part in level.named_modules() if getattr(part, "fp8_passes", False)} == expected
    everything = Kernels(mix_tokens=kernels.mix_tokens, gated_mlp=lambda x, *_: x)
    monkeypatch.setattr(ACTConfig, "find_kernels", lambda *_: everything)
    more = ["arch.fp8_passes=true", "arch.forward_dtype=bfloat16", "arch.mlp_t=true", "arch.pos_encodings=none"]
    sudoku = build_sudoku_4x4(tmp_path / "sudoku")  # 16 cells, and so 16 positions without puzzle tokens
    config = load_config("cfg_pretrain", overrides(TRM, sudoku, tmp_path / "run", *more, "arch.puzzle_emb_ndim=0"))
    settings = model_config(config.arch, PuzzleDataset([str(sudoku)], "train").metadata, 8, torch.device("cpu"))
    with pytest.raises(InputError, match="finds no product to compute so"):
        build_model(config.arch, settings, torch.device("cpu"))
