"""The ablation runner: real runs at a tiny size, and its bookkeeping with a trainer that only pretends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import ablate
from tests.training.runs import build_sudoku_4x4
from training.ablation import FOLDER
from training.cli import run_cli

# Writes what a run of so many steps would, at 10 ms a step and 20 for HRM; `fails` names architectures that do not.
TRAINER = """
import json, pathlib, sys
given = dict(part.partition("=")[::2] for part in sys.argv[1:])
folder = pathlib.Path(__file__).parent
with (folder / "calls.txt").open("a") as calls:
    calls.write(given["checkpoint_path"] + "\\n")
if given.get("arch") in (folder / "fails.txt").read_text().split():
    sys.exit("error: too large for this device")
steps, ms = int(given["max_steps"]), 20.0 if given.get("arch") == "hrm" else 10.0
records = [{"step": step, "train/ms_per_step": ms, "train/lm_loss": 1 / step} for step in range(1, steps + 1)]
records[0]["train/ms_per_step"] = 5000.0
records.append({"step": steps, "eval/all/exact_accuracy": 0.5 + int(given.get("seed", 0)) / 10, "eval/all/rows": 4})
if given.get("evaluators") != "[]":
    records[-1]["eval/Sudoku/exact"] = 0.25
run = pathlib.Path(given["checkpoint_path"])
run.mkdir(parents=True, exist_ok=True)
(run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
"""


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sudoku_4x4(tmp_path_factory.mktemp("data") / "sudoku")


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a trainer that pretends."""
    folder = tmp_path / "trainer"
    folder.mkdir()
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "fails.txt").write_text("")
    monkeypatch.setattr(ablate, "PRETRAIN", str(folder / "trainer.py"))
    return folder


def calls(trainer: Path) -> list[str]:
    """Names of the runs' folders, timings as ``timing/PRESET``, since the last time this was asked."""
    file = trainer / "calls.txt"
    found = [Path(line) for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(path.name if path.name != "run" else f"timing/{path.parent.name}" for path in found)


def command(sudoku: Path, out: Path, *more: str) -> list[str]:
    return ["smoke", "--out", str(out), "--gpus", "0", *more, f"data_paths=[{sudoku}]"]


def report(out: Path) -> dict[str, Any]:
    return {preset["name"]: preset for preset in json.loads((out / "ablation.json").read_text())["presets"]}


def test_real_runs_of_two_presets(sudoku: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "4", "--presets", "trm,coarse_to_fine"]
    assert run_cli(ablate.main, command(sudoku, tmp_path, *options)) == 0
    said = capsys.readouterr().out
    found = report(tmp_path)
    assert list(found) == ["trm", "coarse_to_fine"]
    for preset in found.values():
        (run,) = preset["runs"]
        assert run["error"] is None and run["ms"] > 0 and run["figures"]["all/rows"] == 16
        assert (tmp_path / "runs" / f"{preset['name']}-s0" / "checkpoints" / f"step_{preset['steps']}").is_dir()
    spent = [preset["steps"] * preset["cost"]["flops"] for preset in found.values()]
    assert found["trm"]["steps"] == 4 and spent[0] - found["coarse_to_fine"]["cost"]["flops"] < spent[1] <= spent[0]
    assert "| coarse_to_fine |" in said and said.split("\n\nRows")[0] in said
    assert (tmp_path / "table.md").read_text() in said
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_every_preset_of_the_smoke_list_is_counted(sudoku: Path, tmp_path: Path, trainer: Path) -> None:
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", "--steps", "3", "--match", "steps")) == 0
    found = report(tmp_path / "out")
    assert len(found) == 12 and all(preset["steps"] == 3 for preset in found.values())
    assert found["split"]["cost"]["parameters"] > 1.9 * found["trm"]["cost"]["parameters"]
    assert found["split_half"]["cost"]["parameters"] == found["trm"]["cost"]["parameters"]


def test_seconds_become_steps_before_training(sudoku: Path, tmp_path: Path, trainer: Path) -> None:
    options = ["--seconds", "10", "--match", "seconds", "--seeds", "2", "--presets", "trm,hrm"]
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options)) == 0
    assert calls(trainer) == ["hrm-s0", "hrm-s1", "timing/hrm", "timing/trm", "trm-s0", "trm-s1"]
    found = report(tmp_path / "out")
    assert {name: preset["steps"] for name, preset in found.items()} == {"trm": 970, "hrm": 485}
    assert found["hrm"]["measured_ms"] == 20.0  # without the compilation
    assert found["trm"]["score"]["all/exact_accuracy"]["mean ± sd"] == "55.00 ± 7.07 (2)"


