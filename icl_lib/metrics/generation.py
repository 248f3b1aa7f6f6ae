"""Greedy generation under many edits at once, and the F1 that the released code calls accuracy.

The prompt up to its last token is run once per batch and its keys and values are kept; then every edit carries
its own next token ("row"), the rows of a prompt side by side where positions stand. A row sees the prompt's
keys and what it generated itself.
"""

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.forward.edits import Edit, edited_heads, row_edits
from icl_lib.forward.passes import (
    EncodedPrompt,
    PassDone,
    TokenBatch,
    device_of,
    output_projections,
    own_attention,
    plain_attention,
    plain_transformers,
    puts_space_before,
    split_heads,
    token_batches,
)
from icl_lib.forward.readout import greedy_tokens
from icl_lib.forward.shared_prefix import RowEdits
from icl_lib.forward.whole_prompts import generate_whole

N_GENERATED = 5  # tokens, as in the released code
_ARTICLES = ("a", "an", "the")
_SPAN = re.compile(r"[\w. ]+")


def generated_f1(text: str, answer: str) -> float:
    """Token F1 of the first span of a generated text with the answer, 0..1: the released code's few-shot score.

    eval_utils.py: the span is the first run of word characters, dots and spaces, so it ends at a hyphen, an
    apostrophe or a line break; both sides are lower-cased and lose punctuation and articles. An answer that is
    an article ("a") has nothing left and scores 0, whatever is generated (`paper.md` A4 to A6).
    """
    span = _SPAN.search(text)
    found, wanted = _words(span.group() if span else ""), _words(answer)
    n_shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * n_shared / (len(found) + len(wanted)) if n_shared else 0.0


def _words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in bare.split() if word not in _ARTICLES]


def f1_ceiling(model: nn.Module, answer: str) -> float:
    """The F1 of a model that generates the answer and a line break: below 1 for long or punctuated answers (A6)."""
    answer_text = answer.removeprefix(" ") if puts_space_before(model.tokenizer) else answer
    ids = model.tokenizer(f"{answer_text}\n", add_special_tokens=False)["input_ids"]
    return generated_f1(model.tokenizer.decode(ids[:N_GENERATED]), answer)


def generated_text(model: nn.Module, prompt: Sequence[int], generated: Sequence[int], *, reach_back: bool) -> str:
    """The text of generated tokens up to the end-of-text token, without it.

    `reach_back` as the released code decodes (`paper.md` A9): generation ends with that token, and the last five
    ids are decoded even where some of them are then the prompt's.
    """
    generated, end = list(generated), model.tokenizer.eos_token_id
    stop = generated.index(end) if end in generated else len(generated)
    ids = (list(prompt) + generated[: stop + 1])[-len(generated) :] if reach_back else generated[:stop]
    return model.tokenizer.decode(ids)


