"""The bench of the ARC evaluator: it votes as many rows as asked, and its made-up predictions are what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets import build_arc_dataset
from scripts import bench_voting


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voting") / "arc"
    few = ["--subsets", "training", "--test-set-name", "training", "--grid-size", "6", "--max-tasks", "3"]
    assert build_arc_dataset.main(["--output-dir", str(folder), *few, "--num-aug", "4"]) == 0
    return folder


@pytest.mark.parametrize(("right", "changed", "expected"), [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0)])
def test_votes_are_counted_and_scored(
    right: float,
    changed: float,
    expected: float,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(bench_voting, "RIGHT", right)
    monkeypatch.setattr(bench_voting, "CHANGED", changed)
    bench_voting.main([str(data), "--rows", "100"])  # several times round
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 100 and found["pass@2"] == expected
    assert all(seconds > 0 for seconds in found["seconds"].values())
