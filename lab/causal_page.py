"""The causal test in words and tables, made from its numbers."""

from typing import Any

import numpy as np
import pandas as pd

from lab import causal_statistics as judge
from lab.causal_figures import ARM_LABEL

MEANING = {
    "necessary": "in this world induction is **necessary** for FV heads",
    "helpful": "in this world induction is **helpful** for FV heads and not necessary",
    "neither": "in this world induction is **neither** necessary nor helpful for FV heads",
    "not_necessary": "in this world induction is **not necessary** for FV heads; whether it is helpful is not decided",
    "undecided": "whether induction is necessary or helpful for FV heads is **not decided** in this world",
}

SHORT = {
    "necessary": "**they do**", "helpful": "**they do not**, it helps", "neither": "**they do not**, nor does it help",
    "not_necessary": "**they do not**, whether it helps is open", "undecided": "**not decided**",
}
WITHOUT = ("not_necessary", "helpful", "neither")  # the words that say that FV heads form without induction

_MEANS = {  # column of the runs: words, digits
    "repeat_gain": ("gain on repeats (nats)", 2), "any_order_gain": ("gain in another order (nats)", 2),
    "fv_score": ("FV score", 3), "accuracy": ("accuracy", 2), "accuracy_shuffled": ("labels shuffled", 2),
    "accuracy_ablated": ("induction heads at zero", 2), "prompt_retrieval": ("label of the query's copy", 2),
    "trained_abstractive": ("trained abstractive", 2), "unseen_abstractive": ("unseen abstractive", 2),
    "trained_extractive": ("trained extractive", 2), "unseen_extractive": ("unseen extractive", 2),
    "loss": ("training loss (nats)", 2),
}

# The history of the plans, which is in their files.
RULE_CHANGED = (
    'The rule was changed after runs: the plan\'s twice; that a verdict is "not necessary" where neither "helpful" nor '
    '"neither" applies was settled with the runs of the confirmation, and steps of emergence are compared otherwise '
    "than planned.")


def verdict_sentence(found: judge.Verdict, plan_name: str) -> str:
    """The verdict by a plan, its reason, the arms that it rests on, and how much copying inside prompts they had."""
    arms = "" if found.word == "undecided" else (
        f" It rests on: {', '.join(ARM_LABEL.get(arm, arm) for arm in found.arms)}.")
    told = found.word in WITHOUT or (found.arms and not found.copying_trained)
    copying = f" {copying_sentence(found)}" if told else ""
    return f"By the rule of {plan_name}, {MEANING[found.word]}: {_reason(found)}.{arms}{copying}"


def _reason(found: judge.Verdict) -> str:
    reason = found.reason
    for arm in found.arms:
        reason = reason.replace(arm, ARM_LABEL.get(arm, arm))
    return reason


def conjecture_sentence(judged: dict[str, judge.Verdict]) -> str:
    """What the plans, by name, say of the paper's conjecture; for a page that only points to the causal test.

    A verdict that calls induction not necessary is told with what the causal page says against it.
    """
    said = "; ".join(f"by the rule of {name} {SHORT[found.word]}" + (
        f": {_reason(found)}" if found.arms and not found.copying_trained else "") for name, found in judged.items())
    text = ("**A stepping stone?** Whether FV heads need induction, from models trained without it (the causal test): "
            f"{said}.")
    copying = [copying_sentence(found).replace("Against it", f"Against {name}")
               for name, found in judged.items() if found.word in WITHOUT]
    changed = ["The rule was changed after runs, as the page of the test tells."] if copying else []
    return " ".join([text, *copying, *changed])


def copying_sentence(found: judge.Verdict) -> str:
    """How often models without induction in running text copy inside prompts, where it was measured.

    It speaks against a verdict that FV heads need no induction where training had text that such copying predicts.
    """
    seeds = ", ".join(map(str, found.seeds)) or "not named"
    measured = "; ".join(f"{share:.2f} in seed {seed} ({'' if formed else 'no '}FV heads)"
                         for seed, (share, formed) in sorted(found.prompt_copying.items()))
    unmeasured = [str(seed) for seed in found.seeds if seed not in found.prompt_copying]
    if not measured:
        told = "measured in none of these"
    else:
        told = f"a query gets the label that it has in its prompt at a rate of {measured}"
        told += f"; not measured in seed {', '.join(unmeasured)}" if unmeasured else ""
    if found.copying_trained:
        return ("Against it: only induction in running text and on random tokens was taken away, copying inside "
                f"prompts was left trainable (seeds {seeds}: {told}).")
    return f"No text trained copying inside prompts either: {told}."


def outcome_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """A row per arm and strength at the last step: counts of seeds, step of emergence, then means over seeds.

    "highest prefix matching" is of any seed and step. "FV heads before induction" counts seeds with FV heads at a step
    up to which the run had no induction, "labels used" those whose accuracy needs the right labels.
    """
    last = judge.last_rows(runs, plan)
    last["labels_used"] = last["gap"] > plan["rules"]["fv_formed"]["gap"]
    groups, checks = last.groupby(["arm", "strength"]), judge.manipulation_checks(runs, plan)
    before = judge.formed_while_absent(runs, plan).groupby(["arm", "strength"])["step"].count()
    counts = {"FV heads formed": groups["formed"].sum(), "FV heads before induction": before,
              "labels used": groups["labels_used"].sum()}
    told = {"induction absent": checks["absent"].map({True: "yes", False: "no"})}
    told |= {name: of.astype(str) + " of " + groups.size().astype(str) for name, of in counts.items()}
    told |= {"emergence": groups[list(last)].apply(emergence_words),
             "highest prefix matching": checks["prefix_matching"].round(2)}
    told |= {words: groups[column].mean().round(digits) for column, (words, digits) in _MEANS.items() if column in last}
    table = pd.DataFrame(told).reset_index()
    order = {arm: place for place, arm in enumerate(plan["arms"])}
    table = table.sort_values(["arm", "strength"], key=lambda c: c.map(order) if c.name == "arm" else -c)
    return table.assign(arm=table["arm"].map(_label)).set_index("arm").astype(object).fillna("-")


