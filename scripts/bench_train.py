"""Time a training step of the published recipes, and hold its numbers against fp32.

    python -m scripts.bench_train                       # on a GPU: ARC and Sudoku shapes
    python -m scripts.bench_train --only sudoku --json figures.json
    python -m scripts.bench_train --only arc_att_l6 --profile 12    # and where the time of a step goes
    python -m scripts.bench_train --tiny                # seconds, on any machine

All cases run in one process on one device: a step with plain eager levels, one with compiled levels and some with
compiled levels and faster kernels; all with optimisers, averages and random data. Times are medians of CUDA events
after warm-up, the first step's apart, as it compiles; FLOPs are those of `training.flops.step_flops`, set against what
a large bf16 product reaches in the same run. Parity is of one step from the same weights on the same rows: the loss and
every gradient against those of the eager path in fp32. "Late graphs" were compiled after the third step, though an
evaluation with the averaged weights came between.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from datasets.common import InputError, PuzzleDatasetMetadata
from models.losses import ACTLossHead
from training import distributed
from training.build import build_model, compile_levels, model_config
from training.cli import run_cli
from training.config import load_config
from training.config_schema import PretrainConfig
from training.distributed import Distributed, FlatGradients
from training.files import check_file, written_aside
from training.flops import step_flops
from training.passes import WARM_UP, GraphedPass, Pass, differentiate
from training.schedule import Schedule
from training.state import TrainState, create_state
from training.step import train_step
from training.timing import (
    Clock,
    as_json,
    attention_backend,
    circumstances,
    graphs_compiled,
    kernel_times,
    matmul_tflops,
    waits_for_device,
)

GIB = 2**30
HEADER = (
    "case | path | kernels | attention | rows | ms | original, ms | TFLOP/s | of the product | peak GiB | "
    "first step, s | late graphs | host waits | loss against fp32 | smallest cosine of a gradient"
)


@dataclass(frozen=True)
class Case:
    """`rows` in a timed step, `parity_rows` in the comparison with fp32, whose activations are many times as large.
    `published_ms`: a step of the original code, compiled, on an H100 80 GB."""

    name: str
    overrides: tuple[str, ...]
    cells: int
    vocabulary: int
    rows: int
    parity_rows: int
    published_ms: float


CASES = [
    Case("arc_att_l6", ("experiment=arc1", "arch.L_cycles=6"), 900, 12, 192, 16, 305.4),
    Case("arc_att_l4", ("experiment=arc1",), 900, 12, 192, 16, 219.0),
    Case("sudoku_att", ("experiment=sudoku_att",), 81, 11, 768, 128, 106.2),
    Case("sudoku_mlp", ("experiment=sudoku_mlp",), 81, 11, 768, 128, 150.9),
]
TINY = ("arch.hidden_size=32", "arch.num_heads=2", "arch.puzzle_emb_len=2", "arch.halt_max_steps=4")


def tiny(case: Case) -> Case:
    overrides = (*case.overrides, *TINY)
    return dataclasses.replace(case, overrides=overrides, cells=min(case.cells, 36), rows=4, parity_rows=4)


def settings_of(case: Case, rows: int, *more: str) -> PretrainConfig:
    """The published recipe with `rows` in a batch, taken at once."""
    batch = (f"global_batch_size={rows}", f"micro_batch_size={rows}", "max_steps=1000000", "lr_warmup_steps=0")
    config = load_config("cfg_pretrain", [*case.overrides, *batch, *more])
    assert isinstance(config, PretrainConfig)
    return config


def data_of(case: Case) -> PuzzleDatasetMetadata:
    """As much of a data set's description as a model asks for."""
    shapes = {"seq_len": case.cells, "vocab_size": case.vocabulary, "num_puzzle_identifiers": 1000}
    return cast(PuzzleDatasetMetadata, SimpleNamespace(**shapes))


