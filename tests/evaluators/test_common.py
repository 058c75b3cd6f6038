"""The interval against its defining equation, safe writing, and the single-process gather."""

from __future__ import annotations

from pathlib import Path

import pytest

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
