"""Mazes: answers equal to the label, and answers that are right though another path was the label.

Shortest paths are rarely unique, and which one is the label is a matter of tie-breaking. Hence three figures, each
implying the next: exact (the label's path), shortest_path (any path of least length) and valid_path (any path).
A path is valid if the prediction changes nothing but free cells to path cells, and these with S and G form one
line from S to G: no gaps, branches, loops or stray cells; a path that touches itself counts as branched. The
baseline is the cell accuracy of copying the input.

Usage: Maze("data/maze-10x10", metadata).result(Path("runs/a")) after update_batch; writes maze_results.csv
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numba
import numpy as np

from datasets.common import InputError, PuzzleDatasetMetadata
from evaluators.common import Gather, single_process
from evaluators.grid_rows import RowTally, square_side

WALL, FREE, START, GOAL, PATH = range(1, 6)  # tokens; 0 is padding
VOCAB_SIZE = 6


class Maze:
    """Evaluator of maze data sets (see the module's docstring for what it measures).

    Args:
        data_path: the data set's folder, for messages.
        eval_metadata: metadata of the evaluated split.
        id_offset, task_names: unused, for mazes have no identifiers; there because every evaluator takes them.

    Raises:
        InputError: the split's grid or vocabulary is no maze's.
    """

    required_outputs = frozenset({"preds"})

    def __init__(
        self,
        data_path: str | Path,
        eval_metadata: PuzzleDatasetMetadata,
        *,
        id_offset: int = 0,
        task_names: Collection[str] | None = None,
    ) -> None:
        self._size = square_side(data_path, eval_metadata)
        if eval_metadata.vocab_size != VOCAB_SIZE:
            raise InputError(
                f"{data_path}: vocabulary of {eval_metadata.vocab_size} is no maze's {VOCAB_SIZE}; "
                "choose the evaluator of this kind of data set"
            )
        self._tally = RowTally()

    def begin_eval(self) -> None:
        """Forget the rows of the previous evaluation."""
        self._tally = RowTally()

    def update_batch(self, batch: dict[str, np.ndarray], preds: dict[str, np.ndarray]) -> None:
        """Add n real rows: ``preds["preds"]`` [n, seq_len] are tokens."""
        inputs = np.ascontiguousarray(batch["inputs"], np.int32)
        predictions = np.ascontiguousarray(preds["preds"], np.int32)
        valid = np.empty(len(inputs), np.bool_)
        shortest = np.empty(len(inputs), np.bool_)
        _judge_paths(inputs, predictions, self._size, valid, shortest)
        self._tally.add(batch, predictions)
        self._tally.counts.update(
            valid=int(valid.sum()),
            shortest=int(shortest.sum()),
            baseline=int((inputs == batch["labels"]).sum()),
        )

    def result(self, save_dir: Path | None, gather: Gather = single_process) -> dict[str, float] | None:
        """Figures on rank 0, which writes maze_results.csv into ``save_dir``; None on the other ranks."""
        tally = self._tally.merged(gather)
        if tally is None:
            return None
        if save_dir is not None:
            tally.write_csv(save_dir / "maze_results.csv")
        return tally.exact_figures("Maze") | {
            "Maze/shortest_path": tally.share("shortest", "rows"),
            "Maze/valid_path": tally.share("valid", "rows"),
            "Maze/copy_baseline": tally.share("baseline", "cells"),
        }


@numba.njit(cache=True, nogil=True)
def _judge_paths(
    inputs: np.ndarray, predictions: np.ndarray, size: int, valid: np.ndarray, shortest: np.ndarray
) -> None:
    """Fills ``valid`` and ``shortest``, bool [n], for inputs and predictions, int32 [n, size * size]."""
    open_cells = np.empty(size * size, np.bool_)
    distance = np.empty(size * size, np.int64)
    queue = np.empty(size * size, np.int64)
    for row in range(len(inputs)):
        maze, answer = inputs[row], predictions[row]
        valid[row] = shortest[row] = False
        if not _keeps_maze(maze, answer):
            continue
        for cell in range(maze.size):
            open_cells[cell] = answer[cell] == PATH or answer[cell] == START or answer[cell] == GOAL
        marked = open_cells.sum()
        # A shortest way over marked cells that needs all of them leaves no room for branches or stray cells.
        valid[row] = _cells_to_goal(answer, open_cells, size, distance, queue) == marked
        if valid[row]:
            for cell in range(maze.size):
                open_cells[cell] = maze[cell] != WALL
            shortest[row] = _cells_to_goal(maze, open_cells, size, distance, queue) == marked


@numba.njit(cache=True, nogil=True)
def _keeps_maze(maze: np.ndarray, answer: np.ndarray) -> bool:
    starts = goals = 0
    for cell in range(maze.size):
        starts += maze[cell] == START
        goals += maze[cell] == GOAL
        if answer[cell] != maze[cell] and not (maze[cell] == FREE and answer[cell] == PATH):
            return False
    return starts == 1 and goals == 1


@numba.njit(cache=True, nogil=True)
def _neighbour(cell: int, step: int, size: int) -> int:
    """The cell to the left, right, above or below (step 0 to 3), -1 beyond the edge."""
    if step == 0:
        return cell - 1 if cell % size > 0 else -1
    if step == 1:
        return cell + 1 if cell % size < size - 1 else -1
    if step == 2:
        return cell - size if cell >= size else -1
    return cell + size if cell < size * (size - 1) else -1


@numba.njit(cache=True, nogil=True)
def _cells_to_goal(
    tokens: np.ndarray, open_cells: np.ndarray, size: int, distance: np.ndarray, queue: np.ndarray
) -> int:
    """Cells of a shortest path from S to G over open cells, both included; 0 if there is none."""
    distance[:] = 0
    tail = 0
    for cell in range(tokens.size):
        if tokens[cell] == START:
            queue[0] = cell
            distance[cell] = 1
            tail = 1
    head = 0
    while head < tail:
        cell = queue[head]
        head += 1
        for step in range(4):
            neighbour = _neighbour(cell, step, size)
            if neighbour >= 0 and open_cells[neighbour] and distance[neighbour] == 0:
                distance[neighbour] = distance[cell] + 1
                if tokens[neighbour] == GOAL:
                    return distance[neighbour]
                queue[tail] = neighbour
                tail += 1
    return 0
