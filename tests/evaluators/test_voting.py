"""Ranking and the exactness of sums of votes, on hand-made ballots."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.voting import Votes, as_fixed_point


def ballot(*votes: tuple[int, bytes, float]) -> Votes:
    box = Votes()
    for question, key, confidence in votes:
        box.add(question, key, *as_fixed_point(np.array([confidence])))
    return box


def test_votes_come_first_then_confidence_then_the_grid() -> None:
    box = ballot(
        (0, b"often", 0.1),
        (0, b"often", 0.1),
        (0, b"sure", 0.9),
        (0, b"tie b", 0.5),
        (0, b"tie a", 0.5),
        (1, b"elsewhere", 1.0),
    )
    assert [candidate.key for candidate in box.ranked(0)] == [b"often", b"sure", b"tie a", b"tie b"]
    assert [candidate.votes for candidate in box.ranked(0)] == [2, 1, 1, 1]
    assert box.ranked(2) == []


def test_confidence_is_the_mean_not_the_sum() -> None:
    box = ballot((0, b"a", 0.2), (0, b"a", 0.4), (0, b"b", 0.35), (0, b"b", 0.35))
    first, second = box.ranked(0)
    assert (first.key, second.key) == (b"b", b"a")
    assert second.confidence == pytest.approx(0.3, abs=1e-12)


def test_any_order_and_any_split_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    questions, keys = rng.integers(0, 3, 300).tolist(), rng.integers(0, 4, 300).tolist()
    confidences = (rng.random(300) ** 40).tolist()
    votes = [(q, bytes([k]), c) for q, k, c in zip(questions, keys, confidences, strict=True)]
    assert sum(confidences) != sum(sorted(confidences)), "these numbers must be able to show a float sum"
    whole = ballot(*votes)
    for parts in (2, 3, 7):
        shuffled = [votes[i] for i in rng.permutation(len(votes))]
        merged = Votes.merged(ballot(*shuffled[part::parts]) for part in range(parts))
        assert merged == whole
        assert [merged.ranked(q) for q in range(3)] == [whole.ranked(q) for q in range(3)]


def test_merging_leaves_the_parts_alone() -> None:
    part = ballot((0, b"a", 0.5))
    Votes.merged([part, part])
    assert part == ballot((0, b"a", 0.5))
    assert Votes.merged([part, part]).ranked(0)[0].votes == 2


def test_fixed_point_holds_the_ends() -> None:
    assert as_fixed_point(np.array([0.0, 0.5, 1.0])) == [0, 2**47, 2**48]
