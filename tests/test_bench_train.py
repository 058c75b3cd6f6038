"""The bench of training steps: its FLOPs, its parity figures and its table, at shapes for a CPU."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets.common import InputError
from models import load_class
from scripts import bench_train
from scripts.bench_train import CASES, Way, data_of, main, parity, settings_of, tiny, ways_asked
from training import timing
from training.build import model_config
from training.cli import run_cli
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


def no_number(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tiny", "--only", "att_l4", "--paths", "eager", "--json", str(tmp_path / "figures.json")])
    written = (tmp_path / "figures.json").read_text(encoding="utf-8")
    report = json.loads(written, parse_constant=no_number)
    (case,) = report["cases"]
    assert report["device"] == f"cpu ({platform.machine()})" and report["torch"] == torch.__version__
    assert case["paths"]["eager"]["peak_gib"] is None
    eager = case["paths"]["eager"]
    assert case["case"] == "arc_att_l4" and case["rows"] == 4 and list(case["paths"]) == ["eager"]
    assert eager["ms"] > 0 and eager["attention"] == "flash" and eager["parity"]["cosine"] == pytest.approx(1)
    said = capsys.readouterr().out
    assert "arc_att_l4 | eager | plain | flash | 4 |" in said and said.startswith(f"device {report['device']}, torch ")
    assert eager["late_graphs"] == 0 and eager["first_step_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only nothing: no case has that in its name: arc_att_l6, arc_att_l4"),
        (["--paths", "eager,fast"], "--paths fast: choose from eager, compiled"),
        (["--paths", "eager,graph"], "--paths graph: arc_att_l6 on cpu has eager; leave graph out"),
        (["--profile", "-3"], "--profile -3: expected a number of kernels, 0 or more"),
        (["--json", "HERE/missing/a.json"], "HERE/missing is not a folder; create it"),
        (["--json", "HERE"], "--json HERE is a folder: name a file in it"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matmul_tflops", "bench"):
        monkeypatch.setattr(bench_train, name, lambda *_: pytest.fail("work has started"))
    here = [argument.replace("HERE", str(tmp_path)) for argument in arguments]
    assert run_cli(main, ["--tiny", *here]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said.replace("HERE", str(tmp_path)) in line


def test_a_case_has_the_paths_that_its_kernels_and_device_give_it() -> None:
    arc, mlp, gpu = CASES[0], CASES[3], torch.device("cuda")
    assert ways_asked(None, CASES, gpu) == ["eager", "compiled", "triton", "auto", "graph"]
    assert ways_asked("triton,eager", [mlp], gpu) == ["triton", "eager"]
    with pytest.raises(InputError, match=r"--paths triton: arc_att_l6 on cuda has eager, compiled, auto, graph"):
        ways_asked("eager,triton", [arc, mlp], gpu)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_figures_name_the_gpu_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, number {device.index}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "copy").mkdir()  # without a history of its own, in a repository of something else
    monkeypatch.setattr(timing, "ROOT", tmp_path / "copy")
    assert "commit" not in timing.circumstances(torch.device("cpu"))
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    found = timing.circumstances(torch.device("cuda", 1))
    assert found["device"] == "a GPU, number 1" and len(found["commit"]) >= 7 and head.startswith(found["commit"])


def test_what_is_no_number_is_null() -> None:
    figures = {"a": [1.5, float("inf")], "b": {"c": float("nan"), "d": "nan", "e": True}}
    assert json.loads(timing.as_json(figures), parse_constant=no_number) == {
        "a": [1.5, None],
        "b": {"c": None, "d": "nan", "e": True},
    }


def test_attention_kernels_are_told_apart() -> None:
    q = torch.randn(1, 2, 8, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_backend(lambda: attend(q, q, q)) == "math"
    assert attention_backend(lambda: attend(q, q, q)) == "flash"
    assert attention_backend(lambda: q @ q.mT) == "none"
