"""Students, what they cost, and accuracy against it: a head in the place of the teacher's recursion.

Costs are of one puzzle: model FLOPs by counting (`training.flops`), time and memory by running one batch.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.puzzle_dataset import Batch
from models.losses import ACTLossHead
from models.student import HeadRows, Student, row_keys
from training.diffusion_sampling import HeadSampler
from training.distributed import Distributed
from training.evaluation import STEPS_FILE, Evaluator, evaluate
from training.flops import head_flops, teacher_flops
from training.harvest import EvalBatch
from training.teacher import Teacher, draw_test_rows

TEACHER = "TRM"
GIGA = 1e9
# Runs of which the fastest counts: the first ones pay for memory and kernels.
TIMED_RUNS = 4


class DrawnRows:
    """Some rows of a test set, as `training.evaluation.evaluate` reads them: one set, without padding."""

    def __init__(self, teacher: Teacher, rows: np.ndarray):
        self.test_set, self.rows = teacher.test_set, rows

    def test_batches(
        self, global_batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[str, Batch, np.ndarray]]:
        own = self.rows[rank::world_size]
        local = global_batch_size // world_size
        for start in range(0, len(own), local):
            index = own[start : start + local]
            yield "drawn", self.test_set.test_rows(index), index


def rollouts(
    teacher: Teacher,
    dist: Distributed,
    rows: HeadRows,
    samplers: Mapping[str, HeadSampler],
    *,
    puzzles: int,
    batch_size: int,
    jump_at: int = 0,
    seed: int = 0,
    save_dir: Path | None = None,
    evaluators: Sequence[tuple[str, Evaluator]] = (),
) -> dict[str, Any]:
    """Accuracy after every ACT step of the teacher and of a student with each sampler: a tree, full on rank 0 only.

    On `puzzles` drawn rows, `batch_size` at once in a process; of ARC on all rows of the test set, because answers are
    voted for over a task's rows. Files of the evaluators go to a folder each in `save_dir`.
    """
    dataset: Any = teacher.test_set
    if dataset.metadata.kind != "arc":
        dataset = DrawnRows(teacher, draw_test_rows(teacher, puzzles, seed))
    inner, loss = teacher.model.model, teacher.recorded.arch.loss.loss_type
    models = {TEACHER: teacher.model}
    for name, sampler in samplers.items():
        models[name] = ACTLossHead(Student(inner, rows, sampler, jump_at=jump_at), loss).eval()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in models.items():
            folder = (save_dir or Path(scratch)) / f"rollout-{name.replace(', ', '-').replace(' ', '_')}"
            began = time.perf_counter()
            figures = evaluate(
                model,
                dataset,
                evaluators,
                dist=dist,
                batch_size=batch_size * dist.world_size,
                save_dir=folder,
            )
            if figures is not None:
                found[name] = _by_step(folder / STEPS_FILE)
                found[name] |= {"seconds": time.perf_counter() - began, "figures": figures}
    for part in found.values():
        pairs = zip(part["exact_accuracy"], found[TEACHER]["exact_accuracy"], strict=True)
        part["share_of_teacher"] = [own / theirs if theirs else None for own, theirs in pairs]
    return found


def _by_step(file: Path) -> dict[str, Any]:
    """Accuracies after every ACT step over the rows of all sets."""
    sets = json.loads(file.read_text(encoding="utf-8")).values()
    rows = np.array([part["rows"] for part in sets], dtype=np.float64)

    def mean(key: str) -> list[float]:
        return (rows @ np.array([part[key] for part in sets]) / max(1.0, rows.sum())).tolist()

    return {
        "rows": int(rows.sum()),
        "exact_accuracy": mean("exact_accuracy_by_step"),
        "accuracy": mean("cell_accuracy_by_step"),
    }


def measure_cost(
    teacher: Teacher, rows: HeadRows, samplers: Mapping[str, HeadSampler], batch: EvalBatch
) -> dict[str, Any]:
    """GFLOP, milliseconds and peak GB of a sample and of the teacher's units.

    FLOPs are of one row; time is that of a batch divided by its rows, the fastest of a few runs, with modules compiled
    or not, as they are; memory is the largest that a run had allocated for the batch, above what was there before it,
    and null where the device does not say. Only the shapes of what is in `batch` matter.
    """
    flops = {key: value / GIGA for key, value in teacher_flops(teacher).items()}
    x, z_H, z_L = (batch.entries[:, 0, place].contiguous() for place in range(3))
    inner, device = teacher.model.model.inner, x.device
    found: dict[str, Any] = {"device": _device_name(device), "teacher": {}, "head": {}}
    cos_sin = None if inner.rotary is None else inner.rotary()
    carry = replace(inner.empty_carry(len(x)), z_H=z_H, z_L=z_L)
    units: dict[str, Callable[[], Any]] = {
        "application": lambda: inner.L_level(z_L, z_H + x, cos_sin),
        "h_cycle": lambda: inner.cycle(carry, x, cos_sin),
        "act_step": lambda: inner(carry, batch.batch),
    }
    for name, unit in units.items():
        found["teacher"][name] = {"gflop": flops[name]} | _timed(unit, len(x), device)
    keys = row_keys(batch.batch["inputs"])
    for name, sampler in samplers.items():
        count = min(sampler.rows_at_once, len(x))
        conditions = tuple(part[:count] for part in ((z_L, z_H, x) if rows == "layer" else (x, z_H, z_L)))
        types = torch.zeros_like(keys[:count]) if rows == "layer" else None
        cost: dict[str, float] = {"steps": sampler.steps, "nfe": sampler.nfe}
        cost["gflop"] = head_flops(sampler.head)["forward"] * sampler.nfe / GIGA
        found["head"][name] = cost | _timed(partial(sampler, conditions, types, keys[:count]), count, device)
    return found


def _timed(unit: Callable[[], Any], count: int, device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    before, seconds = 0, []
    if on_cuda:
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(TIMED_RUNS):
        began = time.perf_counter()
        unit()
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    peak = (torch.cuda.max_memory_allocated(device) - before) / GIGA if on_cuda else None
    return {"ms": min(seconds) * 1000 / count, "peak_gb": peak, "batch": count}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def accuracy_by_flops(
    teacher: Teacher,
    rows: HeadRows,
    cost: Mapping[str, Any],
    students: Mapping[str, Any],
    early: Mapping[str, Any],
    jump_at: int = 0,
) -> dict[str, Any]:
    """Exact accuracy against GFLOP of a puzzle: the teacher stopped after some H-cycles, and students by ACT step.

    What an ACT step costs beyond its H-cycles (embeddings, read-out) is counted once wherever an answer is read.
    """
    h_cycle, act_step = cost["teacher"]["h_cycle"]["gflop"], cost["teacher"]["act_step"]["gflop"]
    H, blocks = teacher.H_cycles, teacher.L_cycles + 1
    aside = act_step - H * h_cycle
    curves: dict[str, Any] = {}
    if early:
        gflop = [done // H * act_step + (done % H > 0) * aside + done % H * h_cycle for done in early["h_cycles"]]
        curves["TRM stopped early"] = {"gflop": gflop, "exact_accuracy": early["exact_accuracy"]}
    for name, student in students.items():
        steps = np.arange(1, len(student["exact_accuracy"]) + 1)
        if name == TEACHER:
            gflop = (steps * act_step).tolist()
        elif rows == "jump":
            jump = cost["head"][name]["gflop"] + aside
            gflop = np.where(steps <= jump_at, steps * act_step, (steps - 1) * act_step + jump).tolist()
        else:
            calls = H * blocks if rows == "layer" else H
            gflop = (steps * (calls * cost["head"][name]["gflop"] + aside)).tolist()
        curves[name] = {"gflop": gflop, "exact_accuracy": student["exact_accuracy"]}
    return curves
