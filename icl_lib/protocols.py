"""Protocols of scoring: this book's, the paper's and its released code's, and what each departure changes."""

import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from icl_lib.data.tasks import Task, TaskPrompts, bos_text, draw_prompts
from icl_lib.departures import SCORING
from icl_lib.forward.means import clean_means
from icl_lib.heads import overlap, top_heads
from icl_lib.metrics.evaluate import answer_metrics
from icl_lib.models.placement import in_dtype
from icl_lib.scores.function_vectors import FVScores, fv_scores
from icl_lib.scores.induction import induction_scores, repeated_random_tokens
from icl_lib.stats.intervals import spearman

_RELEASED_TASKS = {"abstractive": 9, "extractive": 20}  # of the 29 tasks in src/find_fv_heads.py


# What a protocol does otherwise than by default. `paper`: the text, and the default where it says nothing. `released`:
# kayoyin/icl-heads at c0ba06e; of its dtypes that of Llama for induction and that of Pythia and Llama for FV scores.
PRESETS = {
    "induction": {
        "paper": {},
        "released": dict(special_ids=True, padding_ids=True, retokenised=True, n_bos=2, dtype="bfloat16"),
    },
    "fv": {
        "paper": dict(shuffle="permutation"),
        "released": dict(tasks="released_share", queries="released", shuffle="permutation", dtype="float16"),
    },
}


