"""The causal test in words and tables, made from its numbers."""

from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from icl_lib.analysis import causal as judge
from icl_lib.figures.causal import ARM_LABEL

MEANING = {
    "necessary": "in this world induction is **necessary** for FV heads",
    "helpful": "in this world induction is **helpful** for FV heads and not necessary",
    "neither": "in this world induction is **neither** necessary nor helpful for FV heads",
    "not_necessary": "in this world induction is **not necessary** for FV heads; whether it is helpful is not decided",
    "undecided": "whether induction is necessary or helpful for FV heads is **not decided** in this world",
}

# The history of the plans, which is in their files.
RULE_CHANGED = (
    "The rule was changed after runs: the plan's twice; its confirmation is a rule for new seeds, made after the runs "
    'of the plan; that it says "not necessary" where neither "helpful" nor "neither" applies was settled when its runs '
    "were there, and the steps of emergence are compared otherwise than planned.")


def verdict_sentence(found: judge.Verdict, plan_name: str = "the plan") -> str:
    """The verdict by a plan, its reason and the arms that it rests on."""
    arms = f" It rests on: {', '.join(ARM_LABEL.get(arm, arm) for arm in found.arms)}." if found.arms else ""
    reason = found.reason
    for arm in found.arms:
        reason = reason.replace(arm, ARM_LABEL.get(arm, arm))
    return f"By the rule of {plan_name}, {MEANING[found.word]}: {reason}.{arms}"


def conjecture_sentence(judged: dict[str, judge.Verdict]) -> str:
    """What the plans, by name, say of the paper's conjecture; for a page that only points to the causal test.

    A verdict that calls induction not necessary is told with what the causal page says against it.
    """
    said = "; ".join(f"by the rule of {name}, {MEANING[found.word]}" for name, found in judged.items())
    text = f"**A stepping stone?** Models trained without induction (the causal test): {said}."
    against = [f"{copying_sentence(found)} {RULE_CHANGED}" for found in judged.values()
               if found.word in ("not_necessary", "helpful", "neither")]
    return " ".join([text, *dict.fromkeys(against)])


def copying_sentence(found: judge.Verdict) -> str:
    """What speaks against a verdict that FV heads need no induction: copying inside prompts, where it was measured."""
    seeds = ", ".join(map(str, found.seeds)) or "not named"
    measured = "; ".join(f"{share:.2f} in seed {seed} ({'' if formed else 'no '}FV heads)"
                         for seed, (share, formed) in sorted(found.prompt_copying.items()))
    unmeasured = [str(seed) for seed in found.seeds if seed not in found.prompt_copying]
    if not measured:
        told = "measured in none of these"
    else:
        told = f"a query gets the label that it has in its prompt at a rate of {measured}"
        told += f"; not measured in seed {', '.join(unmeasured)}" if unmeasured else ""
    return ("Against it: only induction in running text and on random tokens was taken away, copying inside prompts "
            f"was left trainable (seeds {seeds}: {told}).")


def runs_sentence(runs: pd.DataFrame, plan: dict[str, Any]) -> str:
    """How many of the plan's runs are there."""
    n_missing = judge.missing_runs(runs, plan)
    n, seeds = len(runs[judge.RUN].drop_duplicates()), ", ".join(map(str, plan["seeds"]))
    return (f"{n} runs are in the tables, on seeds {seeds}; "
            f"{n_missing or 'none'} of the plan's runs {'is' if n_missing == 1 else 'are'} missing.")


def check_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """The manipulation check per arm and strength, in words and rounded."""
    table = _in_order(judge.manipulation_checks(runs, plan).reset_index(), plan)
    table["absent"] = table["absent"].map({True: "yes", False: "no"})
    table["arm"] = [_label(arm) for arm in table["arm"]]
    reference = _label(plan["rules"]["induction_absent"].get("reference", "none"))
    gain = {"repeat_gain": "gain on repeats", "order_gain": "gain by order on repeats"}[judge.gain_measure(plan)]
    return table.round(3).rename(columns={
        "prefix_matching": "best prefix matching, any seed and step",
        "gain": f"{gain}, share of {reference}",
        "gain_of_heads": "of the gain on repeats by induction heads, last step",
        "absent": "induction absent"}).set_index("arm")


