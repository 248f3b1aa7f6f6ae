"""Function-vector scores: how much each head's mean output repairs prompts with shuffled labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.edits import Edit
from icl_lib.forward.encoded import EncodedPrompt, encode_prompts, refuse_nan
from icl_lib.forward.means import MeanZ, clean_means
from icl_lib.forward.passes import device_of
from icl_lib.forward.run import run_prompts
from icl_lib.names import refuse_unknown
from icl_lib.progress import progress
from icl_lib.saved import SavedResults

_VALUE_BYTES = 64 * 2**20  # of replaced values when draws of the null share a pass
ANSWERS = ("alone", "in_context")


@dataclass(frozen=True)
class FVScores:
    """Function-vector scores with what they were made from; see `fv_scores`. All on the CPU."""

    scores: Float[Tensor, "layer head"]
    by_task: dict[str, Float[Tensor, "layer head"]]
    mean_z: dict[str, MeanZ]
    standard_error_by_task: dict[str, Float[Tensor, "layer head"]]  # over prompts; NaN for a single prompt
    by_prompt: dict[str, Float[Tensor, "prompt layer head"]]
    shuffled_probability: dict[str, Float[Tensor, "prompt"]]  # of the answer, without replacement
    n_prompts: dict[str, int]


def fv_scores(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], *, mean_z: Mapping[str, MeanZ] | None = None,
    batch_size: int | None = None, answer: str = "alone", save_to: str | Path | None = None,
) -> FVScores:
    """The FV score of every head: the rise in the probability of the correct answer's first token on
    prompts with shuffled labels when the head's output is replaced by its mean over clean prompts.

    Source: section 2 of Yin & Steinhardt (2025), after Todd et al. (2024); find_fv_heads.py.
    Range -1..1, a difference of probabilities, signed; mean over a task's shuffled prompts, then over
    tasks. Read and replaced at the last position only, at the input of the attention output
    projection. BOS is in the prompt if its text holds it. All clean prompts enter the mean, also
    those that the model answers wrongly. The answer is tokenised alone, with its leading space.

    `mean_z` replaces the means over clean prompts, e.g. by another task's. `batch_size` is prompts at a time; by
    default what fits 1 GiB on a CPU, half of what is free on a GPU. It is halved when memory runs out; the scores do
    not depend on it beyond rounding. Differences are taken in float64, whatever the model's dtype. A float32 model's
    own rounding is about 1e-6 of a probability. Half precision is another model: float16 moves scores by about 3e-3 and
    bfloat16 by about 2e-2 where the largest is about 0.15 (lab-40k, 20 prompts).

    `save_to`: a folder for each finished task's results. A later call with the same model, prompts and
    means reads them there and goes on with the other tasks; see `icl_lib.saved` for what "same" means.

    Raises ValueError, naming task and prompt, for an empty task, a prompt longer than the context,
    an answer without tokens, NaN logits, and a task without means in `mean_z`.
    """
    if not prompts:
        raise ValueError("no tasks to score")
    refuse_unknown("answer", answer, ANSWERS)
    # everything is encoded before anything is computed, so that bad input costs no time
    shuffled = {task: encode_prompts(model, p.shuffled, task) for task, p in prompts.items()}
    if answer == "in_context":
        shuffled = {task: answers_in_context(model, encoded, prompts[task]) for task, encoded in shuffled.items()}
    saved = SavedResults(save_to, model)
    if mean_z is None:
        mean_z = clean_means(model, prompts, batch_size=batch_size or 16, saved=saved)
    if missing := sorted(set(shuffled) - set(mean_z)):
        raise ValueError(f"mean_z has no means for task {missing[0]!r}; give every scored task's")
    batch_size = batch_size or _batch_size(model, shuffled)
    by_prompt, baseline = {}, {}
    for task in progress(shuffled, "FV scores"):
        result = _recalled_effects(model, shuffled[task], mean_z[task][None], batch_size, saved)
        by_prompt[task], baseline[task] = result["effects"][0], result["shuffled_probability"]
    by_task = {task: effects.mean(0) for task, effects in by_prompt.items()}
    return FVScores(
        scores=torch.stack(list(by_task.values())).mean(0),
        by_task=by_task,
        mean_z={task: mean_z[task].cpu() for task in shuffled},
        standard_error_by_task={task: _standard_error(effects) for task, effects in by_prompt.items()},
        by_prompt=by_prompt,
        shuffled_probability=baseline,
        n_prompts={task: len(effects) for task, effects in by_prompt.items()},
    )


def answers_in_context(model: nn.Module, encoded: list[EncodedPrompt], prompts: TaskPrompts) -> list[EncodedPrompt]:
    """The shuffled prompts with each answer as it is tokenised behind its prompt.

    Raises ValueError, naming task and prompt, where the answer changes the prompt's own tokens.
    """
    texts = [p.text + p.answer for p in prompts.shuffled]
    whole = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    for prompt, tokens in zip(encoded, whole, strict=True):
        if list(tokens[: len(prompt.tokens)]) != prompt.tokens or len(tokens) == len(prompt.tokens):
            raise ValueError(f"{prompt.place}: the answer is tokenised together with the prompt's end; score it with "
                             "answer='alone'")
    return [replace(p, answer=list(tokens[len(p.tokens) :])) for p, tokens in zip(encoded, whole, strict=True)]


def _recalled_effects(
    model: nn.Module, encoded: list[EncodedPrompt], means: Tensor, batch_size: int, saved: SavedResults
) -> dict[str, Tensor]:
    compute = partial(_task_effects, model, encoded, means, batch_size)
    return saved.recall(compute, "effects", [(p.tokens, p.answer[0]) for p in encoded], means)


def permuted_mean_scores(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], mean_z: Mapping[str, MeanZ], *, n_draws: int = 1,
    seed: int = 0, batch_size: int | None = None, save_to: str | Path | None = None,
) -> Float[Tensor, "draw layer head"]:
    """A null for the FV score (not in the paper): the same score with each task's clean means taken from another task.

    Each draw is a derangement of the tasks: each task's means are used once. Range, position, BOS, averaging and
    `save_to` as in `fv_scores`. Raises ValueError for fewer than two tasks, and as `fv_scores` does.
    """
    tasks = list(prompts)
    if len(tasks) < 2:
        raise ValueError(f"permuting means needs at least two tasks, got {len(tasks)}")
    generator = torch.Generator().manual_seed(seed)
    shuffled = {task: encode_prompts(model, p.shuffled, task) for task, p in prompts.items()}
    others = [derangement(len(tasks), generator) for _ in range(n_draws)]
    # draws whose values, one set of all heads per row, stay small beside the model
    n_all = model.cfg.n_layers * model.cfg.n_heads
    at_once = max(1, min(n_draws, _VALUE_BYTES // (4 * n_all**2 * model.cfg.d_head)))
    batch_size = batch_size or _batch_size(model, shuffled, at_once)
    saved = SavedResults(save_to, model)
    total = torch.zeros(n_draws, model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    for i, task in enumerate(progress(shuffled, "null of the FV scores")):
        means = torch.stack([mean_z[tasks[other[i]]] for other in others])
        parts = [_recalled_effects(model, shuffled[task], part, batch_size, saved) for part in means.split(at_once)]
        total += torch.cat([part["effects"].mean(1) for part in parts])
    return total / len(tasks)


def derangement(n: int, generator: torch.Generator) -> list[int]:
    """A uniform permutation of `n` things (two or more) that leaves none in its place."""
    while True:
        order = torch.randperm(n, generator=generator)
        if not (order == torch.arange(n)).any():
            return order.tolist()


def _task_effects(
    model: nn.Module, encoded: list[EncodedPrompt], means: Float[Tensor, "draw layer head d_head"], batch_size: int
) -> dict[str, Tensor]:
    """P(first answer token | replaced) - P(same | not) by draw, prompt and head, and P(same | not) by prompt."""
    n_draws, n_layers, n_heads, _ = means.shape
    one_head_each = torch.eye(n_layers * n_heads, dtype=torch.bool).unflatten(1, (n_layers, n_heads))
    edits = [*(Edit(head, mean) for mean in means.split(1) for head in one_head_each), None]
    answers = torch.tensor([p.answer[:1] for p in encoded])
    found = run_prompts(model, [p.tokens for p in encoded], answers, edits, batch_size=batch_size)
    refuse_nan(found.log_probability, encoded, "NaN in the logits of the shuffled prompt")
    probability = found.log_probability[..., 0].exp()
    effects = (probability[:, :-1] - probability[:, -1:]).unflatten(1, (n_draws, n_layers, n_heads))
    return {"effects": effects.transpose(0, 1), "shuffled_probability": probability[:, -1]}


def _batch_size(model: nn.Module, encoded: Mapping[str, list[EncodedPrompt]], n_draws: int = 1) -> int:
    """Prompts whose rows fit the budget: residual and MLP of every row, its attention, the prompt."""
    device, n_rows = device_of(model), n_draws * model.cfg.n_layers * model.cfg.n_heads + 1
    budget = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 2**30
    n_pos = max(len(p.tokens) for task in encoded.values() for p in task)
    per_row = 16 * model.cfg.d_model + 3 * model.cfg.n_heads * n_pos
    per_prompt = n_rows * per_row + n_pos * (16 * model.cfg.d_model + 2 * model.cfg.n_heads * n_pos)
    return max(1, min(64, int(budget / (4 * per_prompt))))


def _standard_error(effects: Float[Tensor, "prompt layer head"]) -> Float[Tensor, "layer head"]:
    n = len(effects)
    return effects.std(0) / n**0.5 if n > 1 else torch.full_like(effects[0], float("nan"))
