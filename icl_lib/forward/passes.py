"""Plain forward passes: prompts to token batches, and a model without the bridge's wrappers.

TransformerBridge splits fused projections, computes attention eagerly and calls a hook at every
module. The sweeps here need none of that, so they run the transformers modules that the bridge
wraps: same parameters, the architecture's own mathematics, about twice as fast on small models.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import Prompt

_ATTENTION = "icl_lib"  # our name in transformers' registry of attention functions


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and of its answer, with the place it came from for error messages."""

    task: str
    index: int
    tokens: list[int]
    answer: list[int]


@dataclass(frozen=True)
class TokenBatch:
    """Prompts of a batch, padded on the right.

    Right, because causal attention then needs no padding mask and no shifted positions: nothing
    before the padding can see it, so a prompt's numbers do not depend on its batch.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, "batch"]
    rows: list[int]  # where each prompt stood in the list that was batched


class PassDone(Exception):
    """Raised from a hook to leave a forward pass once everything wanted has been read."""


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformers decoder layers under the bridge's blocks (ask outside `plain_transformers`)."""
    return [block.original_component for block in model.blocks]


def output_projections(model: nn.Module) -> list[nn.Module]:
    """The modules whose input holds the heads' outputs side by side, one per layer.

    A forward pre-hook here acts in the bridge and in the plain model alike, and equals an edit of
    `blocks.{l}.attn.hook_z`.
    """
    return [block.attn.o.original_component for block in model.blocks]


def attentions(model: nn.Module) -> list[nn.Module]:
    """The transformers attention modules, one per layer; what they give ends with the output projection."""
    return [block.attn.original_component for block in model.blocks]


def device_of(model: nn.Module) -> torch.device:
    return next(model.original_model.parameters()).device


def own_attention(model: nn.Module) -> bool:
    """Whether only the architecture's own attention is right, as `icl_lib.check.model_check` found on loading."""
    return getattr(model, "own_attention", False)


def encode_prompts(
    model: nn.Module, prompts: Sequence[Prompt], task: str, *, extra_tokens: int = 0
) -> list[EncodedPrompt]:
    """Tokenise prompts and, alone with their leading space, answers (find_fv_heads.py does so too).

    No special tokens are added: the BOS text is part of the prompt's text. A tokenizer that puts a space
    before every text itself (Llama's) is given the answer without its own, or all answers would begin with
    the same token; the released code skips that token. `extra_tokens` is room wanted after the prompt.
    Raises ValueError, naming task and prompt index, for an empty task, a prompt without tokens or longer
    than the context, an answer that tokenises to nothing, and a token that the model has no embedding for.
    """
    if not prompts:
        raise ValueError(f"task {task!r} has no prompts")
    encode = model.tokenizer
    texts = encode([p.text for p in prompts], add_special_tokens=False)["input_ids"]
    own_space = puts_space_before(encode)
    answers = [p.answer.removeprefix(" ") if own_space else p.answer for p in prompts]
    answers = encode(answers, add_special_tokens=False)["input_ids"]
    encoded = []
    for i, (tokens, answer) in enumerate(zip(texts, answers, strict=True)):
        where = f"task {task!r}, prompt {i}"
        if not tokens:
            raise ValueError(f"{where}: the prompt {prompts[i].text!r} tokenises to nothing")
        if not answer:
            raise ValueError(f"{where}: the answer {prompts[i].answer!r} tokenises to nothing")
        refuse_unknown_tokens(model, max(*tokens, *answer), where)
        if len(tokens) + extra_tokens > model.cfg.n_ctx:
            raise ValueError(
                f"{where}: {len(tokens) + extra_tokens} tokens exceed the context of {model.cfg.n_ctx}"
            )
        encoded.append(EncodedPrompt(task, i, list(tokens), list(answer)))
    return encoded


