"""A frozen causal language model that says a description after a soft prefix, or after nothing.

What it reads is ``[start] [prefix] [description]``. It is scored on the description's tokens and on no others, the
first of which follows the prefix. Descriptions are padded on the right, where causal attention never looks, so no mask
is needed. Gradients go through it to the prefix; its own weights get none.

    speaker = open_speaker("smollm2")
    said = speaker.tokens(["Erase red."])
    nats = speaker.losses(prefix, said)            # [batch, tokens], zero where there is no token
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.common import InputError
from hybrid_pipeline.llm import STUB, LanguageModel, digest_of, open_writer

STUB_WIDTH, STUB_VOCABULARY = 24, 97
START = 0  # of the stub, which ends with it too


@dataclass(frozen=True)
class Said:
    """Tokens int64 [texts, tokens], padded on the right, and bool [texts, tokens]: where there is one."""

    ids: Tensor
    mask: Tensor

    def __getitem__(self, rows: Any) -> Said:
        """Of some of the texts, no longer than the longest of them."""
        ids, mask = self.ids[rows], self.mask[rows]
        longest = int(mask.sum(1).max())
        return Said(ids[:, :longest], mask[:, :longest])

    def __len__(self) -> int:
        return len(self.ids)


class Body(Protocol):
    """Embeddings [batch, positions, width] to causal states of the same shape; `past`: what came before, and is
    returned, where the body can keep it."""

    def __call__(self, embeddings: Tensor, past: Any = None, keep: bool = False) -> tuple[Tensor, Any]: ...


class Speaker:
    """`scale`: the root mean square of the token embeddings; `identity` tells apart what gives other losses."""

    def __init__(self, body: Body, embeddings: Tensor, head: Tensor, start: int, identity: str):
        self.body, self.embeddings, self.start, self.identity = body, embeddings, start, identity
        # fp32 whatever the body computes in: a loss is a difference of large numbers.
        self.head = head.float()
        self.width = embeddings.shape[1]
        self.scale = float(embeddings.float().square().mean().sqrt())

    def tokens(self, texts: Sequence[str]) -> Said:
        """`InputError` for a text without a token."""
        numbers = [self.encode(text) for text in texts]
        if not all(numbers):
            raise InputError(f"text {[bool(found) for found in numbers].index(False)} is empty: nothing can be said")
        longest = max(map(len, numbers))
        device = self.embeddings.device
        ids = torch.tensor([found + [0] * (longest - len(found)) for found in numbers], device=device)
        lengths = torch.tensor([len(found) for found in numbers], device=device)
        return Said(ids, torch.arange(longest, device=device) < lengths.unsqueeze(1))

    def encode(self, text: str) -> list[int]:
        raise TypeError(f"{type(self).__name__} does not say how a text is cut into tokens")

    def decode(self, ids: Sequence[int]) -> str:
        raise TypeError(f"{type(self).__name__} does not say what its tokens read")

    @property
    def ends(self) -> set[int]:
        """Tokens after which nothing more is said."""
        raise TypeError(f"{type(self).__name__} does not say where a text ends")

    def losses(self, prefix: Tensor | None, said: Said) -> Tensor:
        """Nats of every token after prefix [batch, K, width] or none: fp32 [batch, tokens], zero for padding."""
        before = self._opening(prefix, len(said))
        read = torch.cat((before, self._embed(said.ids[:, :-1])), dim=1)
        states, _ = self.body(read)
        return self._nats(states[:, before.shape[1] - 1 :], said)

    @torch.no_grad()
    def candidate_losses(self, prefix: Tensor | None, said: Said, at_once: int) -> Tensor:
        """The same for many texts after one prefix [K, width], which is read once: fp32 [texts, tokens]."""
        states, past = self.body(self._opening(None if prefix is None else prefix.unsqueeze(0), 1), keep=True)
        found = torch.zeros(said.ids.shape, device=self.head.device)
        for rows in said.mask.sum(1).argsort().split(at_once):
            part = said[rows]
            following, _ = self.body(self._embed(part.ids[:, :-1]), past=_repeated(past, len(rows)))
            seen = torch.cat((states[:, -1:].expand(len(rows), -1, -1), following), dim=1)
            found[rows, : part.ids.shape[1]] = self._nats(seen, part)
        return found

    @torch.no_grad()
    def say(self, prefix: Tensor, max_tokens: int) -> list[str]:
        """The likeliest token, again and again, after each prefix [batch, K, width], up to a full stop or the end."""
        ids = torch.zeros(len(prefix), 0, dtype=torch.int64, device=self.embeddings.device)
        done = torch.zeros(len(prefix), dtype=torch.bool, device=ids.device)
        ends = torch.tensor(sorted(self.ends), device=ids.device)
        while ids.shape[1] < max_tokens and not done.all():
            states, _ = self.body(torch.cat((self._opening(prefix, len(prefix)), self._embed(ids)), dim=1))
            ids = torch.cat((ids, self._logits(states[:, -1]).argmax(-1, keepdim=True)), dim=1)
            done |= torch.isin(ids[:, -1], ends)
        return [self.decode(_up_to(row, self.ends)) for row in ids.tolist()]

    def _opening(self, prefix: Tensor | None, count: int) -> Tensor:
        start = self._embed(torch.full((count, 1), self.start, device=self.embeddings.device))
        return start if prefix is None else torch.cat((start, prefix.to(start.dtype)), dim=1)

    def _embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embeddings)

    def _logits(self, states: Tensor) -> Tensor:
        return F.linear(states.float(), self.head)

    def _nats(self, states: Tensor, said: Said) -> Tensor:
        """The vocabulary is large: only what is scored is multiplied by it."""
        nats = F.cross_entropy(self._logits(states[said.mask]), said.ids[said.mask], reduction="none")
        return torch.zeros(said.mask.shape, device=nats.device).masked_scatter(said.mask, nats)


def _up_to(ids: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends, that one included."""
    for place, token in enumerate(ids):
        if token in ends:
            return list(ids[: place + 1])
    return list(ids)


