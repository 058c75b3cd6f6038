"""How well descriptions are told from latents: loss with its controls, which rule a latent came from, what is said.

All figures are of test grids. A row's loss is taken with its own prefix, with that of another row (``shuffled``), with
the prefix of the same grid whose model was told nothing (``untold``), and without any (``none``): the same tokens each
time. Losses are nats a token. Which rule a latent is about is asked by `hybrid_pipeline.identifying`.

    figures, details = evaluate(teller, listener, config)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid_pipeline.adapters.vae_adapter import Collapse
from hybrid_pipeline.describe_schema import DescribeConfig
from hybrid_pipeline.descriptions import Listener, other_rows, rows_to_test, rows_to_train
from hybrid_pipeline.identifying import DECIMALS, Prefixes, identify
from hybrid_pipeline.instructed import UNSEEN
from hybrid_pipeline.speaker import Said
from hybrid_pipeline.teller import Teller

TYPICAL = 256  # training rows whose mean prefix is that of no row in particular


@torch.no_grad()
def evaluate(teller: Teller, listener: Listener, config: DescribeConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and for the record what they come from: losses by row, scores, answers and what was said."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"kl": {}, "losses": {}}
    for name in listener.data.test:
        rows, wording = rows_to_test(listener.data, name, config.eval_rows)
        prefix, kl = teller.prefix(*listener.latents(rows, teller.level))
        untold, _ = teller.prefix(*listener.latents(rows, teller.level, silent=True))
        said = teller.said(rows.sentences[rows.instance, wording])
        found, details["losses"][name] = losses(teller, said, prefix, untold, config)
        figures |= {f"{name}/{key}": value for key, value in found.items()}
        if kl is not None:
            figures |= {f"{name}/{key}": value for key, value in Collapse(kl.mean(0)).figures().items()}
            details["kl"][name] = kl.mean(0).tolist()
    if config.identify_rows:
        rows, wording = rows_to_test(listener.data, UNSEEN, config.identify_rows)
        own, _ = teller.prefix(*listener.latents(rows, teller.level))
        untold, _ = teller.prefix(*listener.latents(rows, teller.level, silent=True))
        trained, _ = teller.prefix(*listener.latents(rows_to_train(listener.data, TYPICAL, config.seed), teller.level))
        told, answers = identify(teller, rows, wording, Prefixes(own, untold, trained.mean(0)), config)
        figures |= {f"{UNSEEN}/{key}": value for key, value in told.items()}
        details |= answers
    return figures, details


def losses(
    teller: Teller, said: Said, prefix: Tensor, untold: Tensor, config: DescribeConfig
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Nats a token of what the rows should say, under the prefix and the controls; how far each control lies ``above``,
    and the standard error of that over rows. And of every row its nats under each, and its `tokens`."""
    other = torch.from_numpy(other_rows(len(said), config.seed)).to(prefix.device)
    lengths = said.mask.sum(1).cpu()
    tokens = float(lengths.sum())
    controls: dict[str, Tensor | None] = {
        "loss": prefix,
        "loss_shuffled": prefix[other],
        "loss_untold": untold,
        "loss_none": None,
    }
    found = {key: _row_nats(teller, used, said, config.eval_batch_size) for key, used in controls.items()}
    figures = {key: float(nats.sum()) / tokens for key, nats in found.items()}
    for key, nats in found.items():
        if key != "loss":
            above = nats - found["loss"]
            ratio = figures[f"{key}_above"] = float(above.sum()) / tokens
            residual = above - ratio * lengths  # of a ratio of two sums (Cochran 1977, section 2.11)
            figures[f"{key}_above_se"] = float(residual.std()) * len(said) ** 0.5 / tokens
    by_row = {key: np.round(nats.double().numpy(), DECIMALS).tolist() for key, nats in found.items()}
    return figures | {"tokens": tokens, "rows": len(said)}, by_row | {"tokens": lengths.tolist()}


def _row_nats(teller: Teller, prefix: Tensor | None, said: Said, batch_size: int) -> Tensor:
    """Nats of each row's description, fp32 [rows]; rows of like length are scored together."""
    nats = torch.zeros(len(said))
    for part in said.mask.sum(1).argsort().split(batch_size):
        own = None if prefix is None else prefix[part]
        nats[part.cpu()] = teller.speaker.losses(own, said[part]).sum(1).cpu()
    return nats
