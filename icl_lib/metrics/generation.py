"""The F1 of generated text that the released code calls accuracy."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_lib.forward.edits import Edit
from icl_lib.forward.encoded import EncodedPrompt, puts_space_before
from icl_lib.forward.generate import N_GENERATED, generate

_ARTICLES = ("a", "an", "the")
_SPAN = re.compile(r"[\w. ]+")


def generated_f1(text: str, answer: str) -> float:
    """Token F1 of the first span of a generated text with the answer, 0..1: the released code's few-shot score.

    eval_utils.py: the span is the first run of word characters, dots and spaces, so it ends at a hyphen, an
    apostrophe or a line break; both sides are lower-cased and lose punctuation and articles. An answer that is
    an article ("a") has nothing left and scores 0, whatever is generated (A4 to A6).
    """
    span = _SPAN.search(text)
    given, wanted = _words(span.group() if span else ""), _words(answer)
    n_shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * n_shared / (len(given) + len(wanted)) if n_shared else 0.0


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

    `reach_back` as the released code decodes (A9): generation ends with that token, and the last five
    ids are decoded even where some of them are then the prompt's.
    """
    generated, end = list(generated), model.tokenizer.eos_token_id
    stop = generated.index(end) if end in generated else len(generated)
    ids = (list(prompt) + generated[: stop + 1])[-len(generated) :] if reach_back else generated[:stop]
    return model.tokenizer.decode(ids)


def generated_f1s(
    model: nn.Module, encoded: Sequence[EncodedPrompt], edits: Sequence[Edit | None], *, reach_back: bool = False
) -> Float[Tensor, "prompt edit"]:
    """`generated_f1` of five greedy tokens after each prompt under each edit; see `generate`, `generated_text`."""
    scores = []
    for prompt, generated in zip(encoded, generate(model, encoded, edits).tolist(), strict=True):
        by_edit = [tuple(ids) for ids in generated]
        texts = {ids: generated_text(model, prompt.tokens, ids, reach_back=reach_back) for ids in set(by_edit)}
        scores.append([generated_f1(texts[ids], prompt.answer_text) for ids in by_edit])
    return torch.tensor(scores, dtype=torch.float64)
