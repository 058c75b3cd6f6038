"""The commands that look at captured solves, on a short Sudoku and a short ARC run."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from datasets.common import InputError, load_test_puzzles
from datasets.puzzle_dataset import PuzzleDataset
from scripts import analyze_trm_arc_results, extract_single_puzzle_trajectory, generate_report_from_preds
from scripts.extract_single_puzzle_trajectory import extract_single_puzzle_trajectory as extract
from training import distributed
from training.cli import run_cli
from training.config import load_config
from training.trained import open_trained
from trajectories.arc_tasks import ArcResults
from trajectories.replay import write_replay
from trajectories.report import figures_of, write_report
from trajectories.solve import solves, telling
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


def test_figures_are_compared_with_those_beside_the_capture(captured: Path, tmp_path: Path) -> None:
    """Another evaluation into the same folder, without a capture: the older one is not taken for its."""
    command = [f"checkpoint={captured / 'run-sudoku'}", "device=cpu", f"output_dir={tmp_path}", "use_ema=false"]
    assert run_cli(evaluate.main, [*command, "halt_max_steps=2", "capture.depth=eval"]) == 0
    figures, note = figures_of(open_capture(tmp_path))
    assert figures == json.loads((tmp_path / "metrics.json").read_text())["figures"]
    assert "They are the evaluation's own, as in metrics.json and act_steps.json beside them." in note
    assert run_cli(evaluate.main, [*command, "halt_max_steps=1"]) == 0
    assert figures_of(open_capture(tmp_path))[0] == figures
    assert "They are not those of metrics.json and act_steps.json" in figures_of(open_capture(tmp_path))[1]
    (tmp_path / "metrics.json").write_text("[]")
    assert "They are not those of metrics.json" in figures_of(open_capture(tmp_path))[1]
    (tmp_path / "metrics.json").unlink()
    assert "They are not those of act_steps.json beside them" in figures_of(open_capture(tmp_path))[1]
    (tmp_path / "act_steps.json").unlink()
    assert "No evaluation's files" in figures_of(open_capture(tmp_path))[1]


def test_pooled_votes_are_not_recounted(captured: Path, tmp_path: Path) -> None:
    shutil.copytree(captured / "seen-arc", tmp_path / "seen")
    header = tmp_path / "seen/trajectories/capture.json"
    content = json.loads(header.read_text())
    assert [spec["name"] for spec in content["evaluators"]] == ["arc@ARC"]
    content["evaluators"][0]["pool_evaluations"] = True
    header.write_text(json.dumps(content))
    plain, _ = figures_of(open_capture(captured / "seen-arc"))
    figures, note = figures_of(open_capture(tmp_path / "seen"))
    assert figures == {name: value for name, value in plain.items() if not name.startswith("ARC/")} != plain
    assert "the evaluation's own" in note and "Votes pooled over several evaluations cannot be recounted" in note


def test_a_part_of_the_test_split_has_no_figures(captured: Path, tmp_path: Path) -> None:
    command = [str(captured / "run-sudoku"), str(tmp_path / "seen"), "--row", "3"]
    assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
    assert run_cli(generate_report_from_preds.main, [str(tmp_path / "seen"), str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "1 of the test split&#x27;s 16 rows were captured" in page and "<td>Sudoku/exact</td>" not in page


def test_a_written_grid_is_of_no_data_set(captured: Path, tmp_path: Path) -> None:
    """Not even of one with a single row."""
    command = [str(captured / "run-sudoku"), str(tmp_path / "seen"), str(tmp_path / "a.html"), str(tmp_path / "a.json")]
    assert (
        run_cli(extract_single_puzzle_trajectory.main, [*command, "--grid", PUZZLE, "--set", "max_eval_puzzles=1"]) == 0
    )
    assert payload(tmp_path / "a.html")["puzzles"][0]["name"] == "your grid"
    assert json.loads((tmp_path / "a.json").read_text())["puzzle_idx"] == -1
    capture = open_capture(tmp_path / "seen")
    assert capture.row_index.tolist() == [-1] and capture.header.dataset_rows == 1
    command = [str(tmp_path / "seen"), str(tmp_path / "out"), "--replay", "1"]
    assert run_cli(generate_report_from_preds.main, command) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "is in no data set" in page and "<td>Sudoku/exact</td>" not in page
    assert [row["name"] for row in csv.DictReader((tmp_path / "out/puzzles.csv").open())] == ["your grid"]


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


def test_a_task_of_any_name_stays_in_its_place(captured: Path, tmp_path: Path) -> None:
    """Neither a mark-up nor a path of another folder."""
    tasks = load_test_puzzles(captured / "arc")
    shutil.copytree(captured / "arc", tmp_path / "data")
    names = ["<img src=x onerror=alert(1)>", "../../evil", 'a"b&c', "plain"]
    renamed = dict(zip(names, tasks.values(), strict=False))
    (tmp_path / "data/test_puzzles.json").write_text(json.dumps(renamed))
    answers = {name: [{"attempt_1": [[0]]}] * len(task["test"]) for name, task in renamed.items()}
    (tmp_path / "submission.json").write_text(json.dumps(answers))
    before = set(tmp_path.rglob("*"))
    command = [str(tmp_path / "submission.json"), str(tmp_path / "a/b/out"), "--data-root", str(tmp_path / "data")]
    assert run_cli(analyze_trm_arc_results.main, [*command, "--count", "4"]) == 0
    pictures = tmp_path / "a/b/out/pictures"
    assert all(path.is_relative_to(tmp_path / "a") for path in set(tmp_path.rglob("*")) - before)
    assert len(list(pictures.iterdir())) == 4 and (pictures / "plain.png").is_file()
    page = (tmp_path / "a/b/out/tasks.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<figcaption>&lt;img src=x onerror=alert(1)&gt;</figcaption>" in page
    assert 'alt="Task a&quot;b&amp;c: ' in page


def test_examples_are_those_solved_in_two_attempts() -> None:
    """In the first attempt, in the second, one pair of two, none; what nobody answered is no example."""
    pair, right, wrong = {"input": [[1]], "output": [[2]]}, [[2]], [[3]]
    tasks = {name: {"train": [pair], "test": [pair]} for name in ("second", "first", "silent", "wrong")}
    tasks |= {"half": {"train": [pair], "test": [pair, pair]}}

    def said(*grids: list[list[int]]) -> list[dict[str, Any]]:
        return [{"grid": grid, "votes": 1, "correct": grid == right} for grid in grids]

    attempts = {
        "first": [said(right, wrong)],
        "second": [said(wrong, right)],
        "wrong": [said(wrong, [[4]], right)],
        "half": [said(wrong, right), said(wrong)],
    }
    results = ArcResults(tasks, attempts)
    assert results.examples(5) == {"solved": ["first", "second"], "not solved": ["half", "wrong"]}
    assert results.examples(1) == {"solved": ["first"], "not solved": ["half"]}
    assert [row["task"] for row in results.table()] == ["first", "second", "half", "silent", "wrong"]


def test_rows_that_are_augmented_are_said_to_be(captured: Path) -> None:
    """A name with an augmentation in it; without one the row is the task as it was given."""
    tasks = Tasks.of(open_capture(captured / "seen-arc"))
    assert tasks is not None
    names = json.loads((captured / "arc/identifiers.json").read_text())
    assert {tasks.name(i) for i in range(1, len(names))} == {
        *(name for name in names[1:] if "|||" not in name),
        *(f"{name.split('|||')[0]} (augmented)" for name in names[1:] if "|||" in name),
    }
    for i, name in enumerate(names[1:], 1):
        assert tasks.name(i).endswith("(augmented)") == ("|||" in name)


def test_a_capture_counts_the_tasks_that_were_evaluated(captured: Path, tmp_path: Path) -> None:
    command = [f"checkpoint={captured / 'run-arc'}", "device=cpu", f"output_dir={tmp_path / 'seen'}"]
    assert run_cli(evaluate.main, [*command, "capture.depth=eval", "max_eval_puzzles=2"]) == 0
    figures = json.loads((tmp_path / "seen/metrics.json").read_text())["figures"]
    command = [str(tmp_path / "seen/trajectories"), str(tmp_path / "out")]
    assert run_cli(analyze_trm_arc_results.main, command) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["tasks"] == figures["ARC/tasks"] == 2


def test_a_report_that_cannot_be_made_writes_nothing(captured: Path, tmp_path: Path) -> None:
    shutil.copytree(captured / "arc", tmp_path / "data")
    (tmp_path / "data/test_puzzles.json").write_text("{}")
    command = [str(captured / "seen-arc"), str(tmp_path / "out"), "--data-root", str(tmp_path / "data")]
    assert run_cli(generate_report_from_preds.main, command) == 2
    assert not (tmp_path / "out").exists()


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


def test_the_telling_row_is_looked_for_a_few_at_a_time(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same as among all at once: of those that end up right the one that changes most."""
    everything = [solve.steps_only() for solve in solves(open_capture(captured / "seen-sudoku"))]
    expected = telling(everything)
    assert expected.solved[-1] and expected.row >= 5
    monkeypatch.setattr(extract_single_puzzle_trajectory, "AT_ONCE", 5)
    command = [str(captured / "run-sudoku"), str(tmp_path / "seen"), str(tmp_path / "a.json")]
    assert run_cli(extract_single_puzzle_trajectory.main, command) == 0
    assert json.loads((tmp_path / "a.json").read_text())["puzzle_idx"] == expected.row
    said = capsys.readouterr().err
    assert "solving 16 puzzles to find one that is worth seeing" in said and "step 16/16" in said
    ours = open_capture(tmp_path / "seen").header.provenance
    whole = open_capture(captured / "seen-sudoku").header.provenance
    rows_at_once = "model"  # which changes no answer
    assert ours | {"act_eval_confidence": None, rows_at_once: whole[rows_at_once]} == whole
    assert (ours["run"], ours["checkpoint"], ours["step"], ours["weights"]) == ("run-sudoku", "step_170", 170, "EMA")


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
