"""Figures of the Sudoku evaluator on hand-made predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.common import InputError, PuzzleDatasetMetadata
from evaluators.common import Evaluator, wilson_interval
from evaluators.sudoku import Sudoku


def grids(*texts: str) -> np.ndarray:
    return np.array([[int(digit) for digit in text] for text in texts])


# Of the second puzzle OTHER is a solution too, which no data set of ours would allow.
PUZZLES = grids("1000004030000002", "0034341200434321")
SOLUTIONS = grids("1423234132144132", "1234341221434321")
OTHER = grids("1423234132144132", "2134341212434321")


def metadata(**changes: object) -> PuzzleDatasetMetadata:
    fields = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 6, "seq_len": 16,
        "num_puzzle_identifiers": 1, "total_groups": 2, "mean_puzzle_examples": 1.0, "sets": ["all"],
    }  # fmt: skip
    return PuzzleDatasetMetadata.model_validate(fields | changes)


def batch(rows: list[int]) -> dict[str, np.ndarray]:
    """Rows of a data set in which the two puzzles alternate."""
    puzzle = np.array(rows) % 2
    return {
        "inputs": PUZZLES[puzzle].astype(np.int32) + 1,
        "labels": SOLUTIONS[puzzle].astype(np.int32) + 1,
        "puzzle_identifiers": np.zeros(len(rows), np.int32),
        "row_index": np.array(rows),
    }


def figures(predicted: np.ndarray) -> dict[str, float]:
    evaluator = Sudoku("nowhere", metadata())
    evaluator.begin_eval()
    evaluator.update_batch(batch([0, 1]), {"preds": predicted + 1})
    result = evaluator.result(None)
    assert result is not None
    return result


def with_cell(grid: np.ndarray, cell: int, digit: int) -> np.ndarray:
    changed = grid.copy()
    changed[0, cell] = digit
    return changed


def test_solutions_are_exact_and_valid() -> None:
    low, high = wilson_interval(2, 2)
    assert figures(SOLUTIONS) == {
        "Sudoku/rows": 2,
        "Sudoku/exact": 1,
        "Sudoku/exact_low": low,
        "Sudoku/exact_high": high,
        "Sudoku/cell": 1,
        "Sudoku/blank_cell": 1,
        "Sudoku/valid": 1,
        # All digits of the first puzzle are equally rare, so 1 fills 12 blanks: 3 right. The rarest of the
        # second are 1 and 2, so 1 fills 4 blanks: 2 right. The clues are 4 and 12.
        "Sudoku/copy_baseline": (4 + 3 + 12 + 2) / 32,
        "Sudoku/copy_baseline_exact": 0,
    }


def test_a_puzzle_with_one_blank_is_solved_by_filling_in() -> None:
    solved = Sudoku("nowhere", metadata())
    solved.begin_eval()
    almost = np.where(np.arange(16) == 5, 0, SOLUTIONS)
    solved.update_batch(batch([0, 1]) | {"inputs": almost + 1}, {"preds": SOLUTIONS + 1})
    result = solved.result(None)
    assert result is not None and result["Sudoku/copy_baseline_exact"] == 1


def test_one_wrong_blank() -> None:
    got = figures(with_cell(SOLUTIONS, 1, 3))
    assert (got["Sudoku/exact"], got["Sudoku/valid"]) == (0.5, 0.5)
    assert got["Sudoku/cell"] == 31 / 32
    assert got["Sudoku/blank_cell"] == 15 / 16


def test_one_changed_clue_is_no_wrong_blank() -> None:
    got = figures(with_cell(SOLUTIONS, 0, 3))
    assert (got["Sudoku/exact"], got["Sudoku/valid"]) == (0.5, 0.5)
    assert got["Sudoku/cell"] == 31 / 32
    assert got["Sudoku/blank_cell"] == 1


def test_an_answer_by_the_rules_is_valid_whatever_the_label() -> None:
    got = figures(OTHER)
    assert (got["Sudoku/exact"], got["Sudoku/valid"]) == (0.5, 1)
    assert got["Sudoku/blank_cell"] == 12 / 16


@pytest.mark.parametrize(
    "grid",
    [
        "1423324132144132",  # a column has a digit twice
        "1423234132144131",  # so has a row, and a clue is changed
        "2413134231244231",  # by the rules, but not with these clues
        "1423234132144130",  # a blank is left
    ],
)
def test_an_answer_against_the_rules_is_not_valid(grid: str) -> None:
    assert figures(np.concatenate([grids(grid), SOLUTIONS[1:]]))["Sudoku/valid"] == 0.5


def test_boxes_count() -> None:
    """A Latin square that keeps the clues of an empty puzzle but not its boxes."""
    latin = grids("1234234134124123")
    evaluator = Sudoku("nowhere", metadata())
    empty = batch([0]) | {"inputs": np.ones((1, 16), np.int32)}
    evaluator.update_batch(empty, {"preds": latin + 1})
    evaluator.update_batch(empty, {"preds": SOLUTIONS[:1] + 1})
    result = evaluator.result(None)
    assert result is not None
    assert result["Sudoku/valid"] == 0.5


def test_tokens_that_are_no_digits_are_wrong() -> None:
    for token in (-1, 0, 1, 6, 40):
        predicted = SOLUTIONS.copy() + 1
        predicted[:, 1] = token
        evaluator = Sudoku("nowhere", metadata())
        evaluator.update_batch(batch([0, 1]), {"preds": predicted})
        result = evaluator.result(None)
        assert result is not None
        assert (result["Sudoku/exact"], result["Sudoku/valid"]) == (0, 0)


def test_box_of_metadata_and_without_it() -> None:
    solution = grids("123456456123231564564231312645645312")
    rows = {"inputs": np.ones((1, 36), np.int32), "labels": solution + 1, "row_index": np.array([0])}
    for box, valid in ((None, 1), ((2, 3), 1), ((3, 2), 0)):
        evaluator = Sudoku("nowhere", metadata(seq_len=36, vocab_size=8, box=box))
        evaluator.update_batch(rows, {"preds": solution + 1})
        result = evaluator.result(None)
        assert result is not None
        assert (result["Sudoku/exact"], result["Sudoku/valid"]) == (1, valid)


def test_ranks_and_batches_change_nothing(tmp_path: Path) -> None:
    rows = list(range(20))
    predicted = np.stack([(SOLUTIONS if row % 3 else OTHER)[row % 2] for row in rows]) + 1

    def evaluated(shares: list[list[int]], folder: str) -> tuple[dict[str, float], str]:
        ranks = [Sudoku("nowhere", metadata()) for _ in shares]
        for rank, share in zip(ranks, shares, strict=True):
            for row in share:
                rank.update_batch(batch([row]), {"preds": predicted[row : row + 1]})
        sent: list[object] = []
        for rank in ranks[1:]:
            assert rank.result(tmp_path / folder, lambda part: sent.append(part)) is None
        result = ranks[0].result(tmp_path / folder, lambda part: [part, *sent])
        assert result is not None
        return result, (tmp_path / folder / "sudoku_results.csv").read_text()

    one, table = evaluated([rows], "one")
    assert evaluated([rows[::3], rows[1::3], rows[2::3]], "three") == (one, table)
    assert one["Sudoku/exact"] == 17 / 20  # rows 3, 9 and 15 are the second puzzle's other solution
    assert table.splitlines()[:5] == [
        "row_index,exact,cell_accuracy",
        "0,1,1.000000",
        "1,1,1.000000",
        "2,1,1.000000",
        "3,0,0.750000",
    ]


def test_a_new_evaluation_forgets_the_old() -> None:
    evaluator = Sudoku("nowhere", metadata())
    for predicted, exact in ((OTHER, 0.5), (SOLUTIONS, 1)):
        evaluator.begin_eval()
        evaluator.update_batch(batch([0, 1]), {"preds": predicted + 1})
        result = evaluator.result(None)
        assert result is not None
        assert (result["Sudoku/exact"], result["Sudoku/rows"]) == (exact, 2)


def test_no_rows_give_zeros() -> None:
    evaluator = Sudoku("nowhere", metadata())
    assert isinstance(evaluator, Evaluator)
    evaluator.begin_eval()
    result = evaluator.result(None)
    assert result is not None
    assert (result["Sudoku/exact_low"], result["Sudoku/exact_high"]) == (0, 1)
    assert sum(result.values()) == 1


@pytest.mark.parametrize("changes", [{"seq_len": 15}, {"vocab_size": 12}, {"box": (3, 3)}, {"grid": (2, 8)}])
def test_other_data_sets_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"^data/x: .*choose the evaluator"):
        Sudoku("data/x", metadata(**changes))