def _repeated(past: Any, times: int) -> Any:
    """What was read once, for so many continuations; the original stays as it is."""
    past = copy.deepcopy(past)
    if isinstance(past, Tensor):
        return past.repeat_interleave(times, 0)
    past.batch_repeat_interleave(times)
    return past


class _StubBody(nn.Module):
    """A causal network of fixed random weights: every position sees a decaying sum of what came before."""

    def __init__(self, width: int):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(width, width, generator=draws) / width**0.5, requires_grad=False)
        self.out = nn.Parameter(3 * torch.randn(width, width, generator=draws) / width**0.5, requires_grad=False)

    def forward(self, embeddings: Tensor, past: Any = None, keep: bool = False) -> tuple[Tensor, Any]:
        read = embeddings if past is None else torch.cat((past, embeddings), dim=1)
        place = torch.arange(read.shape[1], dtype=torch.float32)
        weight = (0.95 ** (place.unsqueeze(1) - place)).tril()
        states = (
            embeddings + torch.tanh(weight @ (read @ self.mix))[:, read.shape[1] - embeddings.shape[1] :] @ self.out
        )
        return states, read if keep else None


class StubSpeaker(Speaker):
    """Deterministic, small and frozen, for tests: a word is a token, by its hash."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(1)
        embeddings = torch.randn(STUB_VOCABULARY, STUB_WIDTH, generator=draws)
        super().__init__(_StubBody(STUB_WIDTH), embeddings, embeddings / STUB_WIDTH**0.5, START, STUB)

    def encode(self, text: str) -> list[int]:
        hashes = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in text.lower().split()]
        return [1 + int.from_bytes(found, "big") % (STUB_VOCABULARY - 1) for found in hashes]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    @property
    def ends(self) -> set[int]:
        return {START}


class _TransformersBody:
    def __init__(self, model: Any):
        self.model = model
        # Argument and output have had another name since transformers 5.24, which the old one is to disappear after.
        takes = inspect.signature(model.forward).parameters
        self.past_name = "cache" if "cache" in takes else "past_key_values"

    def __call__(self, embeddings: Tensor, past: Any = None, keep: bool = False) -> tuple[Tensor, Any]:
        before = {} if past is None else {self.past_name: past}
        found = self.model(inputs_embeds=embeddings, use_cache=keep or past is not None, **before)
        return found.last_hidden_state, getattr(found, self.past_name) if keep else None


class FrozenSpeaker(Speaker):
    """A causal `transformers` model. It starts with its end-of-document token, which ends texts in its training."""

    def __init__(self, tokenizer: Any, model: Any, name: str):
        self.tokenizer, self.model, self.name = tokenizer, model.requires_grad_(False).eval(), name
        embeddings = model.get_input_embeddings().weight
        start = next((i for i in self._starts(tokenizer) if i is not None), None)
        if start is None:
            raise InputError(f"speaker.model={name} has no token that starts a text: use another model")
        head = model.get_output_embeddings()
        body = _TransformersBody(model.get_decoder())
        super().__init__(body, embeddings, head.weight, start, f"{name}-{digest_of(model)}-{embeddings.dtype}")

    @torch.no_grad()
    def check(self) -> None:
        """`InputError` for a model that does more with its embeddings and states than is done here: some scale them."""
        said = self.tokens(["Turn the grid."])
        start = torch.full((1, 1), self.start, device=said.ids.device)
        ids = torch.cat((start, said.ids), dim=1)
        own = float(self.model(input_ids=ids, labels=ids).loss)
        found = float(self.losses(None, said).mean())
        if abs(own - found) > 0.05 * abs(own):
            raise InputError(
                f"speaker.model={self.name} finds its own loss to be {own:.3f} nats a token, and it is {found:.3f} "
                "here: its embeddings or logits are scaled in a way that is not supported, use another model"
            )

    @staticmethod
    def _starts(tokenizer: Any) -> list[int | None]:
        """Instructed models have put their end of document elsewhere than in `eos_token`."""
        known = tokenizer.get_vocab()
        return [known.get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def ends(self) -> set[int]:
        stops = {self.start, self.tokenizer.eos_token_id, *self.encode("Stop.")[-1:]}
        return {token for token in stops if token is not None}


def open_speaker(name: str, dtype: str = "float32", device_map: str | None = None) -> Speaker:
    """The stub, or a causal model by its name or folder. `InputError` as `hybrid_pipeline.llm.open_writer` has them."""
    if name == STUB:
        return StubSpeaker()
    options = LanguageModel(name, dtype=dtype, device_map=device_map, key="speaker.model")
    speaker = FrozenSpeaker(*open_writer(options), name)
    speaker.check()
    return speaker
