"""What is captured: the evaluation's own numbers, step by step, in a file that gives its figures again."""

from __future__ import annotations

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import pretrain
from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from evaluators import build_evaluators
from models.act import ACTModel
from models.losses import softmax_confidence, stablemax_confidence, stablemax_cross_entropy
from tests.training.runs import TRM, overrides, records
from training import distributed, recording
from training.cli import run_cli
from training.config import load_config
from training.evaluation import evaluate as evaluate_rows
from training.recording import CaptureRequest, row_layout
from training.recount import COUNTED, recount
from training.trained import open_trained
from trajectories import capturing, store
from trajectories.capturing import record_rows, size_warning, weights_hash
from trajectories.solve import solves
from trajectories.store import Capture, TrajectoryWriter, open_capture


def seen(tmp_path: Path, run: Path, *more: str) -> Capture:
    assert run_cli(evaluate.main, [f"checkpoint={run}", "device=cpu", f"output_dir={tmp_path}", *more]) == 0
    return open_capture(tmp_path)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for early halting of a model that, at each step, wants to halt on half of the rows."""

    def wants(model: ACTModel, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return outputs["q_halt_logits"] > outputs["q_halt_logits"].median()

    monkeypatch.setattr(ACTModel, "wants_to_halt", wants)
    return ["act_eval=early", "act_eval_confidence=1e-6"]


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["sudoku", "arc"])
@pytest.mark.parametrize("early", [False, True])
def test_the_file_gives_the_figures_again(
    kind: str, early: bool, eager: list[str], captured: Path, tmp_path: Path
) -> None:
    more = eager if early else []
    capture = seen(tmp_path, captured / f"run-{kind}", "eval_save_outputs=[preds]", "eval_batch_size=5", *more)
    evaluators = build_evaluators(capture.header.evaluators, capture.header.sources)
    figures, by_step = recount(capture.chunks(COUNTED), capture.header.max_steps, evaluators)
    assert figures == written(tmp_path, "metrics.json")["figures"]
    assert by_step == written(tmp_path, "act_steps.json")
    assert capture.complete and ("Sudoku/exact" if kind == "sudoku" else "ARC/pass@2") in figures
    assert (capture.array("steps").min() < capture.header.max_steps) == early


def test_capturing_changes_no_figure(captured: Path, tmp_path: Path) -> None:
    assert run_cli(evaluate.main, [f"checkpoint={captured / 'run-sudoku'}", f"output_dir={tmp_path}"]) == 0
    assert not (tmp_path / store.FOLDER).exists()
    assert written(tmp_path, "metrics.json")["figures"] == written(captured / "seen-sudoku", "metrics.json")["figures"]


def test_rows_are_those_of_the_model_run_by_hand(captured: Path) -> None:
    """Every step's answer, confidence, halt logit and latents against the bare model, for all rows at once."""
    capture = open_capture(captured / "seen-sudoku")
    config = load_config("cfg_evaluate", [f"checkpoint={captured / 'run-sudoku'}", "device=cpu"])
    with distributed.init("cpu") as dist:
        head = open_trained(config, dist).model
    batch = {name: torch.from_numpy(capture.array(name)) for name in ("inputs", "labels", "puzzle_identifiers")}
    carry = head.initial_carry(batch)
    for step in range(capture.header.max_steps):
        with torch.no_grad():
            carry, outputs = head.model(carry=carry, batch=batch, store_diffusion_trajectory=True)
        logits = outputs["logits"]
        np.testing.assert_array_equal(capture.array("step_preds")[:, step], logits.argmax(-1))
        expected = {
            "step_confidence": stablemax_confidence(logits),
            "step_q_halt_logits": outputs["q_halt_logits"],
            "z_H": torch.stack([cycle["z_H"] for cycle in outputs["trajectory"]["all_h_cycles"]], 1),
            "z_L": torch.stack([cycle["z_L_list"][-1] for cycle in outputs["trajectory"]["all_h_cycles"]], 1),
        }
        for name, tensor in expected.items():
            np.testing.assert_allclose(capture.array(name)[:, step], tensor, atol=1e-3 if "conf" in name else 1e-5)
        np.testing.assert_array_equal(capture.array("step_wants_to_halt")[:, step], outputs["q_halt_logits"] > 0)
        for h, cycle in enumerate(outputs["trajectory"]["all_h_cycles"]):
            latents = head.model.inner.carry_class(z_H=cycle["z_H"], z_L=cycle["z_L_list"][-1])
            with torch.no_grad():
                said = head.model.inner.read_out(latents)
            found = {name: capture.array(f"cycle_{name}")[:, step, h] for name in ("preds", "confidence")}
            np.testing.assert_array_equal(found["preds"], said["logits"].argmax(-1))
            np.testing.assert_allclose(found["confidence"], stablemax_confidence(said["logits"]), atol=1e-3)
            q_halt = capture.array("cycle_q_halt_logits")[:, step, h]
            np.testing.assert_allclose(q_halt, said["q_halt_logits"], atol=1e-5)
        # An ACT step ends with its last H-cycle.
        np.testing.assert_array_equal(capture.array("cycle_preds")[:, step, -1], logits.argmax(-1))
    assert (capture.array("cycle_preds")[:, :, 0] != capture.array("cycle_preds")[:, :, -1]).any()
    assert capture.header.provenance["weights_sha256"] == weights_hash(head)


