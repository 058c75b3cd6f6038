"""The commands that look at captured solves, on a short Sudoku and a short ARC run."""

from __future__ import annotations

import base64
import csv
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.common import InputError, load_test_puzzles
from datasets.puzzle_dataset import PuzzleDataset
from scripts import analyze_trm_arc_results, extract_single_puzzle_trajectory, generate_report_from_preds
from scripts.extract_single_puzzle_trajectory import extract_single_puzzle_trajectory as extract
from training import distributed
from training.cli import run_cli
from training.config import load_config
from training.trained import open_trained
from trajectories.replay import write_replay
from trajectories.report import write_report
from trajectories.solve import solves
from trajectories.store import open_capture
from trajectories.tasks import Tasks


def payload(page: Path) -> dict[str, Any]:
    """The data of a page, read as its script reads it."""
    packed = re.search(r'id="payload"[^>]*>([^<]+)<', page.read_text(encoding="utf-8"))
    assert packed is not None
    raw = zlib.decompress(base64.b64decode(packed[1]))
    size = int.from_bytes(raw[:4], "little")
    content = json.loads(raw[4 : 4 + size])
    at = 4 + size
    for puzzle in content["puzzles"]:
        cells, frames = puzzle["rows"] * puzzle["columns"], len(puzzle["halt"])
        block = np.frombuffer(raw, np.uint8, (3 + 2 * frames) * cells, at).reshape(-1, cells)
        at += block.size
        puzzle |= {"input": block[0], "label": block[1], "given": block[2]}
        puzzle["preds"] = np.cumsum(block[3 : 3 + frames], 0, dtype=np.uint8)
        puzzle["confidence"] = np.cumsum(block[3 + frames :], 0, dtype=np.uint8) / content["confidence_steps"]
    assert at == len(raw)
    return content


def test_report_and_replay_of_a_sudoku_capture(captured: Path, tmp_path: Path) -> None:
    command = [str(captured / "seen-sudoku"), str(tmp_path), "--replay", "5"]
    assert run_cli(generate_report_from_preds.main, command) == 0
    capture = open_capture(captured / "seen-sudoku")
    figures = json.loads((captured / "seen-sudoku/metrics.json").read_text())["figures"]
    rows = list(csv.DictReader((tmp_path / "puzzles.csv").open()))
    assert [int(row["row"]) for row in rows] == list(range(16))
    assert np.mean([int(row["exact"]) for row in rows]) == figures["Sudoku/exact"] > 0
    assert np.mean([float(row["cell_accuracy"]) for row in rows]) == pytest.approx(figures["Sudoku/cell"], abs=1e-6)
    solved = [row for row in rows if row["exact"] == "1"]
    assert all(row["answer"] == row["solution"] and 1 <= int(row["first_solved_step"]) <= 3 for row in solved)
    assert set(rows[0]["input"]) <= set(".1234") and len(rows[0]["input"]) == 16
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *("accuracy", "steps", "reliability", "halting", "flips", "drift")
    }
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<td>Sudoku/exact</td><td>{figures['Sudoku/exact']:.5g}</td>" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page

    played = payload(tmp_path / "replay.html")
    shown = [puzzle["row"] for puzzle in played["puzzles"]]
    assert shown == sorted(set(shown)) and sum(rows[row]["exact"] == "0" for row in shown) == 2 < len(shown) == 5
    for puzzle, solve in zip(played["puzzles"], solves(capture, shown), strict=True):
        np.testing.assert_array_equal(puzzle["preds"], solve.preds)
        np.testing.assert_array_equal(puzzle["label"], solve.labels)
        np.testing.assert_allclose(puzzle["confidence"], solve.confidence, atol=0.5 / 63 + 1e-6)
        assert puzzle["moments"] == [[step, cycle] for step in (1, 2, 3) for cycle in (1, 2)]


