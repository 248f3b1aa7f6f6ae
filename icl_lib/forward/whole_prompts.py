"""Edits of single positions where nothing of a prompt can be shared: every edited copy is fed whole.

For architectures with an attention of their own (biases, sinks, caps, masks made by hand), whose modules alone
compute it right. Slower than `icl_lib.forward.shared_prefix` by about the length of the prompt.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.forward.passes import TokenBatch, last_positions, layers, plain_transformers, take_positions
from icl_lib.forward.readout import Readout, greedy_tokens, read_targets
from icl_lib.forward.shared_layers import edited_residuals
from icl_lib.forward.shared_prefix import RowEdits

_MAX_TOKENS = 8192  # fed at a time


def read_whole_rows(
    model: nn.Module,
    batch: TokenBatch,
    edits: RowEdits,
    targets: Int[Tensor, "batch pos"],
    apart: Int[Tensor, "batch pos"] | None,
) -> Readout:
    """`shared_prefix.read_edited_rows`, whole prompts at a time."""
    if apart is None:
        return _read_at(model, batch.tokens, edits, targets, last_positions(batch.lengths, targets.shape[1]))
    each = [
        _read_at(model, batch.tokens, edits, target[:, None], at[:, None])
        for target, at in zip(targets.T, apart.T, strict=True)
    ]
    return Readout(torch.cat([r.log_probability for r in each], 2), torch.cat([r.correct for r in each], 2))


def _read_at(model: nn.Module, tokens: Tensor, edits: RowEdits, targets: Tensor, at: Tensor) -> Readout:
    return read_targets(model, edited_residuals(model, tokens, edits, at, edited=_marked(tokens, at)), targets)


def _marked(tokens: Tensor, at: Int[Tensor, "batch n"]) -> Bool[Tensor, "batch pos"]:
    return torch.zeros_like(tokens, dtype=torch.bool).scatter(1, at, True)


def read_whole_added_rows(
    model: nn.Module,
    batch: TokenBatch,
    vectors: Float[Tensor, "row d_model"],
    at: Int[Tensor, "row"],
    targets: Int[Tensor, "batch 1"],
) -> Readout:
    """`shared_prefix.read_added_rows`, whole prompts at a time."""
    last, n_batch = last_positions(batch.lengths, 1), len(batch.tokens)
    n_rows = max(1, _MAX_TOKENS // batch.tokens.numel())
    residuals = []
    for rows in torch.arange(len(vectors), device=at.device).split(n_rows):
        copies = batch.tokens.repeat(len(rows), 1)
        where = last.repeat(len(rows), 1)
        seen: list[Tensor] = []
        handles = []
        for i, layer in enumerate(layers(model)):
            added = torch.where((at[rows] == i)[:, None], vectors[rows], 0).repeat_interleave(n_batch, 0)
            handles.append(layer.register_forward_hook(_adding(where, added, seen)))
        try:
            with plain_transformers(model) as hf_model:
                hf_model.base_model(input_ids=copies, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        residuals.append(take_positions(seen[-1], where).view(len(rows), n_batch, -1))
    return read_targets(model, torch.cat(residuals).transpose(0, 1)[:, :, None], targets)


def _adding(where: Tensor, added: Tensor, seen: list[Tensor]):
    def add(_layer: nn.Module, _args: tuple, output):
        hidden = output[0] if isinstance(output, tuple) else output
        index = where[..., None].expand(-1, -1, hidden.shape[-1])
        hidden = hidden.scatter_add(1, index, added[:, None].to(hidden.dtype))
        seen[:] = [hidden]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return add


def generate_whole(
    model: nn.Module, batch: TokenBatch, edits: RowEdits, n_tokens: int, *, everywhere: bool
) -> Int[Tensor, "batch row token"]:
    """Greedy tokens under each edit, at all positions or from the prompt's last on (`icl_lib.metrics.generation`)."""
    norm = model.ln_final.original_component
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
    found = []
    for row in range(len(edits.masks)):
        own = edits.take(torch.tensor([row], device=rows.device))
        tokens = torch.nn.functional.pad(batch.tokens, (0, n_tokens))
        for step in range(n_tokens):
            last = batch.lengths[:, None] - 1 + step
            pos = torch.arange(tokens.shape[1], device=rows.device).expand_as(tokens)
            edited = None if everywhere else (pos >= batch.lengths[:, None] - 1) & (pos <= last)
            hidden = norm(edited_residuals(model, tokens, own, last, edited=edited)[:, :, 0])
            tokens[rows, batch.lengths + step] = greedy_tokens(model, hidden)[:, 0]
        found.append(take_positions(tokens, last_positions(batch.lengths + n_tokens, n_tokens)))
    return torch.stack(found, dim=1)
