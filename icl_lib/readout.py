"""From residual streams to probabilities and tokens, a few rows at a time: a vocabulary is wide."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_LOGIT_BYTES = 64 * 2**20  # of vocabulary-wide rows held at a time


@dataclass(frozen=True)
class Readout:
    """What the model says about the target tokens, `pos` counting the target's own tokens."""

    log_probability: Float[Tensor, "batch row pos"]
    correct: Bool[Tensor, "batch row pos"]


def greedy_tokens(model: nn.Module, hidden: Float[Tensor, "batch row d_model"]) -> Int[Tensor, "batch row"]:
    """The likeliest next token after a normed residual stream, a few rows at a time."""
    unembed = model.unembed.original_component
    n_rows = max(1, _LOGIT_BYTES // (4 * model.cfg.d_vocab))
    return torch.cat([unembed(rows).argmax(-1) for rows in hidden.flatten(0, 1).split(n_rows)]).view(hidden.shape[:2])


def read_targets(
    model: nn.Module,
    hidden: Float[Tensor, "batch row pos d_model"],
    targets: Int[Tensor, "batch pos"],
    *,
    normed: bool = False,
) -> Readout:
    """Final norm (unless `normed`), unembedding and softmax, a few rows at a time: a vocabulary is wide."""
    norm, unembed = model.ln_final.original_component, model.unembed.original_component
    softcap = getattr(model.original_model.config, "final_logit_softcapping", None)
    shape = hidden.shape[:3]
    target = targets[:, None].expand(shape).reshape(-1, 1)
    n_rows = max(1, _LOGIT_BYTES // (4 * model.cfg.d_vocab))
    log_probability, correct = [], []
    for rows, at in zip(
        hidden.reshape(-1, hidden.shape[-1]).split(n_rows), target.split(n_rows), strict=True
    ):
        logits = unembed(rows if normed else norm(rows))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_probability.append(logits.gather(-1, at)[:, 0] - logits.logsumexp(-1))
        correct.append(logits.argmax(-1) == at[:, 0])
    return Readout(torch.cat(log_probability).view(shape), torch.cat(correct).view(shape))
