"""One prompt in detail: where the top head of each kind looks, and what it does to the probability of one answer."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import Task, TaskPrompts, bos_text
from icl_lib.example.choice import candidate_tasks, fv_by_task, top_head_of_each_kind
from icl_lib.forward.edits import Edit, edited_heads
from icl_lib.forward.encoded import EncodedPrompt, encode_prompts
from icl_lib.forward.means import clean_means, mean_over_tasks
from icl_lib.forward.passes import device_of, plain_transformers
from icl_lib.measurements import in_split, prompts_of
from icl_lib.scores.induction import reduced_patterns

# What is done to a head on which prompt: its output replaced by which mean, at which positions. On the clean one the
# ablations of section 4; on the shuffled one the task's own clean mean is put back, with its control.
EDITS = {"clean": (("mean", "last"), ("mean", "all")), "shuffled": (("task_mean", "last"), ("mean", "last"))}
_NOT_A_HEAD = {"ranking": "none", "layer": -1, "head": -1, "replacement": "none", "positions": "none"}
# Texts of tokens go into pages, where some characters may not stand.
_SHOWN = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "↵", "<": "‹", ">": "›", "`": "´"})


def repeated_words(model: nn.Module, tasks: Mapping[str, Task], *, n_words: int, seed: int) -> Int[Tensor, "1 pos"]:
    """BOS, `n_words` different words drawn at random, the same again: one token each, with a space before it.

    Words are inputs of the tasks in 4 to 7 small letters. Raises ValueError where too few of them are one token.
    """
    words = sorted({word for task in tasks.values() for word, _ in task.pairs if re.fullmatch("[a-z]{4,7}", word)})
    encoded = (model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words)
    single = [tokens[0] for tokens in encoded if len(tokens) == 1]
    if len(single) < n_words:
        raise ValueError(f"{len(single)} words of the tasks are one token each, {n_words} are asked for")
    run = np.random.default_rng([seed, n_words]).choice(single, size=n_words, replace=False).tolist()
    return torch.tensor([model.tokenizer(bos_text(model), add_special_tokens=False)["input_ids"] + run + run])


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text, its space with it; BOS as "BOS", a line break as "↵"."""
    whole = [tokenizer.decode(tokens[:n], clean_up_tokenization_spaces=False) for n in range(len(tokens) + 1)]
    added = [after.removeprefix(before) for before, after in zip(whole, whole[1:], strict=False)]
    texts = ["BOS" if token == tokenizer.bos_token_id else text.translate(_SHOWN)
             for token, text in zip(tokens, added, strict=True)]
    return ["".join(c if c.isprintable() else "·" for c in text) for text in texts]


@torch.inference_mode()
def next_token_probabilities(
    model: nn.Module, tokens: Sequence[int], edit: Edit | None = None
) -> Float[Tensor, "vocab"]:
    """The probability of every token to come next after these, heads replaced as `edit` says, in float64 on the CPU."""
    with edited_heads(model, edit), plain_transformers(model) as hf_model:
        fed = torch.tensor([list(tokens)], device=device_of(model))
        return hf_model(input_ids=fed, use_cache=False).logits[0, -1].double().softmax(-1).cpu()


def example_table(
    model: nn.Module, tasks: Mapping[str, Task], scores: pd.DataFrame, accuracy: pd.DataFrame, *, name: str, step: int,
    n_prompts: int, n_shots: int, n_words: int, least_accuracy: float, seed: int,
) -> pd.DataFrame:
    """Table `example`: the top head of each kind on one text of repeated words and on one prompt of one task.

    `scores`, `accuracy`: the model's tables. Heads: `top_head_of_each_kind`; task: the first of `candidate_tasks`;
    prompt: the first of the task's `n_prompts` whose answer is one token, the likeliest with clean labels and less
    likely with shuffled ones (`passed_over`: how many stood before it). Means: over the last positions of `n_prompts`
    clean prompts, of the task (`task_mean`) and of all scoring tasks, which count the same (`mean`). Raises ValueError
    where no prompt is so, and as the functions named.
    """
    heads = top_head_of_each_kind(scores)
    task = candidate_tasks(scores, accuracy, least_accuracy)["task"].iloc[0]
    prompts = prompts_of(model, in_split(tasks, "scoring"), n_prompts=n_prompts, n_shots=n_shots, seed=seed)
    clean, shuffled = (encode_prompts(model, getattr(prompts[task], labels), task) for labels in ("clean", "shuffled"))
    words = repeated_words(model, tasks, n_words=n_words, seed=seed)[0].tolist()
    at = _first_clear(model, clean, shuffled)
    means = clean_means(model, prompts)
    values = {"task_mean": means[task], "mean": mean_over_tasks(means)}
    rows = [{"metric": "passed_over", "prompts": "clean", "value": at, "position": -1, "to_position": -1, "token": "",
             **_NOT_A_HEAD}, *_attention_rows(model, "repeated", words, heads)]
    for labels, prompt in (("clean", clean[at]), ("shuffled", shuffled[at])):
        rows += _attention_rows(model, labels, prompt.tokens, heads)
        rows += _answer_rows(model, labels, prompt, None, _NOT_A_HEAD)
        for (kind, head), (replacement, positions) in product(heads.items(), EDITS[labels]):
            mask = np.zeros(means[task].shape[:2], dtype=bool)
            mask[head] = True
            of = dict(zip(_NOT_A_HEAD, (kind, *head, replacement, positions), strict=True))
            rows += _answer_rows(model, labels, prompt, Edit(mask, values[replacement][None], positions), of)
    return pd.DataFrame(rows).assign(model=name, step=step, task=task).astype({"value": float})