def check_sentence(runs: pd.DataFrame, plan: dict[str, Any]) -> str:
    """Which arms with a sham passed the manipulation check, with FV heads in how many seeds, and which count."""
    arms = judge.arms_table(runs, plan)

    def named(rows: pd.DataFrame) -> str:
        return ", ".join(ARM_LABEL.get(arm, arm) for arm in rows.index) or "none"

    def counted(rows: pd.DataFrame) -> str:
        return ", ".join(f"{ARM_LABEL.get(row.Index, row.Index)} ({row.formed} of {row.seeds})"
                         for row in rows.itertuples()) or "none"

    return (f"Induction was absent in every seed in (seeds in which FV heads formed): {counted(arms[arms['absent']])}. "
            f"It was not in: {counted(arms[~arms['absent']])}. Shams in which FV heads formed in fewer than "
            f"{plan['rules']['informative']} seeds, so that their arm decides nothing: "
            f"{named(arms[~arms['informative']])}. For the verdict count: {named(arms[arms['counts']])}.")


def pairing_sentence(runs: pd.DataFrame, plan: dict[str, Any], oracle: float) -> str:
    """What accuracy without induction rests on: on shuffled labels it stays where sets of labels are read.

    `oracle`: accuracy, 0..1, of one that sees which labels are shown and not which inputs they belong to.
    """
    arms = judge.arms_table(runs, plan)
    last = judge.last_rows(runs, plan).groupby(["arm", "strength"])[["accuracy", "accuracy_shuffled"]].mean()
    parts = []
    for arm in arms.index[arms["absent"]]:
        entry = plan["arms"][arm]
        ours, sham = (last.loc[(name, float(entry["strengths"][0]))] for name in (arm, entry["control"]))
        parts.append(f"{_label(arm)} {ours['accuracy']:.2f} and {ours['accuracy_shuffled']:.2f} "
                     f"(sham {sham['accuracy']:.2f} and {sham['accuracy_shuffled']:.2f})")
    return ("An oracle that sees which inputs and labels are shown, and not which belong together, answers "
            f"{oracle:.2f} of these prompts, clean or shuffled. Accuracy on clean and on shuffled labels where "
            f"induction was absent: {'; '.join(parts) or 'no such arm'}.")


def before_induction_sentence(runs: pd.DataFrame, plan: dict[str, Any]) -> str:
    """In how many runs of which arms FV heads stood at a step up to which there was no induction."""
    found = judge.formed_while_absent(runs, plan)
    found = found[~found["arm"].str.startswith("sham_") & (found["arm"] != "none")]
    by_arm = found.groupby(["arm", "strength"])["step"].agg(
        some="count", seeds="size", first="min", last="max").reset_index()
    parts = [f"{_label(row.arm)} at strength {row.strength:g} in {row.some} of {row.seeds} seeds (first at step "
             f"{row.first:.0f}{'' if row.first == row.last else f' to {row.last:.0f}'})"
             for row in _in_order(by_arm[by_arm["some"] > 0], plan).itertuples()]
    return ("FV heads stood at a measured step up to which the run had no induction, by the plan's limits for either, "
            f"in: {'; '.join(parts) or 'no run of any arm'}.")


def order_sentence(runs: pd.DataFrame, plan: dict[str, Any]) -> str:
    """The gain on repeats beside the gain on a copy in another order, of the runs in which both were measured."""
    last = judge.last_rows(runs, plan).dropna(subset="any_order_gain")
    means = last.groupby(["arm", "strength"]).agg(
        gain=("repeat_gain", "mean"), any_order=("any_order_gain", "mean"), n=("seed", "size")).reset_index()
    return "Gain at the last step on a copy in the same and in another order, nats, means over seeds: " + "; ".join(
        f"{_label(row.arm)} at strength {row.strength:g}: {row.gain:.1f} and {row.any_order:.1f} ({row.n} seeds)"
        for row in _in_order(means, plan).itertuples()) + "."


def retrieval_sentence(runs: pd.DataFrame, plan: dict[str, Any]) -> str:
    """How often a prompt's query gets the label that it has among the demonstrations, by run where it was measured."""
    last = judge.last_rows(runs, plan).dropna(subset="prompt_retrieval")
    parts = []
    for arm in plan["arms"]:
        rows = last[last["arm"] == arm].sort_values("seed")
        seeds = [f"{row.prompt_retrieval:.2f} in seed {row.seed} ({'' if row.formed else 'no '}FV heads)"
                 for row in rows.itertuples()]
        if seeds:
            parts.append(f"{_label(arm)} {', '.join(seeds)}")
    return f"Share of prompts answered with the label dealt to their query: {'; '.join(parts)}."


