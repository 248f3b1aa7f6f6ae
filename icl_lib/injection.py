"""Function vectors put to work: a vector made of heads' mean outputs, added to prompts that do not tell the task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import Prompt, Task, TaskPrompts, bos_text, draw_prompts
from icl_lib.forward.encoded import TokenBatch, encode_prompts, in_batches
from icl_lib.forward.means import clean_means, mean_over_tasks
from icl_lib.forward.passes import device_of
from icl_lib.forward.run import run_added
from icl_lib.forward.written import function_vector
from icl_lib.heads import HeadMask, different_draws, layer_matched_random_heads, random_heads
from icl_lib.kinds import heads_of_kind, top_sets
from icl_lib.names import WORDS, refuse_unknown
from icl_lib.progress import progress


def split_pairs(task: Task, *, share: float = 0.3, seed: int = 0) -> tuple[Task, Task]:
    """The task twice: for means without, and for testing with a `share` of its query pairs as the only queries.

    The test pairs are no demonstrations either. Raises ValueError for a share that leaves either side nothing.
    """
    queries = task.query_pairs
    n_test = round(share * len(queries))
    if not 0 < n_test < len(queries):
        raise ValueError(f"task {task.name!r}: share {share} of {len(queries)} pairs leaves nothing to one side")
    order = np.random.default_rng([seed, len(queries)]).permutation(len(queries))
    test, rest = [queries[i] for i in order[:n_test]], [queries[i] for i in order[n_test:]]
    if task.held_out:
        return (replace(task, pairs=task.training_pairs + rest, held_out=len(rest)),
                replace(task, pairs=task.training_pairs + test, held_out=n_test))
    return replace(task, pairs=rest), replace(task, pairs=rest + test, held_out=n_test)


def without_demonstrations(prompt: Prompt, bos: str) -> Prompt:
    """The prompt's query alone, BOS before it."""
    return Prompt(bos + prompt.text.removeprefix(bos).rsplit("\n\n", 1)[-1], prompt.answer)


def head_sets(scores: pd.DataFrame, *, fraction: float, n_draws: int, seed: int) -> list[tuple[str, int, HeadMask]]:
    """Kind, draw and heads: the top FV and induction heads, and random ones of neither kind, by layer and at large.

    `scores`: a model's table. Draws that repeat an earlier one are left out, and all draws where too few heads are of
    neither kind (`kinds.heads_of_kind`) and in neither set.
    """
    tops = top_sets(scores, fraction=fraction)
    taken = np.any([*tops.values(), *heads_of_kind(scores).values()], axis=0)
    n_heads = int(tops["fv"].sum())
    sets = [(kind, 0, tops[kind]) for kind in ("fv", "induction")]
    if n_heads > int((~taken).sum()):
        return sets
    anywhere = partial(random_heads, taken.shape, n_heads, seed=seed, exclude=taken)
    matched = partial(layer_matched_random_heads, tops["fv"], seed=seed, exclude=taken)
    return sets + [(kind, *drawn) for kind, draw_one in (("random", anywhere), ("random_layer_matched", matched))
                   for drawn in different_draws(draw_one, n_draws)]


def execution_table(
    model: nn.Module, tasks: Mapping[str, Task], scores: pd.DataFrame, *, preset_name: str = "task", fraction: float,
    layers: Sequence[int], n_prompts: int, n_shots: int, n_draws: int, name: str, step: int, seed: int,
) -> pd.DataFrame:
    """Table `executions`: first-token accuracy with a vector added at the output of a layer, at the last token.

    `scores`: the model's table of that name. Prompts: the query alone (`zero_shot`) and after demonstrations with
    shuffled labels (`shuffled`), both also unedited, and clean. Queries are pairs that the means were not made from
    (`split_pairs`). `items`: all of them, or those that the model answers after clean demonstrations, as the released
    code keeps (a task without any is left out). Raises ValueError for an unknown preset, a layer that the model lacks,
    and as `split_pairs`.
    """
    refuse_unknown("preset", preset_name, WORDS["presets"])
    # evaluate_function_vector.py: one vector for all tasks (V1), the bias once per head (V3), one random set (V5)
    released = preset_name == "released"
    if bad := [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]:
        raise ValueError(f"layer {bad[0]} is outside 0..{model.cfg.n_layers - 1}, the layers of the model")
    bos = bos_text(model)
    options = {"n_prompts": n_prompts, "n_shots": n_shots, "bos": bos}
    prompts, of_means = {}, {}
    for task, pairs in tasks.items():
        for_means, for_testing = split_pairs(pairs, seed=seed)
        prompts[task] = draw_prompts(for_testing, seed=seed, **options)
        of_means[task] = draw_prompts(for_means, seed=seed + 1, **options)
    means = clean_means(model, of_means)
    if released:
        means = dict.fromkeys(means, mean_over_tasks(means))
    sets = head_sets(scores, fraction=fraction, n_draws=1 if released else n_draws, seed=seed)
    rows = [("none", -1, 0)] + [(kind, layer, draw) for kind, draw, _ in sets for layer in layers]
    at = torch.tensor([0] + [layer for _ in sets for layer in layers])
    frames = []
    for task in progress(tasks, "task execution"):
        vectors = [function_vector(model, means[task], heads, bias_per_head=released) for *_, heads in sets]
        stacked = torch.stack([torch.zeros_like(vectors[0]), *(v for v in vectors for _ in layers)])
        frames.append(_of_task(model, prompts[task], task, bos, stacked, at, rows))
    return pd.concat(frames, ignore_index=True).assign(model=name, step=step, preset=preset_name)


def _of_task(
    model: nn.Module, prompts: TaskPrompts, task: str, bos: str, vectors: Tensor, at: Tensor, rows: list[tuple]
) -> pd.DataFrame:
    alone = [without_demonstrations(p, bos) for p in prompts.clean]
    correct = {"clean": added_correct(model, prompts.clean, task, vectors[:1], at[:1]),
               "zero_shot": added_correct(model, alone, task, vectors, at),
               "shuffled": added_correct(model, prompts.shuffled, task, vectors, at)}
    answered = correct["clean"][:, 0]
    frames = []
    for items, kept in (("all", torch.ones_like(answered)), ("answered", answered)):
        for kind, values in correct.items():
            of_items = pd.DataFrame(values[kept].double().numpy())
            if len(of_items):
                frame = pd.DataFrame(rows[: of_items.shape[1]], columns=["heads", "layer", "draw"])
                frames.append(frame.assign(prompts=kind, items=items, value=of_items.mean(),
                                           standard_error=of_items.sem(), n_prompts=len(of_items)))
    return pd.concat(frames, ignore_index=True).assign(task=task)


def added_correct(
    model: nn.Module, prompts: Sequence[Prompt], task: str, vectors: Float[Tensor, "row d_model"],
    at: Int[Tensor, "row"],
) -> Bool[Tensor, "prompt row"]:
    """Whether the answer's first token is the likeliest one with each vector added (top-1, as in appendix A.6)."""
    encoded, device = encode_prompts(model, prompts, task), device_of(model)
    targets = torch.tensor([prompt.answer[:1] for prompt in encoded], device=device)

    def read(batch: TokenBatch) -> Tensor:
        return run_added(model, batch, vectors, at.to(device), targets[batch.rows]).correct[..., 0].cpu()

    return in_batches(read, [prompt.tokens for prompt in encoded], 16, device)
