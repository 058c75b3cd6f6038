"""Train a list of presets alike, with several seeds, and print what each is worth.

    python -m scripts.ablate smoke --steps 8                                  # seconds, on any machine
    python -m scripts.ablate sudoku --seconds 100 --seeds 2 --gpus 4          # matched operations
    python -m scripts.ablate arc --steps 300 --presets trm,coarse_to_fine data_paths=[data/arc1-aug-100]

Every run is one of `pretrain.py`. With --seconds, a few steps of every preset are timed first, so that the number of
steps, and the learning-rate schedule with it, is settled before training starts; what compilation takes is no training.
What is done is written at once, and the same command again goes on with what is left. A preset that fails is a line of
the report and stops no other; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datasets.common import InputError, check_folder, read_json
from datasets.puzzle_dataset import PuzzleDataset
from training.ablation import (
    AblationList,
    Amount,
    Budget,
    Row,
    Run,
    as_json,
    common_amount,
    cost_of,
    read_list,
    read_run,
    read_timing,
    schedule_overrides,
    steps_for,
    table,
    what_is_missing,
)
from training.ablation_plots import plot_ablation
from training.cli import run_cli, script_parser
from training.config import compose_mapping, load_config
from training.files import written_aside
from training.jobs import CPU, Job, Pool, devices_of
from training.signals import StopRequest

PRETRAIN = str(Path(__file__).resolve().parent.parent / "pretrain.py")
MARGIN = 0.97  # of the seconds: a run may be a little slower than its first steps
QUIET = ["logger.progress_bar=false", "logger.plots=false", "keep_last=1"]


@dataclass(frozen=True)
class Plan:
    """What was asked for; `settings` are those that a folder cannot have twice."""

    ablation: AblationList
    budget: Budget
    seeds: int
    out: Path
    timed_steps: int

    @property
    def settings(self) -> dict[str, Any]:
        of_budget = {"match": self.budget.match, "seconds": self.budget.seconds, "steps": self.budget.steps}
        return {"base": self.ablation.base, "warmup": self.ablation.warmup, **of_budget}

    def run_dir(self, preset: str, seed: int) -> Path:
        return self.out / "runs" / f"{preset}-s{seed}"

    def overrides(self, preset: str, *more: str) -> list[str]:
        return [*self.ablation.base, *self.ablation.presets[preset], *QUIET, *more]


def main(argv: list[str]) -> None:
    args = _parser().parse_intermixed_args(argv)
    plan = _plan(args)
    available = torch.cuda.device_count()
    devices = devices_of(available if args.gpus is None else args.gpus, available)
    rows = [_row(plan, name) for name in plan.ablation.presets]
    _check_same_ablation(plan)
    facts = _facts(plan, rows, devices)
    started = time.monotonic()

    def closed() -> bool:
        return args.stop_after is not None and time.monotonic() - started > args.stop_after

    with StopRequest() as stop:
        pool = Pool(devices, timeout=args.timeout, should_stop=lambda: stop.requested, closed=closed)
        if plan.budget.seconds is not None:
            _time_steps(plan, rows, pool)
        if settled := _settle_steps(plan, rows):
            facts |= settled
            _train(plan, rows, pool, lambda: _report(plan, rows, facts))
    print(_report(plan, rows, facts))
    plot_ablation(plan.out / "ablation.png", plan.ablation, rows, _run_dirs(plan, rows))
    print(f"files in {plan.out}")
    if left := [row.name for row in rows if not row.problem and len(row.runs) < plan.seeds]:
        print(f"not finished: {', '.join(left)}; the same command goes on")
    if any(row.problem for row in rows):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("ablate", __doc__)
    add = parser.add_argument
    add("list", help="a list of presets: a name in config/ablation, or a .yaml file")
    add("overrides", nargs="*", help="key=value for all presets, as pretrain.py takes them")
    add("--match", choices=["flops", "steps", "seconds"], default="flops", help="what all presets get alike")
    add("--seconds", type=_positive, help="longest training of a run; the slowest preset settles what all get")
    add("--steps", type=_count, help="steps of the first preset, instead of --seconds")
    add("--seeds", type=_count, default=1, help="runs of each preset, with seeds 0, 1 and so on (default 1)")
    add("--presets", metavar="NAME,NAME", help="only these of the list, in this order")
    add("--out", type=Path, help="folder of runs and report (default runs/ablation-LIST)")
    add("--gpus", type=_whole, help="GPUs to spread the runs over, one on each at a time; 0: the CPU (default: all)")
    add("--timed-steps", type=_count, default=40, help="steps that are timed with --seconds (default 40)")
    add("--timeout", type=_positive, default=3600.0, help="seconds after which a run has failed (default 3600)")
    add("--stop-after", type=_positive, help="seconds after which no further run starts; those in progress end")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0 on")
    return int(text)


def _count(text: str) -> int:
    if _whole(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 1 on")
    return int(text)


def _plan(args: argparse.Namespace) -> Plan:
    if (args.seconds is None) == (args.steps is None):
        raise InputError("give one of --seconds and --steps: what a run may take")
    if args.match == "seconds" and args.seconds is None:
        raise InputError("--match seconds needs --seconds, not --steps")
    found = read_list(args.list)
    names = list(dict.fromkeys(args.presets.split(","))) if args.presets else list(found.presets)
    for name in names:
        if name not in found.presets:
            raise InputError(f"--presets {name}: the list {args.list} has {', '.join(found.presets)}")
    chosen = {name: found.presets[name] for name in names}
    ablation = found.model_copy(update={"base": [*found.base, *args.overrides], "presets": chosen})
    out = args.out or Path("runs") / f"ablation-{Path(args.list).stem}"
    plan = Plan(ablation, Budget(args.match, args.seconds, args.steps), args.seeds, out, args.timed_steps)
    check_folder(out, f"--out {out}")
    for name in names:
        _check_path(plan.run_dir(name, 0))
    return plan


def _check_path(run_dir: Path) -> None:
    """`InputError` for a path with characters that mean something else in an override."""
    try:
        found = compose_mapping("cfg_pretrain", [f"checkpoint_path={run_dir}"], allow_missing=True)["checkpoint_path"]
    except InputError:
        found = None
    if found != str(run_dir):
        raise InputError(
            f"{run_dir}: no run could be told to write there, use letters, digits and any of /-_. in --out and in the "
            "names of presets"
        )


def _row(plan: Plan, preset: str) -> Row:
    """`InputError` naming the preset where its settings are wrong: before anything runs."""
    try:
        config = load_config("cfg_pretrain", plan.overrides(preset))
        cost = cost_of(config)
    except InputError as error:
        raise InputError(f"preset {preset}: {error}") from error
    return Row(preset, plan.ablation.presets[preset], cost)


def _check_same_ablation(plan: Plan) -> None:
    """Record what the folder's runs have in common; `InputError` where it holds others."""
    file = plan.out / "settings.json"
    known = read_json(file) if file.exists() else {"presets": {}}
    for key, value in plan.settings.items():
        if known.get(key, value) != value:
            raise InputError(f"{plan.out} has runs with {key}={known[key]}, now it is {value}: name another --out")
    for name, overrides in plan.ablation.presets.items():
        if known["presets"].get(name, overrides) != overrides:
            raise InputError(f"{plan.out} has runs of another preset {name}: name another --out")
    _write(file, plan.settings | {"presets": known["presets"] | plan.ablation.presets})


