"""Section 5 from the scoring tables of checkpoints: curves and emergence; heads with both scores: transitions.py.

Top heads are ranked by `kinds.RANKED_BY`; whether a head is of a kind follows the definition of `kinds`, at each step.
By the table `accuracy` a model has no FV heads at a step at which it does not read labels.
"""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from icl_lib import kinds
from icl_lib.analysis.reading import number, table_of
from icl_lib.heads import top_heads
from icl_lib.kinds import DEFINED_BY, INDUCTION_THRESHOLD, KINDS, RANKED_BY
from icl_lib.stats.emergence import Emergence, emergence_interval, emergence_step
from icl_lib.stats.intervals import bootstrap_mean


def score_array(scores: pd.DataFrame, score: str) -> tuple[list[int], Float[ndarray, "step layer head"]]:
    """Steps in rising order and the mean over tasks of a score at each."""
    by_step = {step: kinds.mean_scores(rows, score) for step, rows in scores.groupby("step")}
    return list(by_step), np.stack(list(by_step.values()))


def same_checkpoints(scores: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of steps of one model with the same scores bit for bit: the same weights under two steps (it happens)."""
    columns, first, found = ["score", "layer", "head", "task"], {}, []
    for step, values in scores.pivot_table(index="step", columns=columns, values="value").dropna(axis=1).iterrows():
        same = first.setdefault(values.to_numpy().tobytes(), step)
        found += [(int(same), int(step))] if same != step else []
    return found


def fv_thresholds(scores: pd.DataFrame) -> Float[ndarray, "step"]:
    """For each step in rising order the FV score from which a head is an FV head; see `kinds.fv_threshold`."""
    return np.array([kinds.fv_threshold(kinds.null_draws(at)) for _, at in scores.groupby("step")])


def steps_with_labels(steps: list[int], accuracy: pd.DataFrame) -> Bool[ndarray, "step"]:
    """At which steps a model reads labels (`kinds.reads_labels`); True for a step that has no row in the table."""
    measured = {step: kinds.reads_labels(rows) for step, rows in accuracy.groupby("step")}
    return np.array([measured.get(step, True) for step in steps])


def defining_scores(
    scores: pd.DataFrame, accuracy: pd.DataFrame
) -> tuple[list[int], dict[str, Float[ndarray, "step layer head"]]]:
    """Steps and, for both kinds, the score that says whether a head is of it; FV at minus infinity without labels."""
    steps, induction = score_array(scores, DEFINED_BY["induction"])
    _, fv = score_array(scores, DEFINED_BY["fv"])
    fv = np.where(steps_with_labels(steps, accuracy)[:, None, None], fv, -np.inf)
    return steps, {"induction": induction, "fv": fv}


def top_score_curves(scores: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean of the top heads' ranking score at each step (figure 5), selected anew at each step and by the last step.

    Columns selection, kind, step, value, low, high; low and high are the lowest and highest of the selected heads.
    """
    rows = []
    for kind, score in RANKED_BY.items():
        steps, values = score_array(scores, score)
        last = top_heads(values[-1], fraction=fraction)
        for step, at in zip(steps, values, strict=True):
            anew = top_heads(at, fraction=fraction)
            for selection, mask in (("selected at each checkpoint", anew), ("selected at the end", last)):
                chosen = at[mask]
                rows.append((selection, kind, step, chosen.mean(), chosen.min(), chosen.max()))
    return pd.DataFrame(rows, columns=["selection", "kind", "step", "value", "low", "high"])


def final_heads(scores: pd.DataFrame, *, n: int) -> dict[str, list[tuple[int, int]]]:
    """The `n` highest heads of each kind at the last step, best first, as (layer, head)."""
    found = {}
    for kind, score in RANKED_BY.items():
        last = score_array(scores, score)[1][-1]
        best = np.argsort(-last, axis=None, kind="stable")[:n]
        found[kind] = [tuple(int(i) for i in np.unravel_index(at, last.shape)) for at in best]
    return found


def seed_curves(scores: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean score of the top heads, selected anew at each step: model, kind, step, value, low, high."""
    frames = [top_score_curves(rows, fraction=fraction).assign(model=model) for model, rows in scores.groupby("model")]
    table = pd.concat(frames, ignore_index=True)
    return table[table["selection"] == "selected at each checkpoint"]


def emergence_by_seed(scores: pd.DataFrame, accuracy: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """One row per model: first step with each kind, which came first, and for both the top heads' `half_level`."""
    rows, curves = [], {of: rows.set_index("step")["value"] for of, rows in seed_curves(
        scores, fraction=fraction).groupby(["model", "kind"])}
    for model, group in scores.groupby("model"):
        came = [of.step for of in emergence(group, accuracy[accuracy["model"] == model]).values()]
        induction, fv = (np.inf if step is None else step for step in came)
        first = "same checkpoint" if induction == fv else "induction" if induction < fv else "FV"
        never = f"not within {group['step'].max()} steps"
        rows.append((model, *(never if step is None else str(step) for step in came),
                     "neither came" if came == [None, None] else first,
                     *(int(half_level(curves[model, kind])) for kind in KINDS)))
    return pd.DataFrame(rows, columns=["model", "induction heads by step", "FV heads by step", "first",
                                       "half of induction level", "half of FV level"])


def half_levels_over_seeds(emergence: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Mean step with half of the own final level over the rows of `emergence_by_seed`, and how much later FV heads are.

    Columns step, low, high: 95 % bootstrap over models.
    """
    induction, fv = (emergence[f"half of {kind} level"].to_numpy(float) for kind in ("induction", "FV"))
    steps = {"induction heads": induction, "FV heads": fv, "FV after induction heads": fv - induction}
    rows = [(of, *bootstrap_mean(values, seed=seed)) for of, values in steps.items()]
    return pd.DataFrame(rows, columns=["half of the final level", "step", "low", "high"])


def teaser_head(scores: pd.DataFrame, accuracy: pd.DataFrame) -> tuple[str, int, int] | None:
    """The head of figure 1, as (model, layer, head), None where no model ends with an FV head.

    Of all models' final FV heads the one with the highest prefix matching at a checkpoint before it was an FV head.
    """
    highest, found = -np.inf, None
    for model, group in scores.groupby("model"):
        by_kind = defining_scores(group, accuracy[accuracy["model"] == model])[1]
        is_fv = by_kind["fv"] > fv_thresholds(group).max()
        earlier = np.indices(is_fv.shape)[0] < is_fv.argmax(axis=0)
        before = np.where(earlier & is_fv[-1], by_kind["induction"], -np.inf).max(axis=0)
        if before.max() > highest:
            highest = before.max()
            found = (str(model), *(int(i) for i in np.unravel_index(before.argmax(), before.shape)))
    return found


def emergence(scores: pd.DataFrame, accuracy: pd.DataFrame) -> dict[str, Emergence]:
    """By kind the step from which one model's best head stays above its threshold, and the last step below it."""
    steps, by_kind = defining_scores(scores, accuracy)
    bars = {"induction": INDUCTION_THRESHOLD, "fv": fv_thresholds(scores)}
    return {kind: emergence_step(steps, by_kind[kind].max(axis=(1, 2)), bars[kind]) for kind in KINDS}


def emergence_table(scores: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """`emergence` with the best head at the end, its score and the threshold there."""
    rows, bars = [], {"induction": INDUCTION_THRESHOLD, "fv": fv_thresholds(scores)[-1]}
    for kind, came in emergence(scores, accuracy).items():
        last = score_array(scores, DEFINED_BY[kind])[1][-1]  # of FV the score itself, also without labels
        layer, head = np.unravel_index(last.argmax(), last.shape)
        rows.append({"kind": kind, "first step with it": came.step, "last step without": came.last_below,
                     "best head at the end": f"L{layer}H{head}", "its score": last.max(),
                     "threshold at the end": bars[kind]})
    return pd.DataFrame(rows).astype({"first step with it": "Int64", "last step without": "Int64"})


def fv_emergence_interval(scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int) -> tuple[float, float]:
    """95 % interval of the step at which the best head, chosen anew at each, is an FV head: bootstrap over tasks."""
    steps, by_task = fv_by_task(scores)
    drawn = np.random.default_rng(seed).integers(by_task.shape[1], size=(1000, by_task.shape[1]))
    best = np.stack([by_task[:, tasks].mean(axis=1).max(axis=1) for tasks in drawn])
    best = np.where(steps_with_labels(steps, accuracy), best, -np.inf)
    return emergence_interval(steps, best, fv_thresholds(scores))


def fv_by_task(scores: pd.DataFrame) -> tuple[list[int], Float[ndarray, "step task head"]]:
    """Steps and the FV score of each scoring task at each, heads flattened."""
    by_step = {step: kinds.scores_by_task(rows, "fv") for step, rows in scores[scores["score"] == "fv"].groupby("step")}
    return list(by_step), np.stack(list(by_step.values()))


def half_level(curve: pd.Series) -> float:
    """First step, of those in a curve's index, at which it has half of its last value."""
    return float(curve.index[(curve >= curve.iloc[-1] / 2).to_numpy().argmax()])


def statistics_table(emergence: pd.DataFrame, transitions: pd.DataFrame, *, model: str) -> pd.DataFrame:
    """Both as rows of the table `statistics`; a kind that never emerged has an infinite step."""
    steps = emergence.set_index("kind")[["last step without", "first step with it"]].astype(float)
    came, before = steps["first step with it"].fillna(np.inf), steps["last step without"].fillna(-np.inf)
    rows = [number(f"emergence step, {kind}", came[kind], before[kind], came[kind], n=1) for kind in steps.index]
    rows += [number(f"heads, {row['order']}", row["heads"], p_value=row["p"], n=transitions["heads"].sum())
             for _, row in transitions.iterrows()]
    return table_of(rows, notebook="training_dynamics", model=model)
