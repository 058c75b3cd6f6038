"""States of texts: masks, pooling, the cache, and the real models where they are installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets.common import InputError
from hybrid_pipeline.llm import (
    PACKAGED,
    FrozenLanguageModel,
    LanguageModel,
    StubEncoder,
    TextStates,
    digest_of,
    encode_cached,
    open_encoder,
    package_folder,
    read_texts,
)

TEXTS = ["", "Erase every red cell.", "Replace blue with green in the whole of the grid."]


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec("transformers") is None or package_folder(name) is None
    return pytest.mark.skipif(missing, reason=f"needs transformers and {PACKAGED[name][1]}, which are not installed")


class Counting(StubEncoder):
    calls = 0

    def encode(self, texts: Sequence[str]) -> TextStates:
        self.calls += 1
        return super().encode(texts)


def test_the_stub_is_deterministic_and_tells_words_apart() -> None:
    one, other = StubEncoder().encode(TEXTS), StubEncoder().encode(TEXTS)
    assert torch.equal(one.states, other.states)
    assert one.mask.sum(1).tolist() == [0, 4, 10]
    assert (one.states[~one.mask] == 0).all()
    assert not torch.equal(one.states[1, 0], one.states[1, 1])


def test_pooling_sees_a_text_and_not_its_padding() -> None:
    found = StubEncoder().encode(TEXTS)
    alone = StubEncoder().encode(TEXTS[1:2])
    assert torch.allclose(found.pooled()[1], alone.states[0].mean(0)) and (found.pooled()[0] == 0).all()
    assert torch.equal(found.last()[1], alone.states[0, -1])
    left = TextStates(found.states.flip(1), found.mask.flip(1))
    assert torch.equal(left.last()[1], left.states[1, -1])


def test_states_are_computed_once(tmp_path: Path) -> None:
    encoder = Counting()
    first = encode_cached(encoder, TEXTS, tmp_path)
    second = encode_cached(encoder, TEXTS, tmp_path)
    assert encoder.calls == 1
    assert torch.equal(first.states, second.states) and torch.equal(first.mask, second.mask)
    encode_cached(encoder, TEXTS[:2], tmp_path)
    other = Counting(max_tokens=3)
    assert encode_cached(other, TEXTS, tmp_path).mask.sum(1).max() == 3
    assert encoder.calls == 2 and other.calls == 1


def test_a_machine_without_the_model_reads_the_states_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stub stands for a packaged model on the machine that has it; the other one has only its folder of states."""
    asked = LanguageModel("minilm", max_tokens=7)

    def named(digest: str) -> StubEncoder:
        encoder = StubEncoder(max_tokens=7)
        encoder.asked, encoder.identity = asked.asked, f"{asked.asked}-{digest}"
        return encoder

    computed = encode_cached(named("weights"), TEXTS, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, identity = read_texts(asked, TEXTS, tmp_path)
    assert identity == "minilm-plain-7-float32-weights"
    assert torch.equal(found.states, computed.states) and torch.equal(found.mask, computed.mask)
    assert "not on this machine" in capsys.readouterr().err
    for other, texts in ((asked, TEXTS[:2]), (LanguageModel("minilm", max_tokens=8), TEXTS)):
        with pytest.raises(InputError, match=r"pip install .*copy the folder llm.cache_dir"):
            read_texts(other, texts, tmp_path)
    with pytest.raises(InputError, match="copy the folder"):
        read_texts(asked, TEXTS, None)
    encode_cached(named("other weights"), TEXTS, tmp_path)
    with pytest.raises(InputError, match="two models of one name"):
        read_texts(asked, TEXTS, tmp_path)


def test_a_cache_has_no_padding_and_no_more_digits_than_the_model(tmp_path: Path) -> None:
    class Half(StubEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.dtype = torch.bfloat16

        def encode(self, texts: Sequence[str]) -> TextStates:
            found = super().encode(texts)
            return TextStates(found.states.bfloat16().float(), found.mask)

    long = " ".join(["red"] * 64)
    computed = encode_cached(Half(), [*TEXTS, long], tmp_path)
    found = encode_cached(Half(), [*TEXTS, long], tmp_path)
    assert torch.equal(found.states, computed.states) and found.states.dtype == torch.float32
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < (4 + 10 + 64) * 32 * 2 + 1000


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    encode_cached(StubEncoder(), TEXTS, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=path.name):
        encode_cached(StubEncoder(), TEXTS, tmp_path)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e .*hybrid"):
        open_encoder(LanguageModel("minilm"))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"cannot be opened.*minilm or smollm2"):
        open_encoder(LanguageModel(str(tmp_path)))


@needs("minilm")
def test_minilm_reads() -> None:
    encoder = open_encoder(LanguageModel("minilm"))
    found = encoder.encode(["", "Erase red.", "Remove the red squares.", "The weather in Lima is mild in May."])
    assert encoder.width == 384 and found.states.shape[2] == 384
    assert not found.mask[0].any() and (found.states[0] == 0).all()
    alone = encoder.encode(["Erase red."])
    assert torch.allclose(found.pooled()[1], alone.pooled()[0], atol=1e-5), "padding changes nothing"
    unit = torch.nn.functional.normalize(found.pooled(), dim=1)
    assert unit[1] @ unit[2] > unit[1] @ unit[3] + 0.2
    assert isinstance(encoder, FrozenLanguageModel)
    assert not any(p.requires_grad for p in encoder.model.parameters()) and not encoder.model.training
    with pytest.raises(InputError, match="no chat template"):
        open_encoder(LanguageModel("minilm", chat_template=True))


@needs("smollm2")
@pytest.mark.skipif("TRM_LAB_SLOW" not in os.environ, reason="takes a minute: set TRM_LAB_SLOW=1")
def test_smollm2_reads() -> None:
    encoder = open_encoder(LanguageModel("smollm2", chat_template=True))
    found = encoder.encode(["Erase red.", "Replace every blue cell of the grid with a green one."])
    assert encoder.width == 576 and found.mask[0].sum() < found.mask[1].sum()
    alone = encoder.encode(["Erase red."])
    assert torch.allclose(found.last()[0], alone.last()[0], atol=1e-3)


def test_a_model_is_the_same_whichever_version_opened_it() -> None:
    def model(**config: Any) -> Any:
        weights = {"w": torch.arange(4.0)}
        return SimpleNamespace(config=SimpleNamespace(to_dict=lambda: config), state_dict=lambda: weights)

    first = digest_of(model(width=4, transformers_version="5.17.0"))
    assert first == digest_of(model(transformers_version="5.24.0", width=4))
    assert first != digest_of(model(width=5, transformers_version="5.17.0"))


def test_a_model_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=16, **small))
    for folder in ("here", "there"):
        bert.save_pretrained(tmp_path / folder)
    here, there = (transformers.AutoModel.from_pretrained(tmp_path / folder) for folder in ("here", "there"))
    assert here.config.name_or_path != there.config.name_or_path
    assert digest_of(here) == digest_of(there)
    with torch.no_grad():
        next(there.parameters()).view(-1)[0] += 1
    assert digest_of(here) != digest_of(there)
