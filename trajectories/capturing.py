"""Recording an evaluation into a folder: the request for the evaluation, the header for the file, and what it costs.

with capturing(save_dir / FOLDER, model, dataset, dist, slots=256, depth="eval", provenance={...}) as request:
    evaluate(..., capture=request)
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from evaluators.render import grid_shape
from models.losses import ACTLossHead
from training.distributed import Distributed
from training.recording import CaptureRequest, Depth, Recorder, Rows, row_layout
from training.rollout import ActStatistics, rollout
from trajectories.store import CHUNK_BYTES, DataFolder, Header, TrajectoryWriter, symbols

GIGABYTE = 10**9


@contextlib.contextmanager
def capturing(
    folder: Path,
    model: ACTLossHead,
    dataset: PuzzleDataset,
    dist: Distributed,
    *,
    slots: int,
    depth: Depth | None,
    provenance: dict[str, Any],
    evaluators: Sequence[dict[str, Any]] = (),
    outputs: Collection[str] = (),
    rows: Collection[int] | None = None,
) -> Iterator[CaptureRequest | None]:
    """What an evaluation is to record into `folder`, which is whole if the block succeeds and untouched if it fails.

    `slots` rows are solved at once in this process. None where `depth` is None. Raises `InputError` for rows that the
    data does not have and for an architecture without the latents asked for; says on stderr what a capture of more than
    a gigabyte takes.
    """
    if depth is None:
        yield None
        return
    for row in rows or ():
        if row >= dataset.num_rows:
            raise InputError(
                f"capture.rows names row {row}, the test split has {dataset.num_rows}: give 0 to {dataset.num_rows - 1}"
            )
    count = dataset.num_rows if rows is None else len(set(rows))
    warning = size_warning(model, depth, outputs, count, min(slots, count), folder)
    if warning is not None and dist.is_main:
        print(warning, file=sys.stderr, flush=True)
    header = describe(model, dataset, depth, provenance, evaluators)
    with TrajectoryWriter(folder, header, rank=dist.rank, gather=dist.gather_objects) as writer:
        yield CaptureRequest(depth, writer.add, outputs, rows)


def size_warning(
    model: ACTLossHead, depth: Depth, outputs: Collection[str], rows: int, slots: int, folder: Path
) -> str | None:
    """What a capture takes, if that is more than a gigabyte; `folder` need not exist.

    Memory holds the rows of all slots, what is recorded in an ACT step before it is put there, and three chunks: one
    that grows, one being joined and one being written.
    """
    layout = row_layout(model, depth, outputs)
    row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    row_memory = row_bytes * (1 + 1 / model.model.config.halt_max_steps)
    memory = slots * row_memory + 3 * max(row_bytes, min(CHUNK_BYTES, rows * row_bytes))
    if max(rows * row_bytes, memory) <= GIGABYTE:
        return None
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    return (
        f"capture: {rows} rows x {row_bytes / 1e6:.3g} MB at depth {depth} are {rows * row_bytes / GIGABYTE:.3g} GB "
        f"before compression ({free / GIGABYTE:.3g} GB free), and {memory / GIGABYTE:.3g} GB of memory; "
        "capture.rows, max_eval_puzzles and eval_batch_size make it less"
    )


def describe(
    model: ACTLossHead,
    dataset: PuzzleDataset,
    depth: Depth,
    provenance: dict[str, Any],
    evaluators: Sequence[dict[str, Any]] = (),
) -> Header:
    """The header of a capture of this model on these data."""
    metadata = dataset.metadata
    return Header(
        kind=metadata.kind,
        grid=grid_shape(metadata),
        box=metadata.box,
        vocab_size=metadata.vocab_size,
        symbols=symbols(metadata.kind, metadata.vocab_size),
        max_steps=model.model.config.halt_max_steps,
        depth=depth,
        dataset_rows=dataset.num_rows,
        dataset_hash=dataset.dataset_hash,
        sources=[
            DataFolder(
                path=source.path,
                metadata=source.metadata,
                id_offset=source.id_offset,
                task_names=None if source.task_names is None else sorted(source.task_names),
            )
            for source in dataset.sources
        ],
        evaluators=list(evaluators),
        provenance={
            **provenance,
            "weights_sha256": weights_hash(model),
            "architecture": type(model.model).__name__,
            "loss": model.loss_fn.__name__,
            "model": model.model.config.model_dump(mode="json"),
            "torch": torch.__version__,
        },
    )


def record_rows(model: ACTLossHead, batch: Rows, depth: Depth, device: torch.device) -> Rows:
    """Trajectories of the rows of one batch, each solved for all its ACT steps: arrays as in `Recorder`, beside those
    of the batch; `row_index` among them tells the rows apart. The model is put into evaluation mode meanwhile."""
    count = len(batch["inputs"])
    kept: list[Rows] = []
    statistics = ActStatistics(model.model.config.halt_max_steps)
    recorder = Recorder(model, count, depth, kept.append)
    was_training = model.training
    model.eval()
    for _ in rollout(
        model,
        iter([batch]),
        slots=count,
        device=device,
        early=False,
        keys=(),
        statistics=statistics,
        recorder=recorder,
    ):
        pass
    model.train(was_training)
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}


def weights_hash(model: ACTLossHead) -> str:
    """SHA-256 of all weights with their names: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
