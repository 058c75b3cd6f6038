"""The frozen model whose latents a diffusion head learns: opened, identified by hashes and measured again.

teacher = open_teacher("runs/quickstart-sudoku", dist)    # the checkpoint's own configuration and averaged weights
check_accuracy(teacher, dist)                             # InputError unless it is as good as its run recorded
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.common import InputError, read_json
from datasets.puzzle_dataset import PuzzleDataset
from datasets.row_stream import random_words
from models.losses import ACTLossHead
from models.trajectory import check_recordable
from training.build import build_model, load_weights, model_config
from training.cli import warn
from training.config import validate_config
from training.config_schema import PretrainConfig
from training.distributed import Distributed
from training.evaluation import STEPS_FILE
from training.manifest import read_manifest
from training.rollout import UNIT, ActStatistics, Rows, rollout
from training.weights import Weights, read_weights

# Below this probability of two counts at least so different, by chance alone, the accuracies are not the same.
IMPLAUSIBLE = 1e-3
SAMPLE = 200  # tells the draw of rows from the other draws

# What must be equal for latents to be those that a head was trained on, and what to say of it.
HASHES = {
    "weights": "other weights",
    "dataset_hash": "other training data",
    "identifiers_hash": "data with other puzzles under its identifiers",
    "statistics": "other statistics of the latents",
}


@dataclass(frozen=True)
class Teacher:
    """A trained model in evaluation mode without gradients, and the data it belongs to.

    `identity`: SHA-256 of the tensors in use, as the checkpoint has them on every device (``weights``),
    ``dataset_hash``, ``identifiers_hash``, and the settings of the architecture (``arch``); JSON values, for a head's
    checkpoint.
    """

    model: ACTLossHead
    weights: Weights
    recorded: PretrainConfig
    train_set: PuzzleDataset
    test_set: PuzzleDataset
    identity: dict[str, Any]

    @property
    def config(self) -> Any:
        """The validated settings of the architecture."""
        return self.model.model.config

    @property
    def latent_length(self) -> int:
        """P, positions of a latent."""
        return self.config.latent_length

    @property
    def hidden_size(self) -> int:
        """D, channels of a latent."""
        return self.config.hidden_size

    @property
    def H_cycles(self) -> int:  # noqa: N802 (the papers' name)
        return self.config.H_cycles

    @property
    def L_cycles(self) -> int:  # noqa: N802
        return self.config.L_cycles

    @property
    def halt_max_steps(self) -> int:
        return self.config.halt_max_steps

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents."""
        return self.config.dtype

    def update(self, state: Tensor, injection: Tensor, types: Tensor) -> Tensor:
        """Single updates of latents [B, P, D], each row by the level of its type: int64 [B], 0 for z_L, 1 for z_H."""
        inner = self.model.model.inner
        cos_sin = None if inner.rotary is None else inner.rotary()
        updated = inner.L_level(state, injection, cos_sin)
        if not hasattr(inner, "H_level"):
            return updated
        return torch.where(types.view(-1, 1, 1) == 1, inner.H_level(state, injection, cos_sin), updated)


def open_teacher(
    checkpoint: str,
    dist: Distributed,
    *,
    data_paths: Sequence[str] | None = None,
    use_ema: bool = True,
    max_eval_puzzles: int | None = None,
) -> Teacher:
    """The model of a checkpoint of ``pretrain.py`` and its data, which `data_paths` gives where it was moved.

    Raises `InputError` for a file of bare weights, another kind of checkpoint, an architecture without z_H and z_L,
    and data that is not what the model was trained on.
    """
    weights = read_weights(checkpoint, use_ema)
    if weights.meta is None:
        raise InputError(
            f"checkpoint {checkpoint} holds nothing but weights, and a teacher needs its configuration and data: "
            "name a run of pretrain.py (arch=..., load_checkpoint=FILE starts one from those weights)"
        )
    kind = read_manifest(weights.path).kind
    if kind != "training":
        raise InputError(f"checkpoint {checkpoint} is of kind {kind!r}, not a teacher: name a run of pretrain.py")
    recorded = validate_config(PretrainConfig, weights.meta["config"])
    most = max_eval_puzzles or recorded.max_eval_puzzles
    paths = data_paths or recorded.data_paths
    if data_paths is not None and recorded.data_paths_test:
        raise InputError(
            f"{weights.path} was evaluated on data_paths_test={recorded.data_paths_test}, of which data_paths says "
            "nothing: put the data where its run found it (a link will do) and drop data_paths"
        )
    test_paths = data_paths or recorded.data_paths_test or recorded.data_paths
    train_set = PuzzleDataset(paths, "train", seed=recorded.seed, max_puzzles=recorded.max_train_puzzles)
    test_set = PuzzleDataset(test_paths, "test", seed=recorded.seed, max_puzzles=most, subset_of=train_set)
    for key in ("dataset_hash", "identifiers_hash"):
        if getattr(train_set, key) != weights.meta.get(key):
            raise InputError(
                f"{weights.path} was trained on {HASHES[key]} than data_paths=[{', '.join(map(str, paths))}] "
                f"({key} differs): name the data of its run with data_paths=[...]"
            )
    settings = model_config(recorded.arch, train_set.metadata, 1, dist.device, training=False)
    model = build_model(recorded.arch, settings, dist.device)
    try:
        check_recordable(model.model)
    except ValueError as error:
        raise InputError(f"checkpoint {checkpoint}: {error}") from error
    load_weights(model, weights.tensors, str(weights.path))
    identity = {
        # As loaded: in the model, a GPU has the initial latents in bf16 and a CPU in fp32.
        "weights": hash_of_tensors(weights.tensors),
        "dataset_hash": train_set.dataset_hash,
        "identifiers_hash": train_set.identifiers_hash,
        "arch": recorded.arch.model_dump(mode="json"),
    }
    return Teacher(model.eval().requires_grad_(False), weights, recorded, train_set, test_set, identity)


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order and the device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_same_teacher(recorded: Mapping[str, Any], teacher: Teacher, statistics: str | None = None) -> None:
    """`InputError` naming what differs between `teacher` and the one whose identity a head's checkpoint holds.

    `statistics`: the digest of the head's latent statistics now, compared with ``recorded["statistics"]``.
    """
    ours = dict(teacher.identity) if statistics is None else {**teacher.identity, "statistics": statistics}
    for key, text in HASHES.items():
        if key in ours and recorded.get(key) != ours[key]:
            raise InputError(
                f"{teacher.weights.path}: the head was trained on a teacher with {text} ({key} "
                f"{_short(recorded.get(key))}, here {_short(ours[key])}): name that teacher, or train a new head"
            )