def random_batch(case: Case, rows: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    grids = torch.randint(2, case.vocabulary, (2, rows, case.cells), generator=generator, dtype=torch.int32)
    puzzles = torch.randint(1, 1000, (rows,), generator=generator, dtype=torch.int32)
    batch = {"inputs": grids[0], "labels": grids[1], "puzzle_identifiers": puzzles}
    return {key: value.to(device) for key, value in batch.items()}


def model_of(case: Case, config: PretrainConfig, rows: int, device: torch.device) -> ACTLossHead:
    return build_model(config.arch, model_config(config.arch, data_of(case), rows, device), device, config.seed).train()


@dataclass(frozen=True)
class Way:
    """How a step is computed: the plain path, compiled or not, or with our kernels, and as a CUDA graph or not."""

    compiled: bool = False
    kernels: str = "torch"
    graph: bool = False


WAYS = {
    "eager": Way(),
    "compiled": Way(compiled=True),
    "triton": Way(compiled=True, kernels="triton"),
    "auto": Way(compiled=True, kernels="auto"),
    "graph": Way(compiled=True, kernels="auto", graph=True),
}


def ways_of(case: Case, device: torch.device) -> list[str]:
    """The ways in which a step of the case can be computed on the device."""
    if device.type != "cuda":
        return ["eager"]
    return [name for name, way in WAYS.items() if way.kernels != "triton" or case.name == "sudoku_mlp"]


def ways_asked(paths: str | None, cases: Collection[Case], device: torch.device) -> list[str]:
    """Of ``--paths``; `InputError` for one that does not exist, on this device or for one of the cases."""
    if paths is None:
        return list(WAYS)
    for name in paths.split(","):
        if name not in WAYS:
            raise InputError(f"--paths {name}: choose from {', '.join(WAYS)}")
        for case in cases:
            if name not in (there := ways_of(case, device)):
                raise InputError(
                    f"--paths {name}: {case.name} on {device} has {', '.join(there)}; leave {name} out, or the case "
                    "by --only"
                )
    return paths.split(",")


def time_step(case: Case, way: Way, clock: Clock, dist: Distributed, profiled: int = 0) -> dict[str, Any]:
    """A step of the recipe, and the `profiled` kernels that take the most of it."""
    started = time.perf_counter()
    config = settings_of(case, case.rows, f"arch.kernels={way.kernels}", f"cuda_graph={way.graph}")
    model = model_of(case, config, case.rows, dist.device)
    state = create_state(model, config, data_of(case), dist)
    flops = step_flops(SimpleNamespace(model=model)) * case.rows
    if way.compiled:
        compile_levels(model)
    run = SimpleNamespace(config=config, dist=dist, schedule=Schedule(1_000_000, frozenset()))
    batch = random_batch(case, case.rows, dist.device)

    def step() -> object:
        return train_step(run, state, batch)

    on_cuda = dist.device.type == "cuda"
    float(state.gradients.norm() + sum(value.sum() for value in train_step(run, state, batch).values()))
    first = time.perf_counter() - started
    step(), step()
    graphs = graphs_compiled()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(dist.device)
    step()  # where the step is to be a CUDA graph, it is recorded here, and its memory counted once
    ms = clock(step)
    peak = torch.cuda.max_memory_allocated(dist.device) / GIB if on_cuda else math.nan
    evaluate_once(state, batch)
    step()
    return {
        "ms": ms,
        "tflops": flops / ms / 1e9,
        "peak_gib": peak,
        "first_step_s": first,
        "late_graphs": graphs_compiled() - graphs,
        "host_waits": on_cuda and waits_for_device(step),
        "kernels": str(model.model.config.find_kernels()),
        "attention": attention_backend(lambda: evaluate_once(state, batch)),
        "profile": dict(itertools.islice(kernel_times(step).items(), profiled)) if profiled else {},
    }


@torch.no_grad()
def evaluate_once(state: TrainState, batch: dict[str, Tensor]) -> None:
    """An ACT step in evaluation, with the averaged weights."""
    state.model.eval()
    with state.ema.applied() if state.ema is not None else contextlib.nullcontext():
        state.model.model(carry=state.model.initial_carry(batch), batch=batch)
    state.model.train()


def gradients_of(case: Case, way: Way, dist: Distributed, dtype: str) -> tuple[float, dict[str, Tensor]]:
    """Loss per row and every gradient, fp64 on the CPU, of a first step on `parity_rows` rows."""
    config = settings_of(case, case.parity_rows, f"arch.forward_dtype={dtype}", f"arch.kernels={way.kernels}")
    model = model_of(case, config, case.parity_rows, dist.device)
    if way.compiled:
        compile_levels(model)
    batch = random_batch(case, case.parity_rows, dist.device)
    never = torch.zeros(case.parity_rows, dtype=torch.int32, device=dist.device)
    gradients = FlatGradients(model.parameters())
    metrics: dict[str, Tensor] = {}
    take: Pass = GraphedPass() if way.graph else differentiate
    for _ in range(1 + WARM_UP if way.graph else 1):  # only the last counts
        gradients.zero()
        _, metrics = take(model, model.initial_carry(batch), batch, never, case.parity_rows)
    found = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return float(metrics["loss"]) / case.parity_rows, found


@contextlib.contextmanager
def plain_fp32() -> Iterator[None]:
    """Products in fp32 proper, whatever the device would rather do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def parity(case: Case, way: Way, dist: Distributed, dtype: str) -> dict[str, Any]:
    """A step in `dtype` against the eager one in fp32: relative difference of the loss, and the smallest cosine between
    gradients with the tensor it belongs to."""
    with plain_fp32():
        loss, exact = gradients_of(case, Way(), dist, "float32")
    own_loss, own = gradients_of(case, way, dist, dtype)
    cosines = {
        name: float((gradient * own[name]).sum() / (gradient.norm() * own[name].norm()))
        for name, gradient in exact.items()
        if gradient.norm() > 0
    }
    worst = min(cosines, key=lambda name: cosines[name])
    return {"loss_difference": abs(own_loss - loss) / abs(loss), "cosine": cosines[worst], "of": worst}


def bench(case: Case, clock: Clock, dist: Distributed, profiled: int, asked: Collection[str]) -> dict[str, Any]:
    dtype = "bfloat16" if dist.device.type == "cuda" else "float32"
    paths: dict[str, Any] = {}
    for name in (name for name in ways_of(case, dist.device) if name in asked):
        torch.compiler.reset()  # the graphs of all cases together are more than one cache holds
        try:
            figures = time_step(case, WAYS[name], clock, dist, profiled)
            paths[name] = figures | {"parity": parity(case, WAYS[name], dist, dtype)}
        except torch.OutOfMemoryError:
            print(f"{case.name} | {name}: {case.rows} rows do not fit into the memory of {dist.device}")
            torch.cuda.empty_cache()
        except InputError as error:
            print(f"{case.name} | {name}: {error}")
    return {"case": case.name, "rows": case.rows, "parity_rows": case.parity_rows, "paths": paths}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench_train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a machine without a GPU")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--profile", type=int, default=0, help="show so many of the longest kernels (on a GPU)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--paths", help=f"compute a step in these ways, of {','.join(WAYS)} (default: all that fit)")
    args = parser.parse_args(argv)
    dist = distributed.init("cpu" if args.tiny else "auto")
    cases = [tiny(case) if args.tiny else case for case in CASES if args.only in case.name]
    if not cases:
        raise InputError(f"--only {args.only}: no case has that in its name: {', '.join(case.name for case in CASES)}")
    asked = ways_asked(args.paths, cases, dist.device)
    if args.profile < 0:
        raise InputError(f"--profile {args.profile}: expected a number of kernels, 0 or more")
    if args.profile and dist.device.type != "cuda":
        raise InputError(f"--profile shows kernels of a GPU, and this runs on {dist.device}: leave it out")
    if args.json is not None:
        check_file(args.json, f"--json {args.json}")
    clock = Clock(dist.device, *((1, 2) if args.tiny else (8, 20)))
    peak = matmul_tflops(dist.device, clock, 64 if args.tiny else 8192)
    where = circumstances(dist.device)
    print(f"{', '.join(' '.join(part) for part in where.items())}; a large bf16 product reaches {peak:.3g} TFLOP/s")
    print(HEADER)
    found = []
    for case in cases:
        figures = bench(case, clock, dist, args.profile, asked)
        found.append(figures)
        for path, of in figures["paths"].items():
            of["share_of_product"], own = of["tflops"] / peak, of["parity"]
            print(
                f"{case.name} | {path} | {of['kernels']} | {of['attention']} | {case.rows} | {of['ms']:.1f} | "
                f"{case.published_ms} | {of['tflops']:.3g} | {of['share_of_product']:.1%} | {of['peak_gib']:.3g} | "
                f"{of['first_step_s']:.1f} | {of['late_graphs']} | {of['host_waits']} | "
                f"{own['loss_difference']:.2g} | {own['cosine']:.6f} ({own['of']})"
            )
            for name, ms in of["profile"].items():
                print(f"    {ms:8.2f} ms {ms / of['ms']:6.1%} {name[:110]}")
            sys.stdout.flush()
    if args.json is not None:
        with written_aside(args.json) as path:
            path.write_text(as_json(where | {"matmul_tflops": peak, "cases": found}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