def outcome_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Means over seeds at the last step per arm and strength; seeds with FV heads, and with accuracy that needs the
    right labels, with or without FV heads."""
    last = judge.last_rows(runs, plan)
    last["labels_used"] = last["gap"] > plan["rules"]["fv_formed"]["gap"]
    seeds = last.groupby(["arm", "strength"], sort=False).agg(
        formed=("formed", "sum"), labels_used=("labels_used", "sum"), n=("formed", "size"))
    table = _means(last, ["prefix_matching", "fv_score", "accuracy", "accuracy_shuffled", "accuracy_ablated", "loss"],
                   plan)
    keys = list(zip(table["arm"], table["strength"], strict=True))
    by_arm = {key: emergence_words(rows) for key, rows in last.groupby(["arm", "strength"])}
    table.insert(4, "emergence", [by_arm[key] for key in keys])
    for place, (name, column) in enumerate({"FV heads formed": "formed", "labels used": "labels_used"}.items(), 2):
        table.insert(place, name, [f"{seeds.loc[key, column]} of {seeds.loc[key, 'n']}" for key in keys])
    table = table.round({"prefix_matching": 2, "fv_score": 3}).round(2)
    return _labelled(table.rename(columns={
        "fv_score": "FV score", "accuracy_shuffled": "labels shuffled", "accuracy_ablated": "induction heads at zero",
        "loss": "training loss (nats)"}))


def emergence_words(last: pd.DataFrame) -> str:
    """The median step of emergence of some runs (rows of `last_rows`), "not within N steps" where it never came."""
    never = last[~last["emerged"].astype(bool)]
    came = sorted(last.loc[last["emerged"].astype(bool), "emergence"])
    steps = [*came, *[np.inf] * len(never)]  # those that never came are the latest
    middle = (steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2
    within = f"not within {int(last['step'].max())} steps"
    if not len(never):
        return f"{middle:.0f}"
    if not came:
        return within
    return ("" if np.isinf(middle) else f"{middle:.0f}; ") + f"{within} in {len(never)} of {len(last)}"


def task_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Accuracy at the last step over trained and unseen tasks, abstractive and extractive apart; means over seeds."""
    columns = [f"{split}_{kind}" for kind in ("abstractive", "extractive") for split in ("trained", "unseen")]
    return _labelled(_means(judge.last_rows(runs, plan), columns, plan).round(2))


def _means(last: pd.DataFrame, columns: list[str], plan: dict[str, Any]) -> pd.DataFrame:
    return _in_order(last.groupby(["arm", "strength"], sort=False)[columns].mean().reset_index(), plan)


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    table["arm"] = [_label(arm) for arm in table["arm"]]
    return table.set_index("arm").rename(columns=lambda name: name.replace("_", " "))


def effect_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Arm against sham: estimate with interval, p-value, margin, the sham's mean; of emergence both sides in words."""
    found, last, rows = judge.effects(runs, plan), judge.last_rows(runs, plan), []
    for row in found.itertuples():
        entry = plan["arms"][row.arm]
        if row.outcome == "emergence":
            sides = [emergence_words(last[(last["arm"] == arm) & (last["strength"] == entry["strengths"][0])])
                     for arm in (row.arm, entry["control"])]
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


def plan_table(plan: dict[str, Any], descriptions: dict[str, str]) -> HTML:
    """The arms: what is changed, at which strengths, against which sham, and whether the verdict may rest on it."""
    rows = [{"arm": _label(arm), "what changes": descriptions[entry["intervention"]],
             "strengths": ", ".join(f"{s:g}" for s in entry["strengths"]),
             "sham": "" if "control" not in entry else "yes",
             "steps": entry.get("change", {}).get("steps", plan["change"]["steps"]),
             "spares what FV heads do": {True: "yes", False: "no"}.get(entry.get("specific"), "")}
            for arm, entry in plan["arms"].items() if not entry.get("sham")]
    with pd.option_context("display.max_colwidth", None):
        return HTML(pd.DataFrame(rows).to_html(index=False))


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


def _in_order(table: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Rows as the plan lists the arms, the highest strength first."""
    order = {arm: place for place, arm in enumerate(plan["arms"])}
    return table.sort_values(["arm", "strength"], key=lambda c: c.map(order) if c.name == "arm" else -c)


def _label(arm: str) -> str:
    return f"sham of {ARM_LABEL.get(arm[5:], arm[5:])}" if arm.startswith("sham_") else ARM_LABEL.get(arm, arm)
