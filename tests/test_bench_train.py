"""The bench of training steps: its FLOPs, its parity figures and its table, at shapes for a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import load_class
from scripts import bench_train
from scripts.bench_train import CASES, Way, data_of, main, parity, settings_of, tiny
from training.build import model_config
from training.distributed import Distributed
from training.flops import step_flops
from training.timing import attention_backend


@pytest.mark.parametrize(("case", "tera"), list(zip(CASES, [107.0, 76.4, 36.6, 32.8], strict=True)))
def test_operations_of_the_published_steps(case: Any, tera: float) -> None:
    """The counts that were derived by hand for the original code."""
    config = settings_of(case, case.rows)
    with torch.device("meta"):
        model = load_class(config.arch.name)(model_config(config.arch, data_of(case), 1, torch.device("cpu")))
    found = step_flops(SimpleNamespace(model=SimpleNamespace(model=model))) * case.rows
    assert found / 1e12 == pytest.approx(tera, rel=0.005)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=["attention", "mlp"])
def test_parity_sees_half_precision_and_no_more(case: Any) -> None:
    dist = Distributed()
    exact, half = (parity(tiny(case), Way(), dist, dtype) for dtype in ("float32", "bfloat16"))
    assert exact["loss_difference"] == 0 and exact["cosine"] == pytest.approx(1, abs=1e-12)
    assert 0 < half["loss_difference"] < 0.02
    assert 0.5 < half["cosine"] < 1 - 1e-6


def test_parity_names_the_gradient_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0, 4.0]).double()
    steps = iter([(2.0, {"x": a, "y": b, "zero": 0 * a}), (2.5, {"x": a, "y": b.flip(0), "zero": a})])
    monkeypatch.setattr(bench_train, "gradients_of", lambda *_, **__: next(steps))
    found = parity(CASES[0], Way(), Distributed(), "float32")
    assert found == {"loss_difference": 0.25, "cosine": pytest.approx(24 / 25), "of": "y"}


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tiny", "--only", "att_l4", "--json", str(tmp_path / "figures.json")])
    (case,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["cases"]
    eager = case["paths"]["eager"]
    assert case["case"] == "arc_att_l4" and case["rows"] == 4 and list(case["paths"]) == ["eager"]
    assert eager["ms"] > 0 and eager["attention"] == "flash" and eager["parity"]["cosine"] == pytest.approx(1)
    assert "arc_att_l4 | eager | plain | flash | 4 |" in capsys.readouterr().out
    assert eager["late_graphs"] == 0 and eager["first_step_s"] > 0


def test_attention_kernels_are_told_apart() -> None:
    q = torch.randn(1, 2, 8, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_backend(lambda: attend(q, q, q)) == "math"
    assert attention_backend(lambda: attend(q, q, q)) == "flash"
    assert attention_backend(lambda: q @ q.mT) == "none"
