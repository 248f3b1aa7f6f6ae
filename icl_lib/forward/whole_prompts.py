"""Edits of single positions where nothing of a prompt can be shared: every edited copy is fed whole.

For architectures with an attention of their own (biases, sinks, caps, masks made by hand), whose modules alone
compute it right. Slower than `icl_lib.forward.shared_prefix` by about the length of the prompt.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.forward.edits import RowEdits
from icl_lib.forward.passes import feed, hidden_of, hooked, layers, plain_transformers, take_positions
from icl_lib.forward.shared_layers import edited_residuals


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
    modules, sequences, residuals = layers(model), torch.arange(len(tokens), device=tokens.device), []
    for vector, i in zip(vectors, layer.tolist(), strict=True):
        def add(_layer: nn.Module, _args: tuple, output: Any, vector: Tensor = vector) -> None:
            hidden_of(output)[sequences, at[:, 0]] += vector.to(hidden_of(output).dtype)

        def read(_layer: nn.Module, _args: tuple, output: Any) -> None:
            residuals.append(take_positions(hidden_of(output), at))

        hooks = [modules[i].register_forward_hook(add), modules[-1].register_forward_hook(read)]
        with plain_transformers(model) as hf_model, hooked(hooks):
            feed(hf_model, tokens)
    return torch.stack(residuals, dim=1)