def test_report_on_some_rows(captured: Path, tmp_path: Path) -> None:
    """The table, the figures and the replay are of the same rows; what is of all rows says so."""
    command = [str(captured / "seen-sudoku"), str(tmp_path), "--start", "3", "--max", "4", "--replay", "3"]
    assert run_cli(generate_report_from_preds.main, command) == 0
    played = [puzzle["row"] for puzzle in payload(tmp_path / "replay.html")["puzzles"]]
    assert len(played) == 3 and set(played) < {3, 4, 5, 6}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    whole, chosen = re.findall(r"<table><caption>(.*?)</caption>.*?</table>", page)
    assert (whole, chosen) == ("Of the whole test split", "Of the rows of this report (4)")
    assert 'alt="How far the latents move in an ACT step, first 4 rows"' in page
    assert [row["row"] for row in csv.DictReader((tmp_path / "puzzles.csv").open())] == ["3", "4", "5", "6"]


def test_more_kinds_of_cell_than_a_page_can_hold(captured: Path, tmp_path: Path) -> None:
    capture = open_capture(captured / "seen-sudoku")
    capture.header = capture.header.model_copy(update={"vocab_size": 255})
    for write in (lambda: write_report(capture, tmp_path), lambda: write_replay(solves(capture), tmp_path / "a.html")):
        with pytest.raises(InputError, match="a vocabulary of 255 is more than a page can show"):
            write()
    assert not list(tmp_path.iterdir())


def test_demonstrations_are_turned_and_coloured_as_their_rows(captured: Path, tmp_path: Path) -> None:
    """A task's own demonstrations are rows of the training split under the same identifier."""
    tasks = Tasks.of(open_capture(captured / "seen-arc"))
    assert tasks is not None
    capture = open_capture(captured / "seen-arc")
    train = PuzzleDataset([captured / "arc"], "train").train_rows(np.arange(400))
    side = capture.header.grid[1]
    checked = 0
    for identifier in np.unique(capture.array("puzzle_identifiers"))[:12]:
        shown = {tuple(np.ravel(grid)) for grid, _ in tasks.demonstrations(int(identifier))}
        for tokens in train["inputs"][train["puzzle_identifiers"] == identifier]:
            grid = tokens.reshape(side, side)
            filled = grid >= 2
            cells = grid[np.any(filled, axis=1)][:, np.any(filled, axis=0)]
            assert tuple(cells.ravel()) in shown
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("source", ["capture", "evaluation", "submission"])
def test_arc_tables_agree_with_the_evaluation(source: str, captured: Path, tmp_path: Path) -> None:
    results = {"capture": "seen-arc/trajectories", "evaluation": "seen-arc", "submission": "seen-arc/submission.json"}
    command = [str(captured / results[source]), str(tmp_path), "--count", "1"]
    command += [] if source == "capture" else ["--data-root", str(captured / "arc")]
    assert run_cli(analyze_trm_arc_results.main, command) == 0
    figures = json.loads((captured / "seen-arc/metrics.json").read_text())["figures"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for k in (1, 2):
        assert summary[f"pass@{k}"] == pytest.approx(figures[f"ARC/pass@{k}"])
    rows = list(csv.DictReader((tmp_path / "tasks.csv").open()))
    assert len(rows) == figures["ARC/tasks"]
    assert (rows[0]["votes"] == "") == (source == "submission")
    assert (tmp_path / "tasks.html").is_file() and list((tmp_path / "pictures").iterdir())


def test_a_submission_that_solves_one_task(captured: Path, tmp_path: Path) -> None:
    """The second attempt is right, and every task that is left out counts as unsolved."""
    tasks = load_test_puzzles(captured / "arc")
    name = next(name for name, task in tasks.items() if len(task["test"]) == 1)
    answer = {"attempt_1": [[0]], "attempt_2": tasks[name]["test"][0]["output"]}
    (tmp_path / "submission.json").write_text(json.dumps({name: [answer]}))
    command = [str(tmp_path / "submission.json"), str(tmp_path / "out"), "--data-root", str(captured / "arc")]
    assert run_cli(analyze_trm_arc_results.main, command) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["pass@1"], summary["pass@2"]) == (0, 1 / len(tasks))
    assert summary["tasks_answered"] == 1