def test_a_row_has_what_the_guide_says_and_nothing_twice(captured: Path, eager: list[str], tmp_path: Path) -> None:
    guide = (Path(evaluate.__file__).parent / "docs/trajectories.md").read_text(encoding="utf-8")
    table = guide[guide.index("| array | shape of a row | |") : guide.index("A row that halts early")]
    named = {name for line in table.strip().splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    whole = set(open_capture(captured / "seen-sudoku").names)
    more = [*eager, "eval_save_outputs=[preds,logits,q_halt_logits,q_continue_logits]"]
    assert whole | set(seen(tmp_path, captured / "run-sudoku", *more).names) == named


def test_a_solve_ends_where_its_row_halted(captured: Path, eager: list[str], tmp_path: Path) -> None:
    capture = seen(tmp_path, captured / "run-sudoku", *eager, "capture.depth=h_cycle")
    steps = capture.array("steps")
    assert steps.min() < capture.header.max_steps
    for position, solve in enumerate(solves(capture)):
        count = int(steps[position])
        assert solve.moments == [(step, cycle) for step in range(1, count + 1) for cycle in (1, 2)]
        for name in ("preds", "confidence", "q_halt"):
            stored = capture.array(f"cycle_{name if name != 'q_halt' else 'q_halt_logits'}")[position, :count]
            np.testing.assert_allclose(getattr(solve, name), stored.reshape(2 * count, *stored.shape[2:]))
        assert len(solve.wants_to_halt) == 2 * count and len(solve.steps_only().preds) == count


def test_rows_come_in_the_order_of_the_data_set(
    captured: Path, eager: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Early halting finishes rows in another order than they began, in chunks of a few rows."""
    monkeypatch.setattr(store, "CHUNK_ROWS", 3)
    more = [*eager, "eval_batch_size=4", "eval_save_outputs=[preds]"]
    capture = seen(tmp_path, captured / "run-sudoku", *more)
    as_written = np.concatenate([rows["row_index"] for _, rows in capture.chunks(["row_index"])])
    assert as_written.tolist() != list(range(16))
    assert len(capture.header.chunks) > 3
    whole = PuzzleDataset([captured / "sudoku"], "test").test_rows(np.arange(16))
    np.testing.assert_array_equal(capture.row_index, np.arange(16))
    np.testing.assert_array_equal(capture.array("inputs"), whole["inputs"])
    np.testing.assert_array_equal(capture.array("labels", np.array([7, 2])), whole["labels"][[7, 2]])


def test_rows_that_halt_early_keep_their_answer(captured: Path, eager: list[str], tmp_path: Path) -> None:
    capture = seen(tmp_path, captured / "run-sudoku", *eager, "eval_save_outputs=[preds,logits]")
    steps, preds, logits = (capture.array(name) for name in ("steps", "step_preds", "step_logits"))
    assert steps.min() < capture.header.max_steps
    active, halted = capture.array("step_active"), capture.array("step_halted")
    assert active[:, 0].all() and (active.sum(1) == steps).all()
    assert (halted == ~active | (np.arange(1, preds.shape[1] + 1) == steps[:, None])).all()
    for row, last in enumerate(steps):
        assert (preds[row, last - 1 :] == preds[row, last - 1]).all()
    np.testing.assert_array_equal(logits.argmax(-1), preds)


@pytest.mark.parametrize("depth", ["eval", "layer"])
def test_only_the_rows_asked_for(depth: str, captured: Path, tmp_path: Path) -> None:
    more = [f"capture.depth={depth}", "capture.rows=[9,2]", "eval_batch_size=4"]
    capture = seen(tmp_path, captured / "run-sudoku", *more)
    assert capture.row_index.tolist() == [2, 9] and not capture.complete
    everything = open_capture(captured / "seen-sudoku")
    np.testing.assert_array_equal(capture.array("step_preds"), everything.array("step_preds", np.array([2, 9])))
    if depth == "layer":
        z_L = capture.array("z_L")
        assert z_L.shape[1:4] == (3, 2, 2)  # ACT steps, H-cycles, L-cycles
        np.testing.assert_allclose(z_L[:, :, :, -1], everything.array("z_L", np.array([2, 9])), atol=1e-5)


def test_training_captures_too(captured: Path, tmp_path: Path) -> None:
    command = overrides(TRM, captured / "sudoku", tmp_path, "max_steps=2", "eval_save_outputs=[preds,q_halt_logits]")
    assert run_cli(pretrain.main, command) == 0
    capture = open_capture(tmp_path / "eval/step_2")
    assert capture.header.provenance["step"] == 2 and len(capture) == 8


def test_confidence_is_that_of_the_distribution_trained_with() -> None:
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)) * 4
    likeliest = logits.argmax(-1)
    expected = torch.exp(-stablemax_cross_entropy(logits, likeliest))
    torch.testing.assert_close(stablemax_confidence(logits).double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(softmax_confidence(logits), logits.softmax(-1).amax(-1))


def test_a_large_capture_is_announced(captured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config("cfg_evaluate", [f"checkpoint={captured / 'run-sudoku'}", "device=cpu"])
    with distributed.init("cpu") as dist:
        trained = open_trained(config, dist)
    assert size_warning(trained.model, "layer", (), 16, 16, tmp_path / "new") is None
    batch = {**trained.dataset.test_rows(np.arange(2)), "row_index": np.arange(2)}
    rows = record_rows(trained.model, batch, "layer", torch.device("cpu"))
    recorded = sum(array.nbytes for name, array in rows.items() if name.startswith(("step_", "cycle_", "z_"))) // 2
    monkeypatch.setattr(capturing, "GIGABYTE", 10 * recorded)
    said = size_warning(trained.model, "layer", (), 16, 6, tmp_path / "new")
    assert said is not None and "16 rows" in said and " 1.6 GB before compression" in said
    # Six slots, a third of them again for one of three ACT steps, and three chunks, here of all 16 rows.
    assert "and 5.6 GB of memory" in said
    monkeypatch.setattr(capturing, "CHUNK_BYTES", 2 * recorded)
    said = size_warning(trained.model, "layer", (), 16, 6, tmp_path / "new")
    assert said is not None and "and 1.4 GB of memory" in said
    # On the disk 0.9 GB, but in memory more than one.
    said = size_warning(trained.model, "layer", (), 9, 6, tmp_path / "new")
    assert said is not None and "0.9 GB before compression" in said and "and 1.4 GB of memory" in said


@pytest.mark.parametrize(("limit", "value"), [("CHUNK_ROWS", 3), ("CHUNK_BYTES", 3 * 108 + 50)])
def test_chunks_are_as_small_as_they_are_said_to_be(
    limit: str, value: int, captured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, limit, value)
    whole: dict[str, Any] = {
        "row_index": np.arange(11),
        "z_H": np.random.default_rng(0).normal(size=(11, 25)).astype(np.float32),
    }
    with TrajectoryWriter(tmp_path / "new", open_capture(captured / "seen-sudoku").header) as writer:
        for part in (slice(0, 1), slice(1, 9), slice(9, 11)):
            writer.add("all", {name: array[part] for name, array in whole.items()})
    capture = open_capture(tmp_path / "new")
    assert [chunk.rows for chunk in capture.header.chunks] == [3, 3, 3, 2]
    np.testing.assert_array_equal(capture.array("z_H"), whole["z_H"])


def test_rows_that_finish_together_are_handed_over_in_pieces(captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("cfg_evaluate", [f"checkpoint={captured / 'run-sudoku'}", "device=cpu"])
    with distributed.init("cpu") as dist:
        trained = open_trained(config, dist)
    handed: list[dict[str, Any]] = []
    asked = CaptureRequest("layer", lambda _, rows: handed.append(rows), rows=[0, *range(2, 9)])
    layout = row_layout(trained.model, "layer").values()
    row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout)
    monkeypatch.setattr(recording, "PIECE_BYTES", 2 * row_bytes)
    evaluate_rows(trained.model, trained.dataset, [], dist=dist, batch_size=16, capture=asked)
    assert [rows["row_index"].tolist() for rows in handed] == [[0, 2], [3, 4], [5, 6], [7, 8]]
    whole = open_capture(captured / "seen-sudoku")
    for name in ("inputs", "step_preds", "steps", "z_H"):
        found = np.concatenate([rows[name] for rows in handed])
        np.testing.assert_allclose(found, whole.array(name, np.array([0, *range(2, 9)])), atol=1e-5)


def full_disk(path: Path, rows: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_capture_is_whole_or_absent(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk costs the capture, not the evaluation: its figures are new, and the older capture is still there."""
    first = seen(tmp_path, captured / "run-sudoku", "eval_save_outputs=[preds]")
    expected = written(tmp_path, "metrics.json")
    (tmp_path / "metrics.json").unlink()
    monkeypatch.setattr(store, "_write_archive", full_disk)
    command = [f"checkpoint={captured / 'run-sudoku'}", f"output_dir={tmp_path}", "capture.depth=eval"]
    assert run_cli(evaluate.main, command) == 2
    assert "trajectories cannot be written: No space left on device; make room" in capsys.readouterr().err
    assert written(tmp_path, "metrics.json")["figures"] == expected["figures"]
    assert len(open_capture(tmp_path)) == len(first)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_training_logs_an_evaluation_whose_capture_failed(
    captured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "_write_archive", full_disk)
    command = overrides(TRM, captured / "sudoku", tmp_path, "max_steps=2", "eval_save_outputs=[preds]")
    assert run_cli(pretrain.main, command) == 2
    assert list(records(tmp_path, "eval/all/exact_accuracy")) == [2]
    assert not (tmp_path / "eval/step_2/trajectories").exists()


@pytest.mark.parametrize("full", [0, 1])
def test_the_first_process_tells_what_stopped_any(
    full: int, captured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two ranks in turn, the last first: only rank 0 removes the folder, and says what the disk said to either."""
    header = open_capture(captured / "seen-sudoku").header
    rows = {"row_index": np.arange(2)}
    found: list[object] = []

    def gather(item: object) -> list[object]:
        return [*found, item]

    first = TrajectoryWriter(tmp_path / "new", header, gather=gather)
    other = TrajectoryWriter(tmp_path / "new", header, rank=1, gather=lambda item: found.append(item))
    write = store._write_archive
    monkeypatch.setattr(
        store, "_write_archive", lambda path, rows: (full_disk if f"rank{full}" in path.name else write)(path, rows)
    )
    with pytest.raises(InputError, match="cannot be written: No space left on device"), first:
        with other:
            found.clear()
            other.add("all", rows)
            first.add("all", rows)
        assert [path.name for path in tmp_path.iterdir()] == [".new.tmp"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_a_capture_is_unpickled(captured: Path, tmp_path: Path) -> None:
    capture = seen(tmp_path, captured / "run-sudoku", "eval_save_outputs=[preds]")
    with zipfile.ZipFile(capture.folder / capture.header.chunks[0].file, "w") as archive:
        for name in ("row_index", "step_preds"):
            with archive.open(f"{name}.npy", "w") as file:
                content = np.arange(16) if name == "row_index" else np.array([print] * 16, object)
                np.lib.format.write_array(file, content)
    with pytest.raises(ValueError, match=r"damaged .*allow_pickle=False"):
        open_capture(tmp_path).array("step_preds")


@pytest.mark.parametrize("arch", ["hrm", "transformers_baseline", "trm_hier6"])
def test_other_architectures(arch: str, captured: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All can be captured step by step; into the recursion goes only what has the latents z_H and z_L."""
    paths = [f"data_paths=[{captured / 'sudoku'}]", f"checkpoint_path={tmp_path / 'run'}", "device=cpu", "max_steps=1"]
    assert run_cli(pretrain.main, ["experiment=smoke", f"arch={arch}", *paths]) == 0
    assert len(seen(tmp_path / "eval", tmp_path / "run", "capture.depth=eval")) == 16
    deep = [f"checkpoint={tmp_path / 'run'}", "device=cpu", f"output_dir={tmp_path / 'deep'}", "capture.depth=layer"]
    capsys.readouterr()
    if arch == "hrm":
        assert run_cli(evaluate.main, deep) == 0
        assert open_capture(tmp_path / "deep").array("cycle_preds").ndim == 4
    else:
        assert run_cli(evaluate.main, deep) == 2
        assert "capture.depth=layer: " in (said := capsys.readouterr().err) and "or capture.depth=eval" in said
        assert not (tmp_path / "deep").exists()