def puts_space_before(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a space before a text that has none."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("A", add_special_tokens=False)["input_ids"])[:1]
    return bool(first) and first[0].startswith("\N{LOWER ONE EIGHTH BLOCK}")


def refuse_unknown_tokens(model: nn.Module, highest: int, where: str) -> None:
    """Raise ValueError for a token id beyond the rows of the embedding."""
    rows = model.embed.original_component.weight.shape[0]
    if highest >= rows:
        raise ValueError(f"{where}: token id {highest}, but the model has embeddings for ids 0 to {rows - 1}; is its "
                         "tokenizer another model's?")


def token_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Iterator[TokenBatch]:
    """Batches of sequences of similar length, longest first (so memory runs out early, not late)."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = [len(sequences[i]) for i in rows]
        tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for row, i in enumerate(rows):
            tokens[row, : lengths[row]] = torch.tensor(sequences[i])
        yield TokenBatch(tokens.to(device), torch.tensor(lengths, device=device), rows)


@contextmanager
def plain_transformers(
    model: nn.Module, attention: Callable[..., tuple[Tensor, Any]] | None = None
) -> Iterator[nn.Module]:
    """The transformers model under the bridge, its wrappers taken out for the time being.

    `attention`, if given, is called instead of scaled-dot-product attention with the signature of
    transformers' attention functions; it is given a mask only where causality alone is not enough. A model
    of `own_attention` computes as transformers' eager pass does, and takes no other function: ValueError.
    """
    if attention is not None and own_attention(model):
        raise ValueError(f"{type(model.original_model).__name__} computes attention by modules of its own only")
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    hf_model = model.original_model
    wrapped = list(_wrapped_modules(hf_model))
    name_before = hf_model.config._attn_implementation
    function_before = AttentionInterface._global_mapping.get(_ATTENTION)
    if attention is not None:
        AttentionInterface.register(_ATTENTION, attention)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    for parent, name, bridge in wrapped:
        parent._modules[name] = bridge.original_component
    plain = "eager" if own_attention(model) else "sdpa"
    hf_model.config._attn_implementation = plain if attention is None else _ATTENTION
    try:
        yield hf_model
    finally:
        hf_model.config._attn_implementation = name_before
        for parent, name, bridge in wrapped:
            parent._modules[name] = bridge
        if function_before is not None:
            AttentionInterface.register(_ATTENTION, function_before)
        else:  # or the registry would keep what the function has seen alive
            AttentionInterface._global_mapping.pop(_ATTENTION, None)


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

    BOS is included if the sequences hold it. Nothing is averaged. Same device and dtype as the
    model.
    """
    projections = output_projections(model)
    outputs: list[Tensor | None] = [None] * len(sequences)
    with plain_transformers(model) as hf_model:
        for batch in token_batches(sequences, batch_size, device_of(model)):
            last = last_positions(batch.lengths, 1)
            seen: list[Tensor] = []

            def read(_module: nn.Module, args: tuple, last: Tensor = last, seen: list = seen) -> None:
                seen.append(split_heads(model, take_positions(args[0], last)[:, 0]))
                if len(seen) == len(projections):
                    raise PassDone

            handles = [projection.register_forward_pre_hook(read) for projection in projections]
            try:
                hf_model.base_model(input_ids=batch.tokens, use_cache=False)
            except PassDone:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            for row, z in zip(batch.rows, torch.stack(seen, dim=1), strict=True):
                outputs[row] = z
    return torch.stack(outputs)


@torch.inference_mode()
def mean_head_outputs(
    model: nn.Module, tokens: Int[Tensor, "row pos"], *, batch_size: int = 8
) -> Float[Tensor, "layer head d_head"]:
    """Each head's mean output over all rows and positions but the first (BOS), before the output projection."""
    totals: dict[int, Tensor] = {}

    def read(layer: int):
        def add(_module: nn.Module, args: tuple) -> None:
            total = split_heads(model, args[0])[:, 1:].double().sum((0, 1))
            totals[layer] = total + totals.get(layer, 0)

        return add

    handles = [p.register_forward_pre_hook(read(i)) for i, p in enumerate(output_projections(model))]
    try:
        with plain_transformers(model) as hf_model:
            for rows in tokens.split(batch_size):
                hf_model.base_model(input_ids=rows.to(device_of(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    n = len(tokens) * (tokens.shape[1] - 1)
    return torch.stack([totals[i] / n for i in range(len(totals))]).to(next(model.original_model.parameters()).dtype)
