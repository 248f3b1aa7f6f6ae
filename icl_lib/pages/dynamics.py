"""The sentences of the page on training dynamics, made from its tables."""

import numpy as np
import pandas as pd

from icl_lib.analysis.dynamics import same_checkpoints


def steps_sentence(scores: pd.DataFrame, steps: list[int]) -> str:
    """Which checkpoints the page is about, and which of them are missing."""
    present = set(scores["step"])
    missing = [step for step in steps if step not in present]
    note = f" Missing: {', '.join(map(str, missing))}; figures have a gap there." if missing else ""
    known = [step for step in steps if step in present]
    note += "".join(f" Steps {one} and {other} have the same scores to the last bit: the same weights under two steps."
                    for one, other in same_checkpoints(scores))
    return f"{len(known)} checkpoints of {scores['model'].iloc[0]}: steps {', '.join(map(str, known))}.{note}"


def emergence_sentence(emergence: pd.DataFrame) -> str:
    """When each kind came and in which order, with the checkpoints that bound it."""
    came = emergence.set_index("kind")["first step with it"]
    parts = []
    for kind, label in (("induction", "Induction heads"), ("fv", "FV heads")):
        row = emergence.set_index("kind").loc[kind]
        if pd.isna(row["first step with it"]):
            parts.append(f"{label} did not come within {row['last step without']} steps")
        else:
            after = f", after {row['last step without']}" if pd.notna(row["last step without"]) else ""
            parts.append(f"{label} came by step {row['first step with it']}{after}")
    text = ". ".join(parts) + "."
    if came.isna().any():
        return text
    if came["induction"] == came["fv"]:
        return text + " At this spacing of checkpoints they came together."
    return text + f" {'Induction' if came['induction'] < came['fv'] else 'FV'} heads came first."


def emergence_shown(emergence: pd.DataFrame) -> pd.DataFrame:
    """The table of emergence as it is shown: "not within N steps" where a kind did not come."""
    never = "not within " + emergence["last step without"].astype(str) + " steps"
    first = emergence["first step with it"].astype(str).where(emergence["first step with it"].notna(), never)
    return emergence.assign(**{"first step with it": first}).set_index("kind").round(3)


def seeds_sentence(by_seed: pd.DataFrame) -> str:
    """In how many seeds which kind came first."""
    counts = by_seed["first"].value_counts()
    words = {"induction": "induction heads came first", "FV": "FV heads came first",
             "same checkpoint": "both came at the same checkpoint", "neither came": "neither came"}
    parts = [f"{text} in {counts[key]}" for key, text in words.items() if key in counts]
    if len(by_seed) == 1:
        return "Only one seed of this model has checkpoints here."
    return f"Of {len(by_seed)} models that differ by their seed, {', '.join(parts)}."


def interval_sentence(low: float, high: float) -> str:
    """The interval of the FV heads' emergence step."""
    return f"FV heads, 95 % interval over scoring tasks: {_step(low)} to {_step(high)}."


def transition_sentence(transitions: pd.DataFrame) -> str:
    """Heads that had both scores, by which came first."""
    rows = transitions.set_index("order")
    first, reverse = rows.loc["induction_first"], rows.loc["fv_first"]
    by_chance = [against_chance(*row[["expected by chance", "p", "smallest p"]]) for row in (first, reverse)]
    return (f"{int(first['heads'])} heads were induction heads before they were FV heads ({by_chance[0]}), "
            f"{int(reverse['heads'])} the reverse ({by_chance[1]}), {int(rows.loc['both_at_once', 'heads'])} both from "
            "the same checkpoint on. Chance: the two scores' curves paired at random over all heads of the model, so "
            "that layers which hold both kinds count as more.")


def against_chance(expected: float, p_value: float, smallest_p: float) -> str:
    """A count's expectation and p-value, or that the test has no power."""
    if smallest_p >= 0.05:
        return f"{expected:.1f} by chance; no number of heads would differ from it at p < 0.05: cannot be decided here"
    return f"{expected:.1f} by chance, p = {p_value:.2g}"


def transitions_by_seed_sentence(by_seed: pd.DataFrame) -> str:
    """Heads that changed kind in each direction, over models that differ by their seed, pooled and by seed."""
    of_seeds = by_seed[by_seed["model"] != "all"]
    pooled = by_seed.iloc[-1]  # of one seed: that one
    parts = [f"{int(pooled[words])} {'head' if pooled[words] == 1 else 'heads'} {words} (" + against_chance(
        pooled[f"{words}, by chance"], pooled[f"p ({words})"], pooled[f"smallest p ({words})"]) + ")"
        for words in ("induction first", "FV first")]
    powered = of_seeds["smallest p (induction first)"] < 0.05
    told = powered & (of_seeds["p (induction first)"] < 0.05)
    more = int((told & (of_seeds["induction first"] > of_seeds["induction first, by chance"])).sum())
    fewer = int(told.sum()) - more
    return (f"Over {len(of_seeds)} {'seeds' if len(of_seeds) > 1 else 'seed'}: {', '.join(parts)}. By seed, induction "
            f"first at p < 0.05: more than by chance in {more}, fewer in {fewer}, open in "
            f"{int(powered.sum()) - more - fewer}, no power in {int((~powered).sum())}.")


def _step(step: float) -> str:
    return f"step {step:g}" if np.isfinite(step) else "not within these steps"
