"""Token losses and the ACT loss head.

`stablemax_cross_entropy` is the cross entropy under stablemax, s(x) = x + 1 for x >= 0 and 1 / (1 - x) below
(Prieto et al. 2025, "Grokking at the Edge of Numerical Stability"). The head adds the halting loss: a binary cross
entropy of the halt logit against "the whole answer is right now" (TRM paper, section 4.1).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_LABEL_ID = -100

# Keeps 1 / (1 - x) finite in the branch that `where` discards, so that its gradient is not NaN.
STABLEMAX_EPS = 1e-30


def log_stablemax(x: Tensor) -> Tensor:
    """Logarithm of the stablemax of the last dimension."""
    score = torch.where(x < 0, 1 / (1 - x + STABLEMAX_EPS), x + 1)
    return torch.log(score / score.sum(dim=-1, keepdim=True))


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_LABEL_ID) -> Tensor:
    """Loss per cell [batch, length], 0 where ignored; fp64 as published (fp32 on devices without it)."""
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    log_probability = log_stablemax(logits.to(precise))
    valid = labels != ignore_index
    target = torch.where(valid, labels, 0).to(torch.long).unsqueeze(-1)
    return -torch.where(valid, log_probability.gather(-1, target).squeeze(-1), 0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_LABEL_ID) -> Tensor:
    """Loss per cell [batch, length], 0 where ignored; fp32."""
    flat = F.cross_entropy(
        logits.to(torch.float32).flatten(0, -2),
        labels.to(torch.long).flatten(),
        ignore_index=ignore_index,
        reduction="none",
    )
    return flat.view(labels.shape)


LOSSES = {"stablemax_cross_entropy": stablemax_cross_entropy, "softmax_cross_entropy": softmax_cross_entropy}


def stablemax_confidence(logits: Tensor) -> Tensor:
    """Probability of the likeliest token under stablemax, fp32 [...], of logits [..., vocab_size]."""
    logits = logits.to(torch.float32)
    score = torch.where(logits < 0, 1 / (1 - logits.clamp_max(0)), logits + 1)
    return score.amax(-1) / score.sum(-1)


def softmax_confidence(logits: Tensor) -> Tensor:
    """Probability of the likeliest token under softmax, fp32 [...], of logits [..., vocab_size]."""
    logits = logits.to(torch.float32)
    return torch.exp(logits.amax(-1) - logits.logsumexp(-1))


# How sure a model is, under the distribution that it was trained with.
CONFIDENCES = {"stablemax_cross_entropy": stablemax_confidence, "softmax_cross_entropy": softmax_confidence}


class ACTLossHead(nn.Module):
    """An ACT model and its loss: ``model(carry=, batch=, return_keys=) -> (carry, loss, metrics, preds, all_finish)``.

    `loss` is summed over the rows: the mean token loss of each row, plus half the halting losses, plus what the
    architecture itself adds (`ACTModel.auxiliary`).
    `metrics` are sums too; those of accuracy run over the `count` rows that halted at this step and have labels.
    Rows without any label (padding) count nowhere, in the halting losses neither.
    """

    model: Any  # an ACTModel

    def __init__(self, model: nn.Module, loss_type: str):
        super().__init__()
        if loss_type not in LOSSES:
            raise ValueError(f"loss_type={loss_type!r} is unknown; choose one of {', '.join(LOSSES)}")
        self.model = model
        self.loss_fn = LOSSES[loss_type]
        self.confidence_fn = CONFIDENCES[loss_type]

    def initial_carry(self, batch: dict[str, Tensor]) -> Any:
        return self.model.initial_carry(batch)

    def forward(
        self, return_keys: Collection[str] = (), **model_kwargs: Any
    ) -> tuple[Any, Tensor, dict[str, Tensor], dict[str, Any], Tensor]:
        carry, outputs = self.model(**model_kwargs)
        logits, labels = outputs["logits"], carry.current_data["labels"]

        labelled = labels != IGNORE_LABEL_ID
        counts = labelled.sum(-1)
        divisor = counts.clamp_min(1)
        has_labels = counts > 0
        outputs["preds"] = logits.detach().argmax(-1)
        correct = labelled & (outputs["preds"] == labels)
        solved = correct.sum(-1) == counts

        lm_loss = (self.loss_fn(logits, labels) / divisor.unsqueeze(-1)).sum()
        q_halt_loss = halting_loss(outputs["q_halt_logits"], solved, has_labels)
        added, added_metrics = self.model.auxiliary(outputs, labels, self.loss_fn)
        loss = lm_loss + 0.5 * q_halt_loss + added

        finished = carry.halted & has_labels
        metrics = {
            "count": finished.sum(),
            "accuracy": torch.where(finished, (correct.to(torch.float32) / divisor.unsqueeze(-1)).sum(-1), 0).sum(),
            "exact_accuracy": (finished & solved).sum(),
            "q_halt_accuracy": (finished & ((outputs["q_halt_logits"] >= 0) == solved)).sum(),
            "steps": torch.where(finished, carry.steps, 0).sum(),
            "lm_loss": lm_loss.detach(),
            "q_halt_loss": q_halt_loss.detach(),
            **added_metrics,
        }
        if "target_q_continue" in outputs:
            q_continue_loss = halting_loss(outputs["q_continue_logits"], outputs["target_q_continue"], has_labels)
            loss = loss + 0.5 * q_continue_loss
            metrics["q_continue_loss"] = q_continue_loss.detach()

        found = {key: outputs[key] for key in return_keys if key in outputs}
        # A trajectory is a record of tensors that are detached already.
        preds = {key: value.detach() if isinstance(value, Tensor) else value for key, value in found.items()}
        return carry, loss, metrics, preds, carry.halted.all()


def halting_loss(logits: Tensor, target: Tensor, has_labels: Tensor) -> Tensor:
    """Binary cross entropy of logits [batch] against what is true, summed over the rows with labels, in fp32."""
    per_row = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return torch.where(has_labels, per_row, 0).sum()