def test_one_puzzle_in_every_form(captured: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.html", "a.gif", "a.png", "a.svg", "a.json", "capture")]
    command = [str(captured / "run-sudoku"), *map(str, outs), "--row", "5", "--depth", "h_cycle", "--device", "cpu"]
    assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
    (solve,) = solves(open_capture(tmp_path / "capture"))
    (whole,) = solves(open_capture(captured / "seen-sudoku"), [5])
    np.testing.assert_array_equal(solve.preds, whole.preds)
    assert [puzzle["row"] for puzzle in payload(tmp_path / "a.html")["puzzles"]] == [5]
    assert Image.open(tmp_path / "a.gif").n_frames > 1  # type: ignore[attr-defined]
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["puzzle_idx"] == 5 and [step["step_number"] for step in content["steps"]] == [0, 1, 2]
    assert content["steps"][-1]["predictions"] == whole.preds[-1].tolist()


def test_a_puzzle_by_name_and_the_telling_one(captured: Path, tmp_path: Path) -> None:
    name = next(iter(load_test_puzzles(captured / "arc")))
    for out, more in (("named.html", ["--id", name]), ("telling.html", [])):
        command = [str(captured / "run-arc"), str(tmp_path / out), *more]
        assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
    assert payload(tmp_path / "named.html")["puzzles"][0]["name"].startswith(f"{name} ·")
    assert payload(tmp_path / "telling.html")["puzzles"][0]["examples"]


PUZZLE = "1234/3.1./.1.3/43.1"


IN_JSON = "[[1,2,3,4],[3,0,1,null],[0,1,0,3],[4,3,0,1]]"


@pytest.mark.parametrize("form", [PUZZLE, PUZZLE.replace("/", ""), IN_JSON, "file"])
def test_a_sudoku_written_down(form: str, captured: Path, tmp_path: Path) -> None:
    if form == "file":
        form = str(tmp_path / "grid.json")
        Path(form).write_text(json.dumps([list(row) for row in PUZZLE.split("/")]))
    command = [str(captured / "run-sudoku"), str(tmp_path / "a.json"), "--grid", form]
    assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    written = "".join(content["symbols"][token] for token in content["input"])
    solution = "".join(content["symbols"][token] for token in content["label"])
    assert written == PUZZLE.replace("/", "") and solution == "1234341221434321"


def test_an_arc_grid_for_a_known_task(captured: Path, tmp_path: Path) -> None:
    task_id, task = next(iter(load_test_puzzles(captured / "arc").items()))
    given = task["test"][0]["input"]
    found = []
    for more in ([], ["--grid", json.dumps(given)], ["--grid", "/".join("".join(map(str, row)) for row in given)]):
        command = [str(captured / "run-arc"), str(tmp_path / "a.json"), "--id", task_id, *more]
        assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
        found.append(json.loads((tmp_path / "a.json").read_text()))
    assert set(found[1]["label"]) == {-100} != set(found[0]["label"])
    assert found[0]["input"] == found[1]["input"] == found[2]["input"]
    assert found[0]["steps"] == found[1]["steps"] == found[2]["steps"]


def test_the_dictionary_from_python(captured: Path) -> None:
    config = load_config("cfg_evaluate", [f"checkpoint={captured / 'run-sudoku'}", "device=cpu"])
    with distributed.init("cpu") as dist:
        trained = open_trained(config, dist)
    batch = {key: torch.from_numpy(value) for key, value in trained.dataset.test_rows(np.arange(4)).items()}
    trained.model.train()  # as it is in the midst of training
    found = extract(trained.model, batch, -1)
    assert trained.model.training
    (whole,) = solves(open_capture(captured / "seen-sudoku"), [3])
    assert found["puzzle_idx"] == 3 and len(found["steps"]) == 3
    np.testing.assert_array_equal(found["input"], whole.inputs)
    for i, step in enumerate(found["steps"]):
        np.testing.assert_array_equal(step["predictions"], whole.steps_only().preds[i])
        assert step["q_halt_logits"] == pytest.approx(whole.steps_only().q_halt[i], abs=1e-5)
        assert step["is_halted"] == (i == 2)
    with pytest.raises(InputError, match="puzzle_idx=4 is not one of the batch's 4 rows"):
        extract(trained.model, batch, 4)
