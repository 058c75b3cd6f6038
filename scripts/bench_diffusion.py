"""Time the harvest and the training of diffusion heads beside the recursion they learn from.

    python -m scripts.bench_diffusion                      # ARC shapes on a GPU: 916 tokens of 512 channels
    python -m scripts.bench_diffusion --tiny               # seconds, on any machine
    python -m scripts.bench_diffusion --json figures.json

The teacher has random weights and solves random grids: what it computes does not change how long it takes. Times are
medians of CUDA events after warm-up, everything compiled; FLOPs are counted by `training.flops`, and set against what a
large bf16 product reaches on the same device in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from datasets.common import InputError
from datasets.puzzle_dataset import Batch, PuzzleDataset
from diffusion_streaming import HCycleStreamer, LayerUpdateStreamer
from training import distributed
from training.build import build_model, compile_levels
from training.cli import run_cli
from training.config import load_config
from training.config_schema import PretrainConfig
from training.diffusion_head import build_head, head_config
from training.diffusion_schema import DiffusionTrainConfig
from training.diffusion_trainer import DiffusionTrainer916, DiffusionTrainer9160
from training.distributed import Distributed
from training.files import check_file, written_aside
from training.flops import head_flops, teacher_flops
from training.teacher import Teacher
from training.timing import Clock, as_json, circumstances, matmul_tflops

# Rows of a training step of each head; the cases that are measured.
CASES: list[tuple[str, list[str], int]] = [
    ("diffusion_916", [], 192),
    ("diffusion_916", [], 384),
    ("diffusion_916", ["diffusion.kernels=auto"], 192),
    ("diffusion_916", ["diffusion.kernels=auto"], 384),
    ("d916_seed_eps", [], 96),
    ("diffusion_9160", ["diffusion.own_estimates=false"], 16),
    ("d9160_full", ["diffusion.own_estimates=false"], 8),
    ("d9160_seed_eps", [], 8),
]
ARC = ["arch.forward_dtype=bfloat16"]
TINY = [
    "arch.forward_dtype=float32",
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.L_cycles=2",
    "arch.puzzle_emb_len=2",
    "arch.halt_max_steps=2",
]


class RandomGrids:
    """Stands in for a `PuzzleDataset` where only the shapes matter."""

    def __init__(self, cells: int):
        self.cells, self.num_rows = cells, 1_000_000

    def train_rows(self, positions: np.ndarray) -> Batch:
        draws = np.random.Generator(np.random.Philox(int(positions[0])))
        grids = draws.integers(2, 12, (2, len(positions), self.cells)).astype(np.int32)
        return {"inputs": grids[0], "labels": grids[1], "puzzle_identifiers": np.ones(len(positions), np.int32)}


def random_teacher(overrides: list[str], cells: int, dist: Distributed) -> Teacher:
    """A teacher without a checkpoint."""
    recorded = load_config("cfg_pretrain", overrides)
    assert isinstance(recorded, PretrainConfig)
    settings = recorded.arch.hyperparameters | {
        "batch_size": 1,
        "seq_len": cells,
        "vocab_size": 12,
        "num_puzzle_identifiers": 2,
    }
    model = build_model(recorded.arch, settings, dist.device).eval().requires_grad_(False)
    data = cast(PuzzleDataset, RandomGrids(cells))
    return Teacher(model, cast(Any, None), recorded, data, data, {})


def bench_teacher(teacher: Teacher, rows: int, clock: Clock, device: torch.device) -> dict[str, float]:
    """Forward milliseconds per row of a level, an H-cycle and an ACT step."""
    inner = teacher.model.model.inner
    carry = inner.empty_carry(rows)
    x = torch.randn(rows, teacher.latent_length, teacher.hidden_size, device=device).to(teacher.dtype)
    carry = type(carry)(*(torch.randn_like(x) for _ in vars(carry)))
    cos_sin = None if inner.rotary is None else inner.rotary()
    flops = teacher_flops(teacher)
    with torch.no_grad():
        level = clock(lambda: inner.L_level(carry.z_L, x, cos_sin))
        cycle = clock(lambda: inner.cycle(carry, x, cos_sin))
    return {
        "rows": rows,
        "level_ms": level / rows,
        "h_cycle_ms": cycle / rows,
        "h_cycle_gflop": flops["h_cycle"] / 1e9,
        "tflops": flops["h_cycle"] * rows / cycle / 1e9,
    }


def bench_head(
    name: str, overrides: list[str], rows: int, teacher: Teacher, clock: Clock, dist: Distributed, ring_gib: float
) -> dict[str, float | str]:
    """A training step, a network evaluation without gradients, and the share of a step that the harvest takes."""
    device = dist.device
    settings = [f"diffusion={name}", "checkpoint=random", f"global_batch_size={rows}", f"harvest.ring_gib={ring_gib}"]
    config = load_config("cfg_diffusion_train", [*settings, "harvest.act_step_weights=uniform", *overrides])
    assert isinstance(config, DiffusionTrainConfig)
    head = build_head(config.diffusion.name, head_config(config.diffusion, teacher), config.noise, device)
    by_layer = config.diffusion.rows == "layer"
    streamer = (LayerUpdateStreamer if by_layer else HCycleStreamer)(
        teacher, dist, config.harvest, global_batch_size=rows, seed=0
    )
    if isinstance(streamer, LayerUpdateStreamer):
        streamer.follow(head)
    streamer.fill()
    trainer = (DiffusionTrainer916 if by_layer else DiffusionTrainer9160)(head, config, dist)
    if device.type == "cuda":
        trainer.compile()
        torch.cuda.reset_peak_memory_stats(device)
    batch: Any = streamer.batch(0)
    train_ms = clock(lambda: trainer.train_step(batch))
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0

    due = (math.ceil(k * streamer.steps_per_production) for k in itertools.count(1))
    production = clock(lambda: streamer.advance(next(due)))
    step = next(due)
    streamer.advance(step)
    harvest_ms = production / streamer.steps_per_production + clock(lambda: streamer.batch(step))
    noisy = torch.randn(rows, head.config.target_blocks * teacher.latent_length, teacher.hidden_size, device=device)
    t = torch.full((rows,), head.process.num_steps - 1, device=device)
    types = getattr(batch, "types", None)
    head.eval()
    with torch.no_grad():
        forward_ms = clock(lambda: head.network(noisy, t, batch.conditions, types))
    flops = head_flops(head)
    return {
        "head": " ".join([name, *overrides]),
        "rows": rows,
        "tokens": noisy.shape[1] if by_layer else (3 + head.config.target_blocks) * teacher.latent_length,
        "train_ms": train_ms,
        "train_tflops": flops["training"] * rows / train_ms / 1e9,
        "harvest_ms": harvest_ms,
        "harvest_share": harvest_ms / (train_ms + harvest_ms),
        "nfe_ms": forward_ms / rows,
        "nfe_gflop": flops["forward"] / 1e9,
        "peak_gib": memory,
        "ring_gib": streamer.ring_bytes / 2**30,
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench_diffusion", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a machine without a GPU")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--replay", type=float, default=4.0, help="uses of a harvested row (default 4)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args(argv)
    cases = [case for case in CASES if args.only in case[0]]
    if not cases:
        raise InputError(f"--only {args.only}: no case has that in its name: {', '.join(name for name, *_ in CASES)}")
    if args.json is not None:
        check_file(args.json, f"--json {args.json}")
    dist = distributed.init("cpu" if args.tiny else "auto")
    clock = Clock(dist.device, *((1, 2) if args.tiny else (8, 20)))
    teacher = random_teacher(TINY if args.tiny else ARC, 12 if args.tiny else 900, dist)
    if dist.device.type == "cuda":
        compile_levels(teacher.model)
    peak = matmul_tflops(dist.device, clock, 64 if args.tiny else 8192)
    recursion = bench_teacher(teacher, 2 if args.tiny else 192, clock, dist.device)
    where = circumstances(dist.device)
    print(f"{', '.join(' '.join(part) for part in where.items())}; a large bf16 product reaches {peak:.3g} TFLOP/s")
    print(
        f"teacher: {1000 * recursion['h_cycle_ms']:.1f} us and {recursion['h_cycle_gflop']:.1f} GFLOP a row and "
        f"H-cycle, {recursion['tflops']:.3g} TFLOP/s, {recursion['rows']} rows"
    )
    heads = []
    for name, overrides, rows in cases:
        options = [*overrides, f"harvest.replay={args.replay}"]
        figures = bench_head(name, options, 4 if args.tiny else rows, teacher, clock, dist, 0.01 if args.tiny else 12.0)
        figures["share_of_peak"] = cast(float, figures["train_tflops"]) / peak
        figures["nfe_in_h_cycles"] = cast(float, figures["nfe_ms"]) / recursion["h_cycle_ms"]
        heads.append(figures)
        print(
            " | ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()), flush=True
        )
    if args.json is not None:
        with written_aside(args.json) as path:
            found = where | {"matmul_tflops": peak, "teacher": recursion, "heads": heads}
            path.write_text(as_json(found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
