"""Crosbie & Shutova's ablation (arXiv 2407.07011) beside this book's: both on their tasks and on the paper's.

Theirs: the top 1 % and 3 % of heads by prefix matching, replaced at all positions, against random heads. Beside it the
same shares of FV heads, either kind with the other kept, controls of neither kind and of the same layers, and the
paper's own induction score.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import gcd

import pandas as pd
from scipy.stats import binomtest

from icl_lib.ablation.conditions import PAPERS, RANKINGS, THEIRS, Condition, ablation_conditions
from icl_lib.ablation.effects import effects_table
from icl_lib.ablation.measure import measure
from icl_lib.ablation.table import Measurement, ablation_table
from icl_lib.data.tasks import Task, TaskPrompts
from icl_lib.measurements import prompts_of
from icl_lib.saved import SavedResults
from icl_lib.tables import KEYS, SCHEMAS

METRICS = {"patterns": "label_accuracy", "paper": "first_token_accuracy"}


def conditions_of_both(scores: pd.DataFrame, *, fractions: list[float], **options) -> dict[str, list[Condition]]:
    """Per induction score the conditions of `ablation_conditions`, random heads of all heads among them.

    Under the paper's score only at the largest share. `options` and errors as there.
    """
    at = {THEIRS: fractions, PAPERS: [max(fractions)]}
    return {by: ablation_conditions(scores, fractions=at[by], induction_score=score, any_heads=True, **options)
            for by, score in RANKINGS.items()}


def prompts_of_seeds(
    model, tasks: Mapping[str, Task], *, n_prompts: int, n_shots: int, seed: int, n_seeds: int = 1
) -> dict[str, TaskPrompts]:
    """`n_prompts` of every task under each of several seeds of demonstrations and queries, from `seed` on."""
    drawn = [prompts_of(model, tasks, n_prompts=n_prompts, n_shots=n_shots, seed=seed + i) for i in range(n_seeds)]
    return {task: TaskPrompts(*([p for of_seed in drawn for p in getattr(of_seed[task], kind)]
                                for kind in ("clean", "shuffled"))) for task in tasks}


def measure_sets(
    model, conditions: list[Condition], tasks: Mapping[str, Task], prompts: Mapping[str, TaskPrompts],
    scoring: Mapping[str, TaskPrompts], *, task_set: str, seed: int, saved: SavedResults | None = None,
) -> Measurement:
    """The task set's metric with heads replaced by their mean over the scoring tasks, at all positions.

    On "patterns" accuracy is by the likelier label, on the "paper"'s tasks by the answer's first token, both 0..1.
    Random draws are spread over prompts (`measure`). Without `scoring` the clean model alone can be measured. Raises
    ValueError for a number of draws that shares a factor with a pattern's number of labels, both taken in turn.
    """
    labels = {name: tasks[name].label_names for name in prompts} if task_set == "patterns" else None
    n_draws = 1 + max(c.draw for c in conditions)
    for name, own in (labels or {}).items():
        if gcd(n_draws, len(own)) > 1:
            raise ValueError(f"n_draws {n_draws} and the {len(own)} labels of task {name!r} share a factor, so that a "
                             "draw would not meet every label; give an odd number of draws")
    measured = measure(model, conditions, prompts, scoring, None, replacement="mean" if scoring else "zero",
                       positions="all", seed=seed, labels=labels, spread_draws=True, saved=saved)
    return next(m for m in measured if m.metric == METRICS[task_set])


def measure_both(
    model, task_sets: Mapping[str, Mapping[str, Task]], conditions: Mapping[str, list[Condition]],
    scoring: Mapping[str, TaskPrompts], *, n_prompts: Mapping[str, int], n_seeds: Mapping[str, int], n_check: int,
    shots: list[int], seed: int, saved: SavedResults | None = None,
) -> Iterator[tuple[dict, Measurement]]:
    """`measure_sets` of the two task sets at every number of demonstrations, with the columns that say which it is.

    The patterns are first given to the clean model, `n_check` prompts of each under each seed: those that it cannot do
    at the most demonstrations (`able_tasks`) are not measured with heads ablated, and none are where it can do none.
    Both rankings are ablated at the most demonstrations, prefix matching's at the others.
    """
    clean, shots = conditions[THEIRS][:1], sorted(shots, reverse=True)
    for task_set, tasks in task_sets.items():
        how, able = dict(task_set=task_set, seed=seed, saved=saved), list(tasks)
        draw = partial(prompts_of_seeds, model, seed=seed, n_seeds=n_seeds[task_set])
        for n_shots in shots if task_set == "patterns" else []:
            checked = draw(tasks, n_prompts=n_check, n_shots=n_shots)
            found = measure_sets(model, clean, tasks, checked, {}, **how)
            able = able_tasks(found, tasks) if n_shots == shots[0] else able
            yield {"task_set": task_set, "n_shots": n_shots, "ranked_by": ""}, found
        able = {name: task for name, task in tasks.items() if name in able}
        for n_shots in shots if able else []:
            prompts = draw(able, n_prompts=n_prompts[task_set], n_shots=n_shots)
            for ranked_by in RANKINGS if n_shots == shots[0] else [THEIRS]:
                columns = {"task_set": task_set, "n_shots": n_shots, "ranked_by": ranked_by}
                yield columns, measure_sets(model, conditions[ranked_by], able, prompts, scoring, **how)


def able_tasks(clean: Measurement, tasks: Mapping[str, Task]) -> list[str]:
    """The tasks that the clean model answers above chance: exact binomial test, one-sided, p < 0.05."""
    values = pd.Series(clean.values[0]).groupby(clean.tasks)
    return [str(task) for task, right in values
            if binomtest(int(right.sum()), len(right), tasks[task].floor, alternative="greater").pvalue < 0.05]


def pattern_tables(
    measured: Iterable[tuple[dict, Measurement]], *, name: str, step: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `patterns` and `pattern_effects` of measurements, each with its columns task_set, n_shots and ranked_by.

    Effects over all tasks have task ""; on patterns every task has its own beside them.
    """
    rows, effects = [], []
    of_run = dict(name=name, step=step)
    for columns, m in measured:
        rows.append(ablation_table([m], **of_run).assign(**columns))
        alone = sorted(set(m.tasks)) if columns["task_set"] == "patterns" else []
        for task in ["", *alone] if len(m.conditions) > 1 else []:
            kept = m.tasks == task if task else slice(None)
            part = replace(m, tasks=m.tasks[kept], values=m.values[:, kept])
            effects.append(effects_table([part], metrics=[m.metric], **of_run).assign(task=task, **columns))
    table = pd.concat(rows, ignore_index=True).drop(columns=["replacement", "positions"])
    table.loc[table["ranking"] == "none", "ranked_by"] = ""  # clean rows of more prompts stand before the same ones
    table = table.drop_duplicates(KEYS["patterns"], ignore_index=True)
    found = pd.concat(effects, ignore_index=True) if effects else pd.DataFrame(columns=list(SCHEMAS["pattern_effects"]))
    return table, found.drop(columns=["replacement", "positions"], errors="ignore")