def test_what_is_done_is_not_done_again(sudoku: Path, tmp_path: Path, trainer: Path) -> None:
    options = ["--seconds", "1", "--presets", "trm,hrm"]
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options)) == 0
    first = report(tmp_path / "out")
    assert calls(trainer)
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options, "--seeds", "2")) == 0
    assert calls(trainer) == ["hrm-s1", "trm-s1"]
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options, "--seeds", "2")) == 0
    assert calls(trainer) == []
    # A preset that joins later gets what the others got.
    more = ["--seconds", "1", "--presets", "trm,hrm,single_z"]
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *more)) == 0
    assert calls(trainer) == ["single_z-s0", "timing/single_z"]
    last = report(tmp_path / "out")
    assert all(last[name]["steps"] == first[name]["steps"] for name in first)


def test_the_report_says_what_settled_the_budget(sudoku: Path, tmp_path: Path, trainer: Path) -> None:
    def facts(*options: str) -> dict[str, str]:
        out = tmp_path / options[0].strip("-")
        assert run_cli(ablate.main, command(sudoku, out, *options)) == 0
        return json.loads((out / "ablation.json").read_text())["facts"]

    alone = facts("--steps", "40", "--presets", "trm")
    assert alone["matched"].startswith("flops, 40 steps of trm: ")
    assert facts("--steps", "40", "--presets", "coarse_to_fine,trm")["matched"] == alone["matched"]
    # 970 steps of 10 ms are 9.7 s; HRM's take 20 ms.
    timed = facts("--seconds", "10", "--match", "steps", "--presets", "trm")
    assert (
        timed["matched"] == "steps, 9.7 s of trm, the slowest: 970 steps each" and "longer than asked for" not in timed
    )
    joined = facts("--seconds", "10", "--match", "steps", "--presets", "hrm,trm")
    assert joined["matched"] == timed["matched"]
    assert joined["longer than asked for"] == "hrm, some 19 s: the amount is that of trm"


def test_a_failing_preset_is_reported_and_stops_no_other(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trainer / "fails.txt").write_text("hrm")
    for seconds in (["--seconds", "1"], ["--steps", "5"]):
        out = tmp_path / seconds[0].strip("-")
        with pytest.raises(SystemExit) as ended:
            ablate.main(command(sudoku, out, *seconds, "--presets", "hrm,trm"))
        assert ended.value.code == 1
        found = report(out)
        assert found["trm"]["runs"][0]["figures"]["all/exact_accuracy"] == 0.5
        assert "too large for this device" in (out / "table.md").read_text()
        assert "exit code 1: error: too large for this device" in capsys.readouterr().out
    # Once it works, it is all that is left.
    (trainer / "fails.txt").write_text("")
    calls(trainer)
    assert run_cli(ablate.main, command(sudoku, tmp_path / "steps", "--steps", "5", "--presets", "hrm,trm")) == 0
    assert calls(trainer) == ["hrm-s0"]
    assert "Failed" not in (tmp_path / "steps" / "table.md").read_text()


def with_score(score: str, folder: Path) -> str:
    """The smoke list, in a file, with another figure to compare by."""
    content = (FOLDER / "smoke.yaml").read_text().replace("score: all/exact_accuracy", f"score: {score}")
    assert f"score: {score}\n" in content
    (folder / "list.yaml").write_text(content)
    return str(folder / "list.yaml")


