"""What presets get alike, and what is said of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from datasets.common import InputError
from training.ablation import (
    FOLDER,
    AblationList,
    Budget,
    Cost,
    Row,
    Run,
    as_json,
    common_amount,
    read_list,
    read_run,
    read_timing,
    schedule_overrides,
    step_ms,
    steps_for,
    table,
    what_is_missing,
)
from training.config import load_config

COSTS = {"small": Cost(1_000, 10.0), "large": Cost(2_000, 40.0)}
MS = {"small": 20.0, "large": 50.0}  # the small one makes less of its time
LIST = AblationList(
    title="A title", base=["lr=1"], warmup=0.1, score="all/exact", also=["all/lm_loss"], baseline=["all/copy"],
    presets={"small": [], "large": ["arch=hrm"]},
)  # fmt: skip


def steps_of(budget: Budget, ms: dict[str, float] = MS) -> dict[str, int]:
    amount = common_amount(COSTS, ms, budget)
    return {name: steps_for(cost, ms.get(name), budget.match, amount.value) for name, cost in COSTS.items()}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # In 10 s the small one makes 500 steps of 10, the large one 200 of 40: the smaller amount is for both.
        (Budget("flops", seconds=10), {"small": 500, "large": 125}),
        (Budget("steps", seconds=10), {"small": 200, "large": 200}),
        (Budget("seconds", seconds=10), {"small": 500, "large": 200}),
        (Budget("flops", steps=100), {"small": 100, "large": 25}),
        (Budget("flops", steps=2), {"small": 2, "large": 1}),
        (Budget("steps", steps=100), {"small": 100, "large": 100}),
    ],
)
def test_what_presets_get_alike(budget: Budget, expected: dict[str, int]) -> None:
    found = steps_of(budget)
    assert found == expected
    if budget.seconds is not None:
        assert all(MS[name] * steps / 1000 <= budget.seconds for name, steps in found.items())


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget("flops", seconds=10), "flops, 10 s of small, the slowest: 5e-09 TFLOP each"),
        (Budget("steps", seconds=10), "steps, 10 s of large, the slowest: 200 steps each"),
        (Budget("seconds", seconds=10), "seconds, 10 each"),
        (Budget("flops", steps=100), "flops, 100 steps of small: 1e-09 TFLOP each"),
        (Budget("steps", steps=100), "steps, 100 each"),
    ],
)
def test_what_settled_the_amount_is_said(budget: Budget, said: str) -> None:
    assert common_amount(COSTS, MS, budget).text(budget) == said


def test_steps_that_divide_the_amount_are_not_lost_to_rounding() -> None:
    for steps in range(1, 2000):
        cost = Cost(1, 4623169486848.0 / 7)
        assert steps_for(cost, None, "flops", steps * cost.flops) == steps


def test_the_schedule_fits_the_run() -> None:
    config = load_config("cfg_pretrain", schedule_overrides(730, 0.1))
    assert (config.max_steps, config.lr_warmup_steps, config.eval_interval, config.log_interval) == (730, 73, None, 14)
    assert load_config("cfg_pretrain", schedule_overrides(3, 0.1)).log_interval == 1


def write_records(folder: Path, *records: dict[str, float]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_run_counts_once_it_was_evaluated_after_its_last_step(tmp_path: Path) -> None:
    records = [{"step": step, "train/ms_per_step": ms} for step, ms in ((1, 900.0), (2, 10.0), (3, 12.0), (4, 30.0))]
    run = write_records(tmp_path / "run", *records)
    assert read_run(run, 0, 4, "all/exact") is None
    assert step_ms(run) == 12.0  # the first has the compilation in it
    write_records(run, *records, {"step": 4, "eval/all/exact": 0.5, "eval/all/rows": 8})
    assert read_run(run, 3, 4, "all/exact") == Run(3, {"all/exact": 0.5, "all/rows": 8}, 12.0)
    assert read_run(run, 3, 5, "all/exact") is None and read_run(run, 3, 4, "all/other") is None
    assert math.isnan(step_ms(tmp_path / "nothing"))


def test_what_is_missing_in_a_run_that_ended_well(tmp_path: Path) -> None:
    run = write_records(tmp_path, {"step": 2, "eval/all/exact": 0.5}, {"step": 4, "train/ms_per_step": 9.0})
    assert what_is_missing(run, 4, "all/exact") == "it ended without an evaluation after step 4"
    write_records(run, {"step": 4, "eval/all/exact": 0.5, "eval/all/rows": 8})
    assert what_is_missing(run, 4, "pass@1") == "its evaluation has no figure pass@1, only all/exact, all/rows"


def test_a_timing_counts_once_it_is_through_and_needs_no_evaluation(tmp_path: Path) -> None:
    records = [{"step": step, "train/ms_per_step": ms} for step, ms in ((1, 900.0), (2, 10.0), (3, 12.0), (4, 11.0))]
    assert read_timing(write_records(tmp_path, *records), 4) == 11.0
    assert read_timing(tmp_path, 5) is None and read_timing(tmp_path / "nothing", 4) is None


def rows() -> list[Row]:
    small = Row("small", [], COSTS["small"], steps=500, measured_ms=19.0)
    small.runs = [
        Run(0, {"all/exact": 0.25, "all/lm_loss": 1.5, "all/copy": 0.1, "all/rows": 8}, 20.0),
        Run(1, {"all/exact": 0.5, "all/lm_loss": 2.0, "all/copy": 0.1, "all/rows": 8}, 22.0),
        Run(2, error="exit code 1: no memory"),
    ]
    large = Row("large", ["arch=hrm"], Cost(5_000_000, 4.5e12), error="exit code 2: error: wrong")
    return [small, large]


def test_the_table_says_what_was_measured_and_what_failed() -> None:
    text = table(LIST, rows(), {"device": "a GPU"})
    assert text.startswith("## A title\n\n- device: a GPU\n")
    assert (
        "| preset | parameters | GFLOP a step | ms a step | steps | training, s | all/exact, % | all/lm_loss |" in text
    )
    # sd of 25 and 50 is 25 / sqrt(2); 21 ms times 500 steps
    assert "| small | 0.001 M | 1e-08 | 21.0 | 500 | 10.5 | 37.50 ± 17.68 (2) | 1.7500 ± 0.3536 (2) |" in text
    assert "| large | 5 M | 4500 | - | - | - | - | - |" in text
    assert "Rows evaluated: 8" in text and "Trivial answer, all/copy: 10.00%" in text
    assert "- small: seed 2: exit code 1: no memory\n- large: exit code 2: error: wrong\n" in text


def test_the_record_has_every_seed() -> None:
    found = json.loads(json.dumps(as_json(LIST, rows(), {}), allow_nan=False))
    assert found["presets"][0]["score"]["all/exact"] == {"values": [0.25, 0.5], "mean ± sd": "37.50 ± 17.68 (2)"}
    assert [run["error"] for run in found["presets"][0]["runs"]] == [None, None, "exit code 1: no memory"]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_the_lists_of_the_repository_are_configurations_of_training(name: str) -> None:
    found = read_list(name)
    for preset, overrides in found.presets.items():
        config = load_config("cfg_pretrain", [*found.base, *overrides])
        assert config.arch.name, preset


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("title: [", "is no YAML"),
        ("title: x\nbase: []\nwarmup: 0\nscore: s\npresets: {}\n", "presets"),
        ("title: x\nbase: []\nwarmup: 2\nscore: s\npresets: {a: []}\n", "warmup=2: expected less than 1"),
        ("title: x\nbase: []\nwarmup: 0\nscore: s\nprests: {a: []}\n", "nearest valid name is presets"),
    ],
)
def test_a_list_that_is_wrong_is_told_in_a_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        read_list(str(tmp_path / "list.yaml"))
    with pytest.raises(InputError, match=r"there is no list of presets nothing: .*smoke, sudoku"):
        read_list("nothing")
