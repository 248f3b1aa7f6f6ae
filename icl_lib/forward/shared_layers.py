"""Many edits at all positions of the same sequences, the layers below each edit computed once.

An edit at all positions changes nothing before the output projection of the first layer that it edits. So the unedited
model runs once, residual stream and heads' outputs are kept where some edit begins, and every edited copy of the
sequences ("row") goes up from there. In the last layer only the positions that are read are computed: the others give
keys and values. Layers are called as the unedited pass called them, so that no architecture needs its own mathematics.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from icl_lib.forward import passes
from icl_lib.forward.edits import RowEdits

MAX_TOKENS = 8192  # of edited copies carried at a time
MAX_TOKENS_CPU = 2048  # there more is slower: what a layer makes of them leaves the cache


@torch.inference_mode()
def edited_residuals(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits, read: Int[Tensor, "batch read"] | None = None
) -> Float[Tensor, "batch row read d_model"]:
    """The residual stream after the last layer, before the final norm, under each row's edits at all positions.

    At the positions `read` of each sequence, None for all. Sequences may be padded on the right, behind what is read.
    """
    sweep = _LayerSweep(model, tokens, edits, read)
    order = torch.argsort(edits.first_layers, stable=True)
    n_rows = max(1, (MAX_TOKENS_CPU if tokens.device.type == "cpu" else MAX_TOKENS) // tokens.numel())
    with passes.plain_transformers(model, sweep.attend) as hf_model, passes.hooked(sweep.hooks()):
        passes.feed(hf_model, tokens)
        parts = [sweep.run(rows.tolist()).unflatten(0, (len(rows), -1)) for rows in order.split(n_rows)]
    return torch.cat(parts)[torch.argsort(order)].transpose(0, 1)


class _LayerSweep:
    """The calls of one unedited pass, and the edited copies on their way up, row by row on the batch axis."""

    def __init__(
        self, model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits,
        read: Int[Tensor, "batch read"] | None,
    ):
        self.model, self.edits, self.read, self.n_batch = model, edits, read, len(tokens)
        self.layers, self.projections = passes.layers(model), passes.output_projections(model)
        self.attentions = passes.attentions(model)
        self.first, self.last = edits.first_layers.tolist(), len(self.layers) - 1
        self.calls: list[list] = []  # arguments of each layer but the residual stream
        self.entering: dict[int, Tensor] = {}
        self.heads: dict[int, Tensor] = {}  # their outputs, where attention gives nothing but their projection
        self.stage = "unedited"  # then "rows" (whole sequences), "keys" and "read" (of the last layer)

    def hooks(self) -> Iterator[RemovableHandle]:
        for i, (layer, projection) in enumerate(zip(self.layers, self.projections, strict=True)):
            yield layer.register_forward_pre_hook(partial(self._note_call, i), with_kwargs=True)
            yield projection.register_forward_pre_hook(partial(self._replace, i))
            yield self.attentions[i].register_forward_hook(partial(self._note_heads, i))

    def _note_call(self, i: int, _layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.stage != "unedited":
            return
        hidden, *others = passes.without_hidden(args, kwargs)
        self.calls.append(others)
        if i in self.first:
            self.entering[i] = hidden
        elif i == self.last:
            raise passes.PassDone  # every row runs the last layer itself

    def _note_heads(self, i: int, _attention: nn.Module, _args: tuple, output: Any) -> None:
        if self.stage != "unedited":
            return
        if i in self.first and isinstance(output, tuple):
            z = self.z  # the projection's hook notes another
            if torch.allclose(self.projections[i](z[:1]), output[0][:1], atol=1e-6):
                self.heads[i] = z
        if i == self.last:
            raise passes.PassDone

    def _replace(self, layer: int, _projection: nn.Module, args: tuple) -> tuple | None:
        if self.stage == "unedited":
            self.z = args[0]
        if self.stage not in ("rows", "read"):
            return None
        mask = self.edits.masks[self.carried, layer]
        if not mask.any():
            return None
        values = self.edits.values[:, :, layer]
        if values.shape[1] > 1:
            values = values[:, self.carried]
        z = passes.split_heads(self.model, args[0]).unflatten(0, (len(self.carried), self.n_batch))
        z = torch.where(mask[:, None, None, :, None], values.transpose(0, 1)[:, :, None].to(z.dtype), z)
        return (z.reshape(args[0].shape), *args[1:])

    def run(self, rows: list[int]) -> Float[Tensor, "copies read d_model"]:
        """Take rows, sorted by the first layer they edit, through the layers above."""
        hidden, carried = None, []
        for layer in range(self.first[rows[0]], len(self.layers)):
            if carried:
                hidden = self._through(layer, hidden, carried)
            if joining := [row for row in rows if self.first[row] == layer]:
                new = self._join(layer, joining)
                hidden = torch.cat([hidden, new]) if carried else new
                carried = carried + joining
        return hidden

    def _join(self, layer: int, rows: list[int]) -> Tensor:
        """Through the first layer that rows edit, whose attention is still that of the unedited pass."""
        hidden = self.entering[layer]
        if layer not in self.heads:
            return self._through(layer, hidden, rows)
        z, stage = self.heads[layer], "rows"
        if layer == self.last and self.read is not None:
            z, hidden, stage = passes.take_positions(z, self.read), passes.take_positions(hidden, self.read), "read"
        z = z.repeat(len(rows), 1, 1)
        attention, projection = self.attentions[layer], self.projections[layer]
        attention.forward = lambda *_args, **_kwargs: (projection(z), None)
        try:
            return self._call(layer, hidden.repeat(len(rows), 1, 1), rows, stage)
        finally:
            del attention.forward

    def _through(self, layer: int, hidden: Float[Tensor, "copies pos d_model"], rows: list[int]) -> Tensor:
        """Through a layer; in the last one copies that are not edited yet share their keys and values."""
        n_alike, stage = len(rows) * self.n_batch // len(hidden), "rows"
        if layer == self.last and self.read is not None:
            with suppress(passes.PassDone):
                self._call(layer, hidden, rows, "keys")
            hidden, stage = passes.take_positions(hidden, self.read.repeat(len(hidden) // self.n_batch, 1)), "read"
        return self._call(layer, hidden if n_alike == 1 else hidden.repeat(n_alike, 1, 1), rows, stage)

    def _call(self, layer: int, hidden: Tensor, rows: list[int], stage: str) -> Tensor:
        self.carried, self.stage, n_copies = rows, stage, len(hidden) // self.n_batch
        args, kwargs = tree_map_only(Tensor, partial(self._argument, n_copies), self.calls[layer])
        return passes.hidden_of(self.layers[layer](hidden, *args, **kwargs))

    def _argument(self, n_copies: int, value: Tensor) -> Tensor | None:
        """A tensor of the layer's call in the unedited pass, as it has to be for the copies."""
        if self.stage == "read":
            if value.ndim == 4:
                return None  # the mask; `attend` has its own
            value = passes.take_positions(value.expand(self.n_batch, *value.shape[1:]), self.read)
        return value if len(value) == 1 else value.repeat(n_copies, *[1] * (value.ndim - 1))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if self.stage == "keys":
            self.keys, self.values, self.mask = key, value, attention_mask
            raise passes.PassDone
        if self.stage == "read":
            n = len(query) // len(self.keys)
            key, value = self.keys.repeat(n, 1, 1, 1), self.values.repeat(n, 1, 1, 1)
            mask = torch.arange(key.shape[2], device=query.device) <= self.read[:, :, None]
            if self.mask is not None:  # e.g. a sliding window; the same for all copies
                mask = passes.take_positions(self.mask[: self.n_batch, 0].expand(self.n_batch, -1, -1), self.read)
            attention_mask = mask.repeat(len(query) // self.n_batch, 1, 1)[:, None]
        return passes.plain_attention(module, query, key, value, attention_mask, **kwargs)
