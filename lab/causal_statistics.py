"""The causal test judged: how much induction an arm left, what it did against its sham, and the verdict by the plan.

Tables in, tables out. `runs` has one row per arm, strength, seed and step with the measures of `lab.causal`; `plan` is
`lab/causal/plan.yaml` or that of the confirmation, whose rules were written down before the runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from icl_lib.stats.emergence import emergence_step
from icl_lib.stats.intervals import holm
from icl_lib.stats.permutation import later_test

KEY = ["arm", "strength", "seed", "step"]
RUN = ["arm", "strength", "seed"]
HIGHER_IS_BETTER = {"accuracy": True, "fv_score": True, "emergence": False}


class Verdict(NamedTuple):
    """The word of the plan that applies, the arms that it rests on, and why in one sentence.

    `prompt_copying` may speak against "without induction": by seed of these arms in which it was measured how often a
    query got the label that it has in the prompt (0..1), and whether FV heads formed; `controls_copying`: the mean rate
    by other arm; `seeds`: all of the plan; `copying_trained`: whether glossaries, prompts in which entries recur, were
    in the training text; `by_mask`: whether all of these arms are masks; `losses`: their last training losses, nats.
    """

    word: str
    arms: list[str]
    reason: str
    prompt_copying: dict[int, tuple[float, bool]] = {}
    controls_copying: dict[str, float] = {}
    seeds: tuple[int, ...] = ()
    copying_trained: bool = True
    by_mask: bool = False
    losses: tuple[float, ...] = ()


class MaskTold(NamedTuple):
    """How often the holes of a mask name the next token of a copy (0..1): the mask, its sham, no mask; of `n` copies.

    `blind`: a bound on the training loss from below, in nats, for a predictor that does not use the order of copies.
    """

    mask: float
    sham: float
    off: float
    n: int
    blind: float


def read_runs(folder: str | Path) -> pd.DataFrame:
    """The rows of all arms' tables in a folder. Raises ValueError for a table without a column or with a row twice.

    `order_gain`: the gain on repeats less that on a copy in another order (nats), NaN where this was not measured.
    """
    frames = []
    for path in sorted(Path(folder).glob("*.csv")):
        if path.name == "heads.csv":
            continue
        frame = pd.read_csv(path)
        if missing := [name for name in KEY if name not in frame]:
            raise ValueError(f"{path} has no column {missing[0]!r}, expected {', '.join(KEY)} and the measures")
        frames.append(frame)
    if not frames:
        raise ValueError(f"{folder} has no tables of runs; run `python -m lab.causal`")
    runs = pd.concat(frames, ignore_index=True)
    if (twice := runs.duplicated(KEY)).any():
        raise ValueError(f"{folder}: {runs.loc[twice, KEY].iloc[0].to_dict()} stands there twice")
    return runs.assign(order_gain=runs["repeat_gain"] - runs["any_order_gain"])


def last_rows(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """One row per run, at its last step, with `gap`, `formed` (FV heads by the plan), `emergence` (a step), `emerged`.

    `gap`: accuracy on clean less on label-shuffled prompts. `emergence`: the first measured step from which the best
    head's FV score stays above the plan's threshold and its null; where it has not `emerged`, the last measured step.
    """
    rules, rows = plan["rules"]["fv_formed"], []
    for _, run in runs.sort_values("step").groupby(RUN, sort=False):
        last, null = run.iloc[-1], np.maximum(rules["fv_score"], run["fv_null"].to_numpy())
        step = emergence_step(run["step"].tolist(), run["fv_score"].to_numpy(), null).step
        gap = last["accuracy"] - last["accuracy_shuffled"]
        rows.append(last.to_dict() | {
            "gap": gap, "formed": bool(last["fv_score"] > null[-1] and gap > rules["gap"]),
            "emergence": last["step"] if step is None else step, "emerged": step is not None})
    return pd.DataFrame(rows).sort_values(RUN, ignore_index=True)


def at_full(rows: pd.DataFrame, arm: str | None, entry: dict[str, Any]) -> pd.DataFrame:
    """The rows of an arm, or of its sham, at the full strength of the arm's entry in the plan."""
    return rows[(rows["arm"] == arm) & (rows["strength"] == entry["strengths"][0])]


