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
from tests.training.runs import TRM, build_sudoku_4x4, differences, overrides, whole_state
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
    into those that recording has made, and reads and writes where the others were then."""

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

        places = self.places(own)
        before = [tensor.clone() for tensor in self.changed(own)]
        call()
        made, metrics, touched = outputs(), own.metrics, [] if table is None else table.touched
        self.put(self.changed(own), before)

        def replay() -> None:
            assert self.places(own) == places
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

    def places(self, own: GraphedPass) -> list[int]:
        model = self.state.model
        read = [*own.batch.values(), own.earliest, *model.parameters(), *model.buffers()]
        return [tensor.data_ptr() for tensor in [*read, *self.changed(own)]]

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
    metrics = []
    for batch in pretrain._batches(run, state):
        given = {name: value.clone() for name, value in batch.items()}
        metrics.append(train_step(run, state, batch))
        assert same(given, batch)
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


def test_a_replay_halts_no_row_earlier_than_its_own_step_says(sudoku: Path, tmp_path: Path) -> None:
    """Where every row would halt at once but for exploration."""
    found = []
    for graphed in (False, True):
        exploring = ("arch.halt_exploration_prob=1", "arch.halt_max_steps=4")
        run, state = run_of(sudoku, tmp_path, f"max_steps={3 * WARM_UP + 4}", *exploring)
        with torch.no_grad():
            state.model.model.inner.q_head.bias[0] = 5
        if graphed:
            state.differentiate = GraphedPass(Tape(state))
        found.append(trained(run, state))
    (weights, metrics), (again, replayed) = found
    finished = [(float(figures["steps"]), float(figures["count"])) for figures in metrics[WARM_UP:]]
    assert any(2 < steps / count < 4 for steps, count in finished if count)
    assert same(weights, again) and all(same(one, other) for one, other in zip(metrics, replayed, strict=True))


def test_it_is_evaluated_saved_and_resumed_like_any_other(
    sudoku: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["max_steps=12", "eval_interval=1", "epochs=4", "checkpoint_interval=3", "keep_last=9"]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "plain", *arguments)) == 0
    tapes: list[Tape] = []

    def graphed(*settings: Any) -> TrainState:
        state = create_state(*settings)
        tapes.append(Tape(state))
        state.differentiate = GraphedPass(tapes[-1])
        return state

    monkeypatch.setattr(pretrain, "create_state", graphed)
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "graphed", *arguments)) == 0
    again = [*arguments, f"resume={tmp_path / 'graphed/checkpoints/step_6'}"]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "resumed", *again)) == 0
    assert [tape.recorded for tape in tapes] == [1, 1]
    for run, steps in (("graphed", (3, 6, 9, 12)), ("resumed", (9, 12))):
        for step in steps:
            assert differences(whole_state(tmp_path / "plain", step), whole_state(tmp_path / run, step)) == []


def test_another_carry_or_shape_than_was_recorded_is_an_error(sudoku: Path, tmp_path: Path) -> None:
    run, state = run_of(sudoku, tmp_path, f"max_steps={WARM_UP + 3}")
    state.differentiate = GraphedPass(Tape(state))
    *first, one, other = pretrain._batches(run, state)
    for batch in first:
        train_step(run, state, batch)
    (carry,) = state.carries
    state.carries = [carry.clone()]
    with pytest.raises(RuntimeError, match="the carry that it returned"):
        train_step(run, state, one)
    state.carries = [carry]
    with pytest.raises(RuntimeError, match=r"inputs has shape \(1, 16\), and \(8, 16\)"):
        state.differentiate(state.model, carry, {key: value[:1] for key, value in other.items()}, carry.steps, 8)


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
    for graph in ("false", "false", "true"):
        run, state = run_of(sudoku, tmp_path, "max_steps=14", f"cuda_graph={graph}", *more, device="cuda")
        compile_levels(state.model)
        found.append(trained(run, state))
    plain, again, graphed = (torch.cat([value.flatten().double() for value in w.values()]) for w, _ in found)
    # The plain pass itself may differ from run to run in what the order of a sum decides.
    assert (graphed - plain).abs().max() <= 1e-5 + 10 * (again - plain).abs().max()
    losses = [[float(figures["loss"]) for figures in metrics] for _, metrics in found]
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
