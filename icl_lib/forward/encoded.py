"""Prompts as tokens, and batches of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from icl_lib.data.tasks import Prompt, TaskPrompts


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt and of its answer, with its place for error messages."""

    task: str
    index: int
    tokens: list[int]
    answer: list[int]
    answer_text: str = ""

    @property
    def place(self) -> str:
        return f"task {self.task!r}, prompt {self.index}"

    def refuse_too_long(self, model: nn.Module, n_more: int = 0) -> None:
        """Raise ValueError where the prompt, with so many tokens after it, is longer than the model's context."""
        if (n := len(self.tokens) + n_more) > model.cfg.n_ctx:
            raise ValueError(f"{self.place}: {n} tokens exceed the context of {model.cfg.n_ctx}; take fewer "
                             "demonstrations")


@dataclass(frozen=True)
class TokenBatch:
    """Prompts of a batch, padded on the right.

    Right, because causal attention then needs no padding mask and no shifted positions: nothing
    before the padding can see it, so a prompt's numbers do not depend on its batch.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, "batch"]
    rows: list[int]  # where each prompt stood in the list that was batched


def encode_prompts(model: nn.Module, prompts: Sequence[Prompt | EncodedPrompt], task: str) -> list[EncodedPrompt]:
    """Tokenise prompts and, alone with their leading space, answers (find_fv_heads.py does so too).

    Prompts that are encoded stay as they are. No special tokens are added: the BOS text is part of the prompt's text. A
    tokenizer that puts a space before every text itself (Llama's) is given the answer without its own, or all answers
    would begin with the same token; the released code skips that token. Raises ValueError, naming task and prompt
    index, for an empty task, a prompt without tokens or longer than the context, an answer that tokenises to nothing,
    and a token that the model has no embedding for.
    """
    if not prompts:
        raise ValueError(f"task {task!r} has no prompts")
    if isinstance(prompts[0], EncodedPrompt):
        return list(prompts)
    texts = model.tokenizer([p.text for p in prompts], add_special_tokens=False)["input_ids"]
    spaced = puts_space_before(model.tokenizer)
    answers = [p.answer.removeprefix(" ") if spaced else p.answer for p in prompts]
    answers = model.tokenizer(answers, add_special_tokens=False)["input_ids"]
    encoded = []
    for i, (tokens, answer) in enumerate(zip(texts, answers, strict=True)):
        prompt = EncodedPrompt(task, i, list(tokens), list(answer), prompts[i].answer)
        for what, ids, text in (("prompt", tokens, prompts[i].text), ("answer", answer, prompts[i].answer)):
            if not ids:
                raise ValueError(f"{prompt.place}: the {what} {text!r} tokenises to nothing")
        refuse_unknown_tokens(model, max(*tokens, *answer), prompt.place)
        prompt.refuse_too_long(model)
        encoded.append(prompt)
    return encoded


def encode_clean(model: nn.Module, prompts: Mapping[str, TaskPrompts]) -> dict[str, list[EncodedPrompt]]:
    """The clean prompts of every task, encoded; errors as in `encode_prompts`."""
    return {task: encode_prompts(model, of_task.clean, task) for task, of_task in prompts.items()}


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


def refuse_nan(values: Float[Tensor, "prompt *value"], prompts: Sequence[EncodedPrompt], what: str) -> None:
    """Raise ValueError naming task and prompt where a prompt has NaN among its values."""
    if (bad := values.flatten(1).isnan().any(1)).any():
        raise ValueError(f"{prompts[int(bad.nonzero()[0])].place}: {what}")


def in_batches(
    run: Callable[[TokenBatch], Tensor], sequences: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Shaped[Tensor, "sequence *value"]:
    """What `run` gives, in the order of the sequences, for batches of similar length; halved where memory runs out."""
    # longest first, so that memory runs out early, not late
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    pending = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    results, place = [], torch.tensor(order).argsort()
    while pending:
        rows = pending.pop(0)
        tokens = pad_sequence([torch.tensor(sequences[i]) for i in rows], batch_first=True)
        lengths = torch.tensor([len(sequences[i]) for i in rows], device=device)
        try:
            results.append(run(TokenBatch(tokens.to(device), lengths, rows)))
        except RuntimeError as error:
            half = len(rows) // 2
            # the CPU allocator has no exception of its own
            if not half or not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)):
                raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            pending[:0] = [rows[:half], rows[half:]]
    return torch.cat(results)[place]
