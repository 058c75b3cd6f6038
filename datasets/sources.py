"""Dataset directories of one run, opened: identifiers that never collide, and the groups a subset keeps.

Usage: ``sources = open_sources(["data/arc1"], "train", numbered_as=None)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.common import (
    InputError,
    PuzzleDatasetMetadata,
    load_identifiers,
    load_metadata,
    split_augmented_name,
)
from datasets.puzzle_set import PuzzleSet

_AGREEING_KEYS = ("vocab_size", "seq_len", "pad_id", "blank_identifier_id")


@dataclass(frozen=True)
class Source:
    """One dataset directory; its identifier i > 0 is identifier i + ``id_offset`` in the batches.

    ``task_names`` are the base names of the tasks that a subset keeps; None if it keeps all, or if the
    puzzles have no names, as Sudoku and mazes.
    """

    path: Path
    id_offset: int
    metadata: PuzzleDatasetMetadata
    task_names: frozenset[str] | None = None

    @property
    def named(self) -> bool:
        """Whether its puzzles have names."""
        return self.metadata.num_puzzle_identifiers > 1

    def identifiers(self) -> list[str]:
        """Its puzzle names by its own identifiers; read at every call, as there may be a million."""
        names = load_identifiers(self.path)
        if len(names) != self.metadata.num_puzzle_identifiers:
            raise InputError(
                f"{self.path}/identifiers.json has {len(names)} names but num_puzzle_identifiers is "
                f"{self.metadata.num_puzzle_identifiers}; rebuild the dataset"
            )
        return names


@dataclass(frozen=True)
class Member:
    """One set of a source: the part of it that is used."""

    source: int  # index into the sources
    name: str  # of the set, made unique among the members
    puzzles: PuzzleSet
    groups: np.ndarray  # int64, ascending: the groups that are kept


def open_sources(
    paths: Sequence[str | Path], split: str, numbered_as: Sequence[Source] | None
) -> tuple[list[Source], list[Member]]:
    """Opens and checks ``split`` of every directory, all groups kept.

    With ``numbered_as`` identifiers get the numbers they have among those sources. Raises `InputError` on
    unusable files, on sources that do not go together and on sources that ``numbered_as`` does not know.
    """
    if not paths:
        raise InputError("no dataset directory given; set data_paths")
    sources: list[Source] = []
    members: list[Member] = []
    next_offset = 0
    for path in map(Path, paths):
        metadata = load_metadata(path / split)
        _check_metadata(path / split, metadata, sources[0] if sources else None, split)
        offset = next_offset if numbered_as is None else _known_offset(path, metadata, numbered_as)
        next_offset += metadata.num_puzzle_identifiers - 1
        source = Source(path, offset, metadata)
        if source.named and not (path / "identifiers.json").is_file():
            raise InputError(f"{path}/identifiers.json does not exist; rebuild the dataset")
        opened = [PuzzleSet(path / split, name, metadata) for name in metadata.sets]
        groups = sum(puzzles.num_groups for puzzles in opened)
        if groups != metadata.total_groups:
            raise InputError(
                f"{path / split}/dataset.json: total_groups is {metadata.total_groups} but the arrays have "
                f"{groups} groups; rebuild the dataset"
            )
        for puzzles in opened:
            taken = any(member.name == puzzles.name for member in members)
            name = f"{puzzles.name}{len(sources)}" if taken else puzzles.name
            members.append(Member(len(sources), name, puzzles, np.arange(puzzles.num_groups)))
        sources.append(source)
    return sources, members


def keep_tasks(sources: Sequence[Source], members: Sequence[Member], of: Sequence[Source]) -> list[Member]:
    """The members without the groups of tasks that the sources ``of`` do not keep."""
    kept = []
    for member in members:
        source = sources[member.source]
        names = _counterpart(source.path, source.metadata, of).task_names if source.named else None
        if names is not None:
            chosen = [name in names for name in group_names(source, member)]
            member = replace(member, groups=member.groups[chosen])
        kept.append(member)
    return kept


def group_names(source: Source, member: Member) -> list[str]:
    """Base name of each kept group of a member of a named source."""
    identifiers = source.identifiers()
    first_puzzles = member.puzzles.group_indices[member.groups]
    return [
        split_augmented_name(identifiers[identifier])[0]
        for identifier in member.puzzles.puzzle_identifiers[first_puzzles]
    ]


def with_task_names(sources: Sequence[Source], members: Sequence[Member]) -> list[Source]:
    """The sources, with the names of the tasks that their members keep."""
    names: dict[int, set[str]] = {i: set() for i, source in enumerate(sources) if source.named}
    for member in members:
        if member.source in names:
            names[member.source].update(group_names(sources[member.source], member))
    return [
        replace(source, task_names=frozenset(names[i])) if i in names else source for i, source in enumerate(sources)
    ]


def _check_metadata(split_dir: Path, metadata: PuzzleDatasetMetadata, first: Source | None, split: str) -> None:
    if metadata.blank_identifier_id != 0:
        raise InputError(f"{split_dir}/dataset.json: blank_identifier_id must be 0; rebuild the dataset")
    if metadata.pad_id >= metadata.vocab_size:
        raise InputError(
            f"{split_dir}/dataset.json: pad_id {metadata.pad_id} is outside 0..{metadata.vocab_size - 1} (vocab_size); "
            "rebuild the dataset"
        )
    if not metadata.sets:
        raise InputError(f"{split_dir}/dataset.json: sets is empty; rebuild the dataset")
    for key in _AGREEING_KEYS if first is not None else ():
        assert first is not None
        ours, theirs = getattr(metadata, key), getattr(first.metadata, key)
        if ours != theirs:
            raise InputError(
                f"{split_dir}/dataset.json: {key} is {ours} but {first.path / split} has {theirs}; "
                "train on them separately"
            )


def _counterpart(path: Path, metadata: PuzzleDatasetMetadata, among: Sequence[Source]) -> Source:
    for source in among:
        known_hash = source.metadata.dataset_hash
        if source.path.resolve() == path.resolve() or known_hash == (metadata.dataset_hash or ""):
            return source
    raise InputError(
        f"{path} is not among the training data ({', '.join(str(source.path) for source in among)}), so its "
        "puzzle identifiers were never trained; add it to data_paths"
    )


def _known_offset(path: Path, metadata: PuzzleDatasetMetadata, among: Sequence[Source]) -> int:
    count = metadata.num_puzzle_identifiers
    if count == 1:
        return 0
    source = _counterpart(path, metadata, among)
    if source.metadata.num_puzzle_identifiers != count:
        raise InputError(
            f"{path}: num_puzzle_identifiers is {count} but {source.metadata.num_puzzle_identifiers} in the training "
            f"data {source.path}; rebuild the dataset"
        )
    return source.id_offset
