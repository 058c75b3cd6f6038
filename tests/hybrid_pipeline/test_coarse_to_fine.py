"""A coarse-to-fine model that listens: text reaches every level, each by positions of its own, and latents come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from datasets.common import InputError
from hybrid_pipeline.adapters.text_to_latent import LevelTextToLatentAdapter
from hybrid_pipeline.coarse_to_fine import HybridHierarchicalModel
from hybrid_pipeline.latents import check_level, final_latents, level_lengths
from hybrid_pipeline.llm import StubEncoder
from models.recursive_reasoning.trm_hierarchical_diffusion import TRMHierarchicalDiffusion
from tests.hybrid_pipeline.test_hybrid_train import run
from tests.hybrid_pipeline.test_model import SENTENCES, SETTINGS, gradients, logits
from tests.training.runs import records

LEVELS, CELLS = [[1, 2], [2, 2], [4, 4]], [2, 4, 16]


def build(**keys: Any) -> HybridHierarchicalModel:
    torch.manual_seed(0)
    model = HybridHierarchicalModel(SETTINGS | {"seq_len": 16, "levels": LEVELS} | keys)
    model.inner.read(StubEncoder().encode(SENTENCES))
    return model


def batch(*texts: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randint(2, 12, (len(texts), 16), generator=draws, dtype=torch.int32)
    inputs[:, [3, 7, 11, 12, 13, 14, 15]] = 0
    return {
        "inputs": inputs,
        "labels": inputs.flip(1),
        "puzzle_identifiers": torch.zeros(len(texts), dtype=torch.int32),
        "texts": torch.tensor(texts, dtype=torch.int32),
    }


def loud(model: HybridHierarchicalModel) -> HybridHierarchicalModel:
    """With all maps between levels alive, which are zero as they start."""
    inner = model.inner
    for linear in (inner.up, inner.down, inner.position_context, *(level.q_head for level in inner.coarse)):
        torch.nn.init.normal_(linear.weight, std=0.1)
    return model


def level_latents(model: HybridHierarchicalModel, *texts: int) -> list[Tensor]:
    return [final_latents(model.eval(), batch(*texts), level)[0] for level in range(len(CELLS))]


@pytest.mark.parametrize("mode", [{}, {"mlp_t": True, "pos_encodings": "none"}, {"use_cross_attention_bridge": False}])
def test_gradients_reach_every_parameter(mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hybrid_pipeline.test_model.batch", batch)
    found = gradients(loud(build(**mode)))
    assert {name for name, size in found.items() if size == 0} == set()
    assert found["inner.text.position_embeddings"] > 0


def test_every_level_hears_its_own_text() -> None:
    """With nothing else between the levels, a level's latents change with what is said to it and with no other's."""
    model = build().eval()
    plain = level_latents(model, 1)
    for level, cells in enumerate(model.inner.text.levels):
        changed = build().eval()
        with torch.no_grad():
            changed.inner.text.position_embeddings[cells] += 1
        different = [not torch.equal(a, b) for a, b in zip(plain, level_latents(changed, 1), strict=True)]
        # What the finest level reads is averaged for all others, from the first step on.
        assert different == ([i == level for i in range(3)] if level < 2 else [True] * 3)


def test_without_text_it_is_the_plain_model() -> None:
    model = loud(build()).eval()
    keys = TRMHierarchicalDiffusion.config_class.model_fields
    plain = TRMHierarchicalDiffusion({key: getattr(model.config, key) for key in keys})
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("inner.text.")})
    rows = batch(0, 0)
    expected = logits(plain.eval(), {key: value for key, value in rows.items() if key != "texts"}, 2)
    assert torch.equal(logits(model, rows, 2), expected)
    assert not torch.equal(logits(model, batch(1, 2), 2), expected)


def test_latents_of_a_level_and_where_to_read_them() -> None:
    model = build().eval()
    assert level_lengths(model) == CELLS
    for level, cells in enumerate(CELLS):
        z, mask = final_latents(model, batch(1, 2), level)
        assert z.shape == (2, cells, 16) and mask.shape == (2, cells)
    assert torch.equal(final_latents(model, batch(1), -1)[0], final_latents(model, batch(1), 2)[0])
    _, coarse = final_latents(model, batch(1), 1)
    assert coarse.tolist() == [[True, True, True, True]], "a block with any cell is read"
    rows = batch(1)
    rows["inputs"][:, [0, 1, 4, 5]] = 0
    assert final_latents(model, rows, 1)[1].tolist() == [[False, True, True, True]]
    with pytest.raises(InputError, match="level=3"):
        check_level(model, 3)


def test_levels_of_the_adapter_share_all_but_positions() -> None:
    config = build().inner.config.adapter
    adapter = LevelTextToLatentAdapter(config, CELLS)
    assert len(adapter.position_embeddings) == sum(CELLS) == config.places
    states = StubEncoder().encode(SENTENCES)
    cells = torch.randn(len(SENTENCES), 4, 16)
    assert adapter.at_level(1, states.states, states.mask, cells).shape == (len(SENTENCES), 4, 16)
    with pytest.raises(ValueError, match="places"):
        LevelTextToLatentAdapter(config, CELLS[1:])


def test_only_the_input_is_built() -> None:
    with pytest.raises(ValidationError, match="injection=carry is for arch=trm"):
        build(injection="carry")


def test_it_trains(tmp_path: Path) -> None:
    assert run(tmp_path, "arch=trm_hierarchical_diffusion", "max_steps=2") == 0
    assert len(records(tmp_path, "train/level_2x2_lm_loss")) == 2
    assert records(tmp_path, "eval/unseen_shuffled/rows") == {2: 10}
