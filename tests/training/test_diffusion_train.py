"""Runs of ``diffusion_train.py``: what is killed goes on to the bit, and what does not belong together is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_train
import pretrain
from diffusion_streaming import LayerUpdateStreamer
from tests.training.diffusion_runs import head_command, head_state, train_teacher
from tests.training.runs import HRM, TRM, build_sudoku_4x4, differences, overrides, records
from tests.training.test_distributed import torchrun
from training.cli import run_cli
from training.config import load_config
from training.diffusion_head import open_head
from training.diffusion_trainer import DiffusionTrainer916
from training.distributed import Distributed
from training.manifest import read_manifest
from training.teacher import open_teacher

ROOT = Path(diffusion_train.__file__).parent

# Kills its own process, without a chance to clean up, at a production of the harvest or a step of the training.
KILLED = """
import os, signal, sys
import diffusion_train
from diffusion_streaming import HCycleStreamer, LayerUpdateStreamer
from training.diffusion_trainer import _DiffusionTrainer
place, when = sys.argv[1], int(sys.argv[2])
def killing(method, count):
    def wrapper(self, *args):
        if count(self) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args)
    return wrapper
if place == "harvest":
    for streamer in (LayerUpdateStreamer, HCycleStreamer):
        streamer._produce = killing(streamer._produce, lambda self: self.productions)
else:
    _DiffusionTrainer.train_step = killing(_DiffusionTrainer.train_step, lambda self: self.step)
