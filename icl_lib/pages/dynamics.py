"""The sentences of the page on training dynamics, made from its tables."""

import numpy as np
import pandas as pd

from icl_lib.analysis.dynamics import same_checkpoints
from icl_lib.names import size_of
from icl_lib.stats.permutation import sign_test

PLACES = (
    "Where heads of a layer start at unequal scales, alike in every seed (`lab-113k`, `lab-370k`, `lab-1500k`), a "
    "head's place may explain both scores; against the same heads of other seeds it cannot.")


def steps_sentence(scores: pd.DataFrame, steps: list[int]) -> str:
    """Which checkpoints the page is about, and which of them are missing."""
    known = [step for step in steps if step in set(scores["step"])]
    missing = [str(step) for step in steps if step not in known]
    note = f" Missing: {', '.join(missing)}; figures have a gap there." if missing else ""
    note += "".join(f" Steps {one} and {other} have the same scores to the last bit: the same weights under two steps."
                    for one, other in same_checkpoints(scores))
    return f"{len(known)} checkpoints of {scores['model'].iloc[0]}: steps {', '.join(map(str, known))}.{note}"


def emergence_sentence(emergence: pd.DataFrame) -> str:
    """When each kind came and in which order, with the checkpoints that bound it."""
    came, before = (emergence.set_index("kind")[name] for name in ("first step with it", "last step without"))
    text = ""
    for kind, label in (("induction", "Induction heads"), ("fv", "FV heads")):
        after = f", after {before[kind]}" if pd.notna(before[kind]) else ""
        text += (f"{label} did not come within {before[kind]} steps. " if pd.isna(came[kind]) else
                 f"{label} came by step {came[kind]}{after}. ")
    if came.notna().all():
        text += ("At this spacing of checkpoints they came together." if came["induction"] == came["fv"] else
                 f"{'Induction' if came['induction'] < came['fv'] else 'FV'} heads came first in this training.")
    return text.strip()


def emergence_shown(emergence: pd.DataFrame) -> pd.DataFrame:
    """The table of emergence as it is shown: "not within N steps" where a kind did not come."""
    never = "not within " + emergence["last step without"].astype(str) + " steps"
    first = emergence["first step with it"].astype(str).where(emergence["first step with it"].notna(), never)
    return emergence.assign(**{"first step with it": first}).set_index("kind").round(3)


def interval_sentence(low: float, high: float) -> str:
    """The interval of the FV heads' emergence step."""
    ends = [f"step {step:g}" if np.isfinite(step) else "not within these steps" for step in (low, high)]
    return f"FV heads, 95 % interval over scoring tasks: {' to '.join(ends)}."


def order_sentence(by_seed: pd.DataFrame) -> str:
    """In how many seeds FV heads had half of their final level later than induction heads; `by_seed`: a row a seed."""
    later = (by_seed["half of FV level"] - by_seed["half of induction level"]).to_numpy(float)
    test = sign_test(later)
    return (f"FV heads had half of their final level later than induction heads in {(later > 0).sum()} of {len(later)} "
            f"seeds, earlier in {(later < 0).sum()} (sign test: p = {test.p_value:.2g}, at least {test.smallest_p:.2g} "
            "with so many that differ).")


def by_seed_shown(table: pd.DataFrame, *index: str) -> pd.DataFrame:
    """A table with a row per model of one size (column `model`, or "all") by the seeds in their names."""
    seeds = [name if name.partition(",")[0] == "all" else
             name.removeprefix(size_of(name)).lstrip("-").removeprefix("seed") or (
                 "0" if name.startswith("lab-") else "first") for name in table["model"]]
    return table.assign(model=seeds).rename(columns={"model": "seed"}).set_index([*index, "seed"])


def ranks_shown(ranks: pd.DataFrame) -> pd.DataFrame:
    """`transitions.ranks_before_by_seed` as it is shown."""
    other = {"fv": "final FV heads in prefix matching", "induction": "final induction heads in FV score"}
    return _p_in_words(ranks.assign(heads=ranks["heads"].map(other))).set_index(["heads", "against"]).rename_axis(
        ["rank of, before they were", "against"]).round(3)


def transitions_by_seed_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`transitions.transitions_by_seed` as it is shown."""
    for order in ("induction first", "FV first"):
        table = _p_in_words(table, f" ({order})")
    return by_seed_shown(table).round(2)


def transitions_sentence(table: pd.DataFrame, still: dict[str, int]) -> str:
    """What the rows of all seeds together are compared with, what tells the order, and whether heads change their kind.
    `table`: `transitions.transitions_by_seed`; `still`: `transitions.kinds_at_the_end`."""
    row = table.set_index("model").loc["all"]
    first, *others = row[["induction first", "FV first", "both at once"]].astype(int)
    by_chance, fv_by_chance = row[["induction first, by chance", "FV first, by chance"]]
    text = (
        "*In layers*: curves paired within layers; *same places*: each seed's FV curves given to the same heads of "
        "another seed; *each step's threshold*: FV heads by each checkpoint's own threshold, not the highest.")
    if not first or not by_chance:
        return text
    both, share = first + sum(others), by_chance / (by_chance + fv_by_chance)
    return text + (
        f" Of {both} heads with both scores induction came first in {first}, a share of {first / both:.2f}; in random "
        f"pairings it is {share:.2f}. At the end {still['induction']} of these {first} heads are induction heads and "
        f"{still['fv']} FV heads{': they added a kind and did not change it' * ({*still.values()} == {first})}.")


def transitions_shown(transitions: pd.DataFrame) -> pd.DataFrame:
    """The table of transitions with its orders in words."""
    words = transitions["order"].str.replace("_", " ").str.replace("fv", "FV")
    return _p_in_words(transitions.assign(order=words)).set_index("order").round(3)


def _p_in_words(table: pd.DataFrame, of: str = "") -> pd.DataFrame:
    """The columns p and smallest p of a test as one: "0.027 (0.001)"."""
    words = [f"{p:.2g} ({least:.2g})" for p, least in zip(table["p" + of], table["smallest p" + of], strict=True)]
    return table.assign(**{"p" + of: words}).drop(columns="smallest p" + of).rename(
        columns={"p" + of: f"p{of} (least possible)"})