def _facts(plan: Plan, rows: Sequence[Row], devices: Sequence[str]) -> dict[str, str]:
    config = load_config("cfg_pretrain", plan.overrides(rows[0].name))
    data = PuzzleDataset(config.data_paths, "train", seed=config.seed, max_puzzles=config.max_train_puzzles)
    return {
        "data": f"{', '.join(config.data_paths)}: {data.metadata.total_groups:,} training puzzles or tasks",
        "matched": f"{plan.budget.match}, not settled yet",
        "seeds": f"{plan.seeds}, from 0; sd is that of a sample",
        "checkpoint": "the last, averaged weights where the preset has them",
        "recipe": " ".join(plan.ablation.base),
        "device": f"{_device_name(devices)}, torch {torch.__version__}, one run a device",
    }


def _device_name(devices: Sequence[str]) -> str:
    if devices == [CPU] or shutil.which("nvidia-smi") is None:
        return "CPU"
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return " and ".join(dict.fromkeys(names)) or "GPU"


def _time_steps(plan: Plan, rows: Sequence[Row], pool: Pool) -> None:
    """Give every row the milliseconds of a step, by a short run under the trainer's own conditions."""
    jobs = []
    interval = max(1, plan.timed_steps // 4)
    more = [*schedule_overrides(plan.timed_steps, plan.ablation.warmup)[:-1], f"log_interval={interval}"]
    more += ["max_eval_puzzles=1", "evaluators=[]", "resume=auto"]
    for row in rows:
        folder = plan.out / "timing" / row.name
        if (folder / "ms.json").exists():
            row.measured_ms = read_json(folder / "ms.json")
        else:
            shutil.rmtree(folder, ignore_errors=True)  # half a timing is none
            command = plan.overrides(row.name, *more, f"checkpoint_path={folder / 'run'}")
            jobs.append(Job(row.name, (PRETRAIN, *command), folder / "log.txt"))
    by_name = {row.name: row for row in rows}
    for job, problem in pool.run(jobs):
        row, folder = by_name[job.name], job.log.parent
        row.error = problem
        if problem is None:
            row.measured_ms = read_timing(folder / "run", plan.timed_steps)
        if row.measured_ms is not None:
            _write(folder / "ms.json", row.measured_ms)
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
        elif problem is None and not pool.should_stop():
            row.error = f"its timing ended before step {plan.timed_steps}"
        found = "stopped" if row.measured_ms is None else f"{row.measured_ms:.1f} ms a step"
        print(f"timed {row.name}: {row.error or found}", flush=True)


def _settle_steps(plan: Plan, rows: Sequence[Row]) -> dict[str, str]:
    """Give every row its number of steps; what the report says of that, nothing as long as steps remain to be timed.

    What all have in common is settled once for a folder.
    """
    file, limit = plan.out / "amount.json", plan.budget.seconds
    budget = replace(plan.budget, seconds=None if limit is None else MARGIN * limit)
    timed = {row.name: row.measured_ms for row in rows if row.measured_ms is not None}
    ready = [row for row in rows if not row.error]
    if not ready or (limit is not None and any(row.name not in timed for row in ready)):
        return {}
    if not file.exists():
        _write(file, asdict(common_amount({row.name: row.cost for row in ready}, timed, budget)))
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} does not say which preset settled it: name another --out")
    amount = Amount(**found)
    for row in ready:
        row.steps = steps_for(row.cost, row.measured_ms, budget.match, amount.value)
    facts = {"matched": amount.text(budget)}
    taken = {row.name: row.steps * timed[row.name] / 1000 for row in ready if row.steps and limit is not None}
    if longer := [f"{name}, some {seconds:.0f} s" for name, seconds in taken.items() if seconds > (limit or 0)]:
        facts["longer than asked for"] = f"{'; '.join(longer)}: the amount is that of {amount.preset}"
    return facts


