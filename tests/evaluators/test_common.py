"""The interval against its defining equation, safe writing, and the single-process gather."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from datasets.common import PuzzleDatasetMetadata
from evaluators import build_evaluators
from evaluators.arc import ARC
from evaluators.common import single_process, wilson_interval, write_text

NORMAL_QUANTILE = 1.959963984540054


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 10), (2.5, 6), (172, 400), (1, 1)])
def test_wilson_bounds_solve_the_score_equation(successes: float, trials: int) -> None:
    observed = successes / trials
    for bound in wilson_interval(successes, trials):
        variance = bound * (1 - bound) / trials
        assert (observed - bound) ** 2 == pytest.approx(NORMAL_QUANTILE**2 * variance, abs=1e-12)


def test_wilson_known_values() -> None:
    low, high = wilson_interval(15, 50)
    assert (low, high) == (pytest.approx(0.19103, abs=1e-5), pytest.approx(0.43751, abs=1e-5))
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("trials", [1, 3, 7, 400])
def test_wilson_contains_what_was_observed(trials: int) -> None:
    assert wilson_interval(0, trials)[0] == 0.0
    assert wilson_interval(trials, trials)[1] == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(-1, 4), (5, 4), (float("nan"), 4)])
def test_wilson_refuses_impossible_counts(successes: float, trials: int) -> None:
    with pytest.raises(ValueError, match="trials=4"):
        wilson_interval(successes, trials)


def test_single_process_gather_is_rank_zero() -> None:
    value = object()
    assert single_process(value) == [value]


def test_write_text_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_text(path, "old")
    write_text(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert list(path.parent.iterdir()) == [path]


def test_write_text_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@dataclass
class OneSource:
    path: Path
    metadata: PuzzleDatasetMetadata
    id_offset: int
    task_names: list[str] | None


def test_every_source_gets_its_evaluator(tmp_path: Path) -> None:
    metadata = PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=12,
        seq_len=4,
        num_puzzle_identifiers=2,
        total_groups=1,
        mean_puzzle_examples=1,
        sets=["all"],
    )
    for name in "ab":
        (tmp_path / name).mkdir()
        pair = {"input": [[1]], "output": [[1]]}
        (tmp_path / name / "test_puzzles.json").write_text(json.dumps({name: {"train": [], "test": [pair]}}))
        (tmp_path / name / "identifiers.json").write_text(json.dumps(["<blank>", name]))
    sources = [OneSource(tmp_path / "a", metadata, 0, None), OneSource(tmp_path / "b", metadata, 1, ["b"])]
    evaluators = build_evaluators([{"name": "arc@ARC", "pass_Ks": [1]}], sources)
    assert [(label, type(evaluator)) for label, evaluator in evaluators] == [("a", ARC), ("b", ARC)]
    rows = np.array([[3, 1, 1, 0]] * 2, np.int32)
    batch = {"inputs": rows, "puzzle_identifiers": np.array([1, 2]), "row_index": np.arange(2)}
    for _, evaluator in evaluators:
        evaluator.update_batch(batch, {"preds": rows, "q_halt_logits": np.zeros(2, np.float32)})
        figures = evaluator.result(None)
        assert figures is not None
        assert (figures["ARC/rows"], figures["ARC/pass@1"]) == (1, 1)
        assert "ARC/pass@2" not in figures
