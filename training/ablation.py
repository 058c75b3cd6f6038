"""Ablations: presets of one recipe, all given the same budget, and a table of what each is worth.

A list of presets is a file in ``config/ablation``: overrides of ``pretrain.py`` that all share, and those of each.

    ablation = read_list("sudoku")
    amount = common_amount(costs, ms, Budget("flops", seconds=100))     # what the slowest can do in that time
    steps = steps_for(costs["trm"], ms.get("trm"), "flops", amount)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
import yaml
from pydantic import Field, ValidationError

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from training.build import build_model, model_config
from training.config import CONFIG_DIR
from training.config_errors import describe
from training.config_schema import PretrainConfig, Section, Text
from training.curriculum import at_depth, check_depths, spans
from training.flops import step_flops
from training.metrics_file import read_metrics

Match = Literal["flops", "steps", "seconds"]

FOLDER = CONFIG_DIR / "ablation"


class AblationList(Section):
    """A file of ``config/ablation``."""

    title: Text
    """what is compared on what, above the table"""
    base: list[Text]
    """overrides of all presets"""
    warmup: float = Field(ge=0, lt=1)
    """share of a run's steps in which the learning rate rises"""
    score: Text
    """the figure of an evaluation, in [0, 1], by which presets are compared"""
    also: list[Text] = Field(default=[])
    """other figures of the table"""
    baseline: list[Text] = Field(default=[])
    """figures of the trivial answer, which the evaluations measure too"""
    presets: dict[str, list[Text]] = Field(min_length=1)
    """overrides of each preset, by name"""


def read_list(name: str) -> AblationList:
    """The list of that name, or in the file of that name; `InputError` naming what is wrong with it."""
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise InputError(f"there is no list of presets {name}: give a .yaml file, or one of {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return AblationList.model_validate(content)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error, list(AblationList.model_fields))}") from error


@dataclass(frozen=True)
class Cost:
    """Trained parameters (without the puzzle table), and operations of a step on the whole batch, the mean of a run's
    where its recursion deepens."""

    parameters: int
    flops: float


def cost_of(config: PretrainConfig) -> Cost:
    """Counted without a value of the model in memory; `InputError` where data and architecture do not fit."""
    data = PuzzleDataset(config.data_paths, "train", seed=config.seed, max_puzzles=config.max_train_puzzles)
    settings = model_config(config.arch, data.metadata, config.rows_at_once(1), torch.device("cpu"), training=False)
    with torch.device("meta"):
        model = build_model(config.arch, settings, torch.device("meta"))
    check_depths(config.depth_curriculum, model.model.config)
    of_a_row = 0.0
    for start, share in spans(config.depth_curriculum):
        with at_depth(model.model.inner, config.depth_curriculum, start):
            of_a_row += share * step_flops(cast(Any, SimpleNamespace(model=model)))
    return Cost(sum(p.numel() for p in model.parameters()), of_a_row * config.global_batch_size)


@dataclass(frozen=True)
class Budget:
    """What all presets get alike: operations, steps or seconds of training.

    With `seconds`, as much as the slowest preset can do in that time; else as much as the first does in `steps`.
    """

    match: Match
    seconds: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Amount:
    """Operations, steps or seconds of every run, and the preset that settled it unless the budget says it outright."""

    value: float
    preset: str | None = None

    def text(self, budget: Budget) -> str:
        """What was matched, and where the amount came from."""
        if self.preset is None:
            return f"{budget.match}, {self.value:g} each"
        given = f"{budget.steps} steps of {self.preset}"
        if budget.seconds is not None:
            given = f"{budget.seconds:g} s of {self.preset}, the slowest"
        each = f"{math.floor(self.value)} steps" if budget.match == "steps" else f"{self.value / 1e12:.4g} TFLOP"
        return f"{budget.match}, {given}: {each} each"


def common_amount(costs: Mapping[str, Cost], ms: Mapping[str, float], budget: Budget) -> Amount:
    """What the presets in `costs` have in common; `ms` of a step by preset, where `budget` is one of seconds."""
    of_a_step = {name: 1.0 if budget.match == "steps" else cost.flops for name, cost in costs.items()}
    if budget.seconds is None:
        assert budget.steps is not None and budget.match != "seconds"
        if budget.match == "steps":
            return Amount(budget.steps)
        first = next(iter(costs))
        return Amount(budget.steps * of_a_step[first], first)
    if budget.match == "seconds":
        return Amount(budget.seconds)
    longest = {name: 1000 * budget.seconds / ms[name] * of_a_step[name] for name in costs}
    slowest = min(longest, key=longest.__getitem__)
    return Amount(longest[slowest], slowest)


def steps_for(cost: Cost, ms: float | None, match: Match, amount: float) -> int:
    """Steps that come closest to the amount from below, at least one."""
    if match == "seconds":
        assert ms is not None
        return max(1, math.floor(1000 * amount / ms))
    return max(1, math.floor(amount / (1.0 if match == "steps" else cost.flops) * (1 + 1e-12)))


def schedule_overrides(steps: int, warmup: float) -> list[str]:
    """A run of exactly so many steps, its learning rate's rise and fall within them, evaluated at the end."""
    return [
        f"max_steps={steps}",
        "epochs=1000000000",
        "eval_interval=null",
        f"lr_warmup_steps={round(warmup * steps)}",
        f"log_interval={max(1, steps // 50)}",
    ]


