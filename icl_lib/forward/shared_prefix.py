"""Many edits of the last positions of a prompt, the rest of the prompt computed once.

An edit at the last position leaves everything before it alone. So each layer is run once on the whole prompt, its keys
and values are kept while that layer lasts, and every edited copy of the last position ("row") is carried upwards beside
it, from the first layer that it edits. Rows stand where positions stand in a transformers layer, so its own code does
the rest and only attention is ours: a row sees the prompt's keys and itself, never another row.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from icl_lib.forward import passes
from icl_lib.forward.edits import RowEdits


@torch.inference_mode()
def edited_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], edits: RowEdits, at: Int[Tensor, "batch n"], *, apart: bool
) -> Float[Tensor, "batch row n d_model"]:
    """The residual stream after the last layer, before the final norm, at positions `at` under each row's edits.

    The positions are the last ones of each prompt, and edits act on all of these and on nothing before. `apart`: any
    positions, and at each an edit acts on this one alone: as many texts that end there. A row without heads in its
    mask is the unedited model.
    """
    order = torch.argsort(edits.first_layers, stable=True)
    sweep = _Sweep(model, edits.first_layers[order].tolist(), at, edits=edits.take(order), apart=apart)
    return sweep.run(tokens)[:, torch.argsort(order)]


@torch.inference_mode()
def added_rows(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], vectors: Float[Tensor, "row d_model"],
    layer: Int[Tensor, "row"], at: Int[Tensor, "batch 1"],
) -> Float[Tensor, "batch row 1 d_model"]:
    """The same with a vector added to the output of each row's `layer` at the position, in place of edited heads."""
    order = torch.argsort(layer, stable=True)
    return _Sweep(model, layer[order].tolist(), at, vectors=vectors[order]).run(tokens)[:, torch.argsort(order)]