def test_a_score_that_no_evaluation_has_is_a_failure(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [with_score("all/exact", tmp_path), *command(sudoku, tmp_path / "out", "--steps", "3")[1:]]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            ablate.main([*given, "--presets", "trm"])
        assert ended.value.code == 1
        said = capsys.readouterr().out
        assert "- trm: seed 0: its evaluation has no figure all/exact, only all/exact_accuracy, all/rows" in said
        assert "not finished" not in said


def test_steps_are_timed_without_the_evaluator_that_has_the_score(sudoku: Path, tmp_path: Path, trainer: Path) -> None:
    given = [with_score("Sudoku/exact", tmp_path), *command(sudoku, tmp_path / "out", "--seconds", "1")[1:]]
    assert run_cli(ablate.main, [*given, "--presets", "trm"]) == 0
    (run,) = report(tmp_path / "out")["trm"]["runs"]
    assert run["figures"]["Sudoku/exact"] == 0.25


def test_no_run_starts_after_the_time_for_it(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "5", "--presets", "trm,hrm"]
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options, "--stop-after", "1e-9")) == 0
    assert calls(trainer) == []
    assert "not finished: trm, hrm; the same command goes on" in capsys.readouterr().out
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options)) == 0
    assert calls(trainer) == ["hrm-s0", "trm-s0"]


@pytest.mark.parametrize("ending", ["time.sleep(60)", "sys.exit(0)"])  # before it has a handler, and with one
@pytest.mark.parametrize("budget", ["--steps", "--seconds"])
def test_a_stop_is_no_failure(
    ending: str, budget: str, sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = f"import os, signal, sys, time; os.kill(os.getppid(), signal.SIGTERM); {ending}"
    (trainer / "trainer.py").write_text(stopping)
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", budget, "5", "--presets", "trm,hrm")) == 0
    said = capsys.readouterr().out
    assert "stopped" in said and "Failed" not in said and "not finished: trm, hrm; the same command goes on" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --seconds and --steps"),
        (["--steps", "3", "--seconds", "3"], "give one of --seconds and --steps"),
        (["--steps", "3", "--match", "seconds"], "--match seconds needs --seconds"),
        (["--steps", "3", "--presets", "trm,nothing"], "--presets nothing: the list smoke has trm, trm_mlp"),
        (["--steps", "3", "--presets", "trm", "arch.hiden_size=3"], "preset trm: arch.hiden_size=3: unknown key"),
        (
            ["--steps", "3", "--presets", "coarse_to_fine", "arch.levels=[[3,3],[9,9]]"],
            "preset coarse_to_fine: arch.levels ends with 9x9, which is 81",
        ),
        (
            ["--steps", "3", "--presets", "six_z", "depth_curriculum=[{until: 0.5, H_cycles: 1, L_cycles: 7}]"],
            "preset six_z: depth_curriculum: the stage until=0.5",
        ),
        (["--steps", "3", "--gpus", "99"], "--gpus 99, but PyTorch finds"),
    ],
)
def test_wrong_input_is_told_before_anything_runs(
    options: list[str], said: str, sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(ablate.main, command(sudoku, tmp_path / "out", *options)) == 2
    assert said in capsys.readouterr().err
    assert calls(trainer) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lr=1e-3", "a,b", "a{b}", "${seed}", "a#b"])
def test_a_folder_that_no_run_could_be_given_is_refused(
    name: str, sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    assert run_cli(ablate.main, command(sudoku, out, "--steps", "3", "--presets", "trm")) == 2
    assert "no run could be told to write there" in capsys.readouterr().err
    assert calls(trainer) == [] and not out.exists()


def test_a_preset_whose_name_is_no_folder_is_refused(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.yaml").write_text((FOLDER / "smoke.yaml").read_text().replace("  no_ema:", "  ema=false:"))
    given = [str(tmp_path / "list.yaml"), *command(sudoku, tmp_path / "out", "--steps", "3")[1:]]
    assert run_cli(ablate.main, given) == 2
    assert "out/runs/ema=false-s0: no run could be told to write there" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_cli(ablate.main, command(sudoku, tmp_path / "file/out", "--steps", "3", "--presets", "trm")) == 2
    assert "file is a file; give a directory" in capsys.readouterr().err


def test_a_folder_holds_one_ablation(
    sudoku: Path, tmp_path: Path, trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_cli(ablate.main, command(sudoku, out, "--steps", "3", "--presets", "trm")) == 0
    assert run_cli(ablate.main, command(sudoku, out, "--steps", "4", "--presets", "trm")) == 2
    assert "has runs with steps=3, now it is 4: name another --out" in capsys.readouterr().err
    assert run_cli(ablate.main, command(sudoku, out, "--steps", "3", "--presets", "trm", "lr=1e-3")) == 2
    assert "has runs with base=" in capsys.readouterr().err
