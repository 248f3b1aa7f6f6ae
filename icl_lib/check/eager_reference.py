"""Transformers' own eager pass of two short random sequences, with plain hooks: what models are held against."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
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


class Reference(NamedTuple):
    """One sequence through the eager causal model under every edit, a row each; of the first row more is noted."""

    log_probabilities: Float[Tensor, "row pos vocab"]
    z: Float[Tensor, "layer pos head d_head"]  # heads' outputs
    patterns: Float[Tensor, "layer head pos key"] | None  # where attention modules give one each


def reference(
    model: nn.Module, tokens: Tensor, masks: Bool[Tensor, "row layer head"], places: Bool[Tensor, "row pos"],
    values: Float[Tensor, "1 layer head d_head"],
) -> Reference:
    """Rows with the heads of each mask replaced by `values` at each row's places."""
    seen, patterns = [], []
    n_rows, n_pos = places.shape

    def replace(layer: int, _projection: nn.Module, args: tuple) -> tuple:
        z = split_heads(model, args[0])
        seen.append(z[0])
        where = masks[:, None, layer, :, None] & places[:, :, None, None]
        return (torch.where(where, values[:, layer, None], z).reshape(args[0].shape), *args[1:])

    def note(_attention: nn.Module, _args: tuple, output: Any) -> None:
        shape = (n_rows, model.cfg.n_heads, n_pos, n_pos)
        patterns.extend(part[0] for part in output if isinstance(part, Tensor) and part.shape == shape)

    handles = [projection.register_forward_pre_hook(partial(replace, i))
               for i, projection in enumerate(output_projections(model))]
    handles += [attention.register_forward_hook(note) for attention in attentions(model)]
    with hooked(handles), plain_transformers(model) as hf_model:
        hf_model.config._attn_implementation = "eager"  # put back on leaving
        logits = hf_model(input_ids=tokens.repeat(n_rows, 1), use_cache=False).logits
    n_layers = model.cfg.n_layers
    if len(seen) != n_layers:
        raise Refused(f"{len(seen)} calls of output projections in a pass, expected {n_layers}, one per layer")
    found = torch.stack(patterns) if len(patterns) == n_layers else None
    return Reference(log_softmax(logits), torch.stack(seen), found)


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
    wide = {name: width for name in WINDOWS if isinstance(width := getattr(config, name, None), int) and width > WINDOW}
    for name in wide:
        setattr(config, name, WINDOW)
    try:
        yield
    finally:
        for name, width in wide.items():
            setattr(config, name, width)
