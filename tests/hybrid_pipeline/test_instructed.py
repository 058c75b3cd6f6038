"""The rules, their sentences, and the rows made of them: held-out sentences, controls, the best guess."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from datasets.common import InputError
from hybrid_pipeline.grids import Grid, crop_grid_from_eos
from hybrid_pipeline.instructed import SEEN, UNSEEN, best_guess, instructed_grids
from hybrid_pipeline.phrases import PHRASES
from hybrid_pipeline.rules import INSTANCES, RULES, Instance
from hybrid_pipeline.text_rows import NO_TEXT, TextData

GRID = np.array([[1, 0, 2], [0, 3, 0], [4, 0, 1]], np.uint8)

# One case a rule, worked out by hand.
CASES: list[tuple[str, dict[str, str], list[list[int]]]] = [
    ("recolour", {"old": "blue", "new": "red"}, [[2, 0, 2], [0, 3, 0], [4, 0, 2]]),
    ("swap", {"one": "blue", "two": "red"}, [[2, 0, 1], [0, 3, 0], [4, 0, 2]]),
    ("erase", {"colour": "blue"}, [[0, 0, 2], [0, 3, 0], [4, 0, 0]]),
    ("keep", {"colour": "blue"}, [[1, 0, 0], [0, 0, 0], [0, 0, 1]]),
    ("fill", {"colour": "pink"}, [[1, 6, 2], [6, 3, 6], [4, 6, 1]]),
    ("frame", {"colour": "pink"}, [[6, 6, 6], [6, 3, 6], [6, 6, 6]]),
    ("corners", {"colour": "pink"}, [[6, 0, 6], [0, 3, 0], [6, 0, 6]]),
    ("diagonal", {"colour": "pink"}, [[6, 0, 2], [0, 6, 0], [4, 0, 6]]),
    ("edge", {"side": "right", "colour": "pink"}, [[1, 0, 6], [0, 3, 6], [4, 0, 6]]),
    ("shift", {"direction": "up"}, [[0, 3, 0], [4, 0, 1], [0, 0, 0]]),
    ("shift", {"direction": "right"}, [[0, 1, 0], [0, 0, 3], [0, 4, 0]]),
    ("roll", {"direction": "left"}, [[0, 2, 1], [3, 0, 0], [0, 1, 4]]),
    ("rotate", {"turn": "clockwise"}, [[4, 0, 1], [0, 3, 0], [1, 0, 2]]),
    ("rotate", {"turn": "counterclockwise"}, [[2, 0, 1], [0, 3, 0], [1, 0, 4]]),
    ("flip", {"sides": "left and right"}, [[2, 0, 1], [0, 3, 0], [1, 0, 4]]),
    ("flip", {"sides": "top and bottom"}, [[4, 0, 1], [0, 3, 0], [1, 0, 2]]),
    ("copy_edge", {"side": "left"}, [[1, 1, 1], [0, 0, 0], [4, 4, 4]]),
    ("symmetric", {"side": "top"}, [[1, 0, 2], [0, 3, 0], [1, 0, 2]]),
    ("symmetric", {"side": "right"}, [[2, 0, 2], [0, 3, 0], [1, 0, 1]]),
]


@pytest.fixture(scope="module")
def data() -> TextData:
    return instructed_grids(train_rows=300, test_rows=60, sizes=(2, 4), seed=3)


@pytest.mark.parametrize(("rule", "arguments", "expected"), CASES)
def test_rules_do_what_they_say(rule: str, arguments: dict[str, str], expected: list[list[int]]) -> None:
    instance = Instance(rule, tuple(arguments.items()))
    assert instance in INSTANCES
    before = GRID.copy()
    assert instance.apply(GRID).tolist() == expected and np.array_equal(GRID, before)


def test_every_rule_has_a_case_parameters_and_sentences() -> None:
    assert {rule for rule, _, _ in CASES} == set(RULES) == set(PHRASES) and len(RULES) >= 12
    said: Counter[str] = Counter()
    for instance in INSTANCES:
        assert instance.arguments
        train, held_out = instance.sentences(False), instance.sentences(True)
        assert len(set(train)) >= 8 and len(set(held_out)) >= 3
        for text in (*train, *held_out):
            assert all(value in text.lower() for _, value in instance.arguments), text
        said.update((*train, *held_out))
    assert max(said.values()) == 1  # no sentence means two things, and none is on both sides


def test_text_alone_tells_the_rule(data: TextData) -> None:
    """Rows of every set are what one instance makes of the input, the one that their sentences state."""
    by_sentence = {text: found for found in INSTANCES for held in (False, True) for text in found.sentences(held)}
    for rows in (data.train, data.test[UNSEEN], data.test[SEEN]):
        for tokens, labels, texts in zip(rows.inputs, rows.labels, rows.texts, strict=True):
            (instance,) = {by_sentence[data.sentences[text]] for text in texts}
            grid = crop_grid_from_eos(tokens)
            assert np.array_equal(crop_grid_from_eos(labels), instance.apply(grid))
            assert not np.array_equal(instance.apply(grid), grid)


def test_test_grids_and_sentences_are_unseen(data: TextData) -> None:
    trained = {row.tobytes() for row in data.train.inputs}
    assert not trained & {row.tobytes() for row in data.test[UNSEEN].inputs}
    said = {data.sentences[text] for texts in data.train.texts for text in texts}
    assert not said & {data.sentences[text] for texts in data.test[UNSEEN].texts for text in texts}
    assert {data.sentences[text] for texts in data.test[SEEN].texts for text in texts} & said


def test_rows_are_a_function_of_seed_step_and_slot(data: TextData) -> None:
    whole = data.train_batch(5, 16, range(16))
    for start in (0, 8):
        part = data.train_batch(5, 16, range(start, start + 8))
        assert all(np.array_equal(part[key], whole[key][start : start + 8]) for key in whole)
    assert not np.array_equal(data.train_batch(6, 16, range(16))["inputs"], whole["inputs"])
    again = instructed_grids(train_rows=300, test_rows=60, sizes=(2, 4), seed=3)
    assert again.digest == data.digest
    assert instructed_grids(train_rows=300, test_rows=60, sizes=(2, 4), seed=4).digest != data.digest


def test_controls_change_the_text_and_nothing_else(data: TextData) -> None:
    told, shuffled, none = (data.train_batch(2, 32, range(32), control) for control in ("text", "shuffled", "none"))
    for key in ("inputs", "labels", "puzzle_identifiers"):
        assert np.array_equal(told[key], shuffled[key]) and np.array_equal(told[key], none[key])
    assert (told["texts"] != NO_TEXT).all() and (none["texts"] == NO_TEXT).all() and data.sentences[NO_TEXT] == ""
    assert (told["texts"] != shuffled["texts"]).mean() > 0.8


def test_an_evaluation_has_its_controls(data: TextData) -> None:
    rows: dict[str, dict[int, int]] = {}
    for rank in range(2):
        for name, batch, index in data.test_batches(16, rank, 2):
            assert (batch["labels"][index < 0] == -100).all() and len(index) == 8
            real = index >= 0
            places = [data.locate(row) for row in index[real].tolist()]
            assert {found for found, _, _ in places} <= {name}
            told = batch["texts"][real].tolist()
            rows.setdefault(name, {}).update(zip((place for _, _, place in places), told, strict=True))
    assert list(rows) == [name + control for name in ("unseen", "seen") for control in ("", "_shuffled", "_none")]
    assert all(sorted(found) == list(range(60)) for found in rows.values())
    for name in ("unseen", "seen"):
        said, shuffled = (np.array([rows[name + control][row] for row in range(60)]) for control in ("", "_shuffled"))
        assert sorted(said) == sorted(shuffled)
        assert set(rows[f"{name}_none"].values()) == {NO_TEXT}
        assert (said == shuffled).sum() <= 3  # two rows may happen to say the same


def test_the_best_guess_is_the_likeliest_output() -> None:
    """Against counting: outputs drawn as the rows are drawn, for one grid."""
    data = instructed_grids(train_rows=1, test_rows=2, sizes=(2, 2), seed=1)
    grids: list[Grid] = [crop_grid_from_eos(tokens) for tokens in data.test[UNSEEN].inputs]
    draws = np.random.default_rng(0)
    guesses = []
    for grid in grids:
        outputs: Counter[bytes] = Counter()
        while outputs.total() < 8000:
            rule = RULES[draws.integers(len(RULES))]
            applied = [found.apply(grid) for found in INSTANCES if found.rule == rule]
            changed = [made for made in applied if not np.array_equal(made, grid)]
            if changed:
                made = changed[draws.integers(len(changed))]
                outputs[bytes(made.shape) + made.tobytes()] += 1
        guesses.append(max(outputs.values()) / outputs.total())
    assert best_guess(data) == pytest.approx(np.mean(guesses), abs=0.015)


@pytest.mark.parametrize("sizes", [(1, 3), (4, 3)])
def test_sizes_that_cannot_be(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="sizes"):
        instructed_grids(train_rows=1, test_rows=2, sizes=sizes, seed=0)


@pytest.mark.parametrize(("all_colours", "expected"), [(False, {0, 1, 2, 3, 4, 6, 7}), (True, set(range(10)))])
def test_colours_of_cells(all_colours: bool, expected: set[int]) -> None:
    data = instructed_grids(train_rows=200, test_rows=60, sizes=(2, 4), seed=0, all_colours=all_colours)
    for rows in (data.train, data.test[UNSEEN]):
        assert {int(cell) for row in rows.inputs for cell in crop_grid_from_eos(row).ravel()} == expected
