"""Two tiny data sets and a short run on each, made once by the programs themselves and restored for every test."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import pytest

import diffusion_train
import evaluate
import pretrain
from tests.bad_inputs.sandbox import TINY, TINY_HEAD, Contents, Sandbox, run
from training.config import load_config

BUILDS = {
    "build_sudoku": "--output-dir sudoku --size 4 --num-train 8 --num-test 6 --num-aug 3",
    "build_arc": "--output-dir arc --grid-size 6 --max-tasks 3 --num-aug 2",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Contents]:
    """The sandbox and what is in it while nobody has spoilt it."""
    root = tmp_path_factory.mktemp("sandbox")
    with contextlib.chdir(root):
        for command, options in BUILDS.items():
            assert run(command, options) == (0, "")
        for run_dir, data in (("run", "sudoku"), ("arc_run", "arc")):
            settings = f"data_paths=[{data}] checkpoint_path={run_dir} ema=true max_steps=8 logger.plots=false"
            code, stderr = run("pretrain", f"{TINY} {settings}")
            assert code == 0, stderr
        code, stderr = run("diffusion_train", f"{TINY_HEAD} checkpoint=run checkpoint_path=head_run")
        assert code == 0, stderr
    sandbox = Sandbox(root)
    return sandbox, sandbox.contents()


@pytest.fixture
def sandbox(built: tuple[Sandbox, Contents], monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox as working directory; neither a training step nor an evaluation may begin in it."""
    sandbox, contents = built
    sandbox.restore(contents)
    monkeypatch.chdir(sandbox.root)
    works = (
        (pretrain, "train_step"),
        (evaluate, "evaluate"),
        (evaluate, "evaluate_head"),
        (diffusion_train, "announce"),
    )
    for program, work in works:
        monkeypatch.setattr(program, work, begun)
        monkeypatch.setattr(program, "load_config", lambda name, overrides: load_once(name, tuple(overrides)))
    return sandbox


def begun(*args: object, **options: object) -> None:
    raise AssertionError("the work began before the input was refused")


@functools.cache
def load_once(name: str, overrides: Sequence[str]) -> object:
    """Composing takes longer than all the rest, and many tests spoil the files under one command."""
    return load_config(name, overrides)  # type: ignore[call-overload]
