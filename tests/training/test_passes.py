"""The pass of a step replayed as a CUDA graph: against the plain one, and what a replay must not share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pretrain
from datasets.common import InputError
from tests.training.runs import TRM, build_sudoku_4x4, overrides
from training.build import build_model, compile_levels
from training.cli import run_cli
from training.config import load_config
from training.distributed import init
from training.passes import WARM_UP, GraphedPass, check_can_record
from training.state import TrainState, create_state
from training.step import train_step

DEEPENING = "depth_curriculum=[{until: 0.5, H_cycles: 1, L_cycles: 1}]"


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sudoku_4x4(tmp_path_factory.mktemp("data") / "sudoku")


class Tape:
    """What a CUDA graph does, on the CPU: recording changes no tensor that was there, and a replay computes the same
    into those that recording has made."""

    def __init__(self, state: TrainState):
        self.state = state
        self.recorded = 0

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        own, table = self.state.differentiate, self.state.model.model.puzzle_emb
        assert isinstance(own, GraphedPass)

        def outputs() -> list[Tensor]:
            rows = [] if table is None else [part for ids, rows in table.touched for part in (ids, rows.grad)]
            return [*own.metrics.values(), *rows]

        before = [tensor.clone() for tensor in self.changed(own)]
        call()
        made, metrics, touched = outputs(), own.metrics, [] if table is None else table.touched
        self.put(self.changed(own), before)

        def replay() -> None:
            earlier = [] if table is None else table.touched
            if table is not None:
                table.touched = []
            call()
            self.put(made, outputs())
            own.metrics = metrics
            if table is not None:
                table.touched = earlier

        assert table is None or len(touched) == 1
        return replay

    def changed(self, own: GraphedPass) -> list[Tensor]:
        return [*own.carry.named_tensors().values(), *self.state.gradients.tensors]

    @staticmethod
    def put(tensors: list[Tensor], values: list[Tensor]) -> None:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def run_of(sudoku: Path, tmp_path: Path, *more: str, device: str = "cpu") -> tuple[Any, TrainState]:
    config = load_config("cfg_pretrain", overrides(TRM, sudoku, tmp_path / "run", f"device={device}", *more))
    dist = init(device)
    run = pretrain.prepare(config, dist)
    state = create_state(build_model(config.arch, run.model_config, dist.device), config, run.train_set.metadata, dist)
    return run, state


def trained(run: Any, state: TrainState) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights and metrics after the run's steps."""
    metrics = [train_step(run, state, batch) for batch in pretrain._batches(run, state)]
    return {name: value.clone() for name, value in state.model.state_dict().items()}, metrics


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


NO_TABLE = ("arch.puzzle_emb_ndim=0", "arch.no_ACT_continue=false")


@pytest.mark.parametrize(
    ("more", "recorded"), [((), 1), ((DEEPENING,), 2), (NO_TABLE, 1), (("staggered_start=true",), 1)]
)
def test_a_run_of_replays_is_the_plain_run_to_the_bit(
    sudoku: Path, tmp_path: Path, more: tuple[str, ...], recorded: int
) -> None:
    steps = 2 * (WARM_UP + 4)
    weights, metrics = trained(*run_of(sudoku, tmp_path, f"max_steps={steps}", *more))
    run, state = run_of(sudoku, tmp_path, f"max_steps={steps}", *more)
    tape = Tape(state)
    state.differentiate = GraphedPass(tape)
    again, found = trained(run, state)
    assert same(weights, again)
    assert len(found) == steps and all(same(one, other) for one, other in zip(metrics, found, strict=True))
    assert tape.recorded == recorded


def test_a_checkpoint_between_replays_has_the_carry_of_its_step(sudoku: Path, tmp_path: Path) -> None:
    found = []
    for graphed in (False, True):
        run, state = run_of(sudoku, tmp_path, "max_steps=8")
        if graphed:
            state.differentiate = GraphedPass(Tape(state))
        trained(run, state)
        found.append(state.sharded()["carry"][1])
    assert same(*found)


def test_what_cannot_be_recorded_is_named_with_the_remedy(sudoku: Path, tmp_path: Path) -> None:
    def refuses(call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    run, state = run_of(sudoku, tmp_path, "max_steps=8")
    state.differentiate = GraphedPass(refuses)
    with pytest.raises(InputError, match=r"not permitted when stream is capturing\): start with cuda_graph=false"):
        trained(run, state)
    assert state.step == WARM_UP


def test_it_is_refused_where_it_has_no_meaning(
    sudoku: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "run", "cuda_graph=true")) == 2
    assert "cuda_graph=true is for CUDA devices, and this is cpu: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="micro_batch_size makes 2 of them"):
        check_can_record(torch.device("cuda", 0), micro_batches=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph, and there is no GPU")
@pytest.mark.parametrize("more", [(), (DEEPENING,)])
def test_a_cuda_graph_computes_what_the_plain_pass_does(sudoku: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    found = []
    for graph in ("false", "true"):
        run, state = run_of(sudoku, tmp_path, "max_steps=14", f"cuda_graph={graph}", *more, device="cuda")
        compile_levels(state.model)
        found.append(trained(run, state))
    (weights, metrics), (again, replayed) = found
    assert same(weights, again)
    assert all(same(one, other) for one, other in zip(metrics, replayed, strict=True))
