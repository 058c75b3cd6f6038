"""The measures of a diffusion head against cases done by hand, and what is made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from evaluators.diffusion import (
    Cells,
    DiffusionEvaluator,
    baseline_eps_errors,
    marginals,
    relative_error,
    score_decoded,
    squared_error,
)
from evaluators.diffusion_plots import draw_denoising, draw_measures

LEVELS = ([0, 50, 99], [9.0, 1.0, 0.25])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_errors_by_hand() -> None:
    target = torch.zeros(2, 1, 2, 2)
    target[0] = 3.0  # squares sum to 36
    estimate = target.clone()
    estimate[0, 0, 0, 0], estimate[1, 0, 1, 1] = 5.0, 1.0  # off by 2 and by 1
    assert squared_error(estimate, target).tolist() == [[4.0], [1.0]]
    assert relative_error(estimate, target) == pytest.approx(math.sqrt(5 / 36))


def test_baselines_are_what_their_predictors_would_score() -> None:
    target, noise, copied = (random(3, 2, 5, 4, seed=seed) for seed in range(3))
    alpha, sigma = torch.tensor([0.9, 0.3, 0.01]), torch.tensor([0.4358899, 0.9539392, 0.99995])
    found = baseline_eps_errors(target, noise, copied, alpha, sigma)
    for level in range(3):
        a, s = alpha[level], sigma[level]
        x_t = a * target + s * noise
        guesses = {
            "zero": torch.zeros_like(noise),
            "sigma * x_t": s * x_t,
            "copy": (x_t - a * copied) / s,
            "mean latent": x_t / s,
        }
        for method, guess in guesses.items():
            expected = squared_error(guess, noise)
            assert torch.allclose(found[method][level], expected, rtol=1e-4), method
    unit = random(64, 1, 64, 16)
    ours = baseline_eps_errors(unit, random(64, 1, 64, 16, seed=1), unit, torch.tensor([0.6]), torch.tensor([0.8]))
    assert float(ours["zero"].sum()) / unit.numel() == pytest.approx(1, abs=0.02)
    assert float(ours["sigma * x_t"].sum()) / unit.numel() == pytest.approx(0.36, abs=0.02)  # abar_t
    assert float(ours["copy"].sum()) == 0


def test_marginals_by_hand() -> None:
    cells = Cells((1, 16), 1, (0, 0, 1))
    numerator = torch.tensor([[[1.0, 2, 3]], [[4, 5, 6]]])
    denominator = torch.tensor([[[1.0, 1, 1]], [[1, 1, 0]]])
    found = marginals(numerator, denominator, cells)
    assert found["all"] == 21 / 5
    assert found["z_L"] == 12 / 4 and found["z_H"] == 9 / 1
    assert found["by_position"] == [5 / 2, 7 / 2, 9.0]
    assert found["by_act_step"] == [6 / 3, 15 / 2] and found["by_h_cycle"] == [21 / 5]
    assert found["by_act_step_and_position"] == [[1.0, 2.0, 3.0], [4.0, 5.0, None]]
    assert marginals(numerator**2, denominator, cells, root=True)["by_act_step"][0] == pytest.approx(math.sqrt(14 / 3))
    levels = torch.stack([numerator, 2 * numerator])
    assert marginals(levels, denominator.expand(2, -1, -1, -1), cells)["all"] == [21 / 5, 42 / 5]


def test_agreement_and_accuracy_by_hand() -> None:
    labels = torch.tensor([[1, 2, 3, IGNORE_LABEL_ID], [1, 2, 3, 4], [IGNORE_LABEL_ID] * 4])
    teacher = torch.tensor([[1, 2, 4, 0], [1, 2, 3, 4], [7, 7, 7, 7]]), torch.tensor([1.0, 2.0, 3.0])
    head = torch.tensor([[1, 2, 3, 9], [1, 2, 3, 9], [7, 7, 7, 7]]), torch.tensor([0.0, 2.5, 3.0])
    terms = score_decoded(head, teacher, labels)
    expected = [
        # rows, token agreement, exact agreement, accuracy, exact accuracy, |dq|, labelled
        [1, 2 / 3, 0, 1, 1, 1.0, 1],  # the fourth cell is not asked for
        [1, 3 / 4, 0, 3 / 4, 0, 0.5, 1],
        [1, 1, 1, 0, 0, 0, 0],  # without labels there is agreement, but nothing right or wrong
    ]
    assert torch.allclose(terms, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def fill(evaluator: DiffusionEvaluator, rows: slice = slice(None)) -> None:
    """Six rows of one H-cycle of three latents: two puzzles, two ACT steps and, of the first, a second H-cycle."""
    target, noise = random(6, 3, 5, 4), random(6, 3, 5, 4, seed=1)
    cells = torch.arange(6 * 3).view(6, 3) % 12
    labels = torch.arange(6 * 4).view(6, 4) % 3
    preds = torch.where(torch.arange(6).unsqueeze(-1) < 4, labels, 0)
    target, noise, cells, labels, preds = (part[rows] for part in (target, noise, cells, labels, preds))
    evaluator.begin((1, 4), 2, (0, 0, 1), *LEVELS, (1, 2, 7, 8), torch.device("cpu"))
    alpha, sigma = torch.tensor([0.9, 0.7, 0.4]), torch.tensor([0.4, 0.7, 0.9])
    evaluator.add_latents("copy", cells, torch.zeros_like(target), target)
    evaluator.add_latents("head, NFE 1", cells, 0.9 * target, target)
    evaluator.add_baseline_levels(cells, target, noise, target, alpha, sigma)
    for level in range(3):
        error = evaluator.squared_error(noise * (1 + 0.1 * level), noise)
        evaluator.add_noise_level("head", level, cells, error, evaluator.squared_error(0.8 * target, target), target)
    q_halt = torch.zeros(len(labels))
    for method, answer in (("TRM", labels), ("head, NFE 1", preds)):
        evaluator.add_decoded(method, cells[:, 2], (answer, q_halt + 0.5), (labels, q_halt), labels)
    for place in range(4):
        evaluator.add_early(place, (labels if place else preds, q_halt), labels)
    samples = torch.stack([target, target, target + 2])
    evaluator.add_spread("head, NFE 1", cells, samples)


def measured(*parts: slice) -> dict[str, Any]:
    """The tree of one process, or of as many as there are parts."""
    evaluators = [DiffusionEvaluator() for _ in parts]
    sums: list[object] = []
    for evaluator, rows in zip(evaluators, parts, strict=True):
        fill(evaluator, rows)
        assert evaluator.result(lambda own: sums.append(own)) is None
    found = evaluators[0].result(lambda own: sums)
    assert found is not None
    return found


def test_a_tree_of_measures() -> None:
    tree = measured(slice(None))
    assert tree["x0_error"]["copy"]["all"] == pytest.approx(1) and tree["x0_error"]["head, NFE 1"][
        "z_H"
    ] == pytest.approx(0.1, rel=1e-5)
    assert tree["eps_mse"]["timesteps"] == LEVELS[0]
    head = tree["eps_mse"]["methods"]["head"]["all"]
    power = float(random(6, 3, 5, 4, seed=1).square().mean())
    assert head == pytest.approx([0, 0.01 * power, 0.04 * power], rel=1e-4)
    assert tree["eps_mse"]["methods"]["zero"]["all"] == pytest.approx([power] * 3, rel=1e-5)
    assert tree["x0_error_by_timestep"]["methods"]["head"]["all"] == pytest.approx([0.2] * 3, rel=1e-5)
    assert set(tree["x0_error_by_timestep"]["methods"]) == {"head"}
    decoded = tree["decode"]["head, NFE 1"]
    # Rows are at ACT steps 1, 1, 4, 4, 1, 1, and the last two are answered with zeros.
    assert decoded["exact_accuracy"]["by_act_step"] == [0.5, 1.0] and decoded["exact_accuracy"]["all"] == 4 / 6
    assert decoded["exact_agreement"]["by_act_step_and_h_cycle"] == [[0.5, 0.5], [1.0, 1.0]]
    assert decoded["q_difference"]["all"] == 0.5 and decoded["rows"] == 6
    assert tree["decode"]["TRM"]["exact_agreement"]["all"] == 1
    assert tree["early_stop"]["h_cycles"] == [1, 2, 7, 8]
    assert tree["early_stop"]["exact_accuracy"] == [4 / 6, 1, 1, 1]
    # Of 0, 0 and 2 the variance is 4/3.
    mean = random(6, 3, 5, 4) + 2 / 3
    spread = math.sqrt(4 / 3 * mean.numel() / float(mean.square().sum()))
    assert tree["seed_spread"]["head, NFE 1"]["all"] == pytest.approx(spread, rel=1e-5)


def test_processes_add_up() -> None:
    assert json.dumps(measured(slice(0, 2), slice(2, 6))) == json.dumps(measured(slice(0, 3), slice(3, 6)))
    whole, parts = measured(slice(None)), measured(slice(0, 1), slice(1, 6))
    assert parts["decode"] == whole["decode"]
    assert parts["x0_error"]["head, NFE 1"]["all"] == pytest.approx(whole["x0_error"]["head, NFE 1"]["all"], rel=1e-12)


def test_figures_have_names_and_numbers() -> None:
    figures = DiffusionEvaluator().figures(measured(slice(None)))
    assert figures["diffusion/copy/x0_error"] == pytest.approx(1)
    assert figures["diffusion/head_nfe_1/x0_error_z_L"] == pytest.approx(0.1, rel=1e-5)
    assert figures["diffusion/head_nfe_1/exact_agreement"] == 4 / 6
    assert figures["diffusion/head/eps_mse"] == pytest.approx(
        0.01 * float(random(6, 3, 5, 4, seed=1).square().mean()), rel=1e-4
    )
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())


def full_tree() -> dict[str, Any]:
    curve = {"exact_accuracy": [0.5, 0.75], "accuracy": [0.9, 0.95]}
    return measured(slice(None)) | {
        "cost": {"head": {"head, NFE 1": {"nfe": 1, "gflop": 2.0, "ms": 0.5, "steps": 1, "peak_gb": None}}},
        "rollout": {"TRM": curve, "head, NFE 1": curve},
        "accuracy_by_flops": {
            "TRM stopped early": {"gflop": [1.0, 2.0], "exact_accuracy": [0.1, None]},
            "head, NFE 1": {"gflop": [1.5, 3.0], "exact_accuracy": [0.5, 0.75]},
        },
    }


def test_report_and_pictures(tmp_path: Path) -> None:
    tree = full_tree()
    written = DiffusionEvaluator().write(tree, tmp_path / "new")
    assert {path.name for path in written} == {
        "diffusion.json",
        "error_by_timestep.png",
        "error_by_act_step.png",
        "accuracy_by_nfe.png",
        "accuracy_by_flops.png",
    }
    assert all(path.stat().st_size > 1000 for path in written)
    assert json.loads((tmp_path / "new/diffusion.json").read_text()) == json.loads(json.dumps(tree))
    figures = DiffusionEvaluator().figures(tree)
    assert figures["diffusion/head_nfe_1/rollout_exact_accuracy_last"] == 0.75
    assert figures["diffusion/head_nfe_1/gflop"] == 2


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    evaluator = DiffusionEvaluator()
    evaluator.begin((1,), 1, (0, 1), [0], [1.0], (1,), torch.device("cpu"))
    tree = evaluator.result()
    assert tree is not None and tree["x0_error"] == {} and tree["early_stop"] == {}
    assert draw_measures(tree, tmp_path) == [] and evaluator.figures(tree) == {}


@pytest.mark.parametrize("kind", ["sudoku", "maze", "arc"])
def test_film_strip(kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, 5, 16).astype(np.int32)
    film = {
        "timesteps": np.array([999, 499, 99]),
        "noisy": rng.integers(1, 6, (3, 16)),
        "clean": np.stack([labels - 1, labels, labels]),
        "inputs": np.where(rng.random(16) < 0.5, labels, 1),
        "labels": labels,
    }
    metadata = PuzzleDatasetMetadata(
        pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=12, seq_len=16, num_puzzle_identifiers=1,
        total_groups=1, mean_puzzle_examples=1, sets=["all"], kind=kind, box=(2, 2) if kind == "sudoku" else None,
    )  # fmt: skip
    path = draw_denoising(film, metadata, tmp_path / "film.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