class _Sweep:
    """The state of one upward sweep over one batch; reads and replaces through hooks. Rows stand by first layer.

    Rows replace heads' outputs (`edits`) or add a vector to the output of their first layer (`vectors`).
    """

    def __init__(
        self, model: nn.Module, first_layers: list[int], at: Int[Tensor, "batch n"], *, edits: RowEdits | None = None,
        vectors: Float[Tensor, "row d_model"] | None = None, apart: bool = False,
    ):
        self.layers, self.projections = passes.layers(model), passes.output_projections(model)
        self.model, self.edits, self.vectors, self.positions, self.apart = model, edits, vectors, at, apart
        self.n_suffix = at.shape[1]
        # apart, a suffix position also sees, unedited, the ones before it
        self.n_prefix = int(at.max()) + (0 if apart else 1 - self.n_suffix)
        prefix = torch.arange(self.n_prefix, device=at.device)
        end = at[:, None, :, None] if apart else at[:, :1, None, None]
        hidden = prefix >= end  # [batch, 1, suffix or 1, prefix]
        # without padding there is nothing to hide, and adding zeros costs time
        self.hidden_prefix = hidden[:, :, None, None] if bool(hidden.any()) else None
        self.first_layers = first_layers
        self.rows: Tensor | None = None  # [batch, row * suffix, d_model]
        self.in_rows = False
        self.layer = -1

    def run(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch row n d_model"]:
        with passes.plain_transformers(self.model, self.attend) as hf_model, passes.hooked(self._hooks()):
            passes.feed(hf_model, tokens)
            self._run_rows()  # through the last layer, whose pass `attend` has left
        return self.rows.unflatten(1, (-1, self.n_suffix))

    def _hooks(self) -> Iterator[RemovableHandle]:
        for i, (layer, projection) in enumerate(zip(self.layers, self.projections, strict=True)):
            yield layer.register_forward_pre_hook(partial(self._enter, i), with_kwargs=True)
            yield layer.register_forward_hook(self._leave)
            yield projection.register_forward_pre_hook(self._replace)

    def _enter(self, i: int, _layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.in_rows:
            self.layer, self.call = i, passes.without_hidden(args, kwargs)

    def _leave(self, _layer: nn.Module, _args: tuple, _output: Any) -> None:
        if not self.in_rows:
            self._run_rows()

    def _run_rows(self) -> None:
        """Take the rows through the layer whose prompt pass has just given keys and values."""
        hidden, args, kwargs = self.call
        if n_new := self.first_layers.count(self.layer):
            new = passes.take_positions(hidden, self.positions).repeat(1, n_new, 1)
            self.rows = new if self.rows is None else torch.cat([self.rows, new], dim=1)
        if self.rows is None:
            return
        self.in_rows = True
        args, kwargs = tree_map_only(Tensor, self._at_suffix, (args, kwargs))
        self.rows = passes.hidden_of(self.layers[self.layer](self.rows, *args, **kwargs))
        self.in_rows = False
        if self.vectors is not None and n_new:  # those that joined stand last
            self.rows[:, -n_new:] += self.vectors[self.rows.shape[1] - n_new : self.rows.shape[1]].to(self.rows.dtype)

    def _at_suffix(self, value: Tensor) -> Tensor | None:
        """A tensor of the layer's call on the prompt, as it has to be for the rows."""
        if value.ndim == 4:  # the mask; our attention has its own copy
            return None
        value = value.expand(self.positions.shape[0], *value.shape[1:])
        suffix = passes.take_positions(value, self.positions)
        n_rows = self.rows.shape[1] // self.n_suffix
        # one suffix position serves all rows by broadcasting
        return suffix if self.n_suffix == 1 else suffix.repeat(1, n_rows, *[1] * (suffix.ndim - 2))

    def _replace(self, _projection: nn.Module, args: tuple) -> tuple | None:
        if not self.in_rows or self.edits is None:
            return None
        n_rows = args[0].shape[1] // self.n_suffix
        mask = self.edits.masks[:n_rows, self.layer]
        if not mask.any():
            return None
        z = passes.split_heads(self.model, args[0].unflatten(1, (n_rows, self.n_suffix)))
        values = self.edits.values[:, :n_rows, self.layer].to(z.dtype)
        z = torch.where(mask[None, :, None, :, None], values[:, :, None], z)
        return (z.reshape(args[0].shape), *args[1:])

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        n, s = self.n_prefix, self.n_suffix
        if self.in_rows:
            of_rows = (t.unflatten(2, (-1, s)) for t in (key, value))
            others = torch.ones(s, s, dtype=torch.bool, device=query.device)
            others = others.fill_diagonal_(False) if self.apart else others.triu(1)
            return attend_rows(
                query, self.keys, self.values, *of_rows, kwargs.get("scaling"), self.hidden, others), None
        self.keys, self.values = key[:, :, :n], value[:, :, :n]
        self.hidden = self.hidden_prefix
        if attention_mask is not None:  # e.g. a sliding window
            by_query = attention_mask.expand(query.shape[0], -1, -1, -1).transpose(1, 2)
            hidden = passes.hidden_by(passes.take_positions(by_query, self.positions)[..., :n])
            hidden = hidden.movedim(1, 2)[:, :, None, None]
            self.hidden = hidden if self.hidden is None else hidden | self.hidden
        if self.layer == len(self.layers) - 1:
            raise passes.PassDone  # nothing reads the prompt's own output of the last layer
        return passes.plain_attention(module, query, key, value, attention_mask, **kwargs)


def attend_rows(
    query: Float[Tensor, "batch head queries d_head"], keys: Float[Tensor, "batch group prefix d_head"],
    values: Float[Tensor, "batch group prefix d_value"], row_keys: Float[Tensor, "batch group row own d_head"],
    row_values: Float[Tensor, "batch group row own d_value"], scaling: float | None,
    hidden: Bool[Tensor, "..."] | None, others: Bool[Tensor, "query own"],
) -> Float[Tensor, "batch queries head d_value"]:
    """Softmax over the prompt's keys and the row's own; query heads share key heads in groups.

    `hidden`: keys of the prompt that are not seen, broadcast over batch, group, head, row, query and key; `others`:
    keys of a row that its queries do not see.
    """
    batch, n_heads, n_queries, d_head = query.shape
    n_groups, n_rows = row_keys.shape[1:3]
    n_prefix, n_shared = keys.shape[2], n_heads // n_groups
    q = query * (d_head**-0.5 if scaling is None else scaling)
    q = q.reshape(batch, n_groups, n_shared * n_queries, d_head)
    by_row = (batch, n_groups, n_shared, n_rows, n_queries // n_rows)
    to_row = q.view(*by_row, d_head) @ row_keys[:, :, None].mT
    scores = torch.empty(*by_row, n_prefix + to_row.shape[-1], dtype=q.dtype, device=q.device)
    scores.flatten(2, 4)[..., :n_prefix] = q @ keys.mT
    scores[..., n_prefix:] = to_row.masked_fill(others, -math.inf)
    if hidden is not None:
        scores[..., :n_prefix].masked_fill_(hidden, -math.inf)
    pattern = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    out = (pattern.flatten(2, 4)[..., :n_prefix] @ values).view(*by_row, -1)
    out = out + pattern[..., n_prefix:] @ row_values[:, :, None]
    return out.reshape(batch, n_heads, n_queries, -1).transpose(1, 2)
