"""What a diffusion head gets right: sums over rows that are handed in, figures out.

Every row predicts one or more latents, each of which sits in a *cell*: an ACT step, an H-cycle and a position in it.
Sums are kept by cell on the device, without waiting for it, and read once at the end, so that every figure comes in
total and by type, position, ACT step, H-cycle and (where noise is added) timestep.

    evaluator = DiffusionEvaluator()
    evaluator.begin((1, 16), 3, (0, 0, 1), timesteps, snr, (1, 2, 3), device)
    evaluator.add_latents("head, NFE 1", cells, estimate, target)
    measures = evaluator.result(gather)               # on rank 0
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from evaluators.common import Gather, single_process, write_text
from evaluators.diffusion_plots import draw_denoising, draw_measures

REPORT_NAME = "diffusion.json"
TYPES = ("z_L", "z_H")
DECODED_SUMS = ("rows", "token_agreement", "exact_agreement", "accuracy", "exact_accuracy", "q_difference", "labelled")


@dataclass(frozen=True)
class Cells:
    """Where a predicted latent can sit; its number is ``(act_step_index * h_cycles + h_cycle) * positions + position``.

    `act_steps` are counted from 1; `position_types`, one a position: 0 for z_L, 1 for z_H.
    """

    act_steps: tuple[int, ...]
    h_cycles: int
    position_types: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.act_steps), self.h_cycles, len(self.position_types)

    @property
    def count(self) -> int:
        return math.prod(self.shape)


# What is read out of n latents: tokens int [n, seq_len] and halting logits [n].
Decoded = tuple[Tensor, Tensor]


def squared_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Sum over tokens and channels of the squared difference, fp64 [b, n], of latents [b, n, P, D]; in fp32."""
    return (estimate.float() - target.float()).square().sum((-2, -1)).double()


def relative_error(estimate: Tensor, target: Tensor) -> float:
    """``||estimate - target|| / ||target||`` over all rows together, of latents [b, n, P, D]."""
    return float((squared_error(estimate, target).sum() / target.double().square().sum()).sqrt())


def baseline_eps_errors(
    target: Tensor, noise: Tensor, copied: Tensor, alpha: Tensor, sigma: Tensor
) -> dict[str, Tensor]:
    """Squared error in the noise of predictors that see no network, fp64 [levels, b, n].

    For normalised latents `target`, what is `copied` in its place, and `noise`, each [b, n, P, D], at noise levels
    `alpha`, `sigma` fp32 [levels]. An x_0 guess u has eps = (x_t - alpha u) / sigma, so its error is SNR times that of
    u; ``sigma x_t`` is the best linear guess for data of unit variance (error 1 - sigma^2 = abar_t a channel).
    """
    signal, power = target.float(), noise.float()
    of_signal, of_noise = (value.square().sum((-2, -1)).double() for value in (signal, power))
    both = (signal * power).sum((-2, -1)).double()
    a, s = (value.double().view(-1, 1, 1) for value in (alpha, sigma))
    snr = (a / s).square()
    linear = (a * s).square() * of_signal - 2 * a**3 * s * both + a**4 * of_noise
    return {
        "zero": of_noise.expand(len(alpha), *of_noise.shape),
        "sigma * x_t": linear,
        "copy": snr * squared_error(copied, signal),
        "mean latent": snr * of_signal,
    }


def marginals(numerator: Tensor, denominator: Tensor, cells: Cells, root: bool = False) -> dict[str, Any]:
    """Ratios of sums over cells [..., act steps, H-cycles, positions], in total and by what the cells stand for.

    Empty ones are None. `root` takes the square root, for relative errors.
    """

    def ratio(reduced: Any) -> Any:
        value = reduced(numerator.double()) / reduced(denominator.double())
        return _plain((value.sqrt() if root else value).tolist())

    found = {"all": ratio(lambda sums: sums.sum((-3, -2, -1)))}
    for kind, name in enumerate(TYPES):
        places = [place for place, own in enumerate(cells.position_types) if own == kind]
        found[name] = ratio(lambda sums, places=places: sums[..., places].sum((-3, -2, -1)))
    found["by_position"] = ratio(lambda sums: sums.sum((-3, -2)))
    found["by_h_cycle"] = ratio(lambda sums: sums.sum((-3, -1)))
    found["by_act_step"] = ratio(lambda sums: sums.sum((-2, -1)))
    found["by_act_step_and_position"] = ratio(lambda sums: sums.sum(-2))
    return found