def _short(digest: object) -> str:
    return "unknown" if digest is None else f"{str(digest)[:12]}…"


def recorded_accuracy(checkpoint: Path) -> tuple[float, int] | None:
    """Exact accuracy that the run of ``RUN/checkpoints/step_N`` measured at that step, and on how many rows."""
    file = checkpoint.parent.parent / "eval" / checkpoint.name / STEPS_FILE
    if not file.is_file():
        return None
    try:
        counts = [(part["rows"], part["exact_accuracy_by_step"][-1]) for part in read_json(file).values()]
        rows = sum(int(count) for count, _ in counts)
        exact = sum(count * float(accuracy) for count, accuracy in counts)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise InputError(f"{file} is not the record of an evaluation: restore it, or remove it") from None
    return (exact / rows, rows) if rows else None


def check_accuracy(teacher: Teacher, dist: Distributed, puzzles: int = 256) -> float:
    """Exact accuracy on so many held-out rows; the same on every rank, NaN where none has labels.

    Raises `InputError` where the recorded accuracy and this one differ by more than chance allows (Fisher's exact
    test, so that a record of few rows or of another subset is given its due). Says so where nothing is recorded.
    """
    recorded = recorded_accuracy(teacher.weights.path)
    if teacher.weights.averaged != teacher.recorded.ema:
        recorded = None  # the run evaluated its averages
    exact, rows = _measure(teacher, dist, puzzles)
    if rows == 0:
        warn(f"{teacher.weights.path}: its test data has no labels, so its accuracy was not measured again")
        return math.nan
    if recorded is None:
        warn(f"{teacher.weights.path}: no accuracy of these weights is recorded to compare with {exact / rows:.4f}")
        return exact / rows
    accuracy, of_rows = recorded
    if fisher_exact(exact, rows, round(accuracy * of_rows), of_rows) < IMPLAUSIBLE:
        raise InputError(
            f"{teacher.weights.path}: exact accuracy is {exact / rows:.4f} on {rows} held-out rows, but its run "
            f"recorded {accuracy:.4f} on {of_rows}: the weights, the data or the code are not those of that run"
        )
    return exact / rows


def _measure(teacher: Teacher, dist: Distributed, puzzles: int) -> tuple[int, int]:
    """Solved and labelled rows among `puzzles` drawn ones."""
    statistics = ActStatistics(teacher.halt_max_steps)
    rows = draw_test_rows(teacher, puzzles)[dist.rank :: dist.world_size]

    def pieces() -> Iterator[Rows]:
        if rows.size:
            yield {**teacher.test_set.test_rows(rows), "row_index": rows}

    slots = max(1, min(rows.size, teacher.recorded.global_batch_size))
    finished = rollout(
        teacher.model, pieces(), slots=slots, device=dist.device, early=False, keys=(), statistics=statistics
    )
    for _ in finished:
        pass
    total = ActStatistics(teacher.halt_max_steps)
    for part in dist.all_gather_objects(statistics):
        total.merge(part)
    return round(float(total.exact[-1]) * UNIT), total.rows


def draw_test_rows(teacher: Teacher, count: int, seed: int = 0) -> np.ndarray:
    """Indices of `count` different held-out rows, int64, ascending; all of them where there are no more.

    Larger counts contain smaller ones.
    """
    available = teacher.test_set.num_rows
    order = np.argsort(random_words(seed, SAMPLE, 0, available), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def fisher_exact(solved: int, rows: int, other_solved: int, other_rows: int) -> float:
    """Two-sided p-value of Fisher's exact test that two shares, `solved` of `rows` each, have the same probability."""
    both, all_rows = solved + other_solved, rows + other_rows

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def probability(k: int) -> float:
        return math.exp(log_choose(rows, k) + log_choose(other_rows, both - k) - log_choose(all_rows, both))

    # Ties are equal up to rounding.
    observed = probability(solved) * (1 + 1e-7)
    possible = range(max(0, both - other_rows), min(rows, both) + 1)
    return min(1.0, sum(p for p in map(probability, possible) if p <= observed))


def describe_teacher(teacher: Teacher) -> str:
    """One line for the log: which weights of which run."""
    weights = teacher.weights
    kind = "EMA" if weights.averaged else "raw"
    arch = teacher.recorded.arch.name.partition("@")[0].rpartition(".")[2]
    return (
        f"teacher {weights.path} (step {weights.step}, {kind} weights, {arch}): latents {teacher.latent_length} x "
        f"{teacher.hidden_size}, H_cycles={teacher.H_cycles}, L_cycles={teacher.L_cycles}, "
        f"{teacher.halt_max_steps} ACT steps, weights {_short(teacher.identity['weights'])}"
    )
