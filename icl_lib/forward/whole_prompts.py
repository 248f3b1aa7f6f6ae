"""Edits where nothing of a prompt can be shared: every edited copy is fed whole.

For architectures with an attention of their own (biases, sinks, caps, masks made by hand), whose modules alone
compute it right. Slower than `icl_lib.forward.shared_prefix` by about the length of the prompt.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from icl_lib.forward import passes
from icl_lib.forward.edits import RowEdits


def edited_residuals(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits, read: Int[Tensor, "batch read"] | None = None,
    *, edited: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch row read d_model"]:
    """`shared_layers.edited_residuals`, whole prompts at a time. `edited`: where edits act, None for everywhere."""
    where = (torch.ones_like(tokens, dtype=torch.bool) if edited is None else edited)[:, :, None, None]

    def replace(heads: Tensor, values: Tensor, _projection: nn.Module, args: tuple) -> tuple:
        z = passes.split_heads(model, args[0])
        z = torch.where(heads[:, None] & where, values[:, None].to(z.dtype), z)
        return (z.reshape(args[0].shape), *args[1:])

    projections, residuals = passes.output_projections(model), []
    for row, heads in enumerate(edits.masks):
        values = edits.values[:, row if edits.values.shape[1] > 1 else 0]
        hooks = [projections[i].register_forward_pre_hook(partial(replace, heads[i], values[:, i]))
                 for i in heads.any(-1).nonzero()[:, 0].tolist()]
        residuals.append(_residual(model, tokens, hooks, read))
    return torch.stack(residuals, dim=1)


def edited_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits, at: Int[Tensor, "batch n"], *, apart: bool
) -> Float[Tensor, "batch row n d_model"]:
    """`shared_prefix.edited_rows`, whole prompts at a time."""
    parts = []
    for places in at.split(1 if apart else at.shape[1], dim=1):
        edited = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, True)
        parts.append(edited_residuals(model, tokens, edits, places, edited=edited))
    return torch.cat(parts, dim=2)


def added_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], vectors: Float[Tensor, "row d_model"],
    layer: Int[Tensor, "row"], at: Int[Tensor, "batch 1"],
) -> Float[Tensor, "batch row 1 d_model"]:
    """`shared_prefix.added_rows`, whole prompts at a time."""
    sequences, residuals = torch.arange(len(tokens), device=tokens.device), []

    def add(vector: Tensor, _layer: nn.Module, _args: tuple, output: Any) -> None:
        passes.hidden_of(output)[sequences, at[:, 0]] += vector.to(passes.hidden_of(output).dtype)

    for vector, i in zip(vectors, layer.tolist(), strict=True):
        hook = passes.layers(model)[i].register_forward_hook(partial(add, vector))
        residuals.append(_residual(model, tokens, [hook], at))
    return torch.stack(residuals, dim=1)


@torch.inference_mode()
def _residual(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], hooks: list[RemovableHandle],
    read: Int[Tensor, "batch read"] | None,
) -> Float[Tensor, "batch read d_model"]:
    """The residual stream after the last layer, before the final norm, of a pass with hooks, which are then removed."""
    def note(_layer: nn.Module, _args: tuple, output: Any) -> None:
        hidden.append(passes.hidden_of(output))

    hidden: list[Tensor] = []
    hooks = [*hooks, passes.layers(model)[-1].register_forward_hook(note)]
    with passes.plain_transformers(model) as hf_model, passes.hooked(hooks):
        passes.feed(hf_model, tokens)
    return hidden[0] if read is None else passes.take_positions(hidden[0], read)
