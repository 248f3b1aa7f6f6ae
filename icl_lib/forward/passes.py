"""Plain forward passes: the transformers modules without the bridge's wrappers, which the sweeps here do not need.

Same parameters, the architecture's own mathematics, about twice as fast on small models.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from icl_lib.forward.encoded import TokenBatch, in_batches

_ATTENTION = "icl_lib"  # our name in transformers' registry of attention functions


class PassDone(Exception):
    """Raised from a hook to leave a forward pass once everything wanted has been read."""


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that stand while the context lasts."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feed(hf_model: nn.Module, tokens: Int[Tensor, "batch pos"], **options: Any) -> Any:
    """A pass through all that lies below the head, until a hook raises PassDone; then None."""
    with suppress(PassDone):
        return hf_model.base_model(input_ids=tokens, use_cache=False, **options)


def without_hidden(args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
    """The residual stream that a layer is called with, and its other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a layer gives."""
    return output[0] if isinstance(output, tuple) else output


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformers decoder layers under the bridge's blocks (ask outside `plain_transformers`)."""
    return [block.original_component for block in model.blocks]


def output_projections(model: nn.Module) -> list[nn.Module]:
    """The modules whose input holds the heads' outputs side by side (the bridge's hook_z), one per layer."""
    return [block.attn.o.original_component for block in model.blocks]


def attentions(model: nn.Module) -> list[nn.Module]:
    """The transformers attention modules, one per layer; what they give ends with the output projection."""
    return [block.attn.original_component for block in model.blocks]


def device_of(model: nn.Module) -> torch.device:
    return next(model.original_model.parameters()).device


@contextmanager
def plain_transformers(
    model: nn.Module, attention: Callable[..., tuple[Tensor, Any]] | None = None
) -> Iterator[nn.Module]:
    """The transformers model under the bridge, its wrappers taken out for the time being.

    `attention`, if given, is called instead of scaled-dot-product attention with the signature of
    transformers' attention functions; it is given a mask only where causality alone is not enough. Raises
    ValueError for attention with a cap or sinks, of which such a function knows nothing, and for a model of
    `own_attention` (`icl_lib.check.model_check.prove`), which computes as transformers' eager pass does.
    """
    if attention is not None and model.own_attention:
        raise ValueError(f"{type(model.original_model).__name__} computes attention by modules of its own only")
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    hf_model = model.original_model
    wrapped = list(_wrapped_modules(hf_model))
    name_before = hf_model.config._attn_implementation
    if attention is not None:
        AttentionInterface.register(_ATTENTION, partial(_without_caps, attention))
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    for parent, name, bridge in wrapped:
        parent._modules[name] = bridge.original_component
    plain = "eager" if model.own_attention else "sdpa"
    hf_model.config._attn_implementation = plain if attention is None else _ATTENTION
    try:
        yield hf_model
    finally:
        hf_model.config._attn_implementation = name_before
        for parent, name, bridge in wrapped:
            parent._modules[name] = bridge
        if attention is not None:  # or the registry would keep what the function has seen alive
            AttentionInterface._global_mapping.pop(_ATTENTION)


def _without_caps(attention: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__}: attention with softcap or sinks is not supported")
    return attention(module, *args, **kwargs)


def _wrapped_modules(parent: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        if "_original_component" in child._modules:
            yield parent, name, child
            child = child.original_component
        yield from _wrapped_modules(child)


def plain_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Transformers' scaled-dot-product attention, for attention functions that also look on."""
    from transformers import AttentionInterface

    return AttentionInterface._global_mapping["sdpa"](*args, **kwargs)


def hidden_by(mask: Tensor) -> Tensor:
    """What a mask hides, whether it is given as what is seen or as what is added to scores."""
    return ~mask if mask.dtype == torch.bool else mask != 0


def split_heads(model: nn.Module, flat: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows head d_head"]:
    """Heads' outputs side by side -> one row per head."""
    return flat.unflatten(-1, (model.cfg.n_heads, -1))


def last_positions(lengths: Int[Tensor, "batch"], n: int) -> Int[Tensor, "batch n"]:
    """The last `n` positions of each sequence."""
    return lengths[:, None] - n + torch.arange(n, device=lengths.device)


def take_positions(values: Tensor, positions: Int[Tensor, "batch n"]) -> Tensor:
    """`values[batch, pos, ...]` at each sequence's own positions."""
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, positions]


@torch.inference_mode()
def last_head_outputs(
    model: nn.Module, sequences: Sequence[Sequence[int]], *, batch_size: int = 16
) -> Float[Tensor, "prompt layer head d_head"]:
    """Each head's output at the last position, before the output projection (hook_z).

    BOS is included if the sequences hold it. Nothing is averaged. Same device and dtype as the model.
    """
    projections = output_projections(model)

    def run(batch: TokenBatch) -> Tensor:
        last, seen = last_positions(batch.lengths, 1), []

        def read(_module: nn.Module, args: tuple) -> None:
            seen.append(split_heads(model, take_positions(args[0], last)[:, 0]))
            if len(seen) == len(projections):
                raise PassDone

        with hooked(projection.register_forward_pre_hook(read) for projection in projections):
            feed(hf_model, batch.tokens)
        return torch.stack(seen, dim=1)

    with plain_transformers(model) as hf_model:
        return in_batches(run, sequences, batch_size, device_of(model))


@torch.inference_mode()
def mean_head_outputs(model: nn.Module, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "layer head d_head"]:
    """Each head's mean output over all rows and positions but the first (BOS), before the output projection."""
    totals: dict[int, Tensor] = {}

    def add(layer: int, _module: nn.Module, args: tuple) -> None:
        totals[layer] = split_heads(model, args[0])[:, 1:].double().sum((0, 1)) + totals.get(layer, 0)

    hooks = hooked(p.register_forward_pre_hook(partial(add, i)) for i, p in enumerate(output_projections(model)))
    with plain_transformers(model) as hf_model, hooks:
        for rows in tokens.split(8):
            feed(hf_model, rows.to(device_of(model)))
    n = len(tokens) * (tokens.shape[1] - 1)
    return torch.stack([totals[i] / n for i in range(len(totals))]).to(next(model.original_model.parameters()).dtype)
