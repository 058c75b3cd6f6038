"""Bad command lines and combinations for ``pretrain.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.bad_inputs.sandbox import TINY, Sandbox, run
from training import distributed
from training.distributed import Distributed
from training.lock import RunLock

NEW_RUN = f"{TINY} data_paths=[sudoku] checkpoint_path=new"

COMMAND_LINES = [
    # keys that do not exist, on every level
    ("lerning_rate=1", "lerning_rate=1: unknown key"),
    ("epoch=10", "epoch=10: unknown key, the nearest valid name is epochs"),
    ("+typo=1", "typo=1: unknown key"),
    ("arch.hiden_size=64", "arch.hiden_size=64: unknown key, the nearest valid name is arch.hidden_size"),
    ("arch.loss.loss_typ=x", "arch.loss.loss_typ=x: .* arch.loss.loss_type"),
    ("optim.gradclip=1", "optim.gradclip=1: .* optim.grad_clip"),
    ("logger.wand=true", "logger.wand=true: .* logger.wandb"),
    ("'evaluators=[{name: arc@ARC, passKs: [1]}]'", r"evaluators\[0\].passKs=\[1\]: .* evaluators\[\].pass_Ks"),
    ("arch.seq_len=16", "arch.seq_len=16: the data set decides this"),
    # types and ranges
    ("lr=fast", "lr=fast: expected a number"),
    ("lr=-1", "lr=-1: expected more than 0"),
    ("lr=inf", "lr=.inf: expected a finite number"),
    ("epochs=1.5", "epochs=1.5: expected an integer"),
    ("ema=1", "ema=1: expected true or false"),
    ("data_paths=sudoku", r"data_paths=sudoku: expected a list, as in data_paths=\[sudoku\]"),
    ("data_paths=[]", r"data_paths=\[\]: expected at least 1 entry"),
    ("data_paths=[null]", r"data_paths\[0\]=null: expected text"),
    ("global_batch_size=0", "global_batch_size=0: expected at least 1"),
    ("seed=-1", "seed=-1: expected at least 0"),
    ("seed=9223372036854775808", "seed=9223372036854775808: expected less than"),
    ("beta2=1", "beta2=1: expected less than 1"),
    ("arch.num_heads=0", "arch.num_heads=0: expected more than 0"),
    ("arch.halt_max_steps=two", "arch.halt_max_steps=two: expected an integer"),
    ("arch.mlp_t=3", "arch.mlp_t=3: expected true or false"),
    ("arch.loss=stablemax", "arch.loss=stablemax: expected a group of keys"),
    # choices
    ("arch=trmm", "arch=trmm: unknown choice, the nearest is trm"),
    ("optim=sgd", "optim=sgd: unknown choice"),
    ("experiment=sudoku", "experiment=sudoku: unknown choice"),
    ("data=nothing", "data=nothing: unknown choice"),
    ("device=gpu", "device=gpu: expected 'auto', 'cpu', 'cuda' or 'mps'"),
    ("act_eval=late", "act_eval=late: expected 'fixed' or 'early'"),
    ("arch.name=nowhere@Model", "arch.name=nowhere@Model: .* no module"),
    ("arch.loss.name=losses@Nothing", "arch.loss.name=losses@Nothing: .* no class"),
    ("'evaluators=[{name: sudoku@Soduku}]'", r"evaluators\[0\].name=sudoku@Soduku: expected one of"),
    ("eval_save_outputs=[everything]", r"eval_save_outputs\[0\]=everything: expected"),
    # combinations
    ("eval_interval=3", "epochs=4 is not a multiple of eval_interval=3"),
    ("eval_interval=8", "eval_interval=8 is longer than epochs=4"),
    ("micro_batch_size=3", "global_batch_size=4 is not a multiple of micro_batch_size=3"),
    ("arch.num_heads=3 arch.pos_encodings=none", "arch.hidden_size=16 is not a multiple of arch.num_heads=3"),
    ("arch.num_heads=16", "arch.hidden_size=16 over arch.num_heads=16 gives an odd head size"),
    ("arch.puzzle_emb_ndim=40", "puzzle_emb_ndim=40 does not fit the 16 numbers of puzzle_emb_len=1 tokens"),
    ("ema_puzzle_emb=true", "ema_puzzle_emb=true has no effect with ema=false"),
    ("freeze_weights=true", "freeze_weights=true would keep random weights"),
    ("load_checkpoint=run resume=run", "resume=run goes on with a run, load_checkpoint=run starts one"),
    ("optim.muon_lr=0.1", "optim.muon_lr=0.1 has no effect with optim.name=adam_atan2"),
    ("arch=trm_hier6 arch.L_cycles=7", "arch.L_cycles=7: expected at most 6"),
    # what is no override
    ("epochs", "epochs: not an override, expected key=value"),
    ("lr=[1", "lr=.1: not an override"),
    ("lr=1e-4,1e-3", "lr=1e-4,1e-3: expected one value"),
    ("lr=${nothing}", "nothing"),
    ("--epochs=4", "--epochs=4: unknown option"),
    ("hydra.run.dir=x", "hydra.run.dir=x: Hydra's own settings have no effect"),
]


@pytest.mark.parametrize(("overrides", "message"), COMMAND_LINES)
def test_command_lines(sandbox: Sandbox, overrides: str, message: str) -> None:
    sandbox.assert_refused("pretrain", f"{NEW_RUN} {overrides}", message)


AGAINST_THE_DATA = [
    ("data_paths=[nowhere]", "nowhere/train/dataset.json does not exist"),
    ("data_paths=[sudoku/identifiers.json]", "sudoku/identifiers.json/train/dataset.json cannot be read"),
    ("data_paths=[sudoku/train]", "sudoku/train/train/dataset.json does not exist"),
    ("data_paths_test=[nowhere]", "nowhere/test/dataset.json does not exist"),
    ("data_paths=[sudoku,arc]", "arc/train/dataset.json: vocab_size is 12 but sudoku/train has 6"),
    ("data_paths_test=[arc]", r"arc is not among the training data \(sudoku\)"),
    ("global_batch_size=40", "epochs=4 of 8 rows do not fill one batch of global_batch_size=40"),
    ("'evaluators=[{name: arc@ARC}]'", "arc@ARC cannot score sudoku, which holds sudoku puzzles; use evaluator=sudoku"),
    (
        "'evaluators=[{name: maze@Maze}]'",
        "maze@Maze cannot score sudoku, which holds sudoku puzzles; use evaluator=sudoku",
    ),
    (
        "data_paths=[arc] 'evaluators=[{name: sudoku@Sudoku}]'",
        "sudoku@Sudoku cannot score arc, which holds arc puzzles; use evaluator=arc",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), AGAINST_THE_DATA)
def test_settings_that_do_not_fit_the_data(sandbox: Sandbox, overrides: str, message: str) -> None:
    sandbox.assert_refused("pretrain", f"{NEW_RUN} {overrides}", message)


MANY_PROCESSES = [
    (3, "", "global_batch_size=4 cannot be shared out over 3 processes"),
    (2, "global_batch_size=12 micro_batch_size=4", "micro_batch_size=4 does not divide the 6 rows of each of the 2"),
    (2, "eval_batch_size=7", "eval_batch_size=7 cannot be shared out over 2 processes"),
]


@pytest.mark.parametrize(("processes", "overrides", "message"), MANY_PROCESSES)
def test_batches_that_cannot_be_shared_out(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, processes: int, overrides: str, message: str
) -> None:
    # Refused before the processes talk to each other, so one that believes in the others is enough.
    monkeypatch.setattr(distributed, "init", lambda device: Distributed(world_size=processes))
    sandbox.assert_refused("pretrain", f"{NEW_RUN} {overrides}", message)


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_environment_that_torchrun_did_not_write(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    sandbox.assert_refused("pretrain", NEW_RUN, f"WORLD_SIZE='{value}' is not a process number")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_device_that_is_not_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    sandbox.assert_refused("pretrain", f"{NEW_RUN} device={device}", f"device={device}: .*use device=cpu")


@pytest.mark.parametrize(("package", "logger"), [("wandb", "wandb"), ("torch.utils.tensorboard", "tensorboard")])
def test_logger_whose_package_is_missing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, package: str, logger: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"logger.{logger}=true, but the package is missing; pip install {logger}"
    sandbox.assert_refused("pretrain", f"{NEW_RUN} logger.{logger}=true", message)


def test_run_directory_that_is_a_file(sandbox: Sandbox) -> None:
    Path("new").write_text("notes")
    sandbox.assert_refused("pretrain", NEW_RUN, "run directory new cannot be used: File exists")


def test_run_directory_below_a_file(sandbox: Sandbox) -> None:
    Path("new").write_text("notes")
    settings = f"{NEW_RUN} checkpoint_path=new/run"
    sandbox.assert_refused("pretrain", settings, "run directory new/run cannot be used: Not a directory")


def test_run_directory_in_use(sandbox: Sandbox) -> None:
    with RunLock("run"):
        settings = f"{NEW_RUN} checkpoint_path=run ema=true epochs=8"
        sandbox.assert_refused("pretrain", settings, r"run directory run is in use by host \S+ pid \d+")


def test_the_good_command_passes(sandbox: Sandbox) -> None:
    """What the other tests spoil does begin to train when it is not spoilt."""
    with pytest.raises(AssertionError, match="the work began"):
        run("pretrain", NEW_RUN)
