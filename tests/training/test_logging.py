"""Logging: files that hold what was logged, resumes that cut back, optional services, progress, curves."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from datasets.common import InputError
from training import metrics_file, progress
from training.logging import RunLogger
from training.metrics_file import MetricsFile, read_metrics
from training.plots import _running_mean, plot_curves
from training.progress import Progress


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def assert_table_equals_records(run_dir: Path) -> None:
    records = read_metrics(run_dir)
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = table(run_dir)
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert list(row) == columns
        for key, text in row.items():
            value = record.get(key)
            assert text == "" if value is None else float(text) == value


def test_both_files_hold_what_was_logged(tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, Any]]] = [
        (10, {"train/loss": 1.25, "train/steps": 3}),
        (20, {"train/loss": 0.1 + 0.2, "train/lr": np.float32(1e-4)}),
        (20, {"eval/all/accuracy": 0.5}),
        (30, {"train/loss": 1e-30}),
    ]
    metrics = MetricsFile(tmp_path)
    for step, values in logged:
        metrics.append(step, values)
        assert_table_equals_records(tmp_path)  # at any moment, not only at the end
    metrics.close()
    assert without_time(read_metrics(tmp_path)) == [{"step": s, **map_floats(v)} for s, v in logged]
    assert table(tmp_path)[3]["eval/all/accuracy"] == ""
    assert abs(read_metrics(tmp_path)[-1]["time"] - os.stat(tmp_path / "metrics.jsonl").st_mtime) < 60


def map_floats(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def test_values_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.append(1, {"a": math.nan, "b": math.inf, "c": 2.0})
    metrics.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (record["a"], record["b"], record["c"]) == (None, None, 2.0)
    assert_table_equals_records(tmp_path)


def test_a_resume_drops_the_steps_that_are_done_again(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for step in range(10, 60, 10):
        metrics.append(step, {"train/loss": float(step)})
    metrics.append(50, {"only/late": 1.0})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/lo')  # cut off by a kill
    metrics = MetricsFile(tmp_path, start_step=30)
    metrics.append(40, {"train/loss": -40.0})
    metrics.close()
    losses = [(record["step"], record["train/loss"]) for record in read_metrics(tmp_path)]
    assert losses == [(10, 10.0), (20, 20.0), (30, 30.0), (40, -40.0)]
    assert list(table(tmp_path)[0]) == ["step", "time", "train/loss"]
    assert_table_equals_records(tmp_path)
    MetricsFile(tmp_path, start_step=0).close()
    assert read_metrics(tmp_path) == table(tmp_path) == []


def test_a_crash_while_cutting_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.append(10, {"train/loss": 1.0})
    metrics.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*args: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RuntimeError, match="killed"):
        MetricsFile(tmp_path, start_step=5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.csv", "metrics.jsonl"}


class FullDisk:
    """Stands for the open JSONL file: takes 7 bytes of a line, then has no room."""

    def __init__(self, file: Any) -> None:
        self.file, self.is_full, self.taken = file, True, False

    def write(self, line: bytes) -> int:
        if not self.is_full:
            return self.file.write(line)
        if self.taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.taken = True
        return self.file.write(line[:7])

    def close(self) -> None:
        self.file.close()


def test_a_full_disk_costs_records_but_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.append(1, {"a": 1.0})
    disk = FullDisk(metrics._jsonl)
    metrics._jsonl = disk  # type: ignore[assignment]
    metrics.append(2, {"a": 2.0})
    metrics.append(3, {"a": 3.0})
    warning = capsys.readouterr().err
    assert warning == "warning: metrics of step 2 were not saved: [Errno 28] No space left on device\n"
    disk.is_full = False
    metrics.append(4, {"a": 4.0})
    metrics.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 4]
    assert_table_equals_records(tmp_path)


def test_other_write_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path)
    monkeypatch.setattr(metrics_file, "is_disk_refusal", lambda error: False)
    metrics._jsonl = FullDisk(metrics._jsonl)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        metrics.append(1, {"a": 1.0})
    metrics.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLogger(tmp_path / "run", total_steps=10, wandb=True, is_main=False) as logger:
        logger.log(1, {"a": 1.0})
        logger.progress(1)
        logger.message("hello")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["wandb", "tensorboard"])
def test_a_missing_package_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    blocked = {"wandb": "wandb", "tensorboard": "tensorboard"}[service]
    monkeypatch.setitem(sys.modules, blocked, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=rf"logger\.{service}=true.*pip install {service}"):
        RunLogger(tmp_path, total_steps=10, **{service: True})  # type: ignore[arg-type]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_named_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.delitem(sys.modules, "wandb.errors", raising=False)
    with pytest.raises(InputError, match="pip install wandb"):
        RunLogger(tmp_path, total_steps=10, wandb=True)


class FakeWandb(types.ModuleType):
    """The few calls of the package that are used, with a record of them."""

    class Error(Exception):
        pass

    def __init__(self, has_account: bool = True) -> None:
        super().__init__("wandb")
        self.errors = types.ModuleType("wandb.errors")
        self.errors.Error = FakeWandb.Error  # type: ignore[attr-defined]
        self.has_account = has_account
        self.started: dict[str, Any] = {}
        self.logged: list[dict[str, float]] = []
        self.exit_code: int | None = None

    def init(self, **settings: Any) -> FakeWandb:
        if not self.has_account:
            raise FakeWandb.Error("No API key configured.\nUse `wandb login` to log in.")
        self.started = settings
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb) -> FakeWandb:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "wandb.errors", fake.errors)
    return fake


def test_wandb_gets_everything_and_resumes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(start_step: int) -> FakeWandb:
        fake = install(monkeypatch, FakeWandb())
        with RunLogger(
            tmp_path,
            total_steps=10,
            start_step=start_step,
            wandb=True,
            project="p",
            run_name="r",
            config={"lr": 1},
        ) as logger:
            logger.log(start_step + 1, {"train/loss": np.float32(0.5)})
        return fake

    first, resumed, anew = run(0), run(5), run(0)
    assert first.logged == [{"step": 1, "train/loss": 0.5}]
    assert {key: first.started[key] for key in ("project", "name", "config", "dir", "resume")} == {
        "project": "p",
        "name": "r",
        "config": {"lr": 1},
        "dir": str(tmp_path),
        "resume": "allow",
    }
    assert first.exit_code == 0
    assert resumed.started["id"] == first.started["id"]
    assert anew.started["id"] != first.started["id"]


def test_wandb_without_an_account_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeWandb(has_account=False))
    with pytest.raises(InputError) as caught:
        RunLogger(tmp_path, total_steps=10, wandb=True)
    assert str(caught.value) == (
        "logger.wandb=true, but W&B does not start (No API key configured. Use `wandb login` to log in.); "
        "log in, or set WANDB_MODE=offline"
    )


def test_a_failed_run_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeWandb())
    with pytest.raises(RuntimeError, match="diverged"), RunLogger(tmp_path, total_steps=10, wandb=True):
        raise RuntimeError("diverged")
    assert fake.exit_code == 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_plain_progress_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    shown = Progress(total_steps=1100, start_step=100)
    for step in range(110, 1101, 10):
        clock.now += 1.0
        shown.update(step, {"loss": step / 1000, "phase": "train"})
    shown.message("done")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 110/1100 | 0:01:39 left | 100 ms/step | loss 0.11 | phase train",
        "step 410/1100 | 0:01:09 left | 100 ms/step | loss 0.41 | phase train",
        "step 710/1100 | 0:00:39 left | 100 ms/step | loss 0.71 | phase train",
        "step 1010/1100 | 0:00:09 left | 100 ms/step | loss 1.01 | phase train",
        "step 1100/1100 | 0:00:00 left | 100 ms/step | loss 1.1 | phase train",
        "done",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress(total_steps=50, start_step=20)
    shown.update(30, {"loss": 0.5})
    shown.message("a message")
    shown.update(50, {"loss": 0.25})
    shown.close()
    err = capsys.readouterr().err
    assert "20/50" in err
    assert "50/50" in err
    assert "ms/step, loss 0.25" in err
    assert "a message\n" in err
    with_lines = Progress(total_steps=50, bar=False)
    with_lines.update(1)
    assert capsys.readouterr().err.startswith("step 1/50 | ")


def test_running_mean_equals_its_definition() -> None:
    values = np.random.default_rng(0).normal(size=200)
    half = 3
    wanted = [values[max(0, i - half) : i + half + 1].mean() for i in range(200)]
    np.testing.assert_allclose(_running_mean(values), wanted, rtol=1e-12, atol=1e-12)


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    assert plot_curves(tmp_path) is None
    metrics = MetricsFile(tmp_path)
    metrics.append(1, {"system/note": 1.0})
    assert plot_curves(tmp_path) is None
    for step in range(1, 300):
        metrics.append(step, {"train/loss": 3.0 / step, "train/accuracy": step / 300, "train/steps": 4.0})
    metrics.append(300, {"eval/all/exact_accuracy": 0.9, "train/loss": math.nan})
    metrics.append(300, {"eval/ARC/pass@2": 0.4, "eval/ARC/pass@2_low": 0.3, "eval/ARC/pass@2_high": 0.5})
    metrics.close()
    path = plot_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    picture = imread(path)
    assert picture.shape[:2] == (864, 1440)
    for colour in ("#1f4e79", "#9dbbd8", "#5b5ea6", "#f2b5a7", "#c8412b"):  # one of each curve
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02).sum() > 20, colour
    assert {file.name for file in tmp_path.iterdir()} == {"curves.png", "metrics.csv", "metrics.jsonl"}
