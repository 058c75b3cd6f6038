"""What a diffusion head can do, measured on held-out puzzles against the frozen teacher: figures, report, pictures.

Six measures: error in the noise by timestep; relative error of x_0 from pure noise and along the timesteps; agreement
of what is read out of sampled z_H; accuracy with the head in the recursion's place; cost; spread over noise seeds. All
stand beside predictors without a network, a regression head if there is one, and the teacher stopped early.

    options = DiffusionEvalOptions(rows="layer", steps=(1, 4))
    figures = evaluate_head(head, teacher, dist, options, DiffusionEvaluator(), save_dir=run_dir / "eval" / "step_100")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.common import InputError
from models.diffusion_blocks import DiffusionHead, compile_blocks
from models.student import KEY_STRIDE, row_keys
from training.build import compile_levels
from training.diffusion_eval_options import DiffusionEvalOptions, DiffusionEvaluator
from training.diffusion_film import record_film
from training.diffusion_rollout import accuracy_by_flops, measure_cost, rollouts
from training.diffusion_rows import RowBatch, RowLayout, early_answers
from training.diffusion_sampling import HeadSampler, read_answers, rows_at_once
from training.distributed import Distributed
from training.evaluation import Evaluator
from training.harvest import EvalBatch, eval_batches, layout_of
from training.teacher import Teacher, draw_test_rows

# Latents harvested at once, in bytes.
HARVEST_ON_CUDA, HARVEST_ELSEWHERE = 6 * 2**30, 2**27

# Steps of the sample that is drawn step by step, and among how many puzzles a telling one is looked for.
FILM_STEPS, FILM_PUZZLES = 10, 32


@dataclass(frozen=True)
class Evaluation:
    """One evaluation under way: the parts that its measures share. `samplers` by the names of the report's columns."""

    teacher: Teacher
    dist: Distributed
    options: DiffusionEvalOptions
    layout: RowLayout
    samplers: dict[str, HeadSampler]
    evaluator: DiffusionEvaluator
    timesteps: tuple[int, ...]
    batch_size: int  # puzzles at once in a process: the same everywhere, for a compiled teacher's sake

    @property
    def head(self) -> HeadSampler:
        """The head with the fewest sampling steps."""
        return next(iter(self.samplers.values()))

    @property
    def rows_at_once(self) -> int:
        return self.head.rows_at_once


def evaluate_head(
    head: DiffusionHead,
    teacher: Teacher,
    dist: Distributed,
    options: DiffusionEvalOptions,
    evaluator: DiffusionEvaluator,
    *,
    regression: DiffusionHead | None = None,
    save_dir: Path | None = None,
    evaluators: Sequence[tuple[str, Evaluator]] = (),
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, float] | None:
    """Named figures on rank 0, None on the others; with `save_dir` also ``diffusion.json`` and pictures in it.

    `evaluators` score the students' answers. Every rank calls it. With ``options.compile`` the modules are compiled, in
    place; otherwise they run uncompiled even if they are, because the shapes are not those of training. Raises
    `InputError` for options that suit neither head nor teacher.
    """
    was_training = head.training
    evaluation = _prepare(head.eval(), teacher, dist, options, evaluator, regression)
    began = time.perf_counter()
    if options.compile:
        compile_levels(teacher.model)
        for own in (head, regression):
            if own is not None:
                compile_blocks(own)
    with torch.no_grad(), torch.compiler.set_stance("default" if options.compile else "force_eager"):
        film = _measure(evaluation, wants_film=save_dir is not None and not options.quick)
        measures = evaluator.result(dist.gather_objects)
        measured = time.perf_counter()
        if not options.quick:
            _measure_students(evaluation, measures, save_dir, evaluators)
    head.train(was_training)
    if measures is None:
        return None
    seconds = {"rows": measured - began, "students_and_cost": time.perf_counter() - measured}
    measures = _protocol(evaluation, protocol) | {"seconds": seconds} | measures
    if save_dir is not None:
        if film is not None and teacher.test_set.metadata.kind is not None:
            evaluator.draw_denoising(film, teacher.test_set.metadata, save_dir / "denoising.png")
        evaluator.write(measures, save_dir)
    return evaluator.figures(measures)