def generated_f1s(
    model: nn.Module,
    encoded: Sequence[EncodedPrompt],
    answers: Sequence[str],
    edits: Sequence[Edit | None],
    *,
    reach_back: bool = False,
    batch_size: int = 16,
) -> Float[Tensor, "prompt edit"]:
    """`generated_f1` of five greedy tokens after each prompt under each edit; see `generate`, `generated_text`."""
    generated = generate(model, encoded, edits, batch_size=batch_size)
    scores = torch.empty(generated.shape[:2], dtype=torch.float64)
    for i, (prompt, answer) in enumerate(zip(encoded, answers, strict=True)):
        known: dict[tuple, float] = {}  # most edits generate what others do
        for j, ids in enumerate(map(tuple, generated[i].tolist())):
            if ids not in known:
                known[ids] = generated_f1(generated_text(model, prompt.tokens, ids, reach_back=reach_back), answer)
            scores[i, j] = known[ids]
    return scores


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
    in the released code (A2). Generation goes on after an end-of-text token; `generated_text` cuts there. Raises
    ValueError naming task and prompt where prompt and new tokens exceed the context.
    """
    for prompt in encoded:
        if len(prompt.tokens) + n_tokens - 1 > model.cfg.n_ctx:
            raise ValueError(
                f"task {prompt.task!r}, prompt {prompt.index}: {len(prompt.tokens)} tokens and {n_tokens} generated "
                f"ones exceed the context of {model.cfg.n_ctx}; take fewer demonstrations"
            )
    found = torch.empty(len(encoded), len(edits), n_tokens, dtype=torch.long)
    at_last = [i for i, e in enumerate(edits) if e is None or e.positions == "last"]
    for batch in token_batches([p.tokens for p in encoded], batch_size, device_of(model)):
        rows = torch.tensor(batch.rows)[:, None]
        if own_attention(model):
            for where in ("last", "all"):
                chosen = [i for i in range(len(edits)) if (i in at_last) == (where == "last")]
                if chosen:
                    own = row_edits(model, [edits[i] for i in chosen], batch.rows)
                    found[rows, torch.tensor(chosen)] = generate_whole(
                        model, batch, own, n_tokens, everywhere=where == "all").cpu()
            continue
        if at_last:
            decoder = _Decoder(model, batch, row_edits(model, [edits[i] for i in at_last], batch.rows))
            found[rows, torch.tensor(at_last)] = decoder.run(n_tokens, None).cpu()
        for i in set(range(len(edits))) - set(at_last):
            decoder = _Decoder(model, batch, row_edits(model, [edits[i]], batch.rows))
            found[rows, torch.tensor([i])] = decoder.run(n_tokens, edits[i].of_rows(batch.rows)).cpu()
    return found


class _Decoder:
    """Keys and values of a batch of prompts and of what its rows have generated so far."""

    def __init__(self, model: nn.Module, batch: TokenBatch, edits: RowEdits):
        self.model, self.batch, self.edits = model, batch, edits
        self.projections = output_projections(model)
        self.last = batch.lengths - 1  # generation starts from the last token; the prefix is before it
        self.n_prefix = int(self.last.max())
        prefix = torch.arange(self.n_prefix, device=batch.tokens.device)
        self.hidden = (prefix >= self.last[:, None])[:, None, None, None]
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.own: list[list[tuple[Tensor, Tensor]]] = []
        self.in_rows, self.layer = False, 0

    def run(self, n_tokens: int, everywhere: Edit | None) -> Int[Tensor, "batch row token"]:
        """Greedy tokens of every row; `everywhere` also acts on the prompt."""
        n_rows = len(self.edits.masks)
        with edited_heads(self.model, everywhere):
            with plain_transformers(self.model, self.attend) as hf_model:
                try:
                    hf_model.base_model(input_ids=self.batch.tokens, use_cache=False)
                except PassDone:
                    pass
        self.in_rows = True
        token = self.batch.tokens.gather(1, self.last[:, None]).expand(-1, n_rows)
        tokens = []
        for step in range(n_tokens):
            self.layer = 0
            position = (self.last[:, None] + step).expand(-1, n_rows)
            with plain_transformers(self.model, self.attend) as hf_model, self._replacing():
                base = hf_model.base_model
                hidden = base(input_ids=token, position_ids=position, use_cache=False).last_hidden_state
            token = greedy_tokens(self.model, hidden)
            tokens.append(token)
        return torch.stack(tokens, dim=2)

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        handles = [p.register_forward_pre_hook(self._replace(i)) for i, p in enumerate(self.projections)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _replace(self, layer: int):
        mask, values = self.edits.masks[:, layer], self.edits.values[:, :, layer]

        def replace(_projection: nn.Module, args: tuple) -> tuple | None:
            if not mask.any():
                return None
            z = split_heads(self.model, args[0])
            return (torch.where(mask[:, :, None], values.to(z.dtype), z).reshape(args[0].shape), *args[1:])

        return replace

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        window = kwargs.get("sliding_window")
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or (
            window is not None and window < self.n_prefix + N_GENERATED
        ):
            raise ValueError(f"{type(module).__name__}: generation with softcap, sinks or a window is not supported")
        if self.in_rows:
            self.layer += 1
            return self._attend_rows(self.layer - 1, query, key, value, kwargs.get("scaling")), None
        self.prefix.append((key[:, :, : self.n_prefix], value[:, :, : self.n_prefix]))
        self.own.append([])
        if len(self.prefix) == len(self.projections):
            raise PassDone
        return plain_attention(module, query, key, value, attention_mask, **kwargs)

    def _attend_rows(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Float[Tensor, "batch row head d_head"]:
        batch, n_heads, n_rows, d_head = query.shape
        n_groups = key.shape[1]
        q = (query * (d_head**-0.5 if scaling is None else scaling)).unflatten(1, (n_groups, -1))
        self.own[layer].append((key, value))
        keys, values = (torch.stack(part, dim=3)[:, :, None] for part in zip(*self.own[layer], strict=True))
        prefix_keys, prefix_values = (part[:, :, None] for part in self.prefix[layer])
        to_prefix = (q @ prefix_keys.mT).masked_fill(self.hidden, float("-inf"))
        to_own = (keys @ q[..., None])[..., 0]  # [batch, group, head, row, own]
        scores = torch.cat([to_prefix, to_own], dim=-1)
        pattern = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        out = pattern[..., : self.n_prefix] @ prefix_values
        out = out + (pattern[..., None, self.n_prefix :] @ values)[..., 0, :]
        return out.flatten(1, 2).transpose(1, 2)
