"""``hybrid_train.py`` end to end on a handful of rows with the stub: training, resuming, stages, controls, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hybrid_train
import pretrain
from hybrid_pipeline.build import open_texts, read_sentences, set_stage
from hybrid_pipeline.schema import CONFIG, HybridTrainConfig
from tests.training.runs import TRM, build_small_arc, differences, overrides, records, whole_state
from training.cli import run_cli
from training.config import config_groups, load_config
from training.distributed import Distributed
from training.step import train_step

INSTRUCTED = ["texts.train_rows=64", "texts.test_rows=10", "texts.sizes=[2,3]"]
TINY = [
    "llm=stub",
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.L_layers=1",
    "arch.L_cycles=1",
    "hybrid.bottleneck=16",
    "global_batch_size=8",
    "eval_batch_size=8",
    "lr_warmup_steps=1",
    "log_interval=1",
    "device=cpu",
    "logger.plots=false",
    "logger.progress_bar=false",
]


def run(folder: Path, *more: str) -> int:
    texts = [] if "texts=larc" in more else INSTRUCTED
    return run_cli(hybrid_train.main, [*TINY, *texts, f"checkpoint_path={folder}", *more])


@pytest.mark.parametrize("hybrid", ["input", "puzzle_slots", "carry"])
def test_a_run_trains_and_evaluates_with_its_controls(hybrid: str, tmp_path: Path) -> None:
    assert run(tmp_path, f"hybrid={hybrid}", "max_steps=3") == 0
    for name in ("unseen", "unseen_shuffled", "unseen_none", "seen"):
        assert records(tmp_path, f"eval/{name}/rows") == {3: 10}
        assert 0 <= records(tmp_path, f"eval/{name}/exact_accuracy")[3] <= 1
    assert set(json.loads((tmp_path / "eval/step_3/act_steps.json").read_text())) >= {"unseen", "unseen_none"}
    losses = records(tmp_path, "train/lm_loss")
    assert list(losses) == [1, 2, 3]


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", "max_steps=4", "lr_min_ratio=1.0") == 0
    assert run(tmp_path / "parts", "max_steps=2", "lr_min_ratio=1.0") == 0
    assert run(tmp_path / "parts", "max_steps=4", "lr_min_ratio=1.0") == 0
    assert differences(whole_state(tmp_path / "whole", 4), whole_state(tmp_path / "parts", 4)) == []


def test_a_frozen_trm_stays_that_of_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_small_arc(tmp_path / "arc")
    arch = ["arch.puzzle_emb_len=0", "arch.puzzle_emb_ndim=16", "arch.L_cycles=1", "arch.expansion=2"]
    assert run_cli(pretrain.main, overrides(TRM, data, tmp_path / "trm", "max_steps=1", *arch)) == 0
    arch = ["arch.pos_encodings=rope", "arch.mlp_t=false"]
    start = [f"trm_checkpoint={tmp_path / 'trm'}", *arch, "texts.sizes=[3,4]", "adapter_steps=null"]
    assert run(tmp_path / "run", "max_steps=2", "weight_decay=0.5", *start) == 0
    teacher, ours = whole_state(tmp_path / "trm", 1), whole_state(tmp_path / "run", 2)
    averaged = {name.replace("ema/", "model/"): value for name, value in teacher.items() if name.startswith("ema/")}
    names = [name for name in ours if name.startswith("model/") and ".text." not in name]
    assert names and all(torch.equal(ours[name], (teacher | averaged)[name]) for name in names)
    assert "model/model.inner.puzzle_emb.weights" not in ours

    assert run(tmp_path / "other", "max_steps=2", *start, "arch.hidden_size=32") == 2
    assert "shape" in capsys.readouterr().err


def test_stages_hold_the_trm_still_to_the_bit(tmp_path: Path) -> None:
    config = load_config(
        CONFIG,
        [*TINY, *INSTRUCTED, "trm_checkpoint=nowhere", "adapter_steps=2", "max_steps=4", "weight_decay=0.5"],
        HybridTrainConfig,
    )
    run_, state = hybrid_train.prepare(config, Distributed())
    for step, expected in enumerate([{"text"}, {"text"}, {"text", "L_level", "lm_head"}]):
        before = {name: p.clone() for name, p in state.model.model.inner.named_parameters()}
        set_stage(state, config)
        train_step(run_, state, hybrid_train.next_batch(run_, state))
        now = state.model.model.inner.named_parameters()
        changed = {name.partition(".")[0] for name, p in now if not torch.equal(p, before[name])}
        assert changed & {"text", "L_level", "lm_head"} == expected, step


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hybrid.injection=nowhere", "injection"),
        ("hybrid.bottleneck=10", "bottleneck=10"),
        ("adapter_steps=5", "trm_checkpoint"),
        ("arch=hrm", "arch=trm"),
        ("texts.sizes=[3,2]", "sizes"),
        ("eval_interval=9", "max_steps=3"),
        ("llm.model=tests", "llm.model=tests"),
        ("hybrid.injektion=input", "hybrid.injection"),
    ],
)
def test_mistakes_are_told_in_one_line(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(tmp_path / "run", "max_steps=3", override) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line and not (tmp_path / "run/checkpoints").exists()


def test_another_setting_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "max_steps=1") == 0
    assert run(tmp_path, "max_steps=2", "text=shuffled") == 2
    assert "text=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in ("hybrid", "llm") for choice in config_groups(CONFIG)[group]] + [("texts", "larc")],
)
def test_every_choice_composes(group: str, choice: str) -> None:
    path = ["texts.path=somewhere"] if choice == "larc" else []
    config = load_config(CONFIG, [f"{group}={choice}", *path], HybridTrainConfig)
    name = {"hybrid": config.hybrid.injection, "llm": config.llm.model, "texts": config.texts.kind}[group]
    assert name == choice


def test_help_names_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hybrid_train.main(["--help"])
    text = capsys.readouterr().out
    assert "python hybrid_train.py" in text and "hybrid.injection=input" in text and "hybrid=carry|input" in text


def test_a_run_goes_on_with_the_rows_and_the_language_model_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "run", "max_steps=1") == 0
    assert run(tmp_path / "run", "max_steps=2", f"llm.cache_dir={tmp_path / 'states'}") == 0  # where, not what
    monkeypatch.setattr("hybrid_train.read_sentences", lambda *given: (read_sentences(*given)[0], "another"))
    assert run(tmp_path / "run", "max_steps=3") == 2
    assert "heard the language model stub" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("hybrid_train.open_texts", lambda config: replace(open_texts(config), digest="another"))
    assert run(tmp_path / "run", "max_steps=3") == 2
    assert "was trained on other rows than its texts.* keys and files give now" in capsys.readouterr().err