def _prepare(
    head: DiffusionHead,
    teacher: Teacher,
    dist: Distributed,
    options: DiffusionEvalOptions,
    evaluator: DiffusionEvaluator,
    regression: DiffusionHead | None,
) -> Evaluation:
    last = teacher.halt_max_steps
    act_steps = [step for step in options.act_steps or (1, 2, 4, last) if step <= last]
    jump_to = options.jump_to or last
    if options.rows == "jump" and not max(options.jump_from) < jump_to <= last:
        raise InputError(
            f"harvest.jump_to={jump_to} must lie after jump_from={list(options.jump_from)} and within the teacher's "
            f"{last} ACT steps"
        )
    layout = RowLayout.of(
        options.rows, layout_of(teacher), act_steps=act_steps, jump_from=options.jump_from, jump_to=jump_to
    )
    steps = dict.fromkeys(sorted({*options.steps, *(options.rollout_steps if not options.quick else ())}))
    samplers = {}
    for count in steps:
        sampler = HeadSampler(head, options.rows, options.sampler, count, device=dist.device, seed=options.seed)
        samplers[f"head, NFE {sampler.nfe}"] = sampler
    if regression is not None:
        samplers["regression"] = _regression_sampler(regression.eval(), head, options, dist)
    T = head.process.num_steps
    middles = ((np.arange(options.timesteps) + 0.5) * T / options.timesteps).astype(int)
    timesteps = tuple(sorted({0, *middles.tolist(), T - 1}))
    batch_size = options.batch_size or _puzzles_at_once(teacher, layout, options, dist)
    for sampler in samplers.values():
        sampler.fit(batch_size, options.compile)
    return Evaluation(teacher, dist, options, layout, samplers, evaluator, timesteps, batch_size)


