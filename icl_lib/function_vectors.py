"""Function-vector scores: how much each head's mean output repairs prompts with shuffled labels."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from icl_lib.passes import (
    EncodedPrompt,
    TokenBatch,
    device_of,
    encode_prompts,
    last_head_outputs,
    token_batches,
)
from icl_lib.shared_prefix import RowEdits, read_edited_rows
from icl_lib.tasks import TaskPrompts

MeanZ = Float[Tensor, "layer head d_head"]


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
    model: nn.Module,
    prompts: Mapping[str, TaskPrompts],
    *,
    mean_z: Mapping[str, MeanZ] | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    progress: bool = True,
) -> FVScores:
    """The FV score of every head: the rise in the probability of the correct answer's first token on
    prompts with shuffled labels when the head's output is replaced by its mean over clean prompts.

    Source: section 2 of Yin & Steinhardt (2025), after Todd et al. (2024); find_fv_heads.py.
    Range -1..1, a difference of probabilities, signed; mean over a task's shuffled prompts, then over
    tasks. Read and replaced at the last position only, at the input of the attention output
    projection. BOS is in the prompt if its text holds it. All clean prompts enter the mean, also
    those that the model answers wrongly. The answer is tokenised alone, with its leading space.

    `mean_z` replaces the means over clean prompts, e.g. by another task's. `batch_size` is prompts
    at a time; by default what fits `memory_gib` (1 GiB on a CPU, half of what is free on a GPU).
    Either halves itself when memory runs out; the scores do not depend on it beyond rounding.
    Differences are taken in float64, whatever the model's dtype. A float32 model's own rounding is
    about 1e-6 of a probability, 1e-3 in float16 and 1e-2 in bfloat16.

    Raises ValueError, naming task and prompt, for an empty task, a prompt longer than the context,
    an answer without tokens, NaN logits, and a task without means in `mean_z`.
    """
    if not prompts:
        raise ValueError("no tasks to score")
    # everything is encoded before anything is computed, so that bad input costs no time
    shuffled = {task: encode_prompts(model, p.shuffled, task) for task, p in prompts.items()}
    if mean_z is None:
        mean_z = clean_means(model, prompts, batch_size=batch_size or 16, progress=progress)
    elif missing := sorted(set(prompts) - set(mean_z)):
        raise ValueError(f"mean_z has no means for task {missing[0]!r}")
    n_rows = model.cfg.n_layers * model.cfg.n_heads + 1
    batch_size = batch_size or _batch_size(model, shuffled, n_rows, memory_gib)
    by_prompt, baseline = {}, {}
    for task in _progress(shuffled, "FV scores", progress):
        effects, unedited = _task_effects(model, shuffled[task], mean_z[task], batch_size)
        by_prompt[task], baseline[task] = effects, unedited
    by_task = {task: effects.mean(0) for task, effects in by_prompt.items()}
    return FVScores(
        scores=torch.stack(list(by_task.values())).mean(0),
        by_task=by_task,
        mean_z={task: mean_z[task].cpu() for task in prompts},
        standard_error_by_task={task: _standard_error(effects) for task, effects in by_prompt.items()},
        by_prompt=by_prompt,
        shuffled_probability=baseline,
        n_prompts={task: len(effects) for task, effects in by_prompt.items()},
    )


def permuted_mean_scores(
    model: nn.Module,
    prompts: Mapping[str, TaskPrompts],
    mean_z: Mapping[str, MeanZ],
    *,
    n_draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "draw layer head"]:
    """A null for the FV score: the same score with each task's clean means taken from another task.

    Not in the paper. Each draw is a derangement of the tasks: every task gets some other task's
    means, each task's means are used once. Range, position, BOS and averaging as in `fv_scores`.
    Raises ValueError for fewer than two tasks, and as `fv_scores` does.
    """
    tasks = list(prompts)
    if len(tasks) < 2:
        raise ValueError(f"permuting means needs at least two tasks, got {len(tasks)}")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_draws):
        other = derangement(len(tasks), generator)
        permuted = {task: mean_z[tasks[i]] for task, i in zip(tasks, other, strict=True)}
        scored = fv_scores(model, prompts, mean_z=permuted, batch_size=batch_size, progress=progress)
        draws.append(scored.scores)
    return torch.stack(draws)


def derangement(n: int, generator: torch.Generator) -> list[int]:
    """A uniform permutation of `n` things (two or more) that leaves none in its place."""
    while True:
        order = torch.randperm(n, generator=generator)
        if not (order == torch.arange(n)).any():
            return order.tolist()


def clean_means(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], *, batch_size: int = 16, progress: bool = True
) -> dict[str, MeanZ]:
    """Each task's mean head outputs at the last position over its clean prompts (section 2).

    Before the output projection (hook_z), in float64 while summing, given in the model's dtype.
    Errors as in `fv_scores`.
    """
    encoded = {task: encode_prompts(model, p.clean, task) for task, p in prompts.items()}
    means = {}
    for task in _progress(encoded, "clean means", progress):
        z = _halving(
            lambda n, task=task: last_head_outputs(model, [p.tokens for p in encoded[task]], batch_size=n),
            batch_size,
        )
        _refuse_nan(z.flatten(1), encoded[task], range(len(z)), "head outputs of the clean")
        means[task] = z.double().mean(0).to(z.dtype).cpu()
    return means


def _task_effects(
    model: nn.Module, encoded: list[EncodedPrompt], mean_z: MeanZ, batch_size: int
) -> tuple[Float[Tensor, "prompt layer head"], Float[Tensor, "prompt"]]:
    """P(first answer token | replaced) - P(same | not) for all heads, and P(same | not)."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    device = device_of(model)
    one_head_each = torch.eye(n_layers * n_heads, dtype=torch.bool).unflatten(1, (n_layers, n_heads))
    none = torch.zeros(1, n_layers, n_heads, dtype=torch.bool)
    edits = RowEdits(torch.cat([one_head_each, none]).to(device), mean_z.to(device)[None, None])
    answers = torch.tensor([p.answer[0] for p in encoded], device=device)

    def run(batch: TokenBatch) -> Tensor:
        readout = read_edited_rows(model, batch, edits, answers[batch.rows][:, None])
        return readout.log_probability[..., 0]

    probability = torch.empty(len(encoded), n_layers * n_heads + 1, dtype=torch.float64)
    pending = list(token_batches([p.tokens for p in encoded], batch_size, device))
    while pending:
        batch = pending.pop(0)
        try:
            log_probability = run(batch)
        except RuntimeError as error:
            pending = [*_halves(batch, error), *pending]
            continue
        _refuse_nan(log_probability, encoded, batch.rows, "logits of the shuffled")
        probability[batch.rows] = log_probability.double().exp().cpu()
    effects = probability[:, :-1] - probability[:, -1:]
    return effects.unflatten(1, (n_layers, n_heads)), probability[:, -1]