diffusion_train.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and three teachers: attention, an MLP over positions, and two levels."""
    folder = tmp_path_factory.mktemp("heads")
    data = build_sudoku_4x4(folder / "sudoku")
    train_teacher(folder / "teacher", data)
    train_teacher(folder / "mlp", data, "arch.mlp_t=true", "arch.pos_encodings=none", "arch.L_cycles=4")
    train_teacher(folder / "hrm", data, arch=HRM)
    return folder


def train(*arguments: str) -> int:
    return run_cli(diffusion_train.main, list(arguments))


def kill(place: str, when: int, command: list[str]) -> None:
    process = [sys.executable, "-c", KILLED, place, str(when), *command]
    killed = subprocess.run(process, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize(
    "more",
    [
        ["diffusion=diffusion_916", "harvest.replay=0.5"],
        ["diffusion=diffusion_916", "harvest.replay=0.5", "harvest.own_path=5"],
        ["diffusion=diffusion_9160", "diffusion.num_layers=2", "harvest.buffer_device=host"],
    ],
    ids=["layer", "own path", "h_cycle"],
)
def test_killed_in_the_harvest_and_in_training_a_run_equals_one_that_was_not(
    more: list[str], folder: Path, tmp_path: Path
) -> None:
    more = [*more, "harvest.ring_gib=0.0005"]
    assert train(*head_command(folder / "teacher", tmp_path / "whole", *more)) == 0
    command = head_command(folder / "teacher", tmp_path / "parts", *more)
    if more[0] == "diffusion=diffusion_916":
        kill("harvest", 2, command)
        assert not (tmp_path / "parts/checkpoints").exists()
    kill("train", 13, command)
    halfway = head_state(tmp_path / "parts", 8)
    assert train(*command) == 0

    whole, parts = head_state(tmp_path / "whole", 16), head_state(tmp_path / "parts", 16)
    assert differences(whole, parts) == []
    # The comparison can fail: half-way most of it was different.
    assert len(differences(whole, halfway)) > len(whole) / 2
    losses = [records(tmp_path / name, "train/loss") for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 16
    harvests = [read_manifest(tmp_path / name / "checkpoints/step_16").meta["harvest"] for name in ("whole", "parts")]
    assert harvests[0] == harvests[1]
    # It harvested again after the ring was full, so that there was something to get wrong.
    assert (
        harvests[0]["productions"] > read_manifest(tmp_path / "parts/checkpoints/step_8").meta["harvest"]["productions"]
    )


@pytest.mark.parametrize(
    ("teacher", "head"),
    [
        ("teacher", "d916_v"),
        ("teacher", "d916_seed_eps"),
        ("teacher", "d9160_full"),
        ("teacher", "d9160_seed_eps"),
        ("mlp", "d916_x0"),
        ("mlp", "d9160_alternating"),
        ("mlp", "d9160_looped"),
        ("mlp", "d9160_jump"),
        ("hrm", "d916_eps"),
        ("hrm", "d9160_jump_regression"),
    ],
)
def test_heads_learn_on_teachers(teacher: str, head: str, folder: Path, tmp_path: Path) -> None:
    more = [
        "max_steps=24",
        f"diffusion.num_layers={3 if head == 'd9160_looped' else 2}",
        "global_batch_size=32",
        "checkpoint_interval=null",
        "harvest.ring_gib=0.004",
    ]
    assert train(*head_command(folder / teacher, tmp_path, f"diffusion={head}", "lr=0.01", *more)) == 0
    losses = list(records(tmp_path, "train/loss").values())
    assert len(losses) == 24
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])
    protocol = json.loads((tmp_path / "eval/step_24/diffusion.json").read_text())["protocol"]
    assert (
        protocol["rows"]
        and protocol["head_step"] == 24
        and protocol["head_weights"] == "EMA"
        and protocol["head_parameters"] > 0
    )


def test_statistics_are_those_of_the_ring_and_stay_with_the_head(folder: Path, tmp_path: Path) -> None:
    command = head_command(folder / "teacher", tmp_path, "max_steps=1", "harvest.ring_gib=0.0005")
    assert train(*command) == 0
    dist = Distributed()
    opened = open_head(tmp_path, dist)
    config = load_config("cfg_diffusion_train", command)
    teacher = open_teacher(str(folder / "teacher"), dist)
    streamer = LayerUpdateStreamer(teacher, dist, config.harvest, global_batch_size=8, seed=0)
    streamer.fill()
    parts = list(streamer.latents())
    for kind in (0, 1):
        rows = torch.cat([latents[types == kind] for latents, types in parts]).flatten(0, 1).double()
        torch.testing.assert_close(opened.head.normalizer.mean[kind].double(), rows.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            opened.head.normalizer.std[kind].double(), rows.std(0, correction=0).clamp(min=1e-2), atol=1e-5, rtol=1e-4
        )
    normalizer: Any = opened.head.normalizer
    assert opened.meta["teacher"] == teacher.identity | {"statistics": normalizer.digest()}
    state = head_state(tmp_path, 1)
    for name, tensor in opened.head.named_parameters():
        assert torch.equal(tensor, state[f"ema/{name}"]), name
        assert not tensor.requires_grad
    assert opened.step == 1 and not opened.head.training


def test_a_signal_saves_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = DiffusionTrainer916.train_step

    def signalled(self: DiffusionTrainer916, batch: object) -> object:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    command = head_command(folder / "teacher", tmp_path / "run", "checkpoint_interval=null")
    with monkeypatch.context() as patched:
        patched.setattr(DiffusionTrainer916, "train_step", signalled)
        assert train(*command) == 0
    assert "stopped by SIGTERM at step 5" in capsys.readouterr().err
    assert os.readlink(tmp_path / "run/checkpoints/latest") == "step_5"
    assert train(*command) == 0
    assert train(*head_command(folder / "teacher", tmp_path / "whole")) == 0
    assert differences(head_state(tmp_path / "run", 16), head_state(tmp_path / "whole", 16)) == []
    # Finished: once more does nothing.
    assert train(*command) == 0
    assert "nothing left to train" in capsys.readouterr().err


def test_an_interrupted_evaluation_is_made_up_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    command = head_command(folder / "teacher", tmp_path, "max_steps=3")
    with monkeypatch.context() as patched:
        patched.setattr(diffusion_train, "evaluate_head", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            diffusion_train.main(command)
    assert not (tmp_path / "eval").exists()
    assert train(*command) == 0
    assert (tmp_path / "eval/step_3/diffusion.json").exists()


def test_evaluation_leaves_training_alone(folder: Path, tmp_path: Path) -> None:
    assert train(*head_command(folder / "teacher", tmp_path / "often", "max_steps=6", "eval_interval=2")) == 0
    assert train(*head_command(folder / "teacher", tmp_path / "once", "max_steps=6")) == 0
    assert differences(head_state(tmp_path / "often", 6), head_state(tmp_path / "once", 6)) == []
    assert len(list((tmp_path / "often/eval").iterdir())) == 3


def test_two_processes_compute_what_one_does(folder: Path, tmp_path: Path) -> None:
    # AdamW: Muon makes its updates orthogonal in bfloat16, where the order of a sum shows in the fourth digit.
    more = ["harvest.ring_gib=0.1", "max_steps=8", "checkpoint_interval=4", "optim=adamw", "harvest.own_path=5"]
    commands = [head_command(folder / "teacher", tmp_path / name, *more) for name in ("one", "two")]
    assert train(*commands[0]) == 0
    torchrun("diffusion_train.py", commands[1])
    losses = [records(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    metas = [read_manifest(tmp_path / name / "checkpoints/step_8").meta for name in ("one", "two")]
    assert metas[0]["harvest"] == metas[1]["harvest"]
    one, two = (head_state(tmp_path / name, 8) for name in ("one", "two"))
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name
    # What two began, one can finish: the ring is the same.
    assert train(*commands[1], "max_steps=10") == 0


def test_another_ring_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = head_command(folder / "teacher", tmp_path, "max_steps=2")
    assert train(*command) == 0
    monkeypatch.setattr(LayerUpdateStreamer, "checksum", lambda self: "0" * 64)
    assert train(*command, "max_steps=4") == 2
    assert "are not those of the run" in capsys.readouterr().err


def test_a_teacher_that_was_trained_on_is_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = train_teacher(tmp_path / "teacher", folder / "sudoku")
    command = head_command(teacher, tmp_path / "run", "max_steps=2")
    assert train(*command) == 0
    assert run_cli(pretrain.main, overrides(TRM, folder / "sudoku", teacher, "max_steps=8")) == 0
    assert train(*command, "max_steps=4") == 2
    assert "trained on a teacher with other weights" in capsys.readouterr().err
