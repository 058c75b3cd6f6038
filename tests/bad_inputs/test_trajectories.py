"""Bad input to what captures trajectories and to what looks at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bad_inputs.sandbox import Sandbox, assert_one_error, cut, edit_json, flip_bit, run

CAPTURES = [
    ("checkpoint=run capture.depth=deep", "capture.depth=deep: expected 'eval', 'h_cycle' or 'layer'"),
    ("checkpoint=run capture.depth=eval capture.rows=[6]", "names row 6, the test split has 6: give 0 to 5"),
    ("checkpoint=run capture.depth=eval capture.rows=[-1]", r"capture.rows\[0\]=-1: expected"),
    ("checkpoint=run capture.depth=eval capture.rows=[]", "capture.rows"),
    ("checkpoint=run capture.rows=[0]", r"capture.rows=\[0\] has no effect, as nothing is captured: set capture.depth"),
    ("checkpoint=run capture.puzzles=3", "capture.puzzles=3: unknown key"),
    ("checkpoint=head_run capture.depth=eval", "capture is for the evaluation of a model"),
]


@pytest.mark.parametrize(("arguments", "message"), CAPTURES)
def test_capturing(sandbox: Sandbox, arguments: str, message: str) -> None:
    sandbox.assert_refused("evaluate", f"{arguments} device=cpu", message)


TARGETS = {
    "foreign file": ("notes.txt", "holds notes.txt, which is not of a capture and would be lost"),
    "foreign folder": ("sub/notes.txt", "holds sub, which is not of a capture"),
    "capture with notes": ("capture.json notes.txt", "holds notes.txt, which is not of a capture"),
    "chunks alone": ("rank0-00000.npz", "holds rank0-00000.npz, which is not of a capture"),
    "a file": ("", "is no folder that a capture could replace"),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("command", ["extract", "evaluate"])
def test_a_capture_replaces_nothing_but_a_capture(sandbox: Sandbox, command: str, name: str) -> None:
    files, message = TARGETS[name]
    folder = Path("out/trajectories")
    folder.parent.mkdir()
    for file in files.split():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("kept")
    if not files:
        folder.write_text("kept")
    evaluation = "checkpoint=run device=cpu capture.depth=eval output_dir=out"
    arguments = evaluation if command == "evaluate" else f"run {folder} --row 1"
    sandbox.assert_refused(command, arguments, f"out/trajectories {message}")


def test_a_capture_does_not_replace_where_it_runs(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    for name in (".", "..", "../empty"):
        sandbox.assert_refused("extract", f"../run {name} --row 1", "is where this program runs")


EXTRACTS = [
    ("nowhere new.png", "checkpoint nowhere does not exist"),
    ("run new.txt", "new.txt: unknown suffix; use .html, .gif, .png, .svg, .pdf, .json, or none"),
    ("run run.json --row 1", "run.json is a folder: give a name for the file"),
    ("run sudoku.png/new.png", "sudoku.png/new.png: not there|cannot be written"),
    ("run run/config.yaml/new.gif", "run/config.yaml/new.gif cannot be written: .*config.yaml is a file"),
    ("run run/config.yaml/new.html", "run/config.yaml/new.html cannot be written: .*config.yaml is a file"),
    ("run new.png --row 6", "--row 6 is not one of the 6 test rows: give 0 to 5"),
    ("run new.png --row -1", "--row -1 is not one of the 6 test rows"),
    ("run new.png --row first", "argument --row: invalid int value: 'first'"),
    ("run new.png --row 1 --grid 1", "argument --grid: not allowed with argument --row"),
    ("arc_run new.png --row 1 --id x", "--row 1 and --id x both name a row: give one of them"),
    ("arc_run new.png --id nowhere", "--id nowhere: arc has no puzzle of that name, see identifiers.json"),
    ("run new.png --id nowhere", "--id nowhere: sudoku has no puzzle of that name"),
    ("run new.png --depth deep", "argument --depth: invalid choice: 'deep'"),
    ("run new.png --device gpu", "device=gpu: expected"),
    ("run new.png --set act_eval=early", "--set act_eval=early has no effect on a single row"),
    ("run new.png --set act_eval_confidence=0.9", "--set act_eval_confidence=0.9 has no effect on a single row"),
    ("run new.png --set +output_dir=x", r"--set \+output_dir=x has no effect on a single row"),
    ("run new.png --set capture.depth=layer", "--set capture.depth=layer has no effect on a single row"),
    ("run new.png --set eval_save_outputs=[preds]", r"--set eval_save_outputs=\[preds\] has no effect on a single row"),
    ("run new.png --set evaluator=sudoku", "--set evaluator=sudoku has no effect on a single row"),
    ("run new.png --set diffusion.puzzles=2", "--set diffusion.puzzles=2 has no effect on a single row"),
    ("run new.png --set device=cpu", "--set device=cpu: give --device instead"),
    ("run new.png --set checkpoint=arc_run", "--set checkpoint=arc_run: give the first argument instead"),
    ("run new.png --set act_evil=early", "act_evil=early: unknown key"),
    ("run new.png --set data_paths=[arc]", "trained on data with vocab_size=6, data_paths has 12"),
    ("run new.png --grid 12", "--grid has 2 cells, the model's puzzles have 4 rows of 4"),
    ("run new.png --grid 123412341234123x", '--grid has "x": use digits, with . or 0 for a blank below 5'),
    ("run new.png --grid [[1,2]", "--grid is not valid JSON"),
    ("run new.png --grid 12341/234/1234/1234", "--grid has rows of 5, 3, 4, 4 cells, the model's puzzles have 4 rows"),
    ("run new.png --grid [[1,2,3,4],[1,2,3],[1],[1,2,3,4,1,2,3,4]]", "--grid has rows of 4, 3, 1, 8 cells"),
    ("run new.png --grid [[12,34],[12,34],[12,34],[12,34]]", "--grid has the cell 12: give a digit, a character or"),
    ("run new.png --grid [[true],[1]]", "--grid has the cell true: give a digit, a character or null"),
    ("arc_run new.png --grid [[1,2],[10]] --id x", "--grid has the cell 10: give a digit"),
    ("run new.png --grid [7]", "expected a list of rows"),
    ("run new.png --grid nowhere.json", "nowhere.json does not exist"),
    ("arc_run new.png --grid 12/34", "--grid of an ARC model needs --id TASK as well"),
    ("arc_run new.png --grid 12/345 --id x", r"--grid has rows of \[2, 3\] cells: give equal ones, at most 6 by 6"),
]


@pytest.mark.parametrize(("arguments", "message"), EXTRACTS)
def test_extracting(sandbox: Sandbox, arguments: str, message: str) -> None:
    if "sudoku.png" in arguments:
        Path("sudoku.png").write_bytes(b"")
    Path("run.json").mkdir()
    sandbox.assert_refused("extract", arguments, message)


REPORTS = [
    ("report", "sudoku out", "sudoku holds no captured trajectories: make them with evaluate.py"),
    ("report", "nowhere out", "nowhere holds no captured trajectories"),
    ("report", "seen out --start 1", "--start 1: seen has 1 rows, give 0 to 0"),
    ("report", "seen out --start -1", "--start -1 must be at least 0"),
    ("report", "seen out --max 0", "--max 0 must be at least 1"),
    ("report", "seen run/config.yaml", "run/config.yaml cannot be written"),
    ("report", "arc_seen out --data-root nowhere", "nowhere, the data set of the capture, does not exist"),
    ("report", "arc_seen out --data-root sudoku", "sudoku is not the data set that was captured .hash"),
    ("analyze", "seen out", "seen holds sudoku puzzles: scripts.generate_report_from_preds reports on them"),
    ("analyze", "arc_seen out --data-root sudoku", "sudoku is not the data set that was captured"),
    ("analyze", "run out", "run does not name its data set: give --data-root"),
    ("analyze", "run out --data-root arc", "run/attempts.json does not exist"),
    ("analyze", "run out --data-root sudoku", "sudoku/test_puzzles.json does not exist"),
    ("analyze", "other.json out --data-root arc", "arc has no task 00000000, which other.json answers"),
    ("analyze", "pairs.json out --data-root arc", r"pairs.json: task \w+ needs a list of \d test pairs"),
    ("analyze", "grids.json out --data-root arc", r"grids.json: task \w+: expected attempts with a grid of colours"),
    ("analyze", "floats.json out --data-root arc", "floats.json: task .*: expected .*whole numbers 0 to 9"),
    ("analyze", "truths.json out --data-root arc", "truths.json: task .*: expected .*whole numbers 0 to 9"),
    ("analyze", "tenth.json out --data-root arc", "tenth.json: task .*: expected .*whole numbers 0 to 9"),
    ("analyze", "votes.json out --data-root arc", r"votes.json: task \w+: votes='x' is no number of votes"),
    ("analyze", "empty.json out --data-root arc", r"empty.json: task \w+: a test pair needs attempt_1"),
    ("analyze", "named.json out --data-root arc", r"named.json: task \w+: a test pair needs attempt_1"),
    ("analyze", "good.json out --data-root unsolved", "unsolved has the solutions of no task"),
    ("analyze", "good.json out --data-root arc --count -1", "--count -1 must be at least 0"),
    ("analyze", "arc_seen out", "arc_seen has 1 of the test split's .* rows, too few to vote with"),
    ("analyze", "arc_seen arc_seen", "arc_seen holds the results, whose own files would be replaced"),
    ("analyze", "evaluated evaluated --data-root arc", "evaluated holds the results"),
    ("analyze", "good.json evaluated --data-root arc", "evaluated holds the results"),
    ("report", "seen out --data-root arc", "--data-root arc has no effect, as seen is not of ARC: drop it"),
    ("analyze", "run run/config.yaml --data-root arc", "run/config.yaml cannot be written"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), REPORTS)
def test_looking_at_results(sandbox: Sandbox, command: str, arguments: str, message: str) -> None:
    assert run("extract", "run seen --row 0")[0] == run("extract", "arc_run arc_seen --row 0")[0] == 0
    name, task = next(iter(json.loads(Path("arc/test_puzzles.json").read_text()).items()))
    pairs = len(task["test"])
    submissions: dict[str, object] = {
        "other": {"0" * 8: []},
        "pairs": {name: []},
        "grids": {name: [{"attempt_1": [[0, 1], [2]]}] * pairs},
        "floats": {name: [{"attempt_1": [[1.0, 1]]}] * pairs},
        "truths": {name: [{"attempt_1": [[True, 1]]}] * pairs},
        "tenth": {name: [{"attempt_1": [[10, 1]]}] * pairs},
        "votes": {name: [[{"grid": [[1]], "votes": "x"}]] * pairs},
        "empty": {name: [{}] * pairs},
        "named": {name: [{"attempt_1": [[1]], "attempt_two": [[1]]}] * pairs},
        "good": {name: [{"attempt_1": [[1]]}] * pairs},
    }
    for file, content in submissions.items():
        Path(f"{file}.json").write_text(json.dumps(content))
    Path("unsolved").mkdir()
    unsolved = {name: {"train": [], "test": [{"input": pair["input"]} for pair in task["test"]]}}
    Path("unsolved/test_puzzles.json").write_text(json.dumps(unsolved))
    Path("evaluated").mkdir()
    Path("evaluated/act_steps.json").write_text("{}")
    sandbox.assert_refused(command, arguments, message)


DAMAGES = {
    "header cut": (lambda: cut("seen/capture.json"), "capture.json is not valid JSON"),
    "no header": (lambda: Path("seen/capture.json").unlink(), "seen holds no captured trajectories"),
    "another file": (lambda: Path("seen/capture.json").write_text("{}"), "is no header of trajectories"),
    "newer": (lambda: edit_json("seen/capture.json", version=2), "capture.json: key version: .*; capture again"),
    "outside": (
        lambda: edit_json("seen/capture.json", chunks=[{"file": "../run.npz", "set_name": "all", "rows": 1}]),
        "key chunks.0.file: ",
    ),
    "fewer rows": (
        lambda: edit_json("seen/capture.json", chunks=[{"file": "rank0-00000.npz", "set_name": "all", "rows": 2}]),
        "rank0-00000.npz is damaged: row_index has 1 rows",
    ),
    "chunk cut": (lambda: cut("seen/rank0-00000.npz"), "rank0-00000.npz cannot be read"),
    "chunk gone": (lambda: Path("seen/rank0-00000.npz").unlink(), "rank0-00000.npz cannot be read"),
    "bit flipped": (lambda: flip_bit("seen/rank0-00000.npz", 0.04), "rank0-00000.npz is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_captures(sandbox: Sandbox, name: str) -> None:
    damage, message = DAMAGES[name]
    assert run("extract", "run seen --row 0")[0] == 0
    damage()
    sandbox.assert_refused("report", "seen out", message)


@pytest.mark.parametrize("command", ["report seen out", "extract run new.json --row 1", "extract run new.html --row 1"])
def test_a_disk_that_takes_no_more(sandbox: Sandbox, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("extract", "run seen --row 0")[0] == 0

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    program, _, arguments = command.partition(" ")
    assert_one_error(*run(program, arguments), "No space left on device; make room, or write elsewhere")
    assert not [name for name in sandbox.contents() if name.startswith("new") or name.endswith(".tmp")]