@dataclass
class Run:
    """A run that ended: `figures` of its evaluation without the leading ``eval/``, median `ms` of a step."""

    seed: int
    figures: dict[str, float] = field(default_factory=dict)
    ms: float = math.nan
    error: str | None = None


@dataclass
class Row:
    """A preset's line of the table."""

    name: str
    overrides: list[str]
    cost: Cost
    steps: int | None = None
    measured_ms: float | None = None
    runs: list[Run] = field(default_factory=list)
    error: str | None = None

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.error is None]

    @property
    def ms(self) -> float:
        """Of a step, as trained; before that, as measured."""
        found = [run.ms for run in self.finished]
        return statistics.median(found) if found else self.measured_ms or math.nan

    def values(self, figure: str) -> list[float]:
        return [run.figures[figure] for run in self.finished if figure in run.figures]

    @property
    def problem(self) -> str | None:
        """The first thing that went wrong."""
        return self.error or next((f"seed {run.seed}: {run.error}" for run in self.runs if run.error), None)


def step_ms(run_dir: Path) -> float:
    """Median of a run's records, the first left out, in which modules are compiled."""
    found = [record["train/ms_per_step"] for record in read_metrics(run_dir) if record.get("train/ms_per_step")]
    return statistics.median(found[1:] or found) if found else math.nan


def read_run(run_dir: Path, seed: int, steps: int, score: str) -> Run | None:
    """What a run measured after its last step; None if it has not got there."""
    for record in reversed(read_metrics(run_dir)):
        if record["step"] == steps and record.get(f"eval/{score}") is not None:
            figures = {key.removeprefix("eval/"): value for key, value in record.items() if key.startswith("eval/")}
            return Run(seed, {key: value for key, value in figures.items() if value is not None}, step_ms(run_dir))
    return None


def what_is_missing(run_dir: Path, steps: int, score: str) -> str:
    """Why there is no run to read although its command ended well."""
    records = [record for record in read_metrics(run_dir) if record["step"] == steps]
    given = {key: value for record in records for key, value in record.items() if value is not None}
    found = [key.removeprefix("eval/") for key in given if key.startswith("eval/")]
    if not found:
        return f"it ended without an evaluation after step {steps}"
    return f"its evaluation has no figure {score}, only {', '.join(found)}"


def read_timing(run_dir: Path, steps: int) -> float | None:
    """Milliseconds of a step, of a run without an evaluation; None if it has not got through all steps."""
    through = any(record["step"] == steps and record.get("train/ms_per_step") for record in read_metrics(run_dir))
    return step_ms(run_dir) if through else None


def table(ablation: AblationList, rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Markdown: the title, what was done how, a line for each preset, and the trivial answer."""
    columns = ["preset", "parameters", "GFLOP a step", "ms a step", "steps", "training, s"]
    lines = [f"## {ablation.title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    head = [*columns, *(f"{f}, %" if is_share(f) else f for f in (ablation.score, *ablation.also))]
    lines += [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(_cells(ablation, row))} |" for row in rows]
    evaluated = f"{ablation.score.rpartition('/')[0]}/rows"
    for figure in (evaluated, *ablation.baseline):
        if found := [value for row in rows for value in row.values(figure)]:
            mean = statistics.mean(found)
            text = f"Rows evaluated: {mean:.0f}" if figure == evaluated else f"Trivial answer, {figure}: {mean:.2%}"
            lines += ["", text]
    problems = [f"- {row.name}: {row.problem}" for row in rows if row.problem]
    return "\n".join([*lines, *(["", "Failed:", *problems] if problems else [])]) + "\n"


def _cells(ablation: AblationList, row: Row) -> list[str]:
    seconds = row.ms * row.steps / 1000 if row.steps else math.nan
    return [
        row.name,
        f"{row.cost.parameters / 1e6:.3g} M",
        f"{row.cost.flops / 1e9:.4g}",
        _number(row.ms, 1),
        "-" if row.steps is None else str(row.steps),
        _number(seconds, 1),
        *(spread_of(figure, row.values(figure)) for figure in (ablation.score, *ablation.also)),
    ]


def is_share(figure: str) -> bool:
    """Whether it is shown in percent, as all but losses are."""
    return not figure.endswith("loss")


def spread_of(figure: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds (of a sample), and of how many."""
    if not values:
        return "-"
    scale, digits = (100, 2) if is_share(figure) else (1, 4)
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f} ({len(values)})"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def as_json(ablation: AblationList, rows: Sequence[Row], facts: Mapping[str, str]) -> dict[str, Any]:
    """All of it, every seed's figures included."""
    presets = [asdict(row) for row in rows]
    for preset, row in zip(presets, rows, strict=True):
        for run in preset["runs"]:
            run["ms"] = None if math.isnan(run["ms"]) else run["ms"]
        preset["score"] = {
            figure: {"values": row.values(figure), "mean ± sd": spread_of(figure, row.values(figure))}
            for figure in (ablation.score, *ablation.also, *ablation.baseline)
        }
    return {"title": ablation.title, "facts": dict(facts), "base": ablation.base, "presets": presets}
