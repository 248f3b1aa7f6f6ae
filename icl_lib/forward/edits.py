"""Ablation as one intervention: which heads, replaced by what, at which positions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.forward.passes import device_of, hooked, output_projections, split_heads
from icl_lib.heads import HeadMask
from icl_lib.names import WORDS, refuse_unknown

POSITIONS = WORDS["positions"]


@dataclass(frozen=True)
class Edit:
    """Heads whose outputs (hook_z, before the output projection) are replaced, by what, and where.

    `values`: one output per head, the same for every sequence (batch axis of length 1) or one per
    sequence. `positions`: `last` is the last real position of whatever is fed, so in generation the
    last position of the prompt and then each generated token, as the released few-shot ablation does
    (ablate_utils.py); `all` is every position, as the released token-loss ablation does. A mask of `icl_lib.heads`
    is kept as a tensor.
    """

    heads: Bool[Tensor, "layer head"] | HeadMask
    values: Float[Tensor, "#batch layer head d_head"]
    positions: str = "last"

    def __post_init__(self) -> None:
        refuse_unknown("positions", self.positions, POSITIONS)
        object.__setattr__(self, "heads", torch.as_tensor(self.heads))
        if self.values.shape[1:3] != self.heads.shape:
            raise ValueError(
                f"values are for {tuple(self.values.shape[1:3])} layers and heads, "
                f"the mask for {tuple(self.heads.shape)}"
            )


def by_positions(edits: Sequence[Edit | None], *, unedited: str) -> dict[str, list[int]]:
    """Which of the edits act at which positions; the unedited model (None) goes with those at `unedited`."""
    at = [unedited if edit is None else edit.positions for edit in edits]
    return {where: [i for i, here in enumerate(at) if here == where] for where in POSITIONS if where in at}


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
        return torch.where(self.masks.any(-1), layer, n_layers - 1).amin(-1)

    def take(self, order: Tensor) -> "RowEdits":
        values = self.values if self.values.shape[1] == 1 else self.values[:, order]
        return RowEdits(self.masks[order], values)


def row_edits(model: nn.Module, edits: Sequence[Edit | None], sequences: Sequence[int]) -> RowEdits:
    """Edits as rows for a batch of some of the sequences they were made for; values they share stay shared."""
    device = device_of(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    masks = [torch.zeros(shape, dtype=torch.bool) if e is None else e.heads.cpu() for e in edits]
    unread = next((e.values for e in edits if e is not None), torch.zeros(1, *shape, 1))  # where no head is edited
    values = [unread if e is None else e.values for e in edits]
    if all(v is unread for v in values):
        values = [unread]
    of_batch = torch.broadcast_tensors(*(v if len(v) == 1 else v[sequences] for v in values))
    stacked = torch.stack(of_batch, dim=1)
    return RowEdits(torch.stack(masks).to(device), stacked.to(device))


@contextmanager
def edited_heads(model: nn.Module, edit: Edit | None) -> Iterator[None]:
    """Replace heads' outputs in every forward pass of the model while the context lasts.

    Works for the bridge, for the transformers model under it and for `generate` with and without a cache. With padding
    on either side pass the `attention_mask` to the forward pass: the last position is the last one it shows; without a
    mask it is the last one fed. None edits nothing. Raises ValueError for a mask of another shape than the model's
    heads and for values of a batch of another size than the one fed.
    """
    if edit is None or not edit.heads.any():
        yield
        return
    if edit.heads.shape != (model.cfg.n_layers, model.cfg.n_heads):
        raise ValueError(
            f"heads mask is {tuple(edit.heads.shape)}, the model has "
            f"{(model.cfg.n_layers, model.cfg.n_heads)} layers and heads"
        )
    device, fed = device_of(model), {"attention_mask": None}
    heads, values = edit.heads.to(device), edit.values.to(device)

    def note_mask(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
        fed["attention_mask"] = kwargs.get("attention_mask")

    def replace(layer: int, _projection: nn.Module, args: tuple) -> tuple:
        z = split_heads(model, args[0])
        if len(values) not in (1, len(z)):
            raise ValueError(f"the edit has values for {len(values)} sequences, {len(z)} were fed")
        where = heads[layer, :, None]
        if edit.positions == "last":
            pos = torch.arange(z.shape[1], device=device)
            where = where & (pos == _last_real(fed["attention_mask"], z)[:, None])[:, :, None, None]
        return (torch.where(where, values[:, None, layer].to(z.dtype), z).reshape(args[0].shape), *args[1:])

    hf_model = model.original_model
    hooks = [m.register_forward_pre_hook(note_mask, with_kwargs=True) for m in {hf_model, hf_model.base_model}]
    hooks += [projection.register_forward_pre_hook(partial(replace, layer))
              for layer, projection in enumerate(output_projections(model)) if edit.heads[layer].any()]
    with hooked(hooks):
        yield


def _last_real(attention_mask: Tensor | None, z: Float[Tensor, "batch pos head d_head"]) -> Int[Tensor, "batch"]:
    """The last unpadded position among those fed now (with a cache the mask also covers the past)."""
    n_pos = z.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.full((len(z),), n_pos - 1, device=z.device)
    real = attention_mask[:, -n_pos:].to(z.device) != 0
    return torch.where(real, torch.arange(real.shape[1], device=z.device), -1).amax(1)  # -1, nowhere: only padding
