"""``hybrid_describe.py`` end to end with stubs: training, resuming, controls, mistakes; and what its rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hybrid_describe
import hybrid_train
from hybrid_pipeline.adapters.latent_to_text import LatentToTextAdapter
from hybrid_pipeline.describing import GROUPS, Trainer, Words, build_teller
from hybrid_pipeline.descriptions import (
    RULE_OF_INSTANCE,
    Listener,
    open_listener,
    other_rows,
    rows_to_test,
    rows_to_train,
    sentence_table,
)
from hybrid_pipeline.identifying import _of_rules, log_likelihoods, meaning, some_wordings
from hybrid_pipeline.instructed import SEEN, UNSEEN, instance_odds
from hybrid_pipeline.rules import INSTANCES, RULES
from hybrid_pipeline.speaker import Said, StubSpeaker, open_speaker
from hybrid_pipeline.teller import Teller
from hybrid_pipeline.telling import evaluate
from tests.hybrid_pipeline.describe_runs import make, run
from tests.hybrid_pipeline.test_hybrid_train import INSTRUCTED, TINY
from tests.training.runs import records
from training.checkpoint import load_checkpoint
from training.cli import run_cli
from training.plots import CURVES_NAME


@pytest.mark.parametrize("more", [[], ["adapter.use_vae_adapter=true"], ["adapter.use_attention_pooling=false"]])
def test_a_run_trains_and_evaluates_with_its_controls(teller: Path, more: list[str], tmp_path: Path) -> None:
    assert run(teller, tmp_path, "max_steps=4", *more) == 0
    report = json.loads((tmp_path / "eval/step_4/descriptions.json").read_text())
    figures = report["figures"]
    for name in (UNSEEN, SEEN):
        losses = [figures[f"{name}/loss{control}"] for control in ("", "_shuffled", "_untold", "_none")]
        assert all(0 < loss < 20 for loss in losses) and len(set(losses)) == 4
        assert figures[f"{name}/loss_none_above"] == pytest.approx(losses[3] - losses[0], abs=1e-4)
        assert records(tmp_path, f"eval/{name}/loss") == {4: figures[f"{name}/loss"]}
        own = report["losses"][name]
        assert len(own["loss"]) == figures[f"{name}/rows"] == 10
        for key in ("loss", "loss_shuffled", "loss_untold", "loss_none"):
            assert sum(own[key]) / sum(own["tokens"]) == pytest.approx(figures[f"{name}/{key}"], abs=1e-4)
    assert figures["unseen/identified_rows"] == len(report["said"]) == 3 and len(report["answers"]["rule"]) == 3
    assert ("unseen/used_dimensions" in figures) == bool(report["kl"]) == ("use_vae_adapter=true" in str(more))
    assert list(records(tmp_path, "train/loss")) == [1, 2, 3, 4]


def test_an_interrupted_run_goes_on_to_the_bit(teller: Path, tmp_path: Path) -> None:
    """From a step for words on, through those of the language model."""
    vae = "adapter.use_vae_adapter=true"
    assert (
        run(teller, tmp_path / "whole", "max_steps=4", "lr_min_ratio=1.0", "checkpoint_interval=1", "keep_last=9", vae)
        == 0
    )
    whole = tmp_path / "whole/checkpoints"
    resume = [f"resume={whole / 'step_1'}", "lr_min_ratio=1.0", "max_steps=4", vae]
    assert run(teller, tmp_path / "parts", *resume) == 0
    folders = [tmp_path / name / "checkpoints/step_4" for name in ("whole", "parts")]
    ends = [load_checkpoint(folder, groups=GROUPS).groups for folder in folders]
    for group in GROUPS:
        assert ends[0][group].keys() == ends[1][group].keys()
        assert all(torch.equal(tensor, ends[1][group][name]) for name, tensor in ends[0][group].items())
    before = (tmp_path / "parts/eval/step_4/descriptions.json").read_bytes()
    assert before == (tmp_path / "whole/eval/step_4/descriptions.json").read_bytes()


def test_only_the_adapter_changes(teller: Path) -> None:
    config = make(teller, "lr=0.1")
    heard = open_listener(str(teller), torch.device("cpu"))
    frozen = {name: p.clone() for name, p in heard.model.named_parameters()}
    trainer = Trainer(build_teller(config, heard, StubSpeaker()), heard, config)
    before = {name: p.clone() for name, p in trainer.adapter.named_parameters()}
    words = trainer.teller.speaker.embeddings.clone()
    for _ in range(4):
        trainer.train_step()
    assert all(torch.equal(p, frozen[name]) for name, p in heard.model.named_parameters())
    assert torch.equal(trainer.teller.speaker.embeddings, words)
    assert not any(torch.equal(p, before[name]) for name, p in trainer.adapter.named_parameters())


def test_training_lowers_the_loss_and_a_constant_prefix_cannot_tell_rows_apart(teller: Path) -> None:
    heard = open_listener(str(teller), torch.device("cpu"))

    def trained(*more: str) -> tuple[list[float], dict[str, float]]:
        config = make(
            teller, "max_steps=60", "word_steps=0", "global_batch_size=16", "lr=2e-2", "identify_rows=0", *more
        )
        trainer = Trainer(build_teller(config, heard, StubSpeaker()), heard, config)
        metrics = [trainer.train_step() for _ in range(60)]
        with trainer.ema.applied():
            figures, _ = evaluate(trainer.teller, heard, config)
        return [float(found["lm_nats"] / found["count"]) for found in metrics], figures

    curve, _ = trained()
    assert np.mean(curve[-10:]) < np.mean(curve[:10]) - 0.2, "through the language model's body"
    _, figures = trained("latents=constant")
    assert figures["unseen/loss"] == pytest.approx(figures["unseen/loss_shuffled"])
    assert figures["unseen/loss"] == pytest.approx(figures["unseen/loss_untold"])
    assert figures["unseen/loss"] < figures["unseen/loss_none"]


def test_words_go_on_beside_the_language_model(teller: Path) -> None:
    heard = open_listener(str(teller), torch.device("cpu"))

    def after(*more: str) -> tuple[float, float]:
        length = ["max_steps=40", "word_steps=30", "lr=2e-2", "word_batch_size=32"]
        trainer = Trainer(build_teller(config := make(teller, *length, *more), heard, StubSpeaker()), heard, config)
        metrics = [trainer.train_step() for _ in range(40)][-1]
        rows = rows_to_train(heard.data, 32, 0)
        prefix, _ = trainer.teller.prefix(*heard.latents(rows))
        words = trainer.words.losses(prefix, trainer.teller.said(rows.told)).mean()
        return words.item(), metrics["lm_nats"].item()

    (words, text), (kept, kept_text) = after(), after("word_weight=2.0")
    assert kept < words and kept_text != text


def test_no_row_says_what_it_was_told(listener: Listener) -> None:
    for name in (UNSEEN, SEEN):
        rows, said = rows_to_test(listener.data, name, None)
        assert (said != rows.heard).all()
        texts = listener.data.test[name].texts
        assert all(number in own for number, own in zip(rows.told, texts, strict=True))
        assert all(number in own for number, own in zip(rows.sentences[rows.instance, said], texts, strict=True))
        some, some_said = rows_to_test(listener.data, name, 4)
        assert np.array_equal(some.told, rows.told[:4]) and np.array_equal(some_said, said[:4])
    rows = rows_to_train(listener.data, 32, seed=0)
    more = rows_to_train(listener.data, 130, seed=0)
    assert np.array_equal(more.inputs[:2], more.inputs[128:]) and not np.array_equal(more.told[:64], more.told[64:128])
    chosen, said = rows.other_wordings(0, 5, 2000)
    assert (said != rows.heard[chosen]).all() and set(said.tolist()) == set(range(14))
    assert np.array_equal(chosen, rows.other_wordings(0, 5, 2000)[0])
    assert not np.array_equal(chosen, rows.other_wordings(0, 6, 2000)[0])


def test_held_out_sentences_and_grids_are_in_no_training(listener: Listener) -> None:
    assert not set(sentence_table(False).ravel()) & set(sentence_table(True).ravel())
    assert sentence_table(True).shape == (len(INSTANCES), 3)
    for instance, numbers in enumerate(sentence_table(True)):
        assert [listener.data.sentences[n] for n in numbers] == INSTANCES[instance].sentences(held_out=True)
    train = {row.tobytes() for row in rows_to_train(listener.data, 64, 0).inputs}
    assert not train & {row.tobytes() for row in rows_to_test(listener.data, UNSEEN, None)[0].inputs}


def test_latents_depend_on_what_was_told(listener: Listener) -> None:
    rows, _ = rows_to_test(listener.data, UNSEEN, None)
    (z, mask), (silent, _) = listener.latents(rows), listener.latents(rows, silent=True)
    assert z.shape == (len(rows), 16, 16) and torch.equal(mask, torch.from_numpy(rows.inputs != 0))
    assert ((z - silent).abs().amax((1, 2)) > 0).all()


def test_what_the_grids_alone_say() -> None:
    grid = np.array([[1, 2], [0, 0]], np.uint8)
    odds = instance_odds(grid, np.array([[1, 2], [1, 2]], np.uint8))
    told = {f"{found.rule} {found.arguments[0][1]}": odds[n] for n, found in enumerate(INSTANCES) if odds[n] > 0}
    assert set(told) == {"copy_edge top", "symmetric top"} and odds.sum() == pytest.approx(1)
    # Of four copies that change the grid, and of three that are symmetric: the other sides leave less to be chosen.
    changes = [
        f.rule for f in INSTANCES if f.rule in ("copy_edge", "symmetric") and not np.array_equal(f.apply(grid), grid)
    ]
    expected = 1 / changes.count("copy_edge") / (1 / changes.count("copy_edge") + 1 / changes.count("symmetric"))
    assert told["copy_edge top"] == pytest.approx(expected)


def test_another_row_is_another_row() -> None:
    assert (other_rows(50, 0) != np.arange(50)).all() and sorted(other_rows(50, 0)) == list(range(50))


def test_rules_are_told_by_what_costs_least(teller: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model that knows: under a row's prefix all sentences of its instance are certain, so all are told."""
    config = make(teller, "identify_rows=10", "identify_wordings=2")
    told = build_teller(config, listener, StubSpeaker())
    rows, _ = rows_to_test(listener.data, UNSEEN, 10)
    prefixes, _ = told.prefix(*listener.latents(rows))
    numbers = np.concatenate([sentence_table(False), sentence_table(True)], axis=1)
    sentences = [{told.sentences.ids[n - 1].numpy().tobytes() for n in instance} for instance in numbers]

    def knowing(prefix: torch.Tensor, said: Said, at_once: int) -> torch.Tensor:
        nats, longest = said.mask.float(), told.sentences.ids.shape[1]
        row = int((prefixes - prefix).abs().sum((1, 2)).argmin())
        if torch.equal(prefixes[row], prefix):
            padded = np.pad(said.ids.numpy(), ((0, 0), (0, longest - said.ids.shape[1])))
            nats[[ids.tobytes() in sentences[rows.instance[row]] for ids in padded]] = 0
        return nats

    monkeypatch.setattr(told.speaker, "candidate_losses", knowing)
    figures, details = evaluate(told, listener, config)
    assert (
        figures["unseen/rule"] == figures["unseen/instance"] == 1
        and details["answers"]["instance"] == rows.instance.tolist()
    )
    assert figures["unseen/rule_shuffled"] < 0.6
    for name in ("trained", "held_out"):
        likely = np.array(details[f"log_likelihood_{name}"])
        assert likely.shape == (10, len(INSTANCES)) and (likely[np.arange(10), rows.instance] == 0).all()
        assert figures[f"unseen/rule_{name}"] == figures[f"unseen/instance_{name}"] == 1
        assert figures[f"unseen/rule_{name}_shuffled"] < 0.6


