"""Many edits of the last positions of a prompt, the rest of the prompt computed once.

An edit at the last position leaves everything before it alone. So each layer is run once on the
whole prompt, its keys and values are kept while that layer lasts, and every edited copy of the last
position ("row") is carried upwards beside it, from the first layer that it edits. Rows stand where
positions stand in a transformers layer, so its own code does the rest and only attention is ours:
a row sees the prompt's keys and itself, never another row.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.forward.passes import (
    PassDone,
    TokenBatch,
    last_positions,
    layers,
    output_projections,
    own_attention,
    plain_attention,
    plain_transformers,
    split_heads,
    take_positions,
)
from icl_lib.forward.readout import Readout, read_targets


@dataclass(frozen=True)
class RowEdits:
    """What each row replaces: the outputs of the heads in its mask by the values beside it.

    `values` may have length 1 on the batch axis, on the row axis or on both.
    """

    masks: Bool[Tensor, "row layer head"]
    values: Float[Tensor, "#batch #row layer head d_head"]

    @property
    def first_layers(self) -> Int[Tensor, "row"]:
        """The lowest layer each row edits; the last layer for a row without edits."""
        n_layers = self.masks.shape[1]
        layer = torch.arange(n_layers, device=self.masks.device)
        edited = torch.where(self.masks.any(-1), layer, n_layers - 1)
        return edited.amin(-1)

    def take(self, order: Tensor) -> "RowEdits":
        values = self.values if self.values.shape[1] == 1 else self.values[:, order]
        return RowEdits(self.masks[order], values)


class _Sweep:
    """The state of one upward sweep over one batch; reads and replaces through hooks."""

    def __init__(
        self,
        model: nn.Module,
        batch: TokenBatch,
        edits: RowEdits,
        n_suffix: int,
        apart: Int[Tensor, "batch pos"] | None = None,
    ):
        self.layers, self.projections = layers(model), output_projections(model)
        self.model, self.edits, self.n_suffix = model, edits, n_suffix
        self.apart = apart is not None
        self.positions = last_positions(batch.lengths, n_suffix) if apart is None else apart
        # apart, a suffix position also sees, unedited, the ones before it
        self.n_prefix = int(self.positions.max()) + (0 if self.apart else 1 - n_suffix)
        prefix = torch.arange(self.n_prefix, device=batch.tokens.device)
        end = self.positions[:, None, :, None] if self.apart else self.positions[:, :1, None, None]
        hidden = prefix >= end  # [batch, 1, suffix or 1, prefix]
        # without padding there is nothing to hide, and adding zeros costs time
        self.hidden_prefix = hidden[:, :, None, None] if bool(hidden.any()) else None
        self.first_layers = edits.first_layers.tolist()
        self.rows: Tensor | None = None  # [batch, row * suffix, d_model]
        self.in_rows = False
        self.layer = -1

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for i, (layer, projection) in enumerate(zip(self.layers, self.projections, strict=True)):
            handles.append(layer.register_forward_pre_hook(self._enter(i), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave, with_kwargs=True))
            handles.append(projection.register_forward_pre_hook(self._replace))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, i: int):
        def enter(_layer: nn.Module, args: tuple, kwargs: dict) -> None:
            if not self.in_rows:
                self.layer, self.call = i, (args, kwargs)

        return enter

    def _leave(self, _layer: nn.Module, args: tuple, kwargs: dict, _output: Any) -> None:
        if not self.in_rows:
            self.run_rows()

    def run_rows(self) -> None:
        """Take the rows through the layer whose prompt pass has just given keys and values."""
        args, kwargs = self.call
        hidden, args = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        self._join(hidden)
        if self.rows is None:
            return
        self.in_rows = True
        try:
            kwargs = {k: self._at_suffix(v) for k, v in kwargs.items() if k != "hidden_states"}
            output = self.layers[self.layer](self.rows, *map(self._at_suffix, args), **kwargs)
            self.rows = output[0] if isinstance(output, tuple) else output
        finally:
            self.in_rows = False

    def _join(self, hidden: Float[Tensor, "batch pos d_model"]) -> None:
        n_new = self.first_layers.count(self.layer)
        if n_new:
            new = take_positions(hidden, self.positions).repeat(1, n_new, 1)
            self.rows = new if self.rows is None else torch.cat([self.rows, new], dim=1)

    def _at_suffix(self, value: Any) -> Any:
        """An argument of the layer's call on the prompt, as it has to be for the rows."""
        if isinstance(value, tuple):
            return tuple(self._at_suffix(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 4:  # the mask; our attention has its own copy
            return None
        value = value.expand(self.positions.shape[0], *value.shape[1:])
        suffix = take_positions(value, self.positions)
        n_rows = self.rows.shape[1] // self.n_suffix
        # one suffix position serves all rows by broadcasting
        return suffix if self.n_suffix == 1 else suffix.repeat(1, n_rows, *[1] * (suffix.ndim - 2))

    def _replace(self, _projection: nn.Module, args: tuple) -> tuple | None:
        if not self.in_rows:
            return None
        n_rows = args[0].shape[1] // self.n_suffix
        mask = self.edits.masks[:n_rows, self.layer]
        if not mask.any():
            return None
        z = split_heads(self.model, args[0].unflatten(1, (n_rows, self.n_suffix)))
        values = self.edits.values[:, :n_rows, self.layer].to(z.dtype)
        z = torch.where(mask[None, :, None, :, None], values[:, :, None], z)
        return (z.reshape(args[0].shape), *args[1:])

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            raise ValueError(f"{type(module).__name__}: attention with softcap or sinks is not supported")
        if self.in_rows:
            return self._attend_rows(query, key, value, kwargs.get("scaling")), None
        n = self.n_prefix
        self.keys, self.values = key[:, :, :n], value[:, :, :n]
        self.hidden = self.hidden_prefix
        if attention_mask is not None:  # e.g. a sliding window
            seen = take_positions(
                attention_mask.expand(query.shape[0], -1, -1, -1).transpose(1, 2), self.positions
            )
            seen = seen[..., :n] if seen.dtype == torch.bool else seen[..., :n] == 0
            hidden = ~seen.movedim(1, 2)[:, :, None, None]
            self.hidden = hidden if self.hidden is None else hidden | self.hidden
        if self.layer == len(self.layers) - 1:
            raise PassDone  # nothing reads the prompt's own output of the last layer
        return plain_attention(module, query, key, value, attention_mask, **kwargs)

    def _attend_rows(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Softmax over the prompt's keys and the row's own; query heads share key heads in groups."""
        batch, n_heads, n_queries, d_head = query.shape
        n_groups, s = key.shape[1], self.n_suffix
        scaling = d_head**-0.5 if scaling is None else scaling
        grouped = (batch, n_groups, n_heads // n_groups * n_queries)
        q = (query * scaling).reshape(*grouped, d_head)
        scores = torch.empty(*grouped, self.n_prefix + s, dtype=q.dtype, device=q.device)
        scores[..., : self.n_prefix] = q @ self.keys.mT
        by_row = (batch, n_groups, n_heads // n_groups, n_queries // s, s)
        own_keys, own_values = (
            t.reshape(batch, n_groups, 1, n_queries // s, s, d_head) for t in (key, value)
        )
        own = q.view(*by_row, d_head) @ own_keys.mT
        others = torch.ones(s, s, dtype=torch.bool, device=q.device)
        others = others.fill_diagonal_(False) if self.apart else others.triu(1)
        scores.view(*by_row, -1)[..., self.n_prefix :] = own.masked_fill(others, -math.inf)
        if self.hidden is not None:
            scores.view(*by_row, -1)[..., : self.n_prefix].masked_fill_(self.hidden, -math.inf)
        pattern = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        out = pattern[..., : self.n_prefix] @ self.values
        out = out.view(*by_row, d_head) + pattern.view(*by_row, -1)[..., self.n_prefix :] @ own_values
        return out.reshape(query.shape).transpose(1, 2)


@torch.inference_mode()
def read_edited_rows(
    model: nn.Module,
    batch: TokenBatch,
    edits: RowEdits,
    targets: Int[Tensor, "batch pos"],
    *,
    apart: Int[Tensor, "batch pos"] | None = None,
) -> Readout:
    """Probabilities of target tokens after each row's edits at the last positions of each prompt.

    `targets[:, i]` is predicted at the i-th of the last `pos` positions; edits act on all of these
    and on nothing before. With positions `apart` each target is predicted at its own of these, where
    alone the edit then acts: as many texts that end there. A row without heads in its mask is the
    unedited model.
    """
    if own_attention(model):
        from icl_lib.forward.whole_prompts import read_whole_rows  # builds on this module

        return read_whole_rows(model, batch, edits, targets, apart)
    order = torch.argsort(edits.first_layers, stable=True)
    sweep = _Sweep(model, batch, edits.take(order), targets.shape[1], apart)
    with plain_transformers(model, sweep.attend) as hf_model, sweep.hooks():
        try:
            hf_model.base_model(input_ids=batch.tokens, use_cache=False)
        except PassDone:
            sweep.run_rows()
    readout = read_targets(model, sweep.rows.unflatten(1, (len(order), -1)), targets)
    back = torch.argsort(order)
    return Readout(readout.log_probability[:, back], readout.correct[:, back])


class _AddingSweep(_Sweep):
    """A sweep whose rows add a vector to the output of a layer instead of replacing heads' outputs."""

    def __init__(self, model: nn.Module, batch: TokenBatch, vectors: Tensor, at: list[int]):
        shape = (len(vectors), model.cfg.n_layers, model.cfg.n_heads)
        masks = torch.zeros(shape, dtype=torch.bool, device=vectors.device)
        super().__init__(model, batch, RowEdits(masks, torch.zeros(1, 1, *shape[1:], 1, device=vectors.device)), 1)
        self.first_layers, self.vectors = at, vectors

    def run_rows(self) -> None:
        super().run_rows()
        added = [row for row, layer in enumerate(self.first_layers) if layer == self.layer]
        if added:
            self.rows[:, added] += self.vectors[added].to(self.rows.dtype)


@torch.inference_mode()
def read_added_rows(
    model: nn.Module,
    batch: TokenBatch,
    vectors: Float[Tensor, "row d_model"],
    at: Int[Tensor, "row"],
    targets: Int[Tensor, "batch 1"],
) -> Readout:
    """Probabilities of target tokens with a vector added to the output of a layer at the last position.

    Row by row: `vectors` at the output of the layers `at`, counted from 0. A zero vector is the unedited model.
    """
    if own_attention(model):
        from icl_lib.forward.whole_prompts import read_whole_added_rows  # builds on this module

        return read_whole_added_rows(model, batch, vectors, at, targets)
    order = torch.argsort(at, stable=True)
    sweep = _AddingSweep(model, batch, vectors[order], at[order].tolist())
    with plain_transformers(model, sweep.attend) as hf_model, sweep.hooks():
        try:
            hf_model.base_model(input_ids=batch.tokens, use_cache=False)
        except PassDone:
            sweep.run_rows()
    readout = read_targets(model, sweep.rows.unflatten(1, (len(order), -1)), targets)
    back = torch.argsort(order)
    return Readout(readout.log_probability[:, back], readout.correct[:, back])
