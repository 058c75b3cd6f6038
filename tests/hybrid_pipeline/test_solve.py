"""``python -m hybrid_pipeline.solve``: curves over attempts, with the oracle apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hybrid_pipeline.instructed import instructed_tasks
from hybrid_pipeline.planner import ORACLE, VERIFIED, SentenceProposer
from hybrid_pipeline.rules import INSTANCES
from hybrid_pipeline.solve import by_attempts, main
from tests.hybrid_pipeline.test_hybrid_train import run
from tests.hybrid_pipeline.test_planner import BY_SENTENCE, Doing
from training.cli import run_cli


def test_curves_over_attempts() -> None:
    """With an answerer that does as it is told, the attempt at which the rule's own sentence comes decides."""
    tasks = instructed_tasks(6, 3, 4, seed=0)
    assert all(len(task.train) == 3 and task.solved for task in tasks)
    sentences = list(BY_SENTENCE)
    curves = by_attempts(tasks, Doing(), lambda _: SentenceProposer(sentences), len(INSTANCES))
    expected = np.zeros(len(INSTANCES))
    for task in tasks:
        given, wanted = task.test[0]
        assert wanted is not None
        right = [np.array_equal(BY_SENTENCE[text].apply(given), wanted) for text in sentences]
        expected[right.index(True) :] += 1 / len(tasks)
    assert curves[ORACLE] == pytest.approx(expected.tolist())
    assert curves[VERIFIED][-1] == 1 and all(np.array(curves[VERIFIED]) <= np.array(curves[ORACLE]) + 1e-9)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", "max_steps=1") == 0
    assert run_cli(main, [str(tmp_path / "run"), "--tasks", "2", "--attempts", "3"]) == 0
    record = json.loads((tmp_path / "run/attempts/attempts.json").read_text())
    assert set(record["exact_by_attempts"]) == {VERIFIED, ORACLE} and record["tasks"] == 2
    assert (tmp_path / "run/attempts/attempts.png").stat().st_size > 1000
    assert f"{ORACLE}: " in capsys.readouterr().out
    assert run_cli(main, [str(tmp_path / "nowhere")]) == 2