def score_decoded(decoded: Decoded, teacher: Decoded, labels: Tensor) -> Tensor:
    """The terms of `DECODED_SUMS` for n rows, fp64 [n, 7]. Cells without a label count only in rows that have none."""
    labelled = labels != IGNORE_LABEL_ID
    has_labels = labelled.any(-1)
    asked = labelled | ~has_labels.unsqueeze(-1)
    (preds, q_halt), (teacher_preds, teacher_q_halt) = decoded, teacher
    agrees = (preds == teacher_preds) & asked
    right = (preds == labels) & labelled
    counts = asked.sum(-1)
    terms = (
        torch.ones_like(counts),
        agrees.sum(-1) / counts,
        agrees.sum(-1) == counts,
        right.sum(-1) / counts,
        (right.sum(-1) == counts) & has_labels,
        (q_halt.double() - teacher_q_halt.double()).abs(),
        has_labels,
    )
    return torch.stack([term.double() for term in terms], dim=-1)


class DiffusionEvaluator:
    """Collects the measures of one head. Methods of comparison have the names they are given."""

    def begin(
        self,
        act_steps: Sequence[int],
        h_cycles: int,
        position_types: Sequence[int],
        timesteps: Sequence[int],
        snr: Sequence[float],
        early: Sequence[int],
        device: torch.device,
    ) -> None:
        """Forget everything. The first three are those of `Cells`; `timesteps` and their `snr` are the levels of
        `add_noise_level`; `early`, the H-cycles after which `add_early` reads the teacher."""
        self.cells, self.device = Cells(tuple(act_steps), h_cycles, tuple(position_types)), device
        self.early = list(early)
        self.timesteps, self.snr = list(timesteps), list(snr)
        self._sums: dict[str, Tensor] = {}

    def add_latents(self, method: str, cells: Tensor, estimate: Tensor, target: Tensor) -> None:
        """Latents from pure noise: raw estimates and targets [b, n, P, D] in `cells` int64 [b, n]."""
        self._add(f"x0|{method}|error", cells, squared_error(estimate, target))
        self._add(f"x0|{method}|norm", cells, target.float().square().sum((-2, -1)).double())

    def add_noise_level(
        self, method: str, level: int, cells: Tensor, eps_error: Tensor, x0_error: Tensor | None, target: Tensor
    ) -> None:
        """Squared errors [b, n] at a timestep: of the noise, normalised, and of the raw x_0 (None: no x_0 guess)."""
        place = cells + level * self.cells.count
        size = len(self.timesteps)
        self._add(f"eps|{method}|error", place, eps_error, size)
        self._add(f"eps|{method}|norm", place, torch.full_like(eps_error, target[0, 0].numel()), size)
        if x0_error is not None:
            self._add(f"x0_t|{method}|error", place, x0_error, size)
            self._add(f"x0_t|{method}|norm", place, target.float().square().sum((-2, -1)).double(), size)

    def add_baseline_levels(
        self,
        cells: Tensor,
        target: Tensor,
        noise: Tensor,
        copied: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        centred: bool = True,
    ) -> None:
        """The errors of `baseline_eps_errors` at all timesteps; no mean latent where 0 is not it: unless `centred`."""
        for method, errors in baseline_eps_errors(target, noise, copied, alpha, sigma).items():
            for level, error in enumerate(errors if centred or method != "mean latent" else ()):
                self.add_noise_level(method, level, cells, error, None, target)

    def squared_error(self, estimate: Tensor, target: Tensor) -> Tensor:
        return squared_error(estimate, target)

    def add_decoded(self, method: str, cells: Tensor, decoded: Decoded, teacher: Decoded, labels: Tensor) -> None:
        """Answers read out of z_H in `cells` int64 [n]; labels [n, seq_len]."""
        terms = score_decoded(decoded, teacher, labels)
        self._add(f"decode|{method}|sums", cells, terms)

    def add_early(self, place: int, answers: Decoded, labels: Tensor) -> None:
        """The teacher's answers (preds, q_halt) of n rows, stopped after ``early[place]`` H-cycles."""
        name = "early|TRM|sums"
        if name not in self._sums:
            self._sums[name] = torch.zeros(len(self.early), len(DECODED_SUMS), dtype=torch.float64, device=self.device)
        self._sums[name][place] += score_decoded(answers, answers, labels).sum(0)

    def add_spread(self, method: str, cells: Tensor, samples: Tensor) -> None:
        """Samples [seeds, b, n, P, D] of the same rows from different noise."""
        count = len(samples)
        mean = samples.float().mean(0)
        variance = (samples.float() - mean).square().sum((0, -2, -1)).double() / max(1, count - 1)
        self._add(f"spread|{method}|error", cells, variance)
        self._add(f"spread|{method}|norm", cells, mean.square().sum((-2, -1)).double())

    def result(self, gather: Gather = single_process) -> dict[str, Any] | None:
        """The measures as a tree for JSON on rank 0, None on the others."""
        gathered = gather({name: sums.cpu() for name, sums in self._sums.items()})
        if gathered is None:
            return None
        merged: dict[str, Tensor] = {}
        for part in gathered:
            assert isinstance(part, dict)
            for name, sums in part.items():
                merged[name] = merged[name] + sums if name in merged else sums
        return {
            "act_steps": list(self.cells.act_steps),
            "position_types": [TYPES[kind] for kind in self.cells.position_types],
            "eps_mse": {"timesteps": self.timesteps, "snr": self.snr, "methods": self._ratios(merged, "eps", False)},
            "x0_error_by_timestep": {
                "timesteps": self.timesteps,
                "snr": self.snr,
                "methods": self._ratios(merged, "x0_t", True),
            },
            "x0_error": self._ratios(merged, "x0", True),
            "seed_spread": self._ratios(merged, "spread", True),
            "decode": self._decoded(merged),
            "early_stop": self._early(merged),
        }

    def write(self, measures: dict[str, Any], folder: Path) -> list[Path]:
        """``diffusion.json`` and the plots of a finished tree; returns what was written."""
        pictures = draw_measures(measures, folder)
        write_text(folder / REPORT_NAME, _json(measures))  # last, so that it says that the evaluation was completed
        return [*pictures, folder / REPORT_NAME]

    def draw_denoising(self, film: dict[str, Any], metadata: PuzzleDatasetMetadata, path: Path) -> Path:
        """The steps of one sample, see `evaluators.diffusion_plots.draw_denoising`."""
        return draw_denoising(film, metadata, path)

    def figures(self, measures: dict[str, Any]) -> dict[str, float]:
        """The figures worth a curve in training and a line in a table, ``diffusion/...``."""
        found: dict[str, Any] = {}
        for method, errors in measures["x0_error"].items():
            name = f"diffusion/{_slug(method)}"
            found[f"{name}/x0_error"] = errors["all"]
            found[f"{name}/x0_error_z_L"], found[f"{name}/x0_error_z_H"] = errors["z_L"], errors["z_H"]
            found[f"{name}/x0_error_first_act_step"] = errors["by_act_step"][0]
        for method in ("zero", "sigma * x_t", "head"):  # those whose error does not explode at t = 0
            if method in measures["eps_mse"]["methods"]:
                # Over the evenly spaced timesteps between the first and the last.
                errors = measures["eps_mse"]["methods"][method]["all"][1:-1]
                found[f"diffusion/{_slug(method)}/eps_mse"] = _mean(errors)
        for method, decoded in measures["decode"].items():
            for figure in DECODED_SUMS[1:-1]:
                found[f"diffusion/{_slug(method)}/{figure}"] = decoded[figure]["all"]
        for method, spread in measures["seed_spread"].items():
            found[f"diffusion/{_slug(method)}/seed_spread"] = spread["all"]
        for method, student in measures.get("rollout", {}).items():
            name = f"diffusion/{_slug(method)}/rollout_exact_accuracy"
            found[f"{name}_first"], found[f"{name}_last"] = student["exact_accuracy"][0], student["exact_accuracy"][-1]
        for method, cost in measures.get("cost", {}).get("head", {}).items():
            found |= {f"diffusion/{_slug(method)}/{figure}": cost[figure] for figure in ("nfe", "gflop", "ms")}
        return {name: float(value) for name, value in found.items() if value is not None}

    def _add(self, name: str, cells: Tensor, values: Tensor, levels: int = 1) -> None:
        """Add values [..., terms?] to the cells int64 [...]."""
        terms = values.shape[cells.ndim :]
        if name not in self._sums:
            shape = (levels * self.cells.count, *terms)
            self._sums[name] = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._sums[name].index_add_(0, cells.flatten(), values.double().reshape(-1, *terms))

    def _ratios(self, merged: dict[str, Tensor], measure: str, root: bool) -> dict[str, Any]:
        found = {}
        for name, error in merged.items():
            kind, method, what = name.split("|")
            if kind == measure and what == "error":
                # Levels come first, and there is no such dimension where there are none.
                shape = (-1, *self.cells.shape) if measure in ("eps", "x0_t") else self.cells.shape
                norm = merged[f"{measure}|{method}|norm"]
                found[method] = marginals(error.view(shape), norm.view(shape), self.cells, root)
        return found

    def _decoded(self, merged: dict[str, Tensor]) -> dict[str, Any]:
        """By method: figures in total, by ACT step and by ACT step and H-cycle."""
        found: dict[str, Any] = defaultdict(dict)
        for name, sums in merged.items():
            kind, method, _ = name.split("|")
            if kind == "decode":
                table = sums.view(*self.cells.shape, -1).sum(2)  # [act steps, H-cycles, terms]
                for column, figure in enumerate(DECODED_SUMS[1:-1], 1):
                    # Accuracies are shares of the rows with labels.
                    divisor = len(DECODED_SUMS) - 1 if figure in ("accuracy", "exact_accuracy") else 0
                    found[method][figure] = {
                        "all": _ratio(table.sum((0, 1)), column, divisor),
                        "by_act_step": _ratio(table.sum(1), column, divisor),
                        "by_act_step_and_h_cycle": _ratio(table, column, divisor),
                    }
                found[method]["rows"] = int(table[..., 0].sum())
        return dict(found)

    def _early(self, merged: dict[str, Tensor]) -> dict[str, Any]:
        table = merged.get("early|TRM|sums")
        if table is None:
            return {}
        labelled = len(DECODED_SUMS) - 1
        return {
            "h_cycles": self.early,
            "accuracy": _ratio(table, DECODED_SUMS.index("accuracy"), labelled),
            "exact_accuracy": _ratio(table, DECODED_SUMS.index("exact_accuracy"), labelled),
        }


def _ratio(table: Tensor, column: int, divisor: int) -> Any:
    return _plain((table[..., column] / table[..., divisor]).tolist())


def _slug(method: str) -> str:
    """``head, NFE 4`` as a part of a figure's name: ``head_nfe_4``."""
    return "_".join(re.findall(r"[a-z0-9]+", method.lower()))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _plain(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, as None."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if math.isfinite(value) else None


def _json(tree: dict[str, Any]) -> str:
    def known(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    return json.dumps(tree, indent=1, default=known, allow_nan=False) + "\n"