def emergence_words(last: pd.DataFrame) -> str:
    """The median step of emergence of some runs (rows of `last_rows`), "not within N steps" where it never came."""
    came = last["emerged"].astype(bool)
    middle = last["emergence"].where(came, np.inf).median()  # those that never came are the latest
    within = f"not within {int(last['step'].max())} steps"
    if came.all():
        return f"{middle:.0f}"
    if not came.any():
        return within
    return ("" if np.isinf(middle) else f"{middle:.0f}; ") + f"{within} in {(~came).sum()} of {len(last)}"


def effect_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Arm against sham: estimate with interval, p-value, margin, the sham's mean; of emergence both sides in words."""
    found, last, rows = judge.effects(runs, plan), judge.last_rows(runs, plan), []
    for row in found.itertuples():
        entry = plan["arms"][row.arm]
        if row.outcome == "emergence":
            sides = [emergence_words(judge.at_full(last, arm, entry)) for arm in (row.arm, entry["control"])]
            told = {"sham": sides[1], "arm less sham": f"{sides[0]}; pairs of runs later less earlier {row.value:+.0%}",
                    "p": f"{row.p_value:.2g}" if row.smallest_p < 0.05 else
                    f"{row.p_value:.2g} (no less than {row.smallest_p:.2g} possible)", "margin": ""}
        else:
            d = 2 if row.outcome == "accuracy" else 3
            interval = "" if pd.isna(row.low) else f" [{row.low:+.{d}f}, {row.high:+.{d}f}]"
            told = {"sham": f"{row.control:.{d}f}", "arm less sham": f"{row.value:+.{d}f}{interval}",
                    "p": f"{row.p_value:.2g}", "margin": f"{row.margin:.{d}f}"}
        rows.append({"arm": _label(row.arm), "outcome": row.outcome.replace("_", " "), **told, "seeds": row.n})
    return pd.DataFrame(rows).set_index("arm")


def arms_shown(plan: dict[str, Any], descriptions: dict[str, str]) -> pd.DataFrame:
    """The arms: what is changed, at which strengths, for how long, and whether the verdict may rest on it."""
    rows = [{"arm": _label(arm), "what changes": descriptions[entry["intervention"]],
             "strengths": ", ".join(f"{s:g}" for s in entry["strengths"]), "sham": "yes" * ("control" in entry),
             "steps": entry.get("change", {}).get("steps", plan["change"]["steps"]),
             "spares what FV heads do": {True: "yes", False: "no"}.get(entry.get("specific"), "")}
            for arm, entry in plan["arms"].items() if not entry.get("sham")]
    return pd.DataFrame(rows).set_index("arm")


def statistics_rows(runs: pd.DataFrame, plan: dict[str, Any], prefix: str = "") -> pd.DataFrame:
    """The effects as rows of the table `statistics`, named `<prefix><arm> less sham, <outcome>`.

    Of emergence the share of pairs of runs in which FV heads came later in the arm, less that in which earlier.
    """
    found = judge.effects(runs, plan)
    outcome = found["outcome"].replace("emergence", "emergence later (share of pairs)")
    return pd.DataFrame({
        "name": prefix + found["arm"] + " less sham, " + outcome, "value": found["value"], "low": found["low"],
        "high": found["high"], "p_value": found["p_value"], "n": found["n"], "notebook": "causal_test",
        "model": plan["rung"]})


def _label(arm: str) -> str:
    return f"sham of {ARM_LABEL.get(arm[5:], arm[5:])}" if arm.startswith("sham_") else ARM_LABEL.get(arm, arm)


def dose_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A `dose_table` by share of repeats: means of the last scores and when each kind came (`emergence_words`)."""
    shares, told = table.groupby("repeats"), {}
    for kind, words, score, label, digits in (("induction", "induction heads", "prefix_matching", "prefix matching", 2),
                                              ("fv", "FV heads", "fv_score", "FV score", 3)):
        told[f"{label}, best head"] = shares[score].mean().round(digits)
        told[f"{words} came"] = shares.apply(lambda runs, came=f"{kind} came": emergence_words(
            runs.assign(emergence=runs[came], emerged=np.isfinite(runs[came]))))
    return pd.DataFrame(told | {"accuracy": shares["accuracy"].mean().round(2)}).rename_axis("share of repeats")


def dose_rows(tests: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """The tests of the dose series as rows of the table `statistics`."""
    return pd.DataFrame({
        "name": "dose series, " + tests["with the share of repeats"], "value": tests["rank correlation"], "low": np.nan,
        "high": np.nan, "p_value": tests["p"], "n": tests["runs"], "notebook": "causal_test", "model": plan["rung"]})
