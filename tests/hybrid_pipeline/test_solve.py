"""``python -m hybrid_pipeline.solve``: curves over attempts, with the oracle apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hybrid_pipeline.instructed import instructed_tasks
from hybrid_pipeline.llm import StubEncoder
from hybrid_pipeline.planner import ORACLE, VERIFIED, SentenceProposer
from hybrid_pipeline.rules import INSTANCES
from hybrid_pipeline.solve import RANDOM, RANKED, RULES_FIT, TWO_STEPS, Question, _rules_fit, by_attempts, main
from tests.hybrid_pipeline.test_hybrid_train import run
from tests.hybrid_pipeline.test_planner import BY_SENTENCE, Doing
from training.cli import run_cli


def test_curves_over_attempts() -> None:
    """With an answerer that does as it is told, the attempt at which the rule's own sentence comes decides."""
    questions = []
    for task in instructed_tasks(6, 3, 4, seed=0):
        (given, answer), *others = task.test
        shown = [(grid, wanted) for grid, wanted in task.train if wanted is not None]
        assert answer is not None and not others and len(shown) == 3
        questions.append(Question(task.task_id, shown, given, answer))
    sentences = list(BY_SENTENCE)
    curves = by_attempts(questions, Doing(), lambda _: SentenceProposer(sentences), len(INSTANCES))
    expected, passed = np.zeros(len(INSTANCES)), np.zeros(len(INSTANCES))
    for question in questions:
        rules = [BY_SENTENCE[text] for text in sentences]
        right = [np.array_equal(rule.apply(question.given), question.answer) for rule in rules]
        does = [all(np.array_equal(rule.apply(grid), w) for grid, w in question.demonstrations) for rule in rules]
        expected[right.index(True) :] += 1 / len(questions)
        passed[does.index(True) :] += 1 / len(questions)
    assert curves.exact[ORACLE] == pytest.approx(expected.tolist()) and curves.passed == pytest.approx(passed.tolist())
    assert curves.exact[VERIFIED][-1] == 1 and all(curves.solved.values()) and len(curves.solved) == 6
    assert all(np.array(curves.exact[VERIFIED]) <= expected + 1e-9)


@pytest.mark.parametrize("more", [[], ["--arc", "training"]])
def test_the_command(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [found for found in INSTANCES if found.rule in ("shift", "flip")]  # or a book takes long
    monkeypatch.setattr("hybrid_pipeline.solve.INSTANCES", few)
    assert run(tmp_path / "run", "max_steps=1") == 0
    command = [str(tmp_path / "run"), "--tasks", "3", "--attempts", "3", "--orders", "2", "--steps", "2", *more]
    assert run_cli(main, command) == 0
    record = json.loads((tmp_path / "run/attempts/attempts.json").read_text())
    for proposer in (TWO_STEPS, RANKED, RANDOM):
        assert set(record["exact_by_attempts"][proposer]) == {VERIFIED, ORACLE}
        assert len(record["passed_by_attempts"][proposer]) == 3
    # Of 0d3d703e, 25d8a9c8 and 25ff71a9 the last one shifts down, and has two test inputs.
    assert record["questions"] == (4 if more else 3) and record["copied_inputs"] == 0
    assert not more or record[RULES_FIT] == {"1": 0.5, "2": 0.5}
    assert (tmp_path / "run/attempts/attempts.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert f"{RANKED}, {ORACLE}: " in out and f"questions of {'ARC-1' if more else 'instructed'}" in out
    assert run_cli(main, [*command, "--steps", "1", "--orders", "0"]) == 0
    record = json.loads((tmp_path / "run/attempts/attempts.json").read_text())
    assert set(record["exact_by_attempts"]) == {RANKED}
    assert run_cli(main, [str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("more", [[], ["--writer", "stub"]])
def test_another_language_model_is_refused_before_any_work(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "run", "max_steps=1") == 0

    class Another(StubEncoder):
        def __init__(self, max_tokens: int = 64):
            super().__init__(max_tokens)
            self.identity = "another"

    monkeypatch.setattr("hybrid_pipeline.llm.StubEncoder", Another)
    for work in ("SentenceBook", "open_writer", "by_attempts"):
        monkeypatch.setattr(f"hybrid_pipeline.solve.{work}", None)
    assert run_cli(main, [str(tmp_path / "run"), "--tasks", "1", *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "here is another" in line


def test_what_rules_could_reach() -> None:
    rules = BY_SENTENCE["Flip the grid so that left and right change places."], BY_SENTENCE["Erase every red cell."]
    grids = [np.array(cells, np.uint8) for cells in ([[1, 2], [3, 2]], [[2, 0], [4, 1]])]
    for steps, done in ((1, rules[:1]), (2, rules)):
        made = list(grids)
        for rule in done:
            made = [rule.apply(grid) for grid in made]
        question = Question("", [(grids[0], made[0])], grids[1], made[1])
        assert [_rules_fit(question, most) for most in (1, 2)] == [steps == 1, True]
        other = Question("", question.demonstrations, grids[1], made[1] + 1)
        assert not _rules_fit(other, 2)
