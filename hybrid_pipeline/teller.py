"""An adapter and the frozen language model that says what it makes of latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_pipeline.adapters.latent_to_text import LatentToTextAdapter
from hybrid_pipeline.speaker import Said, Speaker


@dataclass(frozen=True)
class Teller:
    """Adapter and language model. `sentences`: the tokens of all sentences but the empty one, in their order."""

    adapter: LatentToTextAdapter
    speaker: Speaker
    sentences: Said
    level: int
    constant: bool

    def said(self, numbers: NDArray[np.int64]) -> Said:
        """The tokens of the sentences of these numbers, int64 [texts]; the first has number 1."""
        return self.sentences[torch.from_numpy(numbers - 1).to(self.sentences.ids.device)]

    def prefix(self, z: Tensor, mask: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What `LatentToTextAdapter` makes of latents and of where to read them; of nothing in a `constant` run."""
        if self.constant:
            z, mask = torch.zeros_like(z), torch.ones_like(mask)
        return self.adapter(z, mask, noise)
