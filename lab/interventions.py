"""Training without induction, or with more of it early: the named options of the causal test, each with its sham.

A rung's `intervention: {name, strength, sham}` changes what a model reads, which tokens count, what heads may attend
to, or what they put out. A sham takes as much away and leaves induction alone: as many tokens without loss, as many
keys out of reach, as many heads without output, as many extra rows, all drawn at random. It is not equal in all: the
keys that a mask hides name the next token, and arms without loss on copies raise the few-shot share of the loss
(lab/batches.py). Step N's draws depend on seed and N alone, apart from those of the batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, nn

from icl_lib.heads import random_heads
from icl_lib.scores.induction import induction_targets
from lab.text import Generator, Rows

RUNNING_TEXT = ("documents", "listings")  # everything else has the form of a few-shot prompt
EARLY_SHARE = 0.25  # of the training steps, in which `early_repeats` adds rows
DESCRIPTIONS = {
    "none": "the rung's recipe as it is",
    "no_repeats": "repeated segments and passages of running text become new text, without loss in listings",
    "no_copy_loss": "no loss on tokens that came after the same token before",
    "mask_outside": "in running text no head attends to tokens after an earlier copy of the current one",
    "mask_everywhere": "the same mask in every text, few-shot prompts too",
    "clamp": "the heads that end as induction heads without an intervention put out zero from the start",
    "early_repeats": f"extra rows of repeated segments in the first {EARLY_SHARE:.0%} of the steps",
}


@dataclass(frozen=True)
class Intervention:
    """What changes and how much of it.

    `strength` is a share, 0..1: of repeats replaced, of copies without loss, of attention odds taken away (1 forbids),
    of the named heads clamped, strongest first. For `early_repeats` it is the number of extra rows per row of listings.
    """

    name: str = "none"
    strength: float = 1.0
    sham: bool = False
    heads: tuple[tuple[int, int], ...] = ()  # (layer, head) that `clamp` clamps

    def __post_init__(self) -> None:
        if self.name not in DESCRIPTIONS:
            raise ValueError(f"unknown intervention {self.name!r}; known: {', '.join(DESCRIPTIONS)}")
        if not 0 <= self.strength <= (8 if self.name == "early_repeats" else 1):
            raise ValueError(f"intervention {self.name}: strength {self.strength} is out of its range 0..1 "
                             "(early_repeats: 0..8)")

    @property
    def repeats(self) -> float:
        """The share of repeats in running text that stay."""
        return 1.0 - self.strength if self.name == "no_repeats" and not self.sham else 1.0

    def apply(
        self, batch: list[Rows], generator: Generator, mixture: dict, *, rng: np.random.Generator, progress: float
    ) -> list[Rows]:
        """The batch as the intervention leaves it; `progress` is the share of training done."""
        if self.name == "no_repeats" and self.sham:
            listings = [np.full(rows.tokens.shape, rows.kind == "listings") for rows in batch]
            return _without_as_much_loss(batch, listings, self.strength, rng)
        if self.name == "no_copy_loss":
            return self._without_copies(batch, rng)
        if self.name in ("mask_outside", "mask_everywhere"):
            return [self._masked(rows, rng) for rows in batch]
        if self.name == "early_repeats" and progress < EARLY_SHARE:
            kind = "lookups" if self.sham else "listings"
            rows, length = round(self.strength * mixture["listings"]["rows"]), mixture["listings"]["length"]
            return [*batch, *generator.batch(rng, {kind: {"rows": rows, "length": length}})] if rows else batch
        return batch

    def _without_copies(self, batch: list[Rows], rng: np.random.Generator) -> list[Rows]:
        copies = [after_the_same_token(rows.tokens) for rows in batch]
        if self.sham:
            return _without_as_much_loss(batch, copies, self.strength, rng)
        return [replace(rows, weights=np.where(copy & (rng.random(copy.shape) < self.strength), 0, rows.weights))
                for rows, copy in zip(batch, copies, strict=True)]

    def _masked(self, rows: Rows, rng: np.random.Generator) -> Rows:
        if self.name == "mask_outside" and rows.kind not in RUNNING_TEXT:
            return rows
        targets = induction_targets(torch.from_numpy(rows.tokens)).numpy()
        if self.sham:
            targets = other_keys(targets, rng)
        return replace(rows, attention=attention_bias(targets, self.strength))


def after_the_same_token(tokens: ndarray) -> Bool[ndarray, "batch pos"]:
    """Tokens that an induction head could predict: the pair of the token before and this one stood there earlier."""
    pairs = tokens[:, :-1] * (int(tokens.max()) + 1) + tokens[:, 1:]
    found = np.zeros(tokens.shape, dtype=bool)
    for row, of_row in zip(found, pairs, strict=True):
        _, first, which = np.unique(of_row, return_index=True, return_inverse=True)
        row[1:] = first[which] < np.arange(len(of_row))
    return found


def other_keys(
    targets: Bool[ndarray, "batch pos key"], rng: np.random.Generator
) -> Bool[ndarray, "batch pos key"]:
    """For each query as many random keys as it has targets: none of these, not the first token, none ahead of it.

    A query with too few other keys gets all of them.
    """
    noise = rng.random(targets.shape, dtype=np.float32)
    possible = np.tril(np.ones(targets.shape[1:], dtype=bool)) & ~targets
    possible[..., 0] = False
    noise[~possible] = 2.0
    wanted = targets.sum(-1)[..., None]
    cut = np.take_along_axis(np.sort(noise, axis=-1), np.maximum(wanted - 1, 0), axis=-1)
    return possible & (noise <= cut) & (wanted > 0)


def attention_bias(
    targets: Bool[ndarray, "batch pos key"], strength: float
) -> Float[ndarray, "batch pos key"]:
    """What is added to attention logits: -inf ahead of the query, log(1 - strength) on the targets, else 0."""
    bias = np.where(targets, np.log1p(-strength) if strength < 1 else -np.inf, 0.0)
    return np.where(np.tri(targets.shape[1], dtype=bool), bias, -np.inf).astype(np.float32)


def heads_to_clamp(
    scores: Float[Tensor, "layer head"], *, threshold: float, strength: float, sham: bool, seed: int
) -> Bool[Tensor, "layer head"]:
    """The share `strength` (rounded up) of heads with a score above `threshold`, strongest first; or a sham's.

    Sham: as many other heads, of the same layers where these have others. ValueError where the model has too few.
    """
    n = int(np.ceil(strength * int((scores > threshold).sum())))
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().argsort(descending=True, stable=True)[:n]] = True
    chosen = chosen.view(scores.shape)
    if not sham:
        return chosen
    others = _others_of_layers(chosen, seed=seed)
    missing = int(chosen.sum() - others.sum())
    more = random_heads(tuple(chosen.shape), missing, seed=seed, draw=0, exclude=(chosen | others).numpy())
    return others | torch.from_numpy(more)


def _others_of_layers(chosen: Bool[Tensor, "layer head"], *, seed: int) -> Bool[Tensor, "layer head"]:
    """Heads that are not chosen, in each layer as many as are, or all that it has: the draw of the committed runs."""
    rng = np.random.default_rng([seed, 0, 1])
    others = torch.zeros_like(chosen)
    for layer, own in enumerate(chosen):
        free = np.flatnonzero((~own).numpy())
        drawn = rng.choice(free, size=min(int(own.sum()), len(free)), replace=False)
        rng.choice(np.flatnonzero(own.numpy()), size=int(own.sum()) - len(drawn), replace=False)  # as they were drawn
        others[layer, drawn.astype(np.int64)] = True
    return others


def clamp(model: nn.Module, heads: Iterable[tuple[int, int]]) -> None:
    """Let heads (layer, head) of a GPT-NeoX put out zero from now on, in its weights too, so that checkpoints keep it.

    Raises ValueError for a head that the model lacks.
    """
    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    on = torch.ones(n_layers, n_heads)
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"head L{layer}H{head} to clamp: the model has {n_layers} layers of {n_heads} heads")
        on[layer, head] = 0
    for block, of_layer in zip(model.gpt_neox.layers, on, strict=True):
        projection = block.attention.dense
        kept = of_layer.repeat_interleave(projection.in_features // n_heads).to(projection.weight)
        with torch.no_grad():
            projection.weight *= kept
        projection.register_forward_pre_hook(lambda module, inputs, kept=kept: (inputs[0] * kept,))


def read_intervention(config: dict[str, Any]) -> Intervention:
    """The intervention of a rung's configuration; none where it names none."""
    chosen = dict(config.get("intervention", {}))
    if unknown := set(chosen) - {field.name for field in fields(Intervention)}:
        raise ValueError(f"intervention: unknown key {sorted(unknown)[0]!r}, expected name, strength, sham, heads")
    return Intervention(**chosen)


def _without_as_much_loss(
    batch: list[Rows], where: list[Bool[ndarray, "batch pos"]], strength: float, rng: np.random.Generator
) -> list[Rows]:
    """The batch with random tokens without loss: of all loss weight a share as large as lies on some tokens."""
    total = sum(float(rows.weights.sum()) for rows in batch)
    share = strength * (sum(float(rows.weights[here].sum()) for rows, here in zip(batch, where, strict=True)) / total)
    return [replace(rows, weights=np.where(rng.random(rows.weights.shape) < share, 0, rows.weights)) for rows in batch]
