"""Two processes under torchrun train and evaluate a hybrid as one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hybrid_pipeline.test_hybrid_train import INSTRUCTED, TINY, run
from tests.training.runs import records, whole_state
from tests.training.test_distributed import torchrun

STEPS = 8
# An odd number of test rows, so that the last batch cannot be shared out evenly.
MORE = [*INSTRUCTED, "texts.test_rows=11", "arch.halt_exploration_prob=0.5", "text=shuffled", "lr_min_ratio=1.0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(folder / "one", *MORE, f"max_steps={STEPS}") == 0
    torchrun("hybrid_train.py", [*TINY, *MORE, f"max_steps={STEPS}", f"checkpoint_path={folder / 'two'}"])
    return folder


def test_the_same_samples_and_the_same_losses(runs: Path) -> None:
    one, two = (whole_state(runs / name, STEPS) for name in ("one", "two"))
    for name in ("carry/data.inputs", "carry/data.labels", "carry/data.texts", "carry/steps"):
        assert one[name].equal(two[name]), name
    losses = [records(runs / name, "train/loss") for name in ("one", "two")]
    assert len(losses[0]) == STEPS
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in one.items():
        if tensor.is_floating_point():
            assert (tensor - two[name]).abs().max() < 1e-4, name


def test_the_same_figures(runs: Path) -> None:
    for name in ("unseen", "unseen_shuffled", "unseen_none", "seen"):
        for figure in ("rows", "accuracy", "exact_accuracy", "pass@2"):
            one, two = (records(runs / run_name, f"eval/{name}/{figure}") for run_name in ("one", "two"))
            assert one == two and one, (name, figure)
    assert records(runs / "two", "eval/unseen/rows") == {STEPS: 11}


def test_a_run_of_two_processes_goes_on_in_one(runs: Path) -> None:
    losses = []
    for name in ("one", "two"):
        assert run(runs / name, *MORE, f"max_steps={STEPS + 2}") == 0
        losses.append([loss for step, loss in records(runs / name, "train/loss").items() if step > STEPS])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
