"""Section 5 from the scoring tables of one model's checkpoints: curves, emergence, transitions."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray

from icl_lib.emergence import ORDERS, emergence_interval, emergence_step, null_threshold, transition_counts
from icl_lib.heads import top_heads
from icl_lib.tables import SCHEMAS, read_tables

INDUCTION = "induction_prefix_matching"


def tables_of(results: str | Path, table: str, models: dict[str, list[int]]) -> pd.DataFrame:
    """One kind of table for several models at several steps, one below the other; missing ones are left out.

    Raises ValueError where none of them is there, and as `read_table` does for a file that cannot be read.
    """
    paths = [Path(results) / table / model / f"step{step}.parquet" for model, steps in models.items() for step in steps]
    if not any(path.is_file() for path in paths):
        raise ValueError(f"no table {table!r} of {', '.join(models) or 'any model'} in {results}: run the suite first, "
                         "e.g. make book SUITE=lab")
    return read_tables([path for path in paths if path.is_file()], schema_name=table)


def score_array(scores: pd.DataFrame, score: str) -> tuple[list[int], Float[ndarray, "step layer head"]]:
    """Steps in rising order and the mean over tasks of a score at each."""
    mean = scores[scores["score"] == score].groupby(["step", "layer", "head"])["value"].mean()
    if mean.empty:
        raise ValueError(f"the tables have no score {score!r}")
    steps = sorted(mean.index.unique("step"))
    return steps, np.stack([mean.xs(step).unstack("head").to_numpy() for step in steps])


def same_checkpoints(scores: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of steps of one model with the same scores bit for bit: the same weights under two steps (it happens)."""
    found = []
    for _, rows in scores.groupby("model"):
        columns = [c for c in ("score", "layer", "head", "task") if c in rows]
        values = rows.pivot_table(index="step", columns=columns, values="value").dropna(axis=1)
        first: dict[bytes, int] = {}
        for step, of_step in values.iterrows():
            same = first.setdefault(of_step.to_numpy().tobytes(), step)
            found += [(int(same), int(step))] if same != step else []
    return found


def null_array(scores: pd.DataFrame) -> tuple[list[int], Float[ndarray, "step draw head"]]:
    """Steps and the draws of the FV null at each, heads flattened."""
    rows = scores[scores["score"] == "fv_null"]
    steps = sorted(rows["step"].unique().tolist())
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


def seed_curves(scores: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean score of the top heads, selected anew at each step: model, kind, step, value, low, high."""
    frames = [top_score_curves(rows, fraction=fraction).assign(model=model) for model, rows in scores.groupby("model")]
    table = pd.concat(frames, ignore_index=True)
    return table[table["selection"] == "selected at each checkpoint"]


def emergence_by_seed(
    scores: pd.DataFrame, *, induction_threshold: float, null_quantile: float
) -> pd.DataFrame:
    """One row per model: first step with each kind (missing where it never came) and which came first."""
    rows = []
    for model, group in scores.groupby("model"):
        table = emergence_table(group, induction_threshold=induction_threshold, null_quantile=null_quantile)
        step = table.set_index("kind")["first step with it"]
        induction, fv = (np.inf if pd.isna(step[kind]) else int(step[kind]) for kind in ("induction", "fv"))
        first = "neither came" if np.isinf([induction, fv]).all() else "same checkpoint" if induction == fv else \
            "induction" if induction < fv else "FV"
        rows.append((model, step["induction"], step["fv"], first))
    return pd.DataFrame(rows, columns=["model", "induction heads by step", "FV heads by step", "first"])


def teaser_head(scores: pd.DataFrame, *, n: int, induction: str = INDUCTION) -> tuple[int, int]:
    """The head of figure 1: among the `n` final FV heads the one with the highest induction score at any checkpoint.

    The paper shows the third-ranked FV head of Pythia 6.9B and does not say why.
    """
    highest = score_array(scores, induction)[1].max(axis=0)
    return max(final_heads(scores, n=n, induction=induction)["fv"], key=lambda head: highest[head])


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


def fv_emergence_interval(
    scores: pd.DataFrame, *, null_quantile: float, seed: int, n_resamples: int = 1000
) -> tuple[float, float]:
    """95 % interval of the step at which the best head's FV score exceeds its null: bootstrap over scoring tasks.

    In each resample the best head is chosen anew at each step. Infinity stands for never.
    """
    rows = scores[scores["score"] == "fv"]
    wide = rows.pivot_table(index=["step", "task"], columns=["layer", "head"], values="value")
    steps = sorted(rows["step"].unique().tolist())
    by_task = np.stack([wide.loc[step].to_numpy() for step in steps])
    drawn = np.random.default_rng(seed).integers(by_task.shape[1], size=(n_resamples, by_task.shape[1]))
    best = np.stack([by_task[:, tasks].mean(axis=1).max(axis=1) for tasks in drawn])
    return emergence_interval(steps, best, fv_thresholds(scores, quantile=null_quantile))


def transition_sweep(
    scores: pd.DataFrame, *, induction_thresholds: list[float], null_quantile: float, seed: int
) -> pd.DataFrame:
    """`transition_table` at several induction thresholds, one below the other, with the column `threshold`."""
    return pd.concat([
        transition_table(scores, induction_threshold=at, null_quantile=null_quantile, seed=seed).assign(threshold=at)
        for at in induction_thresholds], ignore_index=True)


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


def transitions_by_seed(
    scores: pd.DataFrame, *, induction_threshold: float, null_quantile: float, seed: int
) -> pd.DataFrame:
    """One row per model: heads by which score came first, with what chance gives; see `transition_table`."""
    rows = []
    for model, group in scores.groupby("model"):
        table = transition_table(
            group, induction_threshold=induction_threshold, null_quantile=null_quantile, seed=seed).set_index("order")
        found = {"model": model}
        for order, words in (("induction_first", "induction first"), ("fv_first", "FV first")):
            row = table.loc[order]
            found |= {words: int(row["heads"]), f"{words}, by chance": row["expected by chance"],
                      f"p ({words})": row["p (at least as many)"]}
        rows.append(found | {"both at once": int(table.at["both_at_once", "heads"])})
    return pd.DataFrame(rows)


def effects_by_step(results: str | Path, model: str, steps: list[int], *, fraction: float) -> pd.DataFrame:
    """What ablating each kind costs beyond layer-matched random heads at the ablated checkpoints, both metrics.

    Rows of the table `effects` for the mean at all positions without exclusion, at the share of heads nearest to
    `fraction`; empty where no checkpoint was ablated.
    """
    if not any((Path(results) / "effects" / model / f"step{step}.parquet").is_file() for step in steps):
        return pd.DataFrame(columns=list(SCHEMAS["effects"]))
    table = tables_of(results, "effects", {model: steps})
    at = table["fraction"].unique()
    nearest = at[np.abs(at - fraction).argmin()]
    rows = table[(table["replacement"] == "mean") & (table["positions"] == "all") & (table["excluded"] == "")]
    return rows[(rows["fraction"] == nearest) & rows["ranking"].isin(("induction", "fv"))]


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
