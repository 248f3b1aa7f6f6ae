"""Ablation as one intervention: which heads, replaced by what, at which positions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.means import clean_means
from icl_lib.forward.passes import (
    device_of,
    encode_prompts,
    last_head_outputs,
    mean_head_outputs,
    output_projections,
    split_heads,
)
from icl_lib.forward.shared_prefix import RowEdits

REPLACEMENTS = ("mean", "task_mean", "zero", "resample", "bos_value")
POSITIONS = ("last", "all")


@dataclass(frozen=True)
class Edit:
    """Heads whose outputs (hook_z, before the output projection) are replaced, by what, and where.

    `values`: one output per head, the same for every sequence (batch axis of length 1) or one per
    sequence. `positions`: `last` is the last real position of whatever is fed, so in generation the
    last position of the prompt and then each generated token, as the released few-shot ablation does
    (ablate_utils.py); `all` is every position, as the released token-loss ablation does.
    """

    heads: Bool[Tensor, "layer head"]
    values: Float[Tensor, "#batch layer head d_head"]
    positions: str = "last"

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; valid are {', '.join(POSITIONS)}")
        if self.values.shape[1:3] != self.heads.shape:
            raise ValueError(
                f"values are for {tuple(self.values.shape[1:3])} layers and heads, "
                f"the mask for {tuple(self.heads.shape)}"
            )

    def of_rows(self, rows: list[int]) -> "Edit":
        """The edit for some of the sequences it was made for."""
        return self if len(self.values) == 1 else replace(self, values=self.values[rows])


def row_edits(model: nn.Module, edits: Sequence[Edit | None], sequences: Sequence[int]) -> RowEdits:
    """Edits as rows for a batch of some of the sequences they were made for; values they share stay shared."""
    device = device_of(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    masks = [torch.zeros(shape, dtype=torch.bool) if e is None else e.heads.cpu() for e in edits]
    masks = torch.stack(masks).to(device)
    values = {id(e.values): e.values for e in edits if e is not None}
    if not values:
        return RowEdits(masks, torch.zeros(1, 1, *shape, 1, device=device))
    of_batch = {i: v if len(v) == 1 else v[sequences] for i, v in values.items()}
    if len(of_batch) == 1:
        return RowEdits(masks, next(iter(of_batch.values()))[:, None].to(device))
    n = max(len(v) for v in of_batch.values())
    some = next(iter(of_batch))
    stacked = [of_batch[some if e is None else id(e.values)].expand(n, -1, -1, -1) for e in edits]
    return RowEdits(masks, torch.stack(stacked, dim=1).to(device))


@contextmanager
def edited_heads(model: nn.Module, edit: Edit | None) -> Iterator[None]:
    """Replace heads' outputs in every forward pass of the model while the context lasts.

    Works for the bridge, for the transformers model under it and for `generate` with and without a
    cache. With padding on either side pass the `attention_mask` to the forward pass: the last
    position is the last one it shows; without a mask it is the last one fed. None edits nothing.
    Raises ValueError for a mask of another shape than the model's heads and for values of a batch of
    another size than the one fed.
    """
    if edit is None or not edit.heads.any():
        yield
        return
    if edit.heads.shape != (model.cfg.n_layers, model.cfg.n_heads):
        raise ValueError(
            f"heads mask is {tuple(edit.heads.shape)}, the model has "
            f"{(model.cfg.n_layers, model.cfg.n_heads)} layers and heads"
        )
    fed: dict[str, Tensor | None] = {"attention_mask": None}

    def note_mask(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
        fed["attention_mask"] = kwargs.get("attention_mask")

    hf_model = model.original_model
    handles = [
        m.register_forward_pre_hook(note_mask, with_kwargs=True) for m in {hf_model, hf_model.base_model}
    ]
    try:
        for layer, projection in enumerate(output_projections(model)):
            if edit.heads[layer].any():
                handles.append(projection.register_forward_pre_hook(_replacing(model, edit, layer, fed)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replacing(model: nn.Module, edit: Edit, layer: int, fed: dict):
    device = device_of(model)
    heads = edit.heads[layer].to(device)[None, None, :, None]
    values = edit.values[:, layer].to(device)[:, None]

    def hook(_projection: nn.Module, args: tuple) -> tuple:
        z = split_heads(model, args[0])
        if len(values) not in (1, len(z)):
            raise ValueError(f"the edit has values for {len(values)} sequences, {len(z)} were fed")
        where = heads
        if edit.positions == "last":
            pos = torch.arange(z.shape[1], device=device)
            where = heads & (pos == _last_real(fed["attention_mask"], z)[:, None])[:, :, None, None]
        return (torch.where(where, values.to(z.dtype), z).reshape(args[0].shape), *args[1:])

    return hook


def _last_real(
    attention_mask: Tensor | None, z: Float[Tensor, "batch pos head d_head"]
) -> Int[Tensor, "batch"]:
    """The last unpadded position among those fed now (with a cache the mask also covers the past)."""
    n_pos = z.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.full((len(z),), n_pos - 1, device=z.device)
    real = attention_mask[:, -n_pos:].to(z.device) != 0
    last = torch.where(real, torch.arange(real.shape[1], device=z.device), -1).amax(1)
    return last  # -1, nowhere, for a sequence that is padding only


def replacement_values(
    model: nn.Module,
    prompts: Mapping[str, TaskPrompts],
    replacement: str = "mean",
    *,
    scoring_prompts: Mapping[str, TaskPrompts] | None = None,
    seed: int = 0,
) -> dict[str, Float[Tensor, "batch layer head d_head"]]:
    """What each head's output is replaced by, for the clean prompts of each task in `prompts`.

    All from the last position of the clean prompts of `scoring_prompts` (default: `prompts`), before
    the output projection, BOS included in the prompts:
    `mean`: over all tasks, each counting the same (the paper's "mean ablation", section 4; released
    code: the mean over the 29 scoring tasks). `task_mean`: over the task's own prompts in `prompts`.
    `resample`: another prompt's output, drawn anew for each prompt (one for all heads, so that they
    go together), never the prompt itself. `zero`: zeros. `bos_value`: the head's output at a BOS
    with nothing before it, which is its value vector there (released token-loss ablation).

    The batch axis is 1 except for `resample`: one per clean prompt. Raises ValueError for an unknown
    replacement, for `resample` from a single prompt and as `fv_scores` does.
    """
    if replacement not in REPLACEMENTS:
        raise ValueError(f"unknown replacement {replacement!r}; valid are {', '.join(REPLACEMENTS)}")
    source = scoring_prompts or prompts
    if replacement == "resample":
        return _resampled(model, prompts, source, seed)
    if replacement == "task_mean":
        return {task: mean[None] for task, mean in clean_means(model, prompts, progress=False).items()}
    if replacement == "mean":
        means = clean_means(model, source, progress=False)
        value = (
            torch.stack([mean.double() for mean in means.values()])
            .mean(0)
            .to(next(iter(means.values())).dtype)
        )
    else:
        value = bos_values(model)
        if replacement == "zero":
            value = torch.zeros_like(value)
    return {task: value[None] for task in prompts}


def document_values(
    model: nn.Module,
    documents: Int[Tensor, "document pos"],
    replacement: str = "mean",
    *,
    scoring_prompts: Mapping[str, TaskPrompts],
    seed: int = 0,
) -> Float[Tensor, "batch layer head d_head"]:
    """`replacement_values` for documents: the same values as for prompts where a document can have them.

    `mean`, `zero` and `bos_value` are the same values. `resample`: for each document the output on one of the
    scoring prompts, drawn anew. `task_mean`: a document has no task, so the mean over the documents' own positions,
    BOS left out. Batch axis 1, for `resample` one per document. Errors as in `replacement_values`.
    """
    if replacement == "task_mean":
        return mean_head_outputs(model, documents)[None].cpu()
    if replacement == "resample":
        encoded = [p.tokens for task, tp in scoring_prompts.items() for p in encode_prompts(model, tp.clean, task)]
        drawn = torch.randint(len(encoded), (len(documents),), generator=torch.Generator().manual_seed(seed))
        return last_head_outputs(model, [encoded[i] for i in drawn.tolist()]).cpu()
    values = replacement_values(model, dict(list(scoring_prompts.items())[:1]), replacement,
                                scoring_prompts=scoring_prompts, seed=seed)
    return next(iter(values.values()))


def bos_values(model: nn.Module) -> Float[Tensor, "layer head d_head"]:
    """Each head's output at a BOS with nothing before it: its value vector at the BOS.

    It is the same in every text, since a first token attends to itself only. Raises ValueError for a
    tokenizer without BOS.
    """
    if model.tokenizer.bos_token_id is None:
        raise ValueError("replacement 'bos_value' needs a tokenizer with a BOS token")
    return last_head_outputs(model, [[model.tokenizer.bos_token_id]])[0].cpu()


def _resampled(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], source: Mapping[str, TaskPrompts], seed: int
) -> dict[str, Float[Tensor, "batch layer head d_head"]]:
    encoded = [p for task, tp in source.items() for p in encode_prompts(model, tp.clean, task)]
    outputs = last_head_outputs(model, [p.tokens for p in encoded]).cpu()
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for task, task_prompts in prompts.items():
        drawn = []
        for prompt in task_prompts.clean:
            tokens = model.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
            others = [i for i, other in enumerate(encoded) if other.tokens != tokens]
            if not others:
                raise ValueError(f"task {task!r}: replacement 'resample' needs another prompt to draw from")
            drawn.append(others[int(torch.randint(len(others), (1,), generator=generator))])
        values[task] = outputs[drawn]
    return values
