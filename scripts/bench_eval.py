"""Time an evaluation that runs every row to the end against one that lets rows go as soon as they halt.

    python -m scripts.bench_eval checkpoint=runs/NAME
    python -m scripts.bench_eval checkpoint=runs/NAME eval_batch_size=256 max_eval_puzzles=2000

Options are those of `evaluate.py`. Every setting is run twice over the held-out data and the second run counts, from
the first row read to the last one finished, without opening and compilation. Prints a table: rows a second, the
speed-up, ACT steps a row and exact accuracy, at several halting probabilities above which a row may go.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from datasets.common import InputError
from training import distributed
from training.build import compile_levels
from training.cli import run_cli
from training.config import load_config
from training.distributed import Distributed
from training.evaluation import evaluate
from training.trained import Trained, open_trained

# None: rows run to the end. One half is the published rule of training.
CONFIDENCES = (None, 0.5, 0.9, 0.95, 0.98, 0.99)


def time_evaluation(trained: Trained, dist: Distributed, confidence: float | None) -> dict[str, float]:
    """Puzzles a second, ACT steps a row and exact accuracy, summed over the sets of the data."""
    seconds, figures = 0.0, None
    for _ in range(2):
        started = time.perf_counter()
        figures = evaluate(
            trained.model,
            trained.dataset,
            [],
            dist=dist,
            batch_size=trained.batch_size,
            act_eval="fixed" if confidence is None else "early",
            act_eval_confidence=confidence or 0.5,
        )
        if dist.device.type == "cuda":
            torch.cuda.synchronize(dist.device)
        seconds = time.perf_counter() - started
    of = figures or {}
    rows = {key.removesuffix("/rows"): value for key, value in of.items() if key.endswith("/rows")}
    total = sum(rows.values())

    def mean(figure: str) -> float:
        return sum(of[f"{name}/{figure}"] * count for name, count in rows.items()) / total

    return {"rows": total, "per_second": total / seconds, "steps": mean("steps"), "exact": mean("exact_accuracy")}


def main(argv: list[str]) -> None:
    config: Any = load_config("cfg_evaluate", argv)
    with distributed.init(config.device) as dist:
        if dist.world_size > 1:
            raise InputError("bench_eval times one process: start it without torchrun")
        trained = open_trained(config, dist)
        if dist.device.type == "cuda":
            compile_levels(trained.model)
        print(
            f"{trained.weights.path}, {'EMA' if trained.weights.averaged else 'weights as saved'}, {dist.device}, "
            f"batches of {trained.batch_size}, at most {trained.model.model.config.halt_max_steps} ACT steps"
        )
        print("rows go above | rows | rows/s | x fixed | ACT steps a row | exact")
        fixed = 0.0
        for confidence in CONFIDENCES:
            found = time_evaluation(trained, dist, confidence)
            fixed = fixed or found["per_second"]
            print(
                f"{'never' if confidence is None else confidence} | {found['rows']:.0f} | {found['per_second']:.1f} | "
                f"{found['per_second'] / fixed:.2f} | {found['steps']:.2f} | {found['exact']:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