def _puzzles_at_once(teacher: Teacher, layout: RowLayout, options: DiffusionEvalOptions, dist: Distributed) -> int:
    """An even share of a process's puzzles whose latents fit and that fill the device."""
    a_puzzle = len(layout.harvested) * layout_of(teacher).tensors * teacher.latent_length * teacher.hidden_size
    room = HARVEST_ON_CUDA if dist.device.type == "cuda" else HARVEST_ELSEWHERE
    most = min(
        room // (a_puzzle * teacher.dtype.itemsize), rows_at_once("layer", 1, teacher.latent_length, dist.device)
    )
    own = -(-min(options.puzzles, teacher.test_set.num_rows) // dist.world_size)
    return -(-own // -(-own // max(1, most)))


def _regression_sampler(
    regression: DiffusionHead, head: DiffusionHead, options: DiffusionEvalOptions, dist: Distributed
) -> HeadSampler:
    if regression.config.prediction != "regression":
        raise InputError(
            f"regression is a head that predicts {regression.config.prediction}: name one of prediction=regression"
        )
    shape = [(own.config.latent_size, own.config.length, own.config.target_blocks) for own in (regression, head)]
    if shape[0] != shape[1]:
        raise InputError(
            f"the regression head's latents (size, length, blocks) are {shape[0]}, the head's {shape[1]}: "
            "compare heads of the same rows and the same teacher"
        )
    return HeadSampler(regression, options.rows, options.sampler, 1, device=dist.device)


def _measure(evaluation: Evaluation, wants_film: bool) -> dict[str, Any] | None:
    """All measures on rows; returns the steps of one sample on rank 0, if wanted."""
    teacher, options, layout, dist = evaluation.teacher, evaluation.options, evaluation.layout, evaluation.dist
    process = evaluation.head.process
    entry = layout_of(teacher)
    early = early_answers(layout.harvested, entry)
    snr = [float(process.alphas_cumprod[t] / (1 - process.alphas_cumprod[t])) for t in evaluation.timesteps]
    done = [count for count, _ in early]
    evaluation.evaluator.begin(
        layout.act_steps, layout.h_cycles, layout.position_types, evaluation.timesteps, snr, done, dist.device
    )
    film = None
    for batch in eval_batches(
        teacher,
        dist,
        rows=options.puzzles,
        act_steps=layout.harvested,
        batch_size=evaluation.batch_size,
        seed=options.seed,
    ):
        _measure_early(evaluation, batch, early)
        _on_rows(evaluation, batch, options.puzzles, _measure_latents)
        _on_rows(evaluation, batch, options.timestep_puzzles, _measure_levels)
        if not options.quick:
            _on_rows(evaluation, batch, options.seed_puzzles, _measure_spread)
        if film is None and wants_film and dist.is_main and not evaluation.head.regression:
            sampler = HeadSampler(
                evaluation.head.head,
                options.rows,
                options.sampler,
                min(FILM_STEPS, process.num_steps),
                device=dist.device,
                seed=options.seed,
            )
            sampler.fit(evaluation.batch_size, options.compile)
            film = record_film(teacher, layout, sampler, batch, FILM_PUZZLES)
    return film


def _on_rows(
    evaluation: Evaluation,
    batch: EvalBatch,
    puzzles: int,
    measure: Callable[[Evaluation, RowBatch, Tensor], None],
) -> None:
    """Call `measure` with the rows of those puzzles of `batch` that are among the first `puzzles` drawn, and with their
    labels."""
    options = evaluation.options
    entries, inputs, labels = batch.entries, batch.batch["inputs"], batch.batch["labels"]
    if puzzles < options.puzzles:
        chosen = np.isin(batch.rows, draw_test_rows(evaluation.teacher, puzzles, options.seed))
        where = torch.from_numpy(np.flatnonzero(chosen)).to(entries.device)
        entries, inputs, labels = entries[where], inputs[where], labels[where]
    for rows in evaluation.layout.batches(entries, row_keys(inputs), evaluation.rows_at_once):
        measure(evaluation, rows, labels)


def _measure_early(evaluation: Evaluation, batch: EvalBatch, early: Sequence[tuple[int, int]]) -> None:
    flat = batch.entries.flatten(1, 2)
    for place, (_, index) in enumerate(early):
        evaluation.evaluator.add_early(place, read_answers(evaluation.teacher, flat[:, index]), batch.batch["labels"])


def _measure_latents(evaluation: Evaluation, rows: RowBatch, labels: Tensor) -> None:
    """x_0 from pure noise, and what is read out of it."""
    evaluator, teacher = evaluation.evaluator, evaluation.teacher
    estimates: dict[str, Tensor] = {"copy": rows.copied}
    if evaluation.head.head.normalizes:  # else no mean was measured
        estimates["mean latent"] = evaluation.head.mean_latent(rows.types).expand_as(rows.target)
    true = labels_of = None
    if len(rows.answers):
        true = read_answers(teacher, rows.target[rows.answers, rows.answer_block])
        labels_of = labels[rows.puzzle[rows.answers]]
        evaluator.add_decoded("TRM", rows.answer_cells, true, true, labels_of)
    for name, sampler in [*((name, None) for name in estimates), *evaluation.samplers.items()]:
        estimate = estimates[name] if sampler is None else sampler(rows.conditions, rows.types, rows.key)
        evaluator.add_latents(name, rows.cells, estimate, rows.target)
        if labels_of is not None:
            decoded = read_answers(teacher, estimate[rows.answers, rows.answer_block])
            evaluator.add_decoded(name, rows.answer_cells, decoded, true, labels_of)


def _measure_levels(evaluation: Evaluation, rows: RowBatch, labels: Tensor) -> None:
    """Errors in the noise and in x_0 at every timestep."""
    evaluator, head = evaluation.evaluator, evaluation.head
    process, count = head.process, len(rows.key)
    target = head.normalize(rows.target, rows.types)
    noise = head.noise(rows.key)
    blocks = noise.view_as(target)
    levels = torch.tensor(evaluation.timesteps, device=target.device)
    evaluator.add_baseline_levels(
        rows.cells,
        target,
        blocks,
        head.normalize(rows.copied, rows.types),
        process.alpha[levels],
        process.sigma[levels],
        centred=head.head.normalizes,
    )
    predict = head.predictor(rows.conditions, rows.types)
    errors = {}
    if "regression" in evaluation.samplers:  # the same guess at every level
        guess = evaluation.samplers["regression"](rows.conditions, rows.types, rows.key)
        normalised = evaluator.squared_error(head.normalize(guess, rows.types), target)
        errors["regression"] = normalised, evaluator.squared_error(guess, rows.target)
    for level, t in enumerate(evaluation.timesteps):
        times = torch.full((count,), t, dtype=torch.int64, device=target.device)
        prediction = predict(process.add_noise(target.flatten(1, 2), noise, times), times)
        eps = evaluator.squared_error(prediction.eps.view_as(target), blocks)
        x0 = evaluator.squared_error(head.denormalize(prediction.x0, rows.types), rows.target)
        evaluator.add_noise_level("head", level, rows.cells, eps, x0, rows.target)
        for name, (normalised, raw) in errors.items():
            snr = process.snr(times).double().unsqueeze(-1)
            evaluator.add_noise_level(name, level, rows.cells, snr * normalised, raw, rows.target)


def _measure_spread(evaluation: Evaluation, rows: RowBatch, labels: Tensor) -> None:
    name, sampler = next(iter(evaluation.samplers.items()))
    if not sampler.regression:
        keys = [rows.key + seed * KEY_STRIDE for seed in range(evaluation.options.seeds)]
        samples = torch.stack([sampler(rows.conditions, rows.types, key) for key in keys])
        evaluation.evaluator.add_spread(name, rows.cells, samples)


def _measure_students(
    evaluation: Evaluation,
    measures: dict[str, Any] | None,
    save_dir: Path | None,
    evaluators: Sequence[tuple[str, Evaluator]],
) -> None:
    """Add what it costs and, if asked for, the accuracy of students to the `measures` of rank 0."""
    teacher, options, dist = evaluation.teacher, evaluation.options, evaluation.dist
    students: dict[str, Any] = {}
    jump_at = min(options.jump_from)
    if options.rollout:
        chosen = {
            name: sampler
            for name, sampler in evaluation.samplers.items()
            if sampler.regression or sampler.steps in options.rollout_steps
        }
        students = rollouts(
            teacher,
            dist,
            options.rows,
            chosen,
            puzzles=options.puzzles,
            jump_at=jump_at,
            batch_size=evaluation.batch_size,
            seed=options.seed,
            save_dir=save_dir,
            evaluators=evaluators,
        )
    if measures is None:
        return
    own = Distributed(device=dist.device)
    batch = next(
        eval_batches(teacher, own, rows=evaluation.batch_size, act_steps=(1,), batch_size=evaluation.batch_size)
    )
    cost = measure_cost(teacher, options.rows, evaluation.samplers, batch) | {"compiled": options.compile}
    measures |= {
        "cost": cost,
        "rollout": students,
        "accuracy_by_flops": accuracy_by_flops(teacher, options.rows, cost, students, measures["early_stop"], jump_at),
    }


def _protocol(evaluation: Evaluation, more: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the figures were measured on."""
    teacher, options = evaluation.teacher, evaluation.options
    return {
        "protocol": {
            **(more or {}),
            "teacher": str(teacher.weights.path),
            "teacher_step": teacher.weights.step,
            "teacher_weights": "EMA" if teacher.weights.averaged else "as saved",
            "teacher_sha256": teacher.identity["weights"],
            "data": [str(source.path) for source in teacher.test_set.sources],
            "data_hash": teacher.test_set.dataset_hash,
            "split": "test",
            "rows": options.rows,
            "puzzles": min(options.puzzles, teacher.test_set.num_rows),
            "sampler": options.sampler,
            "seed": options.seed,
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "latent_length": teacher.latent_length,
            "hidden_size": teacher.hidden_size,
            "H_cycles": teacher.H_cycles,
            "L_cycles": teacher.L_cycles,
        }
    }