def protocol_tokens(
    model: nn.Module, *, seed: int, n_sequences: int = 1000, length: int = 50, special_ids: bool = False,
    padding_ids: bool = False, retokenised: bool = False, n_bos: int = 1,
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch"]]:
    """Sequences of the protocol, padded on the right, and their lengths. Errors as in `repeated_random_tokens`."""
    drawn = repeated_random_tokens(
        model, n_sequences=n_sequences, length=length, seed=seed, bos=n_bos > 0, special_ids=special_ids,
        padding_ids=padding_ids)
    sequences = list(drawn)
    if retokenised:
        texts = model.tokenizer.batch_decode(drawn, clean_up_tokenization_spaces=False)
        sequences = [torch.tensor(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    bos = torch.tensor([model.tokenizer.bos_token_id] * (n_bos - 1), dtype=torch.long)
    sequences = [torch.cat([bos, ids]) for ids in sequences]
    return pad_sequence(sequences, batch_first=True), torch.tensor([len(ids) for ids in sequences])


def protocol_induction_scores(
    model: nn.Module, *, convention: str = "attention_mass", dtype: str | None = None, **drawn: Any
) -> Float[Tensor, "layer head"]:
    """Induction scores as the protocol makes them; unit, averaging and errors as in `induction_scores`.

    `dtype` None is the model's own; `drawn` as in `protocol_tokens`.
    """
    tokens, lengths = protocol_tokens(model, **drawn)
    with _in_dtype(model, dtype):
        return induction_scores(model, tokens, convention=convention, lengths=lengths)


def protocol_prompts(
    model: nn.Module, given: Mapping[str, Task], *, seed: int, n_prompts: int = 100, n_shots: int = 10,
    tasks: str = "all", queries: str = "own", shuffle: str = "derangement",
) -> dict[str, TaskPrompts]:
    """Prompts of the protocol's tasks. The released split is the same for every seed, as in the released code.

    `tasks`: `all` tasks given, or `released_share`, as large a draw of them as has the released code's 9 abstractive
    to 20 extractive ones. `queries`: `own`, from a task's query pairs, or `released`, from 9 % of its pairs with 70 %
    as demonstrations. `shuffle`: `derangement` (no label in its place where possible) or `permutation` (any).
    """
    if tasks == "released_share":
        given = _released_share(given, seed)
    if queries == "released":
        given = {name: _released_split(task) for name, task in given.items()}
    how = dict(n_prompts=n_prompts, n_shots=n_shots, bos=bos_text(model), seed=seed)
    return {name: draw_prompts(task, any_permutation=shuffle == "permutation", **how) for name, task in given.items()}


def protocol_fv_scores(
    model: nn.Module, given: Mapping[str, Task], *, clean: str = "all", answer: str = "alone", dtype: str | None = None,
    **drawn: Any,
) -> FVScores:
    """FV scores as the protocol makes them; unit, position, BOS, averaging and errors as in `fv_scores`.

    `clean`: means over `all` clean prompts or over `correct`ly answered ones, of a task with none over all. `answer`:
    see `fv_scores`. `dtype` None is the model's own; `drawn` as in `protocol_prompts`.
    """
    prompts = protocol_prompts(model, given, **drawn)
    with _in_dtype(model, dtype):
        mean_z = clean_means(model, _correct(model, prompts) if clean == "correct" else prompts)
        return fv_scores(model, prompts, mean_z=mean_z, answer=answer)


def departure_effects(
    model: nn.Module, tasks: Mapping[str, Task], *, n_prompts: int = 100, n_shots: int = 10, n_sequences: int = 1000,
    sequence_length: int = 50, n_seeds: int = 3, top_fraction: float = 0.02, seed: int = 0,
) -> pd.DataFrame:
    """What each departure changes, one switch at a time from the default, beside the default under other seeds.

    Not in the paper. A row per score (`induction`, `fv`) and `kind` (`default`, `seed`, `departure`, `preset`), with
    `name`, `top` (highest score of a head, in the score's unit), `rank_correlation` with the default over heads
    (Spearman; `low` and `high` its 95 % interval), `shared` (share of the default's top heads, counts rounded up,
    that are in its own top), `n_heads`, `beyond` (which of the three lie further from the default than under any of
    the other seeds) and `note`. A switch without anything to act on has a note and NaN. Errors as in `fv_scores`.
    """
    score_heads = {
        "induction": partial(protocol_induction_scores, model, n_sequences=n_sequences, length=sequence_length),
        "fv": lambda **how: protocol_fv_scores(model, tasks, n_prompts=n_prompts, n_shots=n_shots, **how).scores}
    tables = []
    for score, presets in PRESETS.items():
        reference = score_heads[score](seed=seed)
        runs = [("default", "default", {}, seed, None)]
        runs += [("seed", f"seed {other}", {}, other, None) for other in range(seed + 1, seed + 1 + n_seeds)]
        runs += [("departure", f"{d['places']}: {d['departure']}", d["switch"], seed,
                  f"nothing to act on: {d['idle']}") for d in SCORING if d["score"] == score]
        runs += [("preset", f"all of {name}", switches, seed, "the same as the default")
                 for name, switches in presets.items()]
        rows = []
        for kind, name, switches, of_seed, idle in runs:
            scores = reference if kind == "default" else score_heads[score](seed=of_seed, **switches)
            same = idle is not None and torch.equal(scores, reference)
            rows.append({"score": score, "kind": kind, "name": name, "n_heads": scores.numel(),
                         **({} if same else _compared(reference, scores, top_fraction)), "note": idle if same else ""})
        tables.append(_beyond_seeds(pd.DataFrame(rows)))
    return pd.concat(tables, ignore_index=True)


def _compared(reference: Tensor, scores: Tensor, top_fraction: float) -> dict[str, float]:
    reference, scores = reference.numpy(), scores.numpy()
    tops = [top_heads(values, fraction=top_fraction) for values in (reference, scores)]
    rank = spearman(reference, scores)
    return {"top": float(scores.max()), "rank_correlation": rank.value, "low": rank.low, "high": rank.high,
            "shared": overlap(*tops)}


def _beyond_seeds(effects: pd.DataFrame) -> pd.DataFrame:
    default = effects.iloc[0]
    far = {"top score": (effects["top"] - default["top"]).abs(), "ranking": -effects["rank_correlation"],
           "top heads": -effects["shared"]}
    seeds = effects["kind"] == "seed"
    beyond = [", ".join(name for name, distance in far.items() if distance[i] > distance[seeds].max())
              if kind in ("departure", "preset") else "" for i, kind in enumerate(effects["kind"])]
    return effects.assign(beyond=beyond)


def _in_dtype(model: nn.Module, dtype: str | None) -> AbstractContextManager[None]:
    """The model in another dtype, but for rotary frequencies, which stay as on loading."""
    # the bridge gives an unembedding without bias one, as a buffer
    tensors = [*model.original_model.parameters(), *model.unembed.buffers()]
    return in_dtype(tensors, dtype and getattr(torch, dtype))


def _released_share(tasks: Mapping[str, Task], seed: int) -> dict[str, Task]:
    names = {kind: [name for name in sorted(tasks) if tasks[name].type == kind] for kind in _RELEASED_TASKS}
    scale = min(len(names[kind]) / n for kind, n in _RELEASED_TASKS.items())
    if scale == 0:
        return dict(tasks)
    rng = np.random.default_rng(seed)
    chosen = {name for kind, n in _RELEASED_TASKS.items()
              for name in rng.permutation(names[kind])[: max(1, round(scale * n))]}
    return {name: task for name, task in tasks.items() if name in chosen}


def _released_split(task: Task) -> Task:
    """70 % of the pairs as demonstrations, 30 % of the other 30 % as queries, the rest unused."""
    order = np.random.default_rng(zlib.crc32(task.name.encode())).permutation(len(task.pairs))
    n_rest = -(-3 * len(order) // 10)
    n_queries = -(-3 * n_rest // 10)
    kept = [task.pairs[i] for i in [*order[n_rest:], *order[:n_queries]]]
    return replace(task, pairs=kept, held_out=n_queries)


def _correct(model: nn.Module, prompts: Mapping[str, TaskPrompts]) -> dict[str, TaskPrompts]:
    metrics = answer_metrics(model, {task: p.clean for task, p in prompts.items()})
    right = set(metrics[metrics["first_token_correct"].astype(bool)].set_index(["task", "prompt"]).index)
    return {task: TaskPrompts([c for i, c in enumerate(p.clean) if (task, i) in right] or p.clean, p.shuffled)
            for task, p in prompts.items()}
