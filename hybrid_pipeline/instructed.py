"""Instructed grids: small tasks whose rule is stated in the text and nowhere else. Does a model listen?

A row is a random grid, the grid after the rule, and the sentences that state the rule. The rule is drawn first, then
its parameters among those that change this grid. Test grids are none of the training grids, and test sentences none
of the training sentences. `best_guess` is the exact accuracy of the best answer that ignores the text.

Usage: ``data = instructed_grids(train_rows=20000, test_rows=500, sizes=(3, 5), seed=0)``
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from datasets.arc import Task
from datasets.common import ARC_COLOURS, InputError
from hybrid_pipeline.grids import Grid, crop_grid_from_eos, label_of_grid, tokens_of_grid
from hybrid_pipeline.rules import BLACK, COLOURS, INSTANCES, RULES, Instance
from hybrid_pipeline.text_rows import TextData, TextRows

SHARE_OF_BLACK = 0.4
SMALLEST = 2

TRAIN_STREAM, TEST_STREAM, TASK_STREAM = 310, 311, 312

# Sets of an evaluation: sentences that were never trained on, and, to tell what that costs, trained ones.
UNSEEN, SEEN = "unseen", "seen"

Palette: TypeAlias = NDArray[np.uint8]  # colours that a cell may have, black first
NAMED_COLOURS: Palette = np.array([BLACK, *COLOURS.values()], np.uint8)
ANY_COLOUR: Palette = np.arange(ARC_COLOURS, dtype=np.uint8)

INSTANCES_OF = {rule: [found for found in INSTANCES if found.rule == rule] for rule in RULES}


def instructed_grids(
    *, train_rows: int, test_rows: int, sizes: Sequence[int], seed: int, all_colours: bool = False
) -> TextData:
    """Grids of `sizes` (smallest and largest side) in rows one wider, so that every grid has its EOS border.

    `all_colours`: cells have any of ARC's ten colours, not only black and those that rules name.

    Raises `InputError` where the sizes cannot be.
    """
    smallest, largest = sizes
    if not SMALLEST <= smallest <= largest:
        raise InputError(f"sizes={list(sizes)}: expected two sides, the smaller first and at least {SMALLEST}")
    sentences, numbers = numbered_sentences()
    seen: set[bytes] = set()
    palette = ANY_COLOUR if all_colours else NAMED_COLOURS
    training = _draw(train_rows, sizes, palette, seed, TRAIN_STREAM, frozenset(), seen)
    testing = _draw(test_rows, sizes, palette, seed, TEST_STREAM, frozenset(seen), set())

    def rows(drawn: list[tuple[Grid, Instance]], held_out: bool) -> TextRows:
        return TextRows(
            inputs=np.stack([tokens_of_grid(grid, largest + 1) for grid, _ in drawn]),
            labels=np.stack([label_of_grid(instance.apply(grid), largest + 1) for grid, instance in drawn]),
            texts=[numbers[held_out][INSTANCES.index(instance)] for _, instance in drawn],
            questions=np.arange(len(drawn)),
        )

    train = rows(training, held_out=False)
    test = {UNSEEN: rows(testing, held_out=True), SEEN: rows(testing, held_out=False)}
    digest = hashlib.sha256("\n".join(sentences).encode())
    for part in (train, *test.values()):
        digest.update(part.inputs.tobytes() + part.labels.tobytes())
    return TextData(sentences, train, test, seed, digest.hexdigest())


def numbered_sentences() -> tuple[list[str], dict[bool, list[list[int]]]]:
    """All sentences, number 0 being the empty one, and the numbers of each instance's: ``[held out][instance]``."""
    sentences: list[str] = [""]
    numbers: dict[bool, list[list[int]]] = {}
    for held_out in (False, True):
        numbers[held_out] = []
        for instance in INSTANCES:
            said = instance.sentences(held_out)
            numbers[held_out].append(list(range(len(sentences), len(sentences) + len(said))))
            sentences += said
    return sentences, numbers


def instructed_tasks(count: int, demonstrations: int, largest: int, seed: int) -> list[Task]:
    """Tasks in ARC's form: so many pairs of one rule and a test pair, square grids, and no text."""
    draws = np.random.Generator(np.random.Philox(key=[seed, TASK_STREAM]))
    tasks = []
    for number in range(count):
        of_rule = INSTANCES_OF[RULES[draws.integers(len(RULES))]]
        instance = of_rule[draws.integers(len(of_rule))]
        pairs: list[tuple[Grid, Grid]] = []
        while len(pairs) <= demonstrations:
            grid = _random_grid(draws, (largest, largest), NAMED_COLOURS)
            if not np.array_equal(made := instance.apply(grid), grid):
                pairs.append((grid, made))
        tasks.append(Task(f"{instance.rule}-{number}", tuple(pairs[:-1]), tuple(pairs[-1:])))
    return tasks


def best_guess(data: TextData) -> float:
    """Expected exact accuracy on the test grids of the most probable answer given the grid alone."""
    return float(np.mean([_most_probable(crop_grid_from_eos(tokens)) for tokens in data.test[UNSEEN].inputs]))


def _most_probable(grid: Grid) -> float:
    """The probability of the likeliest output, by the rule of drawing: a rule, then one of those that do something."""
    outputs: dict[str, list[bytes]] = {}
    for rule in RULES:
        made = [found.apply(grid) for found in INSTANCES_OF[rule]]
        changed = [bytes(found.shape) + found.tobytes() for found in made if not np.array_equal(found, grid)]
        if changed:
            outputs[rule] = changed
    chances: Counter[bytes] = Counter()
    for changed in outputs.values():
        for key in changed:
            chances[key] += 1 / (len(outputs) * len(changed))  # type: ignore[assignment]
    return max(chances.values())


def instance_odds(grid: Grid, made: Grid) -> NDArray[np.float64]:
    """Of each of the `INSTANCES`, how likely it is to have made `made` of `grid` by the rule of drawing; 0 for those
    that make something else."""
    odds = np.zeros(len(INSTANCES))
    for rule in RULES:
        able = [found for found in INSTANCES_OF[rule] if not np.array_equal(found.apply(grid), grid)]
        for found in able:
            if np.array_equal(found.apply(grid), made):
                odds[INSTANCES.index(found)] = 1 / len(able)
    return odds / max(odds.sum(), np.finfo(np.float64).tiny)


def _draw(
    count: int,
    sizes: Sequence[int],
    palette: Palette,
    seed: int,
    stream: int,
    taken: frozenset[bytes],
    seen: set[bytes],
) -> list[tuple[Grid, Instance]]:
    """So many grids, none of them `taken`, each with a rule that changes it; the grids' keys are added to `seen`."""
    draws = np.random.Generator(np.random.Philox(key=[seed, stream]))
    drawn: list[tuple[Grid, Instance]] = []
    while len(drawn) < count:
        rows, columns = draws.integers(sizes[0], sizes[1] + 1, size=2)
        grid = _random_grid(draws, (rows, columns), palette)
        rule = RULES[draws.integers(len(RULES))]
        able = [found for found in INSTANCES_OF[rule] if not np.array_equal(found.apply(grid), grid)]
        key = bytes(grid.shape) + grid.tobytes()
        if able and key not in taken:
            seen.add(key)
            drawn.append((grid, able[draws.integers(len(able))]))
    return drawn


def _random_grid(draws: np.random.Generator, shape: tuple[int, int], palette: Palette) -> Grid:
    chances = np.array([SHARE_OF_BLACK, *[(1 - SHARE_OF_BLACK) / (len(palette) - 1)] * (len(palette) - 1)])
    return draws.choice(palette, p=chances, size=shape)