def _train(plan: Plan, rows: Sequence[Row], pool: Pool, report: Callable[[], str]) -> None:
    """All runs that are left, one seed of every preset after the other."""
    jobs, of_job = [], {}
    for seed in range(plan.seeds):
        for row in rows:
            if row.steps is None:
                continue
            run_dir = plan.run_dir(row.name, seed)
            if (found := read_run(run_dir, seed, row.steps, plan.ablation.score)) is not None:
                row.runs.append(found)
                continue
            more = [*schedule_overrides(row.steps, plan.ablation.warmup), f"seed={seed}", f"checkpoint_path={run_dir}"]
            job = Job(run_dir.name, (PRETRAIN, *plan.overrides(row.name, *more)), run_dir / "log.txt")
            of_job[job.name] = (row, seed)
            jobs.append(job)
    for job, problem in pool.run(jobs):
        row, seed = of_job[job.name]
        assert row.steps is not None
        run = read_run(plan.run_dir(row.name, seed), seed, row.steps, plan.ablation.score)
        if run is None and problem is None:
            if pool.should_stop():
                print(f"{job.name}: stopped before its end", flush=True)
                continue
            problem = what_is_missing(plan.run_dir(row.name, seed), row.steps, plan.ablation.score)
        row.runs.append(run or Run(seed, error=problem))
        score = row.runs[-1].figures.get(plan.ablation.score)
        print(f"{job.name}: {problem or f'{plan.ablation.score} {score:.4f}'}", flush=True)
        report()


def _run_dirs(plan: Plan, rows: Sequence[Row]) -> dict[str, list[Path]]:
    return {row.name: [plan.run_dir(row.name, run.seed) for run in row.finished] for row in rows}


def _report(plan: Plan, rows: Sequence[Row], facts: dict[str, str]) -> str:
    """Write table and figures as they stand; the table."""
    text = table(plan.ablation, rows, facts)
    with written_aside(plan.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    _write(plan.out / "ablation.json", as_json(plan.ablation, rows, facts))
    return text


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(file) as path:
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
