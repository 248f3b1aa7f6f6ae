"""From residual streams to probabilities, a few rows at a time: a vocabulary is wide."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.forward.passes import plain_transformers

_LOGIT_BYTES = 64 * 2**20  # of vocabulary-wide rows held at a time
_READ_BYTES = {"cpu": 4 * 2**20}  # of these read at a time, while they are in the processor's cache


@dataclass(frozen=True)
class Readout:
    """What the model says about target tokens: their log-probability and whether they are the likeliest."""

    log_probability: Float[Tensor, "*batch row pos"]
    correct: Bool[Tensor, "*batch row pos"]


class _Below(tuple):
    """What a base model gives, with its last hidden state alone; architectures ask for it by place or by name."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def own_logits(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from normed residual streams `[row, d_model]` to logits, by the causal model's own forward pass.

    What lies below its head is replaced by the rows given, so that scales and caps of logits are the architecture's.
    """
    with plain_transformers(model) as hf_model:
        below = hf_model.get_decoder()  # what the causal model calls itself: in OPT not its base model

        def logits(rows: Tensor) -> Tensor:
            given = _Below((rows[None],))
            below.forward = lambda *_args, **_kwargs: given
            try:
                return hf_model(inputs_embeds=rows[None], use_cache=False).logits[0]
            finally:
                del below.forward

        yield logits


def read_targets(
    model: nn.Module, hidden: Float[Tensor, "batch row pos d_model"], targets: Int[Tensor, "batch pos"]
) -> Readout:
    """Final norm, unembedding and softmax, a few rows at a time."""
    norm = model.ln_final.original_component
    shape = hidden.shape[:3]
    target = targets[:, None].expand(shape).reshape(-1, 1)
    n_rows, n_read = (max(1, n // (4 * model.cfg.d_vocab)) for n in (
        _LOGIT_BYTES, _READ_BYTES.get(hidden.device.type, _LOGIT_BYTES)))
    log_probability, correct = [], []
    with own_logits(model) as unembed:
        for rows, at in zip(hidden.flatten(0, 2).split(n_rows), target.split(n_rows), strict=True):
            logits = unembed(norm(rows))
            for few, one in zip(logits.split(n_read), at.split(n_read), strict=True):
                few = few.to(torch.promote_types(few.dtype, torch.float32))
                log_probability.append(few.gather(-1, one)[:, 0] - few.logsumexp(-1))
                correct.append(few.argmax(-1) == one[:, 0])
    return Readout(torch.cat(log_probability).view(shape), torch.cat(correct).view(shape))