def test_a_rule_is_as_likely_as_its_instances_together(
    teller: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One instance of a rule has the likeliest sentence, those of another rule are likelier together."""
    config = make(teller, "identify_rows=2", "identify_wordings=14")
    told = build_teller(config, listener, StubSpeaker())
    many, alone = RULES.index("swap"), RULES.index("keep")
    numbers = sentence_table(False)

    def scores(teller: Any, prefix: Any, asked: Any, at_once: int) -> Any:
        rules = np.repeat(RULE_OF_INSTANCE, numbers.shape[1])
        assert np.array_equal(asked, numbers.reshape(-1))
        return np.select([rules == many, rules == alone], [2.5, 2.0], 50.0)

    monkeypatch.setattr("hybrid_pipeline.identifying._scores", scores)
    rows, _ = rows_to_test(listener.data, UNSEEN, 2)
    prefix, _ = told.prefix(*listener.latents(rows))
    likely = log_likelihoods(told, prefix, some_wordings(False, 14), 8)
    assert likely.argmax(1).tolist() == [int(np.flatnonzero(alone == RULE_OF_INSTANCE)[0])] * 2
    assert likely[0].max() == pytest.approx(-2.0), "the mean over wordings of one likelihood"
    assert _of_rules(likely, np.logaddexp).argmax(1).tolist() == [many] * 2


def test_words_are_scored_in_any_order() -> None:
    speaker = StubSpeaker()
    said = speaker.tokens(["erase red now", "now red erase", "up"])
    words, prefix = Words(speaker, said), torch.randn(3, 2, speaker.width)
    prefix[1] = prefix[0]
    nats = words.losses(prefix, said)
    assert nats[0].item() == pytest.approx(nats[1].item(), rel=1e-5)
    place = torch.searchsorted(words.tokens, said.ids[2, 0])
    aimed = speaker.embeddings[words.tokens[place]].expand(1, 2, -1)
    assert words.losses(aimed, said[2:])[0] < 0.1, "the embeddings of a word say that word"


def test_a_said_text_is_known_by_its_sentence() -> None:
    assert meaning(f" {INSTANCES[3].sentences(True)[1].upper()} ") == meaning(INSTANCES[3].sentences(False)[0]) == 3
    assert meaning("Good morning.") == -1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("checkpoint=nowhere", "nowhere"),
        ("word_steps=4", "word_steps=4"),
        ("identify_rows=1", "identify_rows=1"),
        ("adapter.level=1", "level=1"),
        ("adapter.pooling_heads=3", "pooling_heads=3"),
        ("adapter.vae_betta=1", "adapter.vae_beta"),
        ("speaker.model=tests", "tests"),
        ("compile=true", "compile=true"),
    ],
)
def test_mistakes_are_told_in_one_line(
    teller: Path,
    override: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(teller, tmp_path / "run", "max_steps=4", override) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line and not (tmp_path / "run/checkpoints").exists()


def test_another_setting_or_model_is_another_run(
    teller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(teller, tmp_path / "run", "max_steps=3") == 0
    assert run(teller, tmp_path / "run", "max_steps=4", "latents=constant") == 2
    assert "latents=" in capsys.readouterr().err
    other = tmp_path / "other"
    assert run_cli(hybrid_train.main, [*TINY, *INSTRUCTED, f"checkpoint_path={other}", "max_steps=2"]) == 0
    assert run(other, tmp_path / "run", "max_steps=4") == 2
    assert "give the same model" in capsys.readouterr().err


def test_a_run_goes_on_before_the_same_language_model_alone(
    teller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(teller, tmp_path, "max_steps=3") == 0
    other = StubSpeaker()
    other.identity = "another"
    monkeypatch.setattr(hybrid_describe, "open_speaker", lambda *asked: other)
    assert run(teller, tmp_path, "max_steps=4") == 2
    error = capsys.readouterr().err
    assert "before stub" in error and "install the same model" in error


def test_the_averaged_weights_are_evaluated(teller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, torch.Tensor]] = []

    def seen(told: Teller, *rest: Any) -> tuple[dict[str, float], dict[str, Any]]:
        found.append({name: p.detach().clone() for name, p in told.adapter.named_parameters()})
        return {"rows": 1.0}, {}

    monkeypatch.setattr(hybrid_describe, "evaluate", seen)
    assert run(teller, tmp_path, "max_steps=4", "lr=0.1") == 0
    saved = load_checkpoint(tmp_path / "checkpoints/step_4", groups=GROUPS).groups
    (evaluated,) = found
    assert evaluated.keys() == saved["ema"].keys()
    assert all(torch.equal(tensor, saved["ema"][name]) for name, tensor in evaluated.items())
    assert not any(torch.equal(tensor, saved["model"][name]) for name, tensor in evaluated.items())


def test_other_evaluation_settings_evaluate_again(
    teller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report() -> dict[str, Any]:
        return json.loads(path.read_text())

    path = tmp_path / "eval/step_3/descriptions.json"
    assert run(teller, tmp_path, "max_steps=3", "identify_rows=0") == 0
    assert report()["settings"] == {"eval_rows": None, "identify_rows": 0, "identify_wordings": 1}
    trained = (tmp_path / "checkpoints/step_3/manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    for asked, again in (
        ("identify_rows=2", "identify_rows=2 (was 0)"),
        ("eval_batch_size=3", ""),
        ("eval_rows=5", ""),
    ):
        before = path.stat().st_mtime_ns
        # The second differs in nothing that a figure depends on.
        more = ["identify_rows=2"] if asked != "identify_rows=2" else []
        assert run(teller, tmp_path, "max_steps=3", asked, *more) == 0
        said, evaluated = capsys.readouterr().err, path.stat().st_mtime_ns != before
        assert evaluated == ("is evaluated again" in said) == (asked != "eval_batch_size=3"), asked
        assert again in said
    assert report()["settings"] == {"eval_rows": 5, "identify_rows": 2, "identify_wordings": 1}
    assert report()["figures"]["unseen/rows"] == 5 and len(report()["losses"]["unseen"]["loss_none"]) == 5
    assert (tmp_path / "checkpoints/step_3/manifest.json").stat().st_mtime_ns == trained

    older = report()
    del older["settings"]
    path.write_text(json.dumps(older))
    assert run(teller, tmp_path, "max_steps=3", "eval_rows=5", "identify_rows=2") == 0
    assert "eval_rows=5 (not recorded)" in capsys.readouterr().err and "settings" in report()


def test_curves_are_drawn_at_the_end(teller: Path, tmp_path: Path) -> None:
    for plots in ("false", "true"):
        folder = tmp_path / plots
        assert run(teller, folder, "max_steps=3", "identify_rows=0", "eval_rows=2", f"logger.plots={plots}") == 0
        assert (folder / CURVES_NAME).exists() == (plots == "true")


def test_help_names_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hybrid_describe.main(["--help"])
    text = capsys.readouterr().out
    assert "python hybrid_describe.py" in text and "adapter.use_vae_adapter=false" in text


def test_the_adapter_starts_alike_from_a_seed(teller: Path, listener: Listener) -> None:
    def weights(*more: str) -> list[torch.Tensor]:
        adapter = build_teller(make(teller, *more), listener, open_speaker("stub")).adapter
        assert isinstance(adapter, LatentToTextAdapter)
        return [p.detach() for p in adapter.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights(), strict=True))
    assert not torch.equal(weights()[0], weights("seed=1")[0])
