"""Induction scores and their relatives, from attention patterns on repeated random tokens."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.forward.encoded import refuse_unknown_tokens
from icl_lib.forward.passes import PassDone, attentions, device_of, feed, hidden_by, hooked, plain_transformers
from icl_lib.names import refuse_unknown

CONVENTIONS = ("attention_mass", "prefix_matching")
_PATTERN_BYTES = 256 * 2**20  # of one layer's attention held at a time


def induction_scores(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], *, convention: str = "attention_mass",
    lengths: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "layer head"]:
    """The induction score of every head, read off its attention on sequences that repeat.

    `attention_mass` (section 2 of Yin & Steinhardt 2025; find_induction_heads.py as it really runs):
    attention on keys right after an earlier copy of the query token, divided by all attention, mean
    over sequences. Every position is a query, BOS and the first half too, which have no target: so
    the ceiling is the share of positions with one, about 0.5 on BOS + random + the same again.

    `prefix_matching` (Olsson et al. 2022, section "prefix matching"): attention from a token with an
    earlier copy to the token after its first copy, mean over such tokens and sequences, ceiling 1.
    Where a sequence is BOS and one run of tokens twice, those tokens are the second half without its
    last, and the copy is the one a period earlier, also if the run holds a token twice by chance.

    `tokens`: ids, fed as they are; `lengths`, if given, leaves out padding on their right. Range 0..1. Raises
    ValueError for an unknown convention, tokens in which nothing repeats, and tokens longer than the context.
    """
    refuse_unknown("convention", convention, CONVENTIONS)
    targets = induction_targets(tokens) if convention == "attention_mass" else _prefix_matching_targets(tokens)
    real = torch.ones_like(tokens, dtype=torch.bool)
    if lengths is not None:  # a real query sees no padding: it stands on the right
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    targets = targets & real[..., None]
    if not targets.any():
        raise ValueError("tokens: no token with an earlier copy, so there is no induction to score")
    queries = real if convention == "attention_mass" else targets.any(-1)
    return _mean_attention(model, tokens, targets, queries=queries)


def previous_token_scores(model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """Attention from each token to the one before it, mean over all positions but the first (0..1).

    Not in the paper's text; the first half of an induction circuit (Olsson et al. 2022). Raises
    ValueError for sequences of one token.
    """
    if (n := tokens.shape[1]) < 2:
        raise ValueError("tokens: sequences of one token have no previous token")
    targets = torch.eye(n, dtype=torch.bool, device=tokens.device).roll(-1, 1).tril().expand(len(tokens), n, n)
    return _mean_attention(model, tokens, targets, queries=targets.any(-1))


def duplicate_token_scores(model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """Attention from each token with earlier copies to those copies, mean over such tokens (0..1).

    Not in the paper's text; duplicate-token heads as in Wang et al. (2023). Raises ValueError for
    tokens in which nothing repeats.
    """
    targets = _earlier_copies(tokens)
    if not targets.any():
        raise ValueError("tokens: no token with an earlier copy")
    return _mean_attention(model, tokens, targets, queries=targets.any(-1))


def repeated_random_tokens(
    model: nn.Module, *, n_sequences: int = 1000, length: int = 50, seed: int = 42, bos: bool = True,
    special_ids: bool = False, padding_ids: bool = False,
) -> Int[Tensor, "batch pos"]:
    """BOS, `length` uniform random tokens, the same again (section 2: 1000 sequences of 50).

    Ids come from the trained part of the vocabulary: those the tokenizer knows, less special tokens. The released code
    draws from all rows of the embedding (`special_ids`, and `padding_ids` for rows beyond the tokenizer's, which were
    never trained), and re-tokenises the text, which destroys the repetition (find_induction_heads.py;
    `icl_lib.protocols`). Raises ValueError for no sequences or tokens, sequences longer than the context and a
    tokenizer without BOS.
    """
    tokenizer = model.tokenizer
    n_pos = 2 * length + bos
    if length < 1 or n_sequences < 1:
        raise ValueError(f"{n_sequences} sequences of {length} tokens twice: expected at least 1 of at least 1")
    if n_pos > model.cfg.n_ctx:
        raise ValueError(f"sequences of {n_pos} tokens do not fit a context of {model.cfg.n_ctx}; make length smaller")
    if bos and tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS token; pass bos=False")
    left_out = set() if special_ids else set(tokenizer.all_special_ids)
    n_ids = model.cfg.d_vocab if padding_ids else min(len(tokenizer), model.cfg.d_vocab)
    ids = torch.tensor([i for i in range(n_ids) if i not in left_out])
    generator = torch.Generator().manual_seed(seed)
    run = ids[torch.randint(len(ids), (n_sequences, length), generator=generator)]
    start = torch.full((n_sequences, int(bos)), tokenizer.bos_token_id if bos else 0)
    return torch.cat([start, run, run], dim=1)


def induction_targets(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos key"]:
    """Keys right after an earlier copy of the query token; the query itself counts if the token before it is one."""
    after = _earlier_copies(tokens).roll(1, dims=2)
    after[:, :, 0] = False
    return after.tril()


def _earlier_copies(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos key"]:
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1)


def _prefix_matching_targets(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos key"]:
    n = tokens.shape[1]
    period, first = n // 2, n % 2  # an odd length begins with BOS
    pos = torch.arange(n, device=tokens.device)
    if period and torch.equal(tokens[:, first : first + period], tokens[:, first + period :]):
        stripe = pos[None, :] == pos[:, None] - period + 1
        queries = (pos >= first + period) & (pos < n - 1)
        return (stripe & queries[:, None]).expand(len(tokens), n, n)
    copies = _earlier_copies(tokens)
    after_first = copies.int().argmax(-1) + 1
    return copies.any(-1)[..., None] & (pos == after_first[..., None])


def _mean_attention(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], targets: Bool[Tensor, "batch pos key"],
    queries: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "layer head"]:
    """Attention on targets per query: mean over queries, then over sequences that have any."""
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"tokens: {tokens.shape[1]} positions exceed the context of {model.cfg.n_ctx}")
    refuse_unknown_tokens(model, int(tokens.max()), "tokens")
    has_query = queries.any(1)
    tokens, targets, queries = (t[has_query].to(device_of(model)) for t in (tokens, targets, queries))
    n_pos = tokens.shape[1]
    batch_size = max(1, _PATTERN_BYTES // (4 * 3 * model.cfg.n_heads * n_pos**2))
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    for rows in torch.arange(len(tokens), device=tokens.device).split(batch_size):
        def reduce(pattern: Tensor, hit: Tensor = targets[rows], asked: Tensor = queries[rows]) -> Tensor:
            # on queries without a target the hit is zero: they count in the denominator only
            on_target = torch.einsum("bhqk,bqk->bh", pattern, hit.to(pattern.dtype))
            return (on_target.double() / asked.sum(1)[:, None]).sum(0)

        total += torch.stack(reduced_patterns(model, tokens[rows], reduce)).cpu()
    return total / len(tokens)


@torch.inference_mode()
def reduced_patterns(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], reduce: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """`reduce` of every layer's attention pattern `[batch, head, pos, key]`, one layer at a time.

    An architecture with an attention of its own gives patterns itself, beside the output (`output_attentions`); raises
    ValueError for one that does not.
    """
    reduced: list[Tensor] = []
    shape = (len(tokens), model.cfg.n_heads, tokens.shape[1], tokens.shape[1])

    def attend(
        _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        grouped = query.unflatten(1, (key.shape[1], -1))
        scores = grouped @ key[:, :, None].mT
        scores *= query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        hidden = torch.ones(shape[2:], dtype=torch.bool, device=query.device).triu(1)
        if attention_mask is not None:
            hidden = hidden_by(attention_mask)[:, :, None]
        pattern = scores.masked_fill_(hidden, float("-inf")).softmax(
            -1, dtype=torch.promote_types(query.dtype, torch.float32))
        reduced.append(reduce(pattern.view(shape)))
        if len(reduced) == model.cfg.n_layers:
            raise PassDone
        return (pattern.to(value.dtype) @ value[:, :, None]).flatten(1, 2).transpose(1, 2), None

    def read(attention: nn.Module, _args: tuple, output: Any) -> None:
        patterns = [part for part in output if isinstance(part, Tensor) and part.shape == shape]
        if len(patterns) != 1:
            raise ValueError(f"{type(attention).__name__} gives no attention pattern, so there are no induction scores")
        reduced.append(reduce(patterns[0]))

    by_modules = model.own_attention
    hooks = hooked(attention.register_forward_hook(read) for attention in attentions(model) if by_modules)
    with plain_transformers(model, None if by_modules else attend) as hf_model, hooks:
        feed(hf_model, tokens)
    return reduced
