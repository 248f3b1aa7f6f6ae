"""Section 5 from the scoring tables of one model's checkpoints: curves, emergence, transitions."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray

from icl_lib.emergence import ORDERS, emergence_step, null_threshold, transition_counts
from icl_lib.heads import top_heads

INDUCTION = "induction_prefix_matching"


def score_array(scores: pd.DataFrame, score: str) -> tuple[list[int], Float[ndarray, "step layer head"]]:
    """Steps in rising order and the mean over tasks of a score at each."""
    mean = scores[scores["score"] == score].groupby(["step", "layer", "head"])["value"].mean()
    if mean.empty:
        raise ValueError(f"the tables have no score {score!r}")
    steps = sorted(mean.index.unique("step"))
    return steps, np.stack([mean.xs(step).unstack("head").to_numpy() for step in steps])


def null_array(scores: pd.DataFrame) -> tuple[list[int], Float[ndarray, "step draw head"]]:
    """Steps and the draws of the FV null at each, heads flattened."""
    rows = scores[scores["score"] == "fv_null"]
    steps = sorted(rows["step"].unique())
    wide = rows.pivot_table(index=["step", "task"], columns=["layer", "head"], values="value")
    return steps, np.stack([wide.loc[step].to_numpy() for step in steps])


def top_score_curves(scores: pd.DataFrame, *, fraction: float, induction: str = INDUCTION) -> pd.DataFrame:
    """Mean score of the top heads at each step (figure 5), selected anew at each step and by the last step.

    Columns selection, kind, step, value, low, high; low and high are the lowest and highest of the selected heads.
    """
    rows = []
    for kind, score in (("induction", induction), ("fv", "fv")):
        steps, values = score_array(scores, score)
        last = top_heads(torch.from_numpy(values[-1]), fraction=fraction, rounding="ceil").numpy()
        for step, at in zip(steps, values, strict=True):
            anew = top_heads(torch.from_numpy(at), fraction=fraction, rounding="ceil").numpy()
            for selection, mask in (("selected at each checkpoint", anew), ("selected at the end", last)):
                chosen = at[mask]
                rows.append((selection, kind, step, chosen.mean(), chosen.min(), chosen.max()))
    return pd.DataFrame(rows, columns=["selection", "kind", "step", "value", "low", "high"])


def final_heads(scores: pd.DataFrame, *, n: int, induction: str = INDUCTION) -> dict[str, list[tuple[int, int]]]:
    """The `n` highest heads of each kind at the last step, best first, as (layer, head)."""
    found = {}
    for kind, score in (("induction", induction), ("fv", "fv")):
        last = score_array(scores, score)[1][-1]
        best = np.argsort(-last, axis=None, kind="stable")[:n]
        found[kind] = [tuple(int(i) for i in np.unravel_index(at, last.shape)) for at in best]
    return found


def fv_thresholds(scores: pd.DataFrame, *, quantile: float) -> Float[ndarray, "step"]:
    """For each step the FV score that the best head of a null draw exceeds with probability 1 - quantile."""
    return np.array([null_threshold(draws, quantile=quantile) for draws in null_array(scores)[1]])


def emergence_table(scores: pd.DataFrame, *, induction_threshold: float, null_quantile: float) -> pd.DataFrame:
    """First step from which the best head of a kind stays above its threshold, and the last step below it."""
    steps, induction = score_array(scores, INDUCTION)
    _, fv = score_array(scores, "fv")
    thresholds = fv_thresholds(scores, quantile=null_quantile)
    rows = []
    for kind, values, threshold in (("induction", induction, induction_threshold), ("fv", fv, thresholds)):
        best = values.reshape(len(steps), -1).max(axis=1)
        came = emergence_step(steps, best, threshold)
        at = np.unravel_index(values[-1].argmax(), values[-1].shape)
        rows.append({"kind": kind, "first step with it": came.step, "last step without": came.last_below,
                     "best head at the end": f"L{at[0]}H{at[1]}", "its score": best[-1],
                     "threshold at the end": np.broadcast_to(threshold, len(steps))[-1]})
    return pd.DataFrame(rows).astype({"first step with it": "Int64", "last step without": "Int64"})


def transition_table(
    scores: pd.DataFrame, *, induction_threshold: float, null_quantile: float, seed: int
) -> pd.DataFrame:
    """Heads by order of emergence of the two scores, with what pairing heads at random within layers would give.

    The FV threshold is the highest of all steps' nulls, so that a head counts at any step by the same bar.
    """
    _, induction = score_array(scores, INDUCTION)
    steps, fv = score_array(scores, "fv")
    layers = np.repeat(np.arange(fv.shape[1]), fv.shape[2])
    counts = transition_counts(
        induction.reshape(len(steps), -1), fv.reshape(len(steps), -1), induction_threshold=induction_threshold,
        fv_threshold=float(fv_thresholds(scores, quantile=null_quantile).max()), layers=layers, seed=seed)
    return pd.DataFrame({
        "order": ORDERS,
        "heads": [counts.observed[order] for order in ORDERS],
        "expected by chance": [counts.expected[order] for order in ORDERS],
        "p (at least as many)": [counts.p_greater[order] for order in ORDERS],
    })


def statistics_table(emergence: pd.DataFrame, transitions: pd.DataFrame, *, model: str) -> pd.DataFrame:
    """Both as rows of the table `statistics`; a kind that never emerged has an infinite step."""
    rows = [{"name": f"emergence step, {row['kind']}", "low": _step(row["last step without"], -np.inf),
             "value": _step(row["first step with it"], np.inf), "high": _step(row["first step with it"], np.inf),
             "p_value": np.nan, "n": 1} for _, row in emergence.iterrows()]
    rows += [{"name": f"heads, {row['order']}", "value": float(row["heads"]), "low": np.nan, "high": np.nan,
              "p_value": float(row["p (at least as many)"]), "n": int(transitions["heads"].sum())}
             for _, row in transitions.iterrows()]
    return pd.DataFrame(rows).assign(notebook="training_dynamics", model=model)


def _step(value, missing: float) -> float:
    return missing if pd.isna(value) else float(value)