def manipulation_checks(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Per arm and strength how much induction was left, and whether the plan calls it `absent`.

    `prefix_matching`: the highest of any seed and step. `gain`: the highest of the plan's gain on repeats as a share of
    the reference arm's mean at the last step. Index: arm, strength.
    """
    rules, (measure, reference) = plan["rules"]["induction_absent"], _reference_gain(runs, plan)
    by_arm = runs.groupby(["arm", "strength"], sort=False)
    gain = by_arm[measure].agg(lambda gains: gains.max(skipna=False)) / reference
    table = pd.DataFrame({"prefix_matching": by_arm["prefix_matching"].max(), "gain": gain})
    return table.assign(
        absent=(table["prefix_matching"] < rules["prefix_matching"]) & (table["gain"] < rules[measure]))


def _reference_gain(runs: pd.DataFrame, plan: dict[str, Any]) -> tuple[str, float]:
    """Which gain has to be absent (`order_gain`: its part that goes with the order), the reference arm's at the end."""
    rules = plan["rules"]["induction_absent"]
    measure = "order_gain" if "order_gain" in rules else "repeat_gain"
    reference = runs[runs["arm"] == rules.get("reference", "none")]
    return measure, last_rows(reference, plan)[measure].mean()


def formed_while_absent(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Runs with FV heads at a measured step up to which they had no induction; not part of the plan's rules.

    FV heads and absence as the plan defines them, but judged per run and step. Columns arm, strength, seed, `step` (the
    first such step, NaN for none).
    """
    absent, formed = plan["rules"]["induction_absent"], plan["rules"]["fv_formed"]
    measure, reference = _reference_gain(runs, plan)
    runs = runs.sort_values("step")
    without = (runs["prefix_matching"] < absent["prefix_matching"]) & (runs[measure] < absent[measure] * reference)
    heads = (runs["fv_score"] > runs["fv_null"].clip(lower=formed["fv_score"])) & (
        runs["accuracy"] - runs["accuracy_shuffled"] > formed["gap"])
    until_then = without.groupby([runs[name] for name in RUN]).cummin()
    return runs.assign(step=runs["step"].where(until_then & heads)).groupby(RUN, as_index=False)["step"].first()


def effects(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Each arm against its sham at full strength: value, 95 % interval, two-sided p, the smallest p possible, margin.

    Outcomes: `accuracy` and `fv_score` at the last step, arm less sham paired by seed, mean and Student's t, with the
    plan's margins (the latter's is a share of the sham's mean); `emergence`: the share of pairs of runs in which FV
    heads came later in the arm, less that in which earlier, -1..1, with the permutation test of `later_test`, which
    knows that some never came; no interval and no margin. One row per arm and outcome; arms with fewer than two seeds
    on both sides are left out.
    """
    last, rows = last_rows(runs, plan), []
    margins = plan["rules"]["outcomes"]
    for arm, entry in plan["arms"].items():
        if "control" not in entry:
            continue
        sides = [at_full(last, name, entry).set_index("seed") for name in (arm, entry["control"])]
        seeds = sides[0].index.intersection(sides[1].index)
        if len(seeds) < 2:
            continue
        for outcome in ("accuracy", "fv_score"):
            ours, control = (side.loc[seeds, outcome].to_numpy(dtype=float) for side in sides)
            mean, low, high, p_value = paired_t(ours - control, level=plan["rules"]["level"])
            margin = margins[outcome] * (1 if outcome == "accuracy" else control.mean())
            rows.append({"arm": arm, "outcome": outcome, "value": mean, "low": low, "high": high, "p_value": p_value,
                         "margin": margin, "control": control.mean(), "n": len(seeds)})
        both = pd.concat([side.loc[seeds] for side in sides])
        test = later_test(both["emergence"].to_numpy(float), both["emerged"].to_numpy(bool),
                          np.arange(len(both)) < len(seeds))
        rows.append({"arm": arm, "outcome": "emergence", "value": test.value, "p_value": test.p_value,
                     "smallest_p": test.smallest_p, "n": len(seeds)})
    columns = ["arm", "outcome", "value", "low", "high", "p_value", "smallest_p", "margin", "control", "n"]
    return pd.DataFrame(rows, columns=columns)


def paired_t(differences: np.ndarray, *, level: float) -> tuple[float, float, float, float]:
    """Mean, interval and two-sided p-value of paired differences.

    Without spread there is no interval (NaN) and the p-value is that of the exact sign test, 2 / 2^n.
    """
    mean = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    if error <= 1e-12 * abs(mean):
        return mean, np.nan, np.nan, 2 * 0.5 ** len(differences) if mean else 1.0
    reach = float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def arms_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Per arm with a sham, at full strength: whether induction was `absent`, in how many seeds FV heads `formed`.

    `sham_formed`: in how many of the sham. An arm counts for the verdict (`counts`) where induction was absent, it is
    specific and its sham informative.
    `long_formed`: seeds with FV heads in the same arm with more steps, NaN where there is none; `long_absent`: whether
    induction was absent in that one too.
    """
    last, absent, rows = last_rows(runs, plan), manipulation_checks(runs, plan)["absent"], []
    for arm, entry in plan["arms"].items():
        strength = float(entry["strengths"][0])
        own, sham = (at_full(last, name, entry) for name in (arm, entry.get("control")))
        if own.empty or sham.empty:
            continue
        long = next((name for name, other in plan["arms"].items() if other.get("long_of") == arm), None)
        longer = at_full(last, long, entry)
        informative = sham["formed"].sum() >= plan["rules"]["informative"]
        rows.append({
            "arm": arm, "absent": absent[arm, strength], "formed": own["formed"].sum(),
            "sham_formed": sham["formed"].sum(),
            "long_formed": longer["formed"].sum() if len(longer) else np.nan,
            "long_absent": absent.get((long, strength), False),
            "counts": absent[arm, strength] and informative and entry["specific"]})
    columns = ["arm", "absent", "formed", "sham_formed", "long_formed", "long_absent", "counts"]
    return pd.DataFrame(rows, columns=columns).set_index("arm")


def verdict(runs: pd.DataFrame, plan: dict[str, Any]) -> Verdict:
    """The word of the plan that applies, `not_necessary` where neither `helpful` nor `neither` does.

    `undecided` while runs are missing.
    """
    found = _by_the_rule(runs, plan)
    last = last_rows(runs, plan).reindex(columns=["arm", "strength", "seed", "prompt_retrieval", "formed", "loss"])
    own = pd.concat([last.iloc[:0], *(at_full(last, arm, plan["arms"][arm]) for arm in found.arms)])
    rated = own.dropna(subset="prompt_retrieval")
    copying = {int(row.seed): (float(row.prompt_retrieval), bool(row.formed)) for row in rated.itertuples()}
    others = [plan["arms"][arm].get("control") for arm in found.arms] + ["none"]
    controls = last[last["arm"].isin(others)].groupby("arm")["prompt_retrieval"].mean().dropna().to_dict()
    mixture = plan.get("change", {}).get("mixture", {})
    masks = [plan["arms"][arm]["intervention"].startswith("mask") for arm in found.arms]
    return found._replace(prompt_copying=copying, controls_copying=controls, seeds=tuple(plan["seeds"]),
                          copying_trained=mixture.get("glossary", True) is not None,
                          by_mask=bool(masks) and all(masks), losses=tuple(own["loss"].dropna()))


def gain_against_sham(runs: pd.DataFrame, plan: dict[str, Any], arm: str) -> float:
    """An arm's highest gain on repeats, of any seed and step, as a share of its sham's mean at the last step.

    The first plan's check is of this gain in any order, the later ones' of its part that goes with the order.
    """
    entry = plan["arms"][arm]
    sham = at_full(last_rows(runs, plan), entry["control"], entry)
    return float(at_full(runs, arm, entry)["repeat_gain"].max() / sham["repeat_gain"].mean())


def _by_the_rule(runs: pd.DataFrame, plan: dict[str, Any]) -> Verdict:
    planned = {(arm, float(entry["strengths"][0]), seed)
               for arm, entry in plan["arms"].items() for seed in plan["seeds"]}
    if missing := planned - set(runs[RUN].itertuples(index=False, name=None)):
        return Verdict("undecided", [], f"{len(missing)} of the plan's runs are missing")
    table = arms_table(runs, plan)
    counting = table[table["counts"]]
    arms = list(counting.index)
    if not arms:
        return Verdict("undecided", [], "no arm left induction absent, spared what FV heads do and had a sham in which "
                       "FV heads form")
    # of a longer arm in which induction came back FV heads speak against "necessary" and not for "not necessary"
    if len(arms) >= 2 and (counting[["formed", "long_formed"]].max(axis=1) <= 1).all():
        return Verdict("necessary", arms, "FV heads formed in at most one seed of each arm without induction")
    long_without = counting["long_absent"] & (counting["long_formed"] >= 4)
    without = list(counting.index[(counting["formed"] >= 4) | long_without])
    if not without:
        unclear = counting[~counting["long_absent"] & (counting["long_formed"] > 1)]
        longer = "".join(f"; FV heads formed in {row.long_formed:.0f} seeds of {row.Index} trained longer, where the "
                         "check does not call induction absent" for row in unclear.itertuples())
        n = len(plan["seeds"])
        counts = ", ".join(f"in {row.formed} of {n} seeds with {row.Index} (sham: {row.sham_formed} of {n})"
                           for row in counting.itertuples())
        return Verdict("undecided", arms, f"FV heads formed {counts}{longer}")
    found = effects(runs, plan).query("arm in @arms").reset_index(drop=True)
    worse = np.where(found["outcome"].map(HIGHER_IS_BETTER), found["value"] < 0, found["value"] > 0)
    harmed = found[worse & (holm(found["p_value"].to_numpy()) < 1 - plan["rules"]["level"])]
    if len(harmed):
        named = ", ".join(f"{row.outcome} of {row.arm}" for row in harmed.itertuples())
        return Verdict("helpful", without, f"FV heads form without induction, and worse than in the sham: {named}")
    bounded = found[found["margin"].notna()]
    if (bounded["low"] > -bounded["margin"]).all():
        return Verdict("neither", without, "FV heads form without induction, within the margins of the sham or better")
    return Verdict("not_necessary", without, "no outcome is clearly worse than in the sham, some interval reaches "
                   "below its margin")
