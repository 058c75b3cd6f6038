"""Bad command lines, teachers and checkpoints for ``diffusion_train.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.bad_inputs.sandbox import TINY, TINY_HEAD, Sandbox, flip_bit, make_bomb, run
from training import distributed
from training.distributed import Distributed
from training.lock import RunLock

NEW_RUN = f"{TINY_HEAD} checkpoint=run checkpoint_path=new"
JUMP = "diffusion=d9160_jump diffusion.num_layers=2"

COMMAND_LINES = [
    # keys and choices that do not exist
    ("difusion.prediction=v", "difusion.prediction=v: unknown key, the nearest valid name is diffusion.prediction"),
    ("diffusion.num_layer=3", "diffusion.num_layer=3: .* diffusion.num_layers"),
    ("diffusion.loss.gamma=3", "diffusion.loss.gamma=3: .* diffusion.loss.min_snr_gamma"),
    ("noise.beta_stop=0.1", "noise.beta_stop=0.1: unknown key"),
    ("harvest.repaly=2", "harvest.repaly=2: .* harvest.replay"),
    ("sampler.step=[1]", r"sampler.step=\[1\]: .* sampler.steps"),
    ("epochs=3", "epochs=3: unknown key"),
    ("diffusion=diffusion_917", "diffusion=diffusion_917: unknown choice, the nearest is diffusion_916"),
    ("noise=quadratic", "noise=quadratic: unknown choice; there are cosine, edm, linear, sigmoid"),
    ("experiment=smoke", "experiment=smoke: unknown choice; there are diffusion_quickstart, diffusion_smoke"),
    ("arch=trm", "arch=trm: there is no group arch here"),
    ("diffusion.name=nowhere@Head", "diffusion.name=nowhere@Head: .* no module"),
    ("diffusion.name=diffusion_916@Head", "diffusion.name=diffusion_916@Head: .* no class"),
    ("diffusion.name=losses@ACTLossHead", "diffusion.name=losses@ACTLossHead: that class is no diffusion head"),
    # types and ranges
    ("checkpoint=null", "checkpoint=null: expected text"),
    ("diffusion.prediction=x1", "diffusion.prediction=x1: expected 'x0', 'eps', 'v' or 'regression'"),
    ("diffusion.num_layers=two", "diffusion.num_layers=two: expected an integer"),
    ("diffusion.loss.weighting=snr5", "diffusion.loss.weighting=snr5: expected 'uniform', 'min_snr' or 'snr'"),
    ("noise.steps=1", "noise.steps=1: expected at least 2"),
    ("noise.timesteps=uniform", "noise.timesteps=uniform: expected 'stratified' or 'lognormal'"),
    ("noise.shift=0", "noise.shift=0: expected more than 0"),
    ("noise.shift=5000", "noise.shift=5000: expected at most 1000"),
    ("harvest.own_path=-1", "harvest.own_path=-1: expected at least 0"),
    ("harvest.replay=0", "harvest.replay=0: expected more than 0"),
    ("harvest.act_step_floor=2", "harvest.act_step_floor=2: expected at most 1"),
    ("harvest.act_step_weights=late", "harvest.act_step_weights=late: expected 'copy_error' or 'uniform'; .*=.late."),
    ("harvest.act_step_weights=[1,-2]", r"; harvest.act_step_weights\[1\]=-2: expected at least 0"),
    ("harvest.buffer_device=disk", "harvest.buffer_device=disk: expected 'auto', 'device' or 'host'"),
    ("harvest.jump_from=[]", r"harvest.jump_from=\[\]: expected at least 1 entry"),
    ("sampler.name=euler", "sampler.name=euler: expected 'ddpm', 'ddim', 'dpm_solver' or 'heun'"),
    ("sampler.steps=[0]", r"sampler.steps\[0\]=0: expected at least 1"),
    ("max_steps=0", "max_steps=0: expected at least 1"),
    # combinations
    ("noise.beta_end=0.001", "noise.schedule=linear: .* SNR .* raise noise.steps or noise.beta_end"),
    ("noise.steps=20", "noise.schedule=linear: .* 20 steps ends at SNR"),
    ("noise.shift=0.01", "noise.schedule=linear: .* ends at SNR"),
    ("noise=edm noise.shift=1e-12", "noise.schedule=edm: .* ends at SNR inf"),
    ("noise.beta_start=0.03", "noise.beta_start=0.03 is above noise.beta_end=0.02"),
    ("noise.beta_end=null", "noise.schedule=linear needs a value for noise.beta_end"),
    ("noise=cosine noise.beta_end=0.02", "noise.beta_end=0.02 has no effect with noise.schedule=cosine"),
    ("diffusion.rows=jump", "diffusion.rows=jump does not suit diffusion.name=diffusion_916@Diffusion916: use layer"),
    ("diffusion=diffusion_9160 diffusion.rows=layer", "diffusion.rows=layer does not suit .*: use h_cycle or jump"),
    ("diffusion.length=9", "diffusion.length=9: the teacher decides this, drop the key"),
    ("diffusion.pos_encodings=none", "diffusion.pos_encodings=none: the teacher decides this"),
    (f"{JUMP} diffusion.target_kind=jump", "diffusion.target_kind=jump: diffusion.rows decides this"),
    ("diffusion=d9160_full diffusion.token_mixing=mlp", "attention=full cannot go with diffusion.token_mixing=mlp"),
    ("diffusion=diffusion_9160", "diffusion.num_layers=1 has no layer that looks across blocks"),
    ("harvest.act_step_weights=[0,0]", r"harvest.act_step_weights=\[0.0, 0.0\] gives no ACT step any weight"),
    (f"{JUMP} harvest.jump_from=[1] harvest.jump_to=1", r"jump_from=\[1\] does not lie before harvest.jump_to=1"),
    (f"{JUMP} harvest.jump_from=[0,0]", r"harvest.jump_from=\[0, 0\] names an ACT step twice"),
    ("harvest.jump_to=2", "harvest.jump_to=2 has no effect with diffusion.rows=layer: drop it"),
    ("harvest.jump_from=[1]", r"harvest.jump_from=\[1\] has no effect with diffusion.rows=layer: drop it"),
    (f"{JUMP} harvest.act_step_weights=uniform", "harvest.act_step_weights=uniform has no effect with .*rows=jump"),
    (f"{JUMP} harvest.own_path=9", "harvest.own_path=9.0 has no effect with diffusion.rows=jump"),
    ("diffusion=d916_v diffusion.own_estimates=true", "own_estimates=true is for heads that predict x0, not .*=v"),
    ("diffusion=d916_seed_eps diffusion.own_estimates=true", "own_estimates=true is for heads that predict x0"),
    ("diffusion=d916_regression diffusion.loss.weighting=snr", "weighting=snr weights noise levels, of which"),
    ("eval_interval=9", "eval_interval=9 is longer than max_steps=4"),
    ("sampler.steps=[2000]", r"sampler.steps=\[2000\] has more than noise.steps=1000"),
    ("diffusion=d916_regression regression_checkpoint=run", "drop it for diffusion.prediction=regression"),
]

AGAINST_THE_TEACHER = [
    ("global_batch_size=6", "takes every 4th of the 6 rows of a process: make global_batch_size a multiple of 4"),
    ("checkpoint=nowhere", "checkpoint nowhere does not exist"),
    ("checkpoint=sudoku", "sudoku is no checkpoint and no run directory"),
    ("checkpoint=bomb.pt", "bomb.pt holds more than tensors"),
    ("checkpoint=weights.pt", "checkpoint weights.pt holds nothing but weights"),
    ("checkpoint=head_run", "checkpoint head_run is of kind 'diffusion', not a teacher"),
    ("data_paths=[nowhere]", "nowhere/train/dataset.json does not exist"),
    ("data_paths=[arc]", "was trained on other"),
    ("diffusion.num_heads=3", "^diffusion.num_heads=3 does not divide the teacher's hidden size 16"),
    ("diffusion.num_heads=16", "^diffusion.num_heads=16 gives heads of 1 channels"),
    ("harvest.act_step_weights=[1,1,1]", "harvest.act_step_weights has 3 numbers for the teacher's 2 ACT steps"),
    (f"{JUMP} harvest.jump_to=3", "harvest.jump_to=3 do not fit the teacher's 2 ACT steps"),
    ("harvest.ring_gib=1e-9", "harvest.ring_gib=1e-09 holds no trajectory .* raise it"),
    ("regression_checkpoint=nowhere", "nowhere does not exist"),
    ("regression_checkpoint=run", "is a checkpoint of kind training, not of a diffusion head"),
    ("regression_checkpoint=head_run", "regression_checkpoint=head_run is a head with .*diffusion.prediction=x0"),
]


@pytest.mark.parametrize(("overrides", "message"), COMMAND_LINES)
def test_command_lines(sandbox: Sandbox, overrides: str, message: str) -> None:
    sandbox.assert_refused("diffusion_train", f"{NEW_RUN} {overrides}", message)


@pytest.mark.parametrize(("overrides", "message"), AGAINST_THE_TEACHER)
def test_settings_that_do_not_fit_the_teacher(sandbox: Sandbox, overrides: str, message: str) -> None:
    torch.save({"weight": make_bomb()}, "bomb.pt")
    torch.save({"weight": torch.zeros(3)}, "weights.pt")
    sandbox.assert_refused("diffusion_train", f"{NEW_RUN} {overrides}", message)


def test_no_teacher_named(sandbox: Sandbox) -> None:
    sandbox.assert_refused("diffusion_train", TINY_HEAD, "checkpoint: a value is required")


ANOTHER_RUN = [
    ("seed=1", "head_run.* was trained with seed=0, this run has 1"),
    ("diffusion.num_layers=2", "was trained with diffusion.num_layers=1, this run has 2"),
    ("diffusion.prediction=v", "was trained with diffusion.prediction=x0, this run has v"),
    ("noise=cosine", "was trained with noise.schedule=linear, this run has cosine"),
    ("harvest.replay=2", "was trained with harvest.replay=4.0, this run has 2.0"),
    ("global_batch_size=8", "was trained with global_batch_size=4, this run has 8"),
    ("optim=adamw", "was trained with optim.name=muon, this run has adamw"),
    ("checkpoint=arc_run", "trained on a teacher with other weights"),
    ("resume=null", "head_run has checkpoints: use resume=auto to continue"),
    ("resume=run", "is of kind training, and this run's checkpoints are of kind diffusion"),
    ("resume=nowhere", "nowhere is no checkpoint and no run directory"),
    ("checkpoint_path=run", "is of kind training, and this run's checkpoints are of kind diffusion"),
]


@pytest.mark.parametrize(("overrides", "message"), ANOTHER_RUN)
def test_a_checkpoint_of_another_run(sandbox: Sandbox, overrides: str, message: str) -> None:
    settings = f"{TINY_HEAD} checkpoint=run checkpoint_path=head_run max_steps=8 {overrides}"
    sandbox.assert_refused("diffusion_train", settings, message)


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "ema.safetensors"])
def test_a_damaged_checkpoint_that_is_named(sandbox: Sandbox, file: str) -> None:
    flip_bit(f"head_run/checkpoints/step_4/{file}")
    settings = f"{TINY_HEAD} checkpoint=run checkpoint_path=new resume=head_run/checkpoints/step_4"
    sandbox.assert_refused("diffusion_train", settings, f"{file} is damaged")


def test_statistics_that_are_not_those_of_the_checkpoint(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.normalisation.LatentNormalizer.digest", lambda self: "0" * 64)
    settings = f"{TINY_HEAD} checkpoint=run checkpoint_path=head_run max_steps=8"
    sandbox.assert_refused("diffusion_train", settings, "other statistics of the latents")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("pretrain", f"{TINY} data_paths=[sudoku] checkpoint_path=new load_checkpoint=head_run", "of kind 'diffusion'"),
        ("pretrain", f"{TINY} data_paths=[sudoku] checkpoint_path=head_run", "head_run.* is of kind diffusion"),
        ("extract", "head_run picture.png", "of kind 'diffusion'"),
    ],
)
def test_a_head_is_no_model_of_puzzles(sandbox: Sandbox, command: str, arguments: str, message: str) -> None:
    sandbox.assert_refused(command, arguments, message)


def test_batches_that_cannot_be_shared_out(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "init", lambda device: Distributed(world_size=3))
    sandbox.assert_refused("diffusion_train", NEW_RUN, "global_batch_size=4 cannot be shared out over 3 processes")


def test_the_package_that_samples_is_missing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name))
    sandbox.assert_refused("diffusion_train", NEW_RUN, r'diffusers, which is missing: pip install -e "\.\[diffusion\]"')


def test_run_directory_in_use(sandbox: Sandbox) -> None:
    with RunLock("head_run"):
        settings = f"{TINY_HEAD} checkpoint=run checkpoint_path=head_run max_steps=8"
        sandbox.assert_refused("diffusion_train", settings, r"run directory head_run is in use by host \S+ pid \d+")


def test_run_directory_below_a_file(sandbox: Sandbox) -> None:
    Path("new").write_text("notes")
    settings = f"{NEW_RUN} checkpoint_path=new/run"
    sandbox.assert_refused("diffusion_train", settings, "run directory new/run cannot be used: Not a directory")


def test_the_good_command_passes(sandbox: Sandbox) -> None:
    """What the other tests spoil does begin to work when it is not spoilt."""
    with pytest.raises(AssertionError, match="the work began"):
        run("diffusion_train", NEW_RUN)
