"""Greedy generation under many edits at once.

The prompt up to its last token is run once per batch and its keys and values are kept; then every edit carries
its own next token ("row"), the rows of a prompt side by side where positions stand. A row sees the prompt's
keys and what it generated itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from icl_lib.forward.edits import Edit, RowEdits, by_positions, row_edits
from icl_lib.forward.encoded import EncodedPrompt, TokenBatch, token_batches
from icl_lib.forward.passes import (
    PassDone,
    device_of,
    feed,
    hooked,
    last_positions,
    output_projections,
    own_attention,
    plain_attention,
    plain_transformers,
    split_heads,
    take_positions,
)
from icl_lib.forward.readout import greedy_tokens
from icl_lib.forward.shared_layers import edited_residuals
from icl_lib.forward.shared_prefix import attend_rows

N_GENERATED = 5  # tokens, as in the released code


@torch.inference_mode()
def generate(
    model: nn.Module,
    encoded: Sequence[EncodedPrompt],
    edits: Sequence[Edit | None],
    *,
    n_tokens: int = N_GENERATED,
    batch_size: int = 16,
) -> Int[Tensor, "prompt edit token"]:
    """The likeliest next `n_tokens` of each prompt, one by one, under each edit; greedy for every model (A8).

    An edit at the last position acts on the prompt's last token and on each generated one that is fed again, as
    in the released code (A2). Generation goes on after an end-of-text token. Raises ValueError naming task and prompt
    where prompt and new tokens exceed the context.
    """
    for prompt in encoded:
        if len(prompt.tokens) + n_tokens - 1 > model.cfg.n_ctx:
            raise ValueError(
                f"task {prompt.task!r}, prompt {prompt.index}: {len(prompt.tokens)} tokens and {n_tokens} generated "
                f"ones exceed the context of {model.cfg.n_ctx}; take fewer demonstrations")
    generated = torch.empty(len(encoded), len(edits), n_tokens, dtype=torch.long)
    by_modules = own_attention(model)
    for batch in token_batches([p.tokens for p in encoded], batch_size, device_of(model)):
        for where, chosen in by_positions(edits, unedited="last").items():
            # an edit at all positions has a prompt of its own
            for some in [chosen] if by_modules or where == "last" else [[i] for i in chosen]:
                rows = row_edits(model, [edits[i] for i in some], batch.rows)
                if by_modules:
                    tokens = _generate_whole(model, batch, rows, n_tokens, everywhere=where == "all")
                else:
                    tokens = _Decoder(model, batch, rows).run(n_tokens, everywhere=where == "all")
                generated[torch.tensor(batch.rows)[:, None], torch.tensor(some)] = tokens.cpu()
    return generated


def _generate_whole(
    model: nn.Module, batch: TokenBatch, edits: RowEdits, n_tokens: int, *, everywhere: bool
) -> Int[Tensor, "batch row token"]:
    """For an attention of the architecture's own: whole texts, at all positions or from the prompt's last on."""
    norm = model.ln_final.original_component
    prompts = torch.arange(len(batch.tokens), device=batch.tokens.device)
    generated = []
    for row in range(len(edits.masks)):
        edit = edits.take(torch.tensor([row], device=prompts.device))
        tokens = nn.functional.pad(batch.tokens, (0, n_tokens))
        for step in range(n_tokens):
            last = batch.lengths[:, None] - 1 + step
            pos = torch.arange(tokens.shape[1], device=prompts.device).expand_as(tokens)
            edited = None if everywhere else (pos >= batch.lengths[:, None] - 1) & (pos <= last)
            hidden = norm(edited_residuals(model, tokens, edit, last, edited=edited)[:, :, 0])
            tokens[prompts, batch.lengths + step] = greedy_tokens(model, hidden)[:, 0]
        generated.append(take_positions(tokens, last_positions(batch.lengths + n_tokens, n_tokens)))
    return torch.stack(generated, dim=1)


class _Decoder:
    """Keys and values of a batch of prompts and of what its rows have generated so far."""

    def __init__(self, model: nn.Module, batch: TokenBatch, edits: RowEdits):
        self.model, self.batch, self.edits = model, batch, edits
        self.projections = output_projections(model)
        self.last = batch.lengths - 1  # generation starts from the last token; the prefix is before it
        self.n_prefix = int(self.last.max())
        prefix = torch.arange(self.n_prefix, device=batch.tokens.device)
        self.hidden = (prefix >= self.last[:, None])[:, None, None, None, None]
        self.prefix: list[tuple[Tensor, Tensor]] = []  # keys and values by layer
        self.generated: list[list[tuple[Tensor, Tensor]]] = []  # the same of each row's own tokens
        self.in_rows, self.layer = False, 0

    def run(self, n_tokens: int, *, everywhere: bool) -> Int[Tensor, "batch row token"]:
        """Greedy tokens of every row; `everywhere`, for a single row, its edit also acts on the prompt."""
        token = self.batch.tokens.gather(1, self.last[:, None]).expand(-1, len(self.edits.masks))
        tokens = []
        hooks = (p.register_forward_pre_hook(self._replacing(i, everywhere)) for i, p in enumerate(self.projections))
        with hooked(hooks):
            with plain_transformers(self.model, self.attend) as hf_model:
                feed(hf_model, self.batch.tokens)
            self.in_rows = True
            for step in range(n_tokens):
                self.layer = 0
                position = (self.last[:, None] + step).expand_as(token)
                with plain_transformers(self.model, self.attend) as hf_model:
                    hidden = feed(hf_model, token, position_ids=position).last_hidden_state
                token = greedy_tokens(self.model, hidden)
                tokens.append(token)
        return torch.stack(tokens, dim=2)

    def _replacing(self, layer: int, everywhere: bool):
        mask, values = self.edits.masks[:, layer], self.edits.values[:, :, layer]

        def replace(_projection: nn.Module, args: tuple) -> tuple | None:
            if not mask.any() or not (self.in_rows or everywhere):
                return None
            z = split_heads(self.model, args[0])
            return (torch.where(mask[:, :, None], values.to(z.dtype), z).reshape(args[0].shape), *args[1:])

        return replace

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        window = kwargs.get("sliding_window")
        if window is not None and window < self.n_prefix + N_GENERATED:
            raise ValueError(f"{type(module).__name__}: generation with a window is not supported")
        if self.in_rows:
            layer, self.layer = self.layer, self.layer + 1
            self.generated[layer].append((key, value))
            rows = (torch.stack(part, dim=3) for part in zip(*self.generated[layer], strict=True))
            return attend_rows(query, *self.prefix[layer], *rows, kwargs.get("scaling"), self.hidden), None
        self.prefix.append((key[:, :, : self.n_prefix], value[:, :, : self.n_prefix]))
        self.generated.append([])
        if len(self.prefix) == len(self.projections):
            raise PassDone
        return plain_attention(module, query, key, value, attention_mask, **kwargs)
