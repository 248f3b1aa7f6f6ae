"""Edits of single positions where nothing of a prompt can be shared: every edited copy is fed whole.

For architectures with an attention of their own (biases, sinks, caps, masks made by hand), whose modules alone
compute it right. Slower than `icl_lib.forward.shared_prefix` by about the length of the prompt.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.forward.edits import RowEdits
from icl_lib.forward.passes import feed, hidden_of, hooked, layers, plain_transformers, take_positions
from icl_lib.forward.shared_layers import MAX_TOKENS, edited_residuals


def edited_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits, at: Int[Tensor, "batch n"], *, apart: bool
) -> Float[Tensor, "batch row n d_model"]:
    """`shared_prefix.edited_rows`, whole prompts at a time."""
    parts = []
    for places in at.split(1 if apart else at.shape[1], dim=1):
        edited = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, True)
        parts.append(edited_residuals(model, tokens, edits, places, edited=edited))
    return torch.cat(parts, dim=2)


@torch.inference_mode()
def added_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], vectors: Float[Tensor, "row d_model"],
    layer: Int[Tensor, "row"], at: Int[Tensor, "batch 1"],
) -> Float[Tensor, "batch row 1 d_model"]:
    """`shared_prefix.added_rows`, whole prompts at a time."""
    residuals = []
    for rows in torch.arange(len(vectors), device=layer.device).split(max(1, MAX_TOKENS // tokens.numel())):
        where, seen = at.repeat(len(rows), 1), []
        added = [torch.where((layer[rows] == i)[:, None], vectors[rows], 0).repeat_interleave(len(tokens), 0)
                 for i in range(model.cfg.n_layers)]
        hooks = hooked(module.register_forward_hook(partial(_add, where, of_layer, seen))
                       for module, of_layer in zip(layers(model), added, strict=True))
        with plain_transformers(model) as hf_model, hooks:
            feed(hf_model, tokens.repeat(len(rows), 1))
        residuals.append(take_positions(seen[-1], where).unflatten(0, (len(rows), -1)))
    return torch.cat(residuals).transpose(0, 1)


def _add(where: Tensor, added: Tensor, seen: list[Tensor], _layer: nn.Module, _args: tuple, output: Any) -> Any:
    hidden = hidden_of(output)
    index = where[..., None].expand(-1, -1, hidden.shape[-1])
    hidden = hidden.scatter_add(1, index, added[:, None].to(hidden.dtype))
    seen[:] = [hidden]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