def sample_table(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], tokens: Int[Tensor, "batch pos"], scores: pd.DataFrame, *,
    name: str, step: int, n_repeated: int = 12,
) -> pd.DataFrame:
    """Table `samples`: what the scores are made from, and where the head with the highest prefix matching looks.

    The first clean and the first shuffled prompt of the task on which the top FV head scores highest, with attention
    from the last token; the first `n_repeated` of the random `tokens` of the first sequence and the same again, with
    attention from every token. `scores`: the model's table.
    """
    top = top_head_of_each_kind(scores)
    task, head = fv_by_task(scores, *top["fv"]).idxmax(), {"induction": top["induction"]}
    run = tokens[0, 1 : 1 + min(n_repeated, tokens.shape[1] // 2)].tolist()
    rows = [row | {"token": str((row["to_position"] - 1) % len(run) + 1) if row["to_position"] else "BOS"}
            for row in _attention_rows(model, "repeated", [int(tokens[0, 0]), *run, *run], head)]
    for labels in ("clean", "shuffled"):
        prompt, = encode_prompts(model, getattr(prompts[task], labels)[:1], task)
        rows += _attention_rows(model, labels, prompt.tokens, head)
    table = pd.DataFrame(rows).drop(columns=["metric", "ranking", "replacement", "positions"])
    return table.assign(model=name, step=step, task=task)


def _first_clear(model: nn.Module, clean: list[EncodedPrompt], shuffled: list[EncodedPrompt]) -> int:
    for i, (right, wrong) in enumerate(zip(clean, shuffled, strict=True)):
        if len(right.answer) == 1:
            before, after = (next_token_probabilities(model, prompt.tokens) for prompt in (right, wrong))
            if int(before.argmax()) == right.answer[0] and after[right.answer[0]] < before[right.answer[0]]:
                return i
    raise ValueError(f"task {clean[0].task!r}: none of {len(clean)} prompts has an answer of one token that the model "
                     "gives with clean labels and is less sure of with shuffled ones; draw more")


def _attention_rows(
    model: nn.Module, prompts: str, tokens: list[int], heads: Mapping[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """Attention (0..1) from the last position, on repeated tokens from each, to those up to it; `token` is seen."""
    patterns = reduced_patterns(model, torch.tensor([tokens], device=device_of(model)), lambda p: p[0].double().cpu())
    texts = token_texts(model.tokenizer, tokens)
    return [
        {**_NOT_A_HEAD, "metric": "attention", "prompts": prompts, "ranking": kind, "layer": layer, "head": head,
         "position": i, "to_position": j, "token": texts[j], "value": float(patterns[layer][head, i, j])}
        for kind, (layer, head) in heads.items()
        for i in range(0 if prompts == "repeated" else len(tokens) - 1, len(tokens)) for j in range(i + 1)]


def _answer_rows(
    model: nn.Module, labels: str, prompt: EncodedPrompt, edit: Edit | None, of: dict[str, Any]
) -> list[dict[str, Any]]:
    """The probability of the answer's token and of the likeliest one, read at the prompt's last position."""
    probability, n = next_token_probabilities(model, prompt.tokens, edit), len(prompt.tokens)
    tokens = {"answer_probability": prompt.answer[0], "top_probability": int(probability.argmax())}
    return [{"metric": metric, "prompts": labels, "position": n - 1, "to_position": n, **of,
             "token": token_texts(model.tokenizer, [*prompt.tokens, token])[-1], "value": float(probability[token])}
            for metric, token in tokens.items()]
