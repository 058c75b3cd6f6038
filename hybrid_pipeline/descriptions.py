"""What a text made from latents is trained and judged on: rows that were told one sentence and are to say another.

A trained hybrid model is told a sentence and works on a grid; from its last z_H another sentence of the same meaning is
to be said. Never the one it was told, in training as in testing, so that copying words is of no use. Test grids are
none of the training grids, and in the set `unseen` neither the sentence told nor the one to be said was trained on.

    listener = open_listener("runs/hybrid", device)
    rows = rows_to_train(listener.data, 20000, seed=0)
    z, mask = listener.latents(rows)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.common import InputError
from hybrid_pipeline.build import check_heard, check_rows, open_recorded, open_texts, read_sentences, trained_model
from hybrid_pipeline.instructed import UNSEEN, numbered_sentences
from hybrid_pipeline.latents import final_latents
from hybrid_pipeline.rules import INSTANCES, RULES
from hybrid_pipeline.schema import InstructedSection
from hybrid_pipeline.text_rows import NO_TEXT, TextData, TextRows
from models.losses import ACTLossHead

# Tell these draws from each other and from all others of the package.
HEARD_STREAM, PAIR_STREAM, TEST_STREAM, OTHER_STREAM = 330, 331, 332, 333

AT_ONCE = 256  # rows of a forward pass

RULE_OF_INSTANCE = np.array([RULES.index(instance.rule) for instance in INSTANCES])


@dataclass(frozen=True)
class ToldRows:
    """N rows of one kind of sentences, held out or not: `inputs`, `labels` int32 [N, cells], `instance` int64 [N], and
    in which of its wordings it was told, `heard` int64 [N]."""

    inputs: NDArray[np.int32]
    labels: NDArray[np.int32]
    instance: NDArray[np.int64]
    heard: NDArray[np.int64]
    held_out: bool

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def sentences(self) -> NDArray[np.int64]:
        """Numbers of all sentences of this kind, int64 [instances, wordings]."""
        return sentence_table(self.held_out)

    @property
    def told(self) -> NDArray[np.int64]:
        """The number of each row's sentence, int64 [N]."""
        return self.sentences[self.instance, self.heard]

    def other_wordings(self, seed: int, step: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows drawn at random and for each a wording that it was not told in: a function of (seed, step)."""
        draws = _draws(seed, PAIR_STREAM, step)
        chosen = draws.integers(len(self), size=batch_size)
        return chosen, _another(self.heard[chosen], self.sentences.shape[1], draws)


@dataclass(frozen=True)
class Listener:
    """A trained hybrid model that holds the states of all sentences of its data."""

    model: ACTLossHead
    data: TextData
    device: torch.device
    path: Path
    step: int

    def latents(self, rows: ToldRows, level: int = -1, silent: bool = False) -> tuple[Tensor, Tensor]:
        """z_H after the last ACT step, [N, places, hidden_size], and which places to read, bool [N, places].

        `silent`: the rows are told nothing.
        """
        batch = {
            "inputs": rows.inputs,
            "labels": rows.labels,
            "puzzle_identifiers": np.zeros(len(rows), np.int32),
            "texts": np.where(silent, NO_TEXT, rows.told).astype(np.int32),
        }
        tensors = {key: torch.from_numpy(value).to(self.device) for key, value in batch.items()}
        found = [
            final_latents(
                self.model.model, {key: value[start : start + AT_ONCE] for key, value in tensors.items()}, level
            )
            for start in range(0, len(rows), AT_ONCE)
        ]
        z, mask = (torch.cat(parts) for parts in zip(*found, strict=True))
        return z, mask


def open_listener(checkpoint: str, device: torch.device) -> Listener:
    """`InputError` for a checkpoint of another kind, or of texts that have no rules to tell apart."""
    path, manifest, config = open_recorded(checkpoint)
    if not isinstance(config.texts, InstructedSection):
        raise InputError(
            f"checkpoint={checkpoint} was trained on texts={config.texts.kind}: only instructed grids have rules whose "
            "descriptions can be told apart; give a run of texts=instructed"
        )
    data = open_texts(config)
    check_rows(manifest, data, f"checkpoint={checkpoint}")
    states, identity = read_sentences(config, data)
    check_heard(manifest, identity, f"checkpoint={checkpoint}")
    model = trained_model(path, manifest, config, device)
    model.model.inner.read(states)
    return Listener(model, data, device, path, manifest.step)


def rows_to_train(data: TextData, count: int, seed: int) -> ToldRows:
    """So many rows, of all training grids in turn, each told one of its training sentences."""
    return _told(data.train, np.arange(count) % len(data.train.texts), False, _draws(seed, HEARD_STREAM, 0))


def rows_to_test(data: TextData, name: str, count: int | None) -> tuple[ToldRows, NDArray[np.int64]]:
    """The first `count` rows of a test set, null: all; and the wording of each that is to be said. The same whatever
    is trained, and however many are asked for."""
    rows, draws = data.test[name], _draws(data.seed, TEST_STREAM, 0)
    told = _told(rows, np.arange(len(rows.texts)), name == UNSEEN, draws)
    said = _another(told.heard, told.sentences.shape[1], draws)
    kept = slice(0, count)
    parts = {key: getattr(told, key)[kept] for key in ("inputs", "labels", "instance", "heard")}
    return ToldRows(**parts, held_out=told.held_out), said[kept]


@functools.cache
def sentence_table(held_out: bool) -> NDArray[np.int64]:
    """Numbers of the sentences of one kind, int64 [instances, wordings]."""
    return np.array(numbered_sentences()[1][held_out])


def other_rows(count: int, seed: int) -> NDArray[np.int64]:
    """For every row another one: a random cycle through all of them."""
    order = _draws(seed, OTHER_STREAM, 0).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other


def _told(rows: TextRows, chosen: NDArray[np.int64], held_out: bool, draws: np.random.Generator) -> ToldRows:
    table = sentence_table(held_out)
    instance_of = {first: instance for instance, first in enumerate(table[:, 0].tolist())}
    instance = np.array([instance_of[rows.texts[row][0]] for row in chosen])
    heard = draws.integers(table.shape[1], size=len(chosen))
    return ToldRows(rows.inputs[chosen], rows.labels[chosen], instance, heard, held_out)


def _another(heard: NDArray[np.int64], wordings: int, draws: np.random.Generator) -> NDArray[np.int64]:
    return (heard + draws.integers(1, wordings, size=len(heard))) % wordings


def _draws(seed: int, stream: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))
