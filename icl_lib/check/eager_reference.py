"""Transformers' own eager pass of two short random sequences, with plain hooks: what models are held against."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.forward.passes import attentions, hooked, output_projections, plain_transformers, split_heads
from icl_lib.models.paper_models import GIB
from icl_lib.models.placement import free_gib, in_dtype

LENGTHS = (10, 7)  # of the probe sequences
WINDOW = 4  # what a window is narrowed to meanwhile, so that these are longer
WINDOWS = ("sliding_window", "attention_chunk_size")


class Refused(ValueError):
    """What a model's passes differ in from transformers' own."""


def probe_sequences(config: Any) -> list[Tensor]:
    """Two random sequences of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(config.vocab_size, (1, n), generator=generator) for n in LENGTHS]


class Reference:
    """One sequence through the eager causal model under every edit, a row each."""

    def __init__(self, model: nn.Module, tokens: Tensor, masks: Tensor, values: Tensor):
        self.model, self.tokens, self.masks, self.values = model, tokens, masks, values
        n_pos = tokens.shape[1]
        pos = torch.arange(n_pos, device=tokens.device)
        everywhere, last = pos >= 0, pos >= n_pos - 2
        rows = [(mask, everywhere) for mask in masks] + [(mask, last) for mask in masks[1:3]]
        self.z, self.patterns = None, None
        found = self._run(rows)
        self.unedited, self.everywhere, self.at_last = found[0], found[: len(masks)], found[[0, len(masks), -1]]

    def apart(self, places: list[int]) -> Float[Tensor, "1 pos vocab"]:
        """One head in each layer edited at one place alone, log-probabilities read there."""
        pos = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        found = self._run([(self.masks[1], pos == place) for place in places])
        return torch.stack([found[places.index(p)][p] if p in places else found[0][p] for p in pos.tolist()])[None]

    def targets(self, n: int) -> Int[Tensor, "n"]:
        """Targets of the last `n` positions: what the unedited model holds likeliest there."""
        return self.unedited[-n:].argmax(-1)

    def read(self, rows: Float[Tensor, "row pos vocab"], targets: Int[Tensor, "n"]) -> Float[Tensor, "row n"]:
        return rows[:, -len(targets) :].gather(-1, targets.expand(len(rows), -1)[..., None])[..., 0]

    def _run(self, rows: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "row pos vocab"]:
        masks, places = (torch.stack(part) for part in zip(*rows, strict=True))
        seen, patterns = [], []

        def replace(layer: int, _projection: nn.Module, args: tuple) -> tuple:
            z = split_heads(self.model, args[0])
            seen.append(z[0])
            where = masks[:, None, layer, :, None] & places[:, :, None, None]
            return (torch.where(where, self.values[:, layer, None], z).reshape(args[0].shape), *args[1:])

        def note(_attention: nn.Module, _args: tuple, output: Any) -> None:
            shape = (len(rows), self.model.cfg.n_heads, self.tokens.shape[1], self.tokens.shape[1])
            patterns.extend(part[0] for part in output if isinstance(part, Tensor) and part.shape == shape)

        n_layers, projections = self.model.cfg.n_layers, output_projections(self.model)
        handles = [projections[i].register_forward_pre_hook(partial(replace, i)) for i in range(n_layers)]
        handles += [attention.register_forward_hook(note) for attention in attentions(self.model)]
        with hooked(handles), plain_transformers(self.model) as hf_model:
            hf_model.config._attn_implementation = "eager"  # put back on leaving
            logits = hf_model(input_ids=self.tokens.repeat(len(rows), 1), use_cache=False).logits
        if len(seen) != n_layers:
            raise Refused(f"{len(seen)} calls of output projections in a pass, expected {n_layers}, one per layer")
        if self.z is None:
            self.z = torch.stack(seen)
            self.patterns = torch.stack(patterns) if len(patterns) == n_layers else None
        return log_softmax(logits)


def log_softmax(logits: Tensor) -> Tensor:
    # a half-precision model that could not be widened keeps its type, by which differences are judged
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).to(logits.dtype)


def widened(hf_model: nn.Module) -> AbstractContextManager[None]:
    """A half-precision model in float32 where there is room: its own rounding would hide what is looked for."""
    half = [tensor for tensor in (*hf_model.parameters(), *hf_model.buffers())
            if tensor.dtype in (torch.float16, torch.bfloat16)]
    free = free_gib(half[0].device) if half else None
    room = free is None or 4 * sum(tensor.numel() for tensor in half) < 0.8 * free * GIB
    return in_dtype(half, torch.float32 if room else None)


@contextmanager
def narrow_windows(config: Any) -> Iterator[None]:
    widths = {name: getattr(config, name, None) for name in WINDOWS}
    wide = {name: width for name, width in widths.items() if isinstance(width, int) and width > WINDOW}
    for name in wide:
        setattr(config, name, WINDOW)
    try:
        yield
    finally:
        for name, width in wide.items():
            setattr(config, name, width)
