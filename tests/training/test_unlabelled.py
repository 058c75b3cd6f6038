"""Tasks whose solutions nobody gave, as on Kaggle: they are trained on, answered and submitted, but not scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pretrain
from datasets.build_arc_dataset import main as build_arc
from tests.training.runs import TRM, overrides
from training.metrics_file import read_metrics

PAIR = {"input": [[0, 1]], "output": [[2]]}
CHALLENGES = {"open": {"train": [PAIR], "test": [{"input": [[1]]}]}}


def test_a_run_on_tasks_without_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k_evaluation_challenges.json").write_text(json.dumps(CHALLENGES))
    options = ["--source", str(tmp_path / "k"), "--subsets", "evaluation", "--num-aug", "8", "--grid-size", "3"]
    assert build_arc(["--output-dir", str(tmp_path / "arc"), *options]) == 0
    run_dir = tmp_path / "run"
    pretrain.main(overrides(TRM, tmp_path / "arc", run_dir, "global_batch_size=1", "max_steps=2"))
    assert "no row of the evaluation data has labels" in capsys.readouterr().err
    assert json.loads((run_dir / "eval/step_2/submission.json").read_text()).keys() == {"open"}
    assert (run_dir / "checkpoints/step_2/manifest.json").is_file()
    figures = {key: value for record in read_metrics(run_dir) for key, value in record.items() if "eval/" in key}
    assert figures["eval/ARC/tasks_without_solution"] == 1
    assert figures["eval/all/rows"] == 0
    assert "eval/all/accuracy" not in figures