def _batch_size(
    model: nn.Module, encoded: Mapping[str, list[EncodedPrompt]], n_rows: int, memory_gib: float | None
) -> int:
    """Prompts whose rows fit the budget: residual and MLP of every row, its attention, the prompt."""
    device = device_of(model)
    if memory_gib is None:
        on_gpu = device.type == "cuda"
        memory_gib = torch.cuda.mem_get_info(device)[0] / 2**31 if on_gpu else 1.0
    n_pos = max(len(p.tokens) for task in encoded.values() for p in task)
    per_row = 16 * model.cfg.d_model + 3 * model.cfg.n_heads * n_pos
    per_prompt = n_rows * per_row + n_pos * (16 * model.cfg.d_model + 2 * model.cfg.n_heads * n_pos)
    return max(1, min(64, int(memory_gib * 2**30 / (4 * per_prompt))))


def _out_of_memory(error: RuntimeError) -> bool:
    # the CPU allocator has no exception of its own
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _halves(batch: TokenBatch, error: RuntimeError) -> list[TokenBatch]:
    half = len(batch.rows) // 2
    if not half or not _out_of_memory(error):
        raise error
    if batch.tokens.is_cuda:
        torch.cuda.empty_cache()
    return [
        TokenBatch(batch.tokens[part], batch.lengths[part], batch.rows[part])
        for part in (slice(half), slice(half, None))
    ]


def _halving(run, batch_size: int) -> Tensor:
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if batch_size == 1 or not _out_of_memory(error):
                raise
            batch_size //= 2


def _refuse_nan(values: Float[Tensor, "row value"], encoded: list[EncodedPrompt], rows, what: str) -> None:
    bad = values.isnan().any(1)
    if bad.any():
        prompt = encoded[list(rows)[int(bad.nonzero()[0])]]
        raise ValueError(f"task {prompt.task!r}, prompt {prompt.index}: NaN in the {what} prompt")


def _standard_error(effects: Float[Tensor, "prompt layer head"]) -> Float[Tensor, "layer head"]:
    n = len(effects)
    return effects.std(0) / n**0.5 if n > 1 else torch.full_like(effects[0], float("nan"))


def _progress(items, label: str, show: bool):
    return tqdm(items, desc=label, unit="task", disable=not (show and sys.stderr.isatty()), leave=False)
