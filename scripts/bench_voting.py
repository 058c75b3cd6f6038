"""Time the ARC evaluator on made-up predictions for every row of a data set's test split.

    python -m scripts.bench_voting data/arc1                  # as many rows as the split has
    python -m scripts.bench_voting data/arc1 --rows 400000    # round and round until there are so many

Six predictions in ten are the answer, the others have one cell in twenty changed, so that most of them are answers of
their own, which is what votes cost. Reading rows is timed apart. Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.common import ARC_COLOUR_0, ARC_VOCAB_SIZE
from datasets.puzzle_dataset import Batch, PuzzleDataset
from evaluators.arc import ARC
from training.cli import run_cli

BATCH, RIGHT, CHANGED = 768, 0.6, 0.05


def predictions(batch: Batch, seed: int) -> dict[str, np.ndarray]:
    """Answers to the rows of `batch`, some of them spoilt, with halting logits."""
    draws = np.random.Generator(np.random.Philox(seed))
    labels = np.where(batch["labels"] < 0, 0, batch["labels"])
    spoilt = (draws.random((len(labels), 1)) >= RIGHT) & (draws.random(labels.shape) < CHANGED)
    spoilt &= labels >= ARC_COLOUR_0
    colours = draws.integers(ARC_COLOUR_0, ARC_VOCAB_SIZE, labels.shape)
    return {
        "preds": np.where(spoilt, colours, labels).astype(np.int32),
        "q_halt_logits": draws.normal(size=len(labels)).astype(np.float32),
    }


def rows_of(data: PuzzleDataset, count: int) -> Iterator[Batch]:
    """Batches of the test split, over and over, until `count` rows have come."""
    for _ in itertools.count():
        for _, batch, index in data.test_batches(BATCH, 0, 1):
            real = np.flatnonzero(index >= 0)[:count]
            count -= real.size
            yield {key: value[real] for key, value in batch.items()} | {"row_index": index[real]}
            if count == 0:
                return


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench_voting", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path, help="the folder of an ARC data set")
    parser.add_argument("--rows", type=int, help="rows to vote (default: those of the test split)")
    args = parser.parse_args(argv)
    data = PuzzleDataset([args.data], "test", seed=0)
    evaluator = ARC(args.data, data.metadata)
    seconds = {"reading": 0.0, "voting": 0.0, "scoring": 0.0}
    evaluator.begin_eval()
    began = time.perf_counter()
    for number, batch in enumerate(rows_of(data, args.rows or data.num_rows)):
        made = predictions(batch, number)
        if number == 0:  # compiles, or reads what was compiled
            evaluator.update_batch(batch, made)
            evaluator.begin_eval()
            began = time.perf_counter()
        started = time.perf_counter()
        evaluator.update_batch(batch, made)
        seconds["voting"] += time.perf_counter() - started
    seconds["reading"] = time.perf_counter() - began - seconds["voting"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        figures = evaluator.result(Path(folder))
        seconds["scoring"] = time.perf_counter() - started
    assert figures is not None  # there is one process
    print(json.dumps({"rows": figures["ARC/rows"], "seconds": seconds, "pass@2": figures["ARC/pass@2"]}, indent=1))


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
