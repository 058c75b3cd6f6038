"""The curriculum on recursion depth: how deep each step recurs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pretrain
from datasets.common import InputError
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1_Inner as Inner
from tests.training.runs import HRM, TRM, build_sudoku_4x4, differences, overrides, whole_state
from training.ablation import cost_of
from training.cli import run_cli
from training.config import load_config
from training.curriculum import DepthStage, at_depth, spans

STAGES = [DepthStage(until=0.3, H_cycles=1, L_cycles=2), DepthStage(until=0.6, H_cycles=2, L_cycles=4)]
DEEPENING = "depth_curriculum=[{until: 0.25, H_cycles: 1, L_cycles: 1}, {until: 0.5, H_cycles: 1, L_cycles: 2}]"


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sudoku_4x4(tmp_path_factory.mktemp("data") / "sudoku")


@pytest.mark.parametrize(
    ("progress", "depth"), [(0, (1, 2)), (0.29, (1, 2)), (0.3, (2, 4)), (0.59, (2, 4)), (0.6, (3, 6)), (0.99, (3, 6))]
)
def test_the_depth_of_a_step_and_of_all_else(progress: float, depth: tuple[int, int]) -> None:
    inner = SimpleNamespace(config=SimpleNamespace(H_cycles=3, L_cycles=6))
    with pytest.raises(KeyError), at_depth(inner, STAGES, progress):
        assert (inner.config.H_cycles, inner.config.L_cycles) == depth
        raise KeyError  # whatever happens inside, the model is itself again afterwards
    assert (inner.config.H_cycles, inner.config.L_cycles) == (3, 6)


def test_a_run_deepens_and_is_evaluated_at_full_depth(
    sudoku: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, int]] = []
    forward = Inner.forward

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.training, self.config.H_cycles, self.config.L_cycles))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Inner, "forward", recorded)
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "run", "max_steps=4", DEEPENING)) == 0
    assert [depth[1:] for depth in seen if depth[0]] == [(1, 1), (1, 2), (2, 2), (2, 2)]
    assert {depth[1:] for depth in seen if not depth[0]} == {(2, 2)}


def test_it_is_resumed_where_it_was(sudoku: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["max_steps=8", "checkpoint_interval=2", "keep_last=9", DEEPENING]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "whole", *more)) == 0
    again = [f"resume={tmp_path / 'whole/checkpoints/step_2'}", *more]
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "parts", *again)) == 0
    assert differences(whole_state(tmp_path / "whole", 8), whole_state(tmp_path / "parts", 8)) == []
    assert run_cli(pretrain.main, overrides(TRM, sudoku, tmp_path / "parts", "max_steps=8", again[0])) == 2
    assert "depth_curriculum" in capsys.readouterr().err


def test_a_run_costs_the_mean_of_its_stages(sudoku: Path, tmp_path: Path) -> None:
    """Cycles are all that differs, so that a run's operations are a mean weighted by the shares of its stages."""

    def cost(*more: str) -> float:
        return cost_of(load_config("cfg_pretrain", overrides(TRM, sudoku, tmp_path, *more))).flops

    shallow, middle, own = (cost(f"arch.H_cycles={H}", f"arch.L_cycles={L}") for H, L in ((1, 1), (1, 2), (2, 2)))
    assert shallow < middle < own == cost()
    assert cost(DEEPENING) == pytest.approx(0.25 * shallow + 0.25 * middle + 0.5 * own, rel=1e-12)
    assert spans(STAGES) == [(0.0, 0.3), (0.3, 0.3), (0.6, 0.4)]


@pytest.mark.parametrize(
    ("overridden", "said"),
    [
        (["depth_curriculum=[{until: 0.5, H_cycles: 1}]"], "L_cycles"),
        (["depth_curriculum=[{until: 1.5, H_cycles: 1, L_cycles: 1}]"], "until"),
        (
            ["depth_curriculum=[{until: 0.5, H_cycles: 1, L_cycles: 1}, {until: 0.4, H_cycles: 1, L_cycles: 1}]"],
            "until=0.4 does not come after until=0.5",
        ),
    ],
)
def test_stages_that_make_no_sense_are_refused(overridden: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config("cfg_pretrain", ["experiment=sudoku_mlp", *overridden])


def test_other_architectures_with_cycles_may_deepen_too() -> None:
    assert load_config("cfg_pretrain", [*HRM, "data_paths=[data]", DEEPENING])


def test_a_stage_that_the_architecture_cannot_recur_in_is_refused_before_training(
    sudoku: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This one has a scratchpad for each of its L-cycles, and no seventh."""
    deeper = "depth_curriculum=[{until: 0.5, H_cycles: 1, L_cycles: 7}]"
    arch = ["arch=trm_hier6", *TRM[1:]]
    assert run_cli(pretrain.main, overrides(arch, sudoku, tmp_path / "run", "max_steps=4", deeper)) == 2
    assert "depth_curriculum: the stage until=0.5" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
