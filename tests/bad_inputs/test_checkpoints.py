"""Bad checkpoints: to continue from, to start from, to evaluate and to export."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bad_inputs.sandbox import TINY, Sandbox, cut, flip_bit, make_bomb, run
from training.checkpoint import save_checkpoint

CHECKPOINT = "run/checkpoints/step_8"
SAME_RUN = f"{TINY} data_paths=[sudoku] checkpoint_path=run ema=true epochs=8"

OTHER_RUNS = [
    ("arch.L_cycles=2", "run/checkpoints/step_8 was trained with arch.L_cycles=1, this run has 2"),
    ("arch=hrm", "step_8 was trained with arch.name=recursive_reasoning.trm@.*, this run has .*hrm@"),
    ("seed=1", "step_8 was trained with seed=0, this run has 1"),
    ("global_batch_size=2", "step_8 was trained with global_batch_size=4, this run has 2"),
    ("global_batch_size=8", "step_8 was trained with global_batch_size=4, this run has 8"),
    ("ema=false", "step_8 was trained with ema=true, this run has false"),
    ("optim=adamw", "step_8 was trained with optim.name=adam_atan2, this run has adamw"),
    ("data_paths=[other]", r"step_8 was trained on other data than data_paths=\[other\]"),
    ("max_train_puzzles=6", "step_8 was trained on other data than .*, max_train_puzzles=6 gives now"),
    ("seed=1 resume=run", "step_8 was trained with seed=0, this run has 1"),
    (f"seed=1 checkpoint_path=new resume={CHECKPOINT}", "step_8 was trained with seed=0, this run has 1"),
]


@pytest.mark.parametrize(("overrides", "message"), OTHER_RUNS)
def test_continuing_another_run(sandbox: Sandbox, overrides: str, message: str) -> None:
    if "other" in overrides:
        other = "--output-dir other --size 4 --num-train 8 --num-test 6 --num-aug 3 --seed 5"
        assert run("build_sudoku", other) == (0, "")
    sandbox.assert_refused("pretrain", f"{SAME_RUN} {overrides}", message)


def test_the_good_command_continues(sandbox: Sandbox) -> None:
    with pytest.raises(AssertionError, match="the work began"):
        run("pretrain", SAME_RUN)


STARTS = [
    ("resume=nowhere", "nowhere is no checkpoint and no run directory"),
    ("resume=sudoku", "sudoku is no checkpoint and no run directory"),
    ("resume=null", "run has checkpoints: use resume=auto to continue, or another run_name"),
    ("checkpoint_path=new load_checkpoint=nowhere", "nowhere does not exist"),
    ("checkpoint_path=new load_checkpoint=sudoku", "sudoku is no checkpoint and no run directory"),
    ("checkpoint_path=new load_checkpoint=sudoku/identifiers.json", "identifiers.json is damaged or no .pt file"),
    ("checkpoint_path=new load_checkpoint=arc_run", "arc_run.* has shape"),
    ("checkpoint_path=new load_checkpoint=run arch.H_layers=1", "run.* has no tensor model.inner.H_level"),
    ("checkpoint_path=new load_checkpoint=run arch.puzzle_emb_ndim=0", "run has a tensor .*puzzle_emb.weights"),
    ("checkpoint_path=new load_checkpoint=run arch.hidden_size=8", r"run: model.inner.\S+ has shape \("),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), STARTS)
def test_bad_starts(sandbox: Sandbox, overrides: str, message: str) -> None:
    sandbox.assert_refused("pretrain", f"{SAME_RUN} {overrides}", message)


def no_manifest(directory: str) -> None:
    Path(directory, "manifest.json").unlink()


def other_meta(directory: str) -> None:
    path = Path(directory, "manifest.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def other_version(directory: str) -> None:
    path = Path(directory, "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))


def file_damage(name: str, damage: Callable[[str], None]) -> Callable[[str], None]:
    return lambda directory: damage(f"{directory}/{name}")


DAMAGE = [
    (file_damage("model.safetensors", lambda path: Path(path).unlink()), "model.safetensors is missing"),
    (file_damage("model.safetensors", cut), "model.safetensors is damaged: .* bytes instead of"),
    (file_damage("model.safetensors", partial(cut, keep=0)), "model.safetensors is damaged: 0 bytes instead of"),
    (file_damage("model.safetensors", flip_bit), "model.safetensors is damaged: its SHA-256 does not match"),
    (file_damage("model.safetensors", partial(flip_bit, position=0)), "model.safetensors is damaged: its SHA-256"),
    (file_damage("ema.safetensors", flip_bit), "ema.safetensors is damaged"),
    (file_damage("manifest.json", cut), "manifest.json is damaged: not JSON"),
    (file_damage("manifest.json", partial(flip_bit, position=0.5)), "manifest.json is damaged"),
    (other_meta, "manifest.json is damaged: its SHA-256 does not match"),
    (other_version, "manifest.json: unknown format_version 2; update trm-lab"),
]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pretrain", f"{SAME_RUN} resume={CHECKPOINT}"),
        ("pretrain", f"{SAME_RUN} checkpoint_path=new load_checkpoint={CHECKPOINT}"),
        ("evaluate", f"checkpoint={CHECKPOINT} device=cpu"),
        ("export", f"{CHECKPOINT} out.pt --ema"),
    ],
    ids=["resume", "load_checkpoint", "evaluate", "export"],
)
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_checkpoints(
    sandbox: Sandbox, damage: Callable[[str], None], message: str, command: str, arguments: str
) -> None:
    damage(CHECKPOINT)
    sandbox.assert_refused(command, arguments, message)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("pretrain", SAME_RUN), ("evaluate", "checkpoint=run device=cpu"), ("export", "run out.pt")],
)
@pytest.mark.parametrize("name", ["optim.safetensors", "carry.0-4.safetensors", "manifest.json"])
def test_run_whose_only_checkpoint_is_damaged(sandbox: Sandbox, command: str, arguments: str, name: str) -> None:
    cut(f"{CHECKPOINT}/{name}")
    sandbox.assert_refused(command, arguments, "no checkpoint in run/checkpoints is intact")


def bomb(path: str) -> None:
    torch.save({"model.inner.lm_head.weight": make_bomb()}, path)


def old_bomb(path: str) -> None:
    torch.save(make_bomb(), path, _use_new_zipfile_serialization=False)


def nested_bomb(path: str) -> None:
    torch.save({"state": torch.zeros(2), "extra": [{"deep": make_bomb()}]}, path)


def not_named(path: str) -> None:
    torch.save([torch.zeros(2)], path)


def with_optimiser(path: str) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}, "step": 3}, path)


def half(path: str) -> None:
    torch.save({"weight": torch.zeros(100)}, path)
    cut(path)


ORIGINAL_FILES = [
    (bomb, "weights.pt holds more than tensors; it was not loaded"),
    (old_bomb, "weights.pt holds more than tensors; it was not loaded"),
    (nested_bomb, "weights.pt holds more than tensors; it was not loaded"),
    (half, "weights.pt is damaged or no .pt file"),
    (lambda path: Path(path).write_bytes(b""), "weights.pt is damaged or no .pt file"),
    (lambda path: Path(path).write_text("hello"), "weights.pt is damaged or no .pt file"),
    (not_named, "weights.pt holds a list, not a state_dict"),
    (with_optimiser, "weights.pt: entry 'model' is a dict, not a named tensor"),
]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pretrain", f"{SAME_RUN} checkpoint_path=new load_checkpoint=weights.pt"),
        ("evaluate", "checkpoint=weights.pt arch=trm data_paths=[sudoku] device=cpu"),
    ],
    ids=["load_checkpoint", "evaluate"],
)
@pytest.mark.parametrize(("make", "message"), ORIGINAL_FILES)
def test_original_files(
    sandbox: Sandbox, make: Callable[[str], None], message: str, command: str, arguments: str
) -> None:
    """Among them bombs: that they did not go off is part of "no file made"."""
    make("weights.pt")
    sandbox.assert_refused(command, arguments, message)


def test_the_bombs_are_live(sandbox: Sandbox) -> None:
    bomb("weights.pt")
    torch.load("weights.pt", weights_only=False)
    assert Path("owned").exists()


EVALUATION = [
    ("", "checkpoint: a value is required"),
    ("checkpoint=nowhere", "checkpoint nowhere does not exist"),
    ("checkpoint=nowhere.pt arch=trm data_paths=[sudoku]", "checkpoint nowhere.pt does not exist"),
    ("checkpoint=sudoku", "sudoku is no checkpoint and no run directory"),
    ("checkpoint=run/config.yaml", "run/config.yaml is damaged or no .pt file"),
    ("checkpoint=run halt_max_step=3", "halt_max_step=3: unknown key, the nearest valid name is halt_max_steps"),
    ("checkpoint=run halt_max_steps=0", "halt_max_steps=0: expected at least 1"),
    ("checkpoint=run lr=1", "lr=1: unknown key"),
    ("checkpoint=run use_ema=perhaps", "use_ema=perhaps: expected true or false"),
    ("checkpoint=run arch=trm", "arch is for a checkpoint=run that holds nothing but weights"),
    ("checkpoint=run arch=trm data_paths=[sudoku]", r"run.* has shape"),
    ("checkpoint=run data_paths=[]", r"data_paths=\[\] leaves nothing to evaluate"),
    ("checkpoint=run data_paths=[nowhere]", "nowhere/test/dataset.json does not exist"),
    ("checkpoint=run data_paths=[arc]", "step_8 was trained on data with vocab_size=6, data_paths has 12"),
    ("checkpoint=arc_run data_paths=[arc2]", "step_8 was trained on data with other puzzles under the identifiers"),
    ("checkpoint=run evaluator=arc", "arc@ARC cannot score sudoku, which holds sudoku puzzles"),
    ("checkpoint=run eval_batch_size=0", "eval_batch_size=0: expected at least 1"),
    ("checkpoint=run output_dir=sudoku/identifiers.json", "output_dir=sudoku/identifiers.json cannot be written"),
    (
        "checkpoint=run output_dir=run/config.yaml/out",
        "run/config.yaml/out cannot be .*config.yaml is a file",
    ),
    ("checkpoint=exported.pt", "exported.pt holds nothing but weights: say arch=trm"),
    ("checkpoint=exported.pt data_paths=[sudoku]", "exported.pt holds nothing but weights: say arch=trm"),
    ("checkpoint=exported.pt arch=trm data_paths=[sudoku]", r"exported.pt: model.inner.\S+ has shape"),
    ("checkpoint=exported.pt arch=hrm data_paths=[sudoku]", "exported.pt.* (has no tensor|has shape)"),
]


@pytest.mark.parametrize(("arguments", "message"), EVALUATION)
def test_evaluation(sandbox: Sandbox, arguments: str, message: str) -> None:
    if "exported" in arguments:
        assert run("export", "run exported.pt") == (0, "")
    if "arc2" in arguments:
        assert run("build_arc", "--output-dir arc2 --grid-size 6 --max-tasks 3 --num-aug 2 --seed 7")[0] == 0
    sandbox.assert_refused("evaluate", f"{arguments} device=cpu", message)


def test_evaluation_where_the_data_is_gone(sandbox: Sandbox) -> None:
    Path("sudoku").rename("elsewhere")
    sandbox.assert_refused("evaluate", "checkpoint=run", "sudoku/train/dataset.json does not exist")


def test_the_good_evaluation_passes(sandbox: Sandbox) -> None:
    with pytest.raises(AssertionError, match="the work began"):
        run("evaluate", "checkpoint=run device=cpu")


EXPORTS = [
    ("", "the following arguments are required: checkpoint, out"),
    ("run", "the following arguments are required: out"),
    ("run out.pt --emma", "unrecognized arguments: --emma"),
    ("nowhere out.pt", "nowhere is no checkpoint and no run directory"),
    ("run/config.yaml out.pt", "run/config.yaml is no checkpoint"),
    ("run nowhere/out.pt", "nowhere is not a directory"),
    ("run sudoku", "sudoku cannot be written: Is a directory"),
    ("run sudoku/identifiers.json/out.pt", "sudoku/identifiers.json is not a directory"),
    ("run /proc/out.pt", "/proc/out.pt cannot be written"),
    ("raw_run out.pt --ema", "has no averaged weights; leave out --ema"),
]


@pytest.mark.parametrize(("arguments", "message"), EXPORTS)
def test_exports(sandbox: Sandbox, arguments: str, message: str) -> None:
    if "raw_run" in arguments:
        save_checkpoint("raw_run", 1, replicated={"model": {"weight": torch.zeros(2)}}, sharded={}, meta={})
    sandbox.assert_refused("export", arguments, message)
