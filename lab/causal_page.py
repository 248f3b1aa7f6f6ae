"""The causal test in words and tables, made from its numbers."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lab import causal_statistics as judge
from lab.causal_figures import ARM_LABEL

Shares = dict[tuple[str, float], float]
MEANING = {
    "necessary": "induction is **necessary** for FV heads",
    "helpful": "induction is **helpful** for FV heads and not necessary",
    "neither": "induction is **neither** necessary nor helpful for FV heads",
    "not_necessary": "induction is **not necessary** for FV heads, whether it helps is open",
    "undecided": "it is **not decided** whether FV heads need induction",
}

SHORT = {
    "necessary": "**they do**", "helpful": "**they do not{}**, it helps", "undecided": "**not decided**",
    "neither": "**they do not{}**, nor does it help", "not_necessary": "**they do not{}**, whether it helps is open",
}
UNDER_THE_MASK = " under a mask that tells what it hides"
PICKED = 0.1  # the rate at which one of the ten labels in a prompt, picked at random, is the query's
WITHOUT = ("not_necessary", "helpful", "neither")  # the words that say that FV heads form without induction

_MEANS = {  # column of the runs: words, digits
    "repeat_gain": ("gain on repeats (nats)", 2), "any_order_gain": ("gain in another order (nats)", 2),
    "fv_score": ("FV score", 3), "accuracy": ("accuracy", 2), "accuracy_shuffled": ("labels shuffled", 2),
    "accuracy_ablated": ("induction heads at zero", 2), "prompt_retrieval": ("label of the query's copy", 2),
    "trained_abstractive": ("trained abstractive", 2), "unseen_abstractive": ("unseen abstractive", 2),
    "trained_extractive": ("trained extractive", 2), "unseen_extractive": ("unseen extractive", 2),
    "loss": ("training loss (nats)", 2),
}


def verdict_sentence(found: judge.Verdict, plan_name: str, mask: judge.MaskTold | None = None) -> str:
    """The verdict by a plan, its reason, the arms that it rests on, and how much copying these were left.

    `mask`: what their mask gives away, for a verdict that rests on masks.
    """
    told = [f"By the rule of {plan_name}, {MEANING[found.word]}: {_reason(found)}."]
    if found.word != "undecided":
        told.append(f"It rests on: {', '.join(ARM_LABEL.get(arm, arm) for arm in found.arms)}.")
    if mask and found.by_mask and found.losses:
        told.append(mask_sentence(found, mask))
    if found.word in WITHOUT or (found.arms and not found.copying_trained):
        told.append(copying_sentence(found))
    return " ".join(told)


def mask_sentence(found: judge.Verdict, mask: judge.MaskTold) -> str:
    """What the mask gives away, and whether models under it learned to copy; as an objection to "without induction"."""
    below, n = sum(loss < mask.blind for loss in found.losses), len(found.losses)
    losses = f"{min(found.losses):.2f} to {max(found.losses):.2f} nats"
    if found.word not in WITHOUT:
        premise = "" if found.copying_trained or not below else (
            ", so that copying running text lowered it, against the plan's premise")
        return (f"The mask tells what it hides here too: training loss ends at {losses}, in {below} of {n} runs below "
                f"{mask.blind:.2f}{premise}.")
    copied = (" So these models learned to copy running text, unseen with the mask off: FV heads formed without "
              "induction heads, not without copying." if below else "")
    return ("Against it, **the mask tells what it hides**: which tokens go out of sight names the next one in "
            f"{mask.mask:.0%} of {mask.n:,} copies (sham {mask.sham:.0%}: no equal control; no mask {mask.off:.0%}), "
            f"and training loss ends at {losses}, in {below} of {n} runs below the least without the order of copies "
            f"({mask.blind:.2f}).{copied}")


def rule_changed_sentence(plans: dict[str, tuple[pd.DataFrame, dict[str, Any]]]) -> str:
    """What of the rules was changed after runs, from the heads of the plans, and what the first plan's check says now.

    `plans`: runs and plan by name, the first plan first.
    """
    first, *others = plans
    limit, failing = plans[first][1]["rules"]["induction_absent"]["repeat_gain"], []
    for name in others:
        runs, plan = plans[name]
        shares = [judge.gain_against_sham(runs, plan, arm) for arm, entry in plan["arms"].items() if "control" in entry]
        failing += [f"{name} fails the first one: {share:.3f} of the sham's gain, limit {limit:g}"
                    for share in shares if share >= limit]
    check = f" ({'; '.join(failing)})" if failing else ""
    return ("Changed after runs: the first plan, three times; \"not necessary\" without \"helpful\" or \"neither\"; "
            f"how steps of emergence are compared; and, for the later plans, the check for induction{check}.")


def objection_sentence(runs: pd.DataFrame, plan: dict[str, Any], trained: tuple[pd.DataFrame, dict[str, Any]]) -> str:
    """What a plan without glossaries said beforehand that its count would mean; empty for other plans.

    The objection: FV heads in masked models come from glossaries, which train copying inside prompts. `trained`: runs
    and plan of the same arm with glossaries.
    """
    if plan.get("change", {}).get("mixture", {}).get("glossary", True) is not None:
        return ""
    table, n = judge.arms_table(runs, plan), len(plan["seeds"])
    if table.empty:
        return ""
    row, = table.itertuples()
    (other,), n_with = judge.arms_table(*trained).itertuples(), len(trained[1]["seeds"])
    p_value = stats.fisher_exact([[row.formed, n - row.formed], [other.formed, n_with - other.formed]]).pvalue
    late, soon = (last.loc[last["arm"].str.startswith("sham_"), "emergence"].median()
                  for last in (judge.last_rows(runs, plan), judge.last_rows(*trained)))
    if row.formed >= 4:
        means = "FV heads in at least four masked runs **take away**"
    elif row.formed <= 1 and row.sham_formed >= plan["rules"]["informative"]:
        means = "FV heads in at most one masked run, where the sham has them, **uphold**"
    else:
        means = "FV heads in neither so few nor so many masked runs **leave open**"
    told = (f"Stated beforehand: {means} the objection that they come from glossaries ({row.formed} of {n}, with "
            f"glossaries {other.formed} of {n_with}; Fisher's exact test, not planned: p = {p_value:.2g}).")
    return told + (f" But without glossaries all comes later (the sham's FV heads at step {late:.0f}, not {soon:.0f}): "
                   "never and not yet cannot be told apart." if late > soon else "")


def longer_sentence(table: pd.DataFrame) -> str:
    """What came of runs without any repeats in the dose series (`dose.dose_table`), which are trained for longer."""
    none = table[table["repeats"] < 1e-9]
    return "" if none.empty else (
        f"Of {len(none)} runs of {none['step'].max():.0f} steps without any repeats in running text "
        f"{np.isfinite(none['fv came']).sum()} have FV heads.")


def _reason(found: judge.Verdict) -> str:
    reason = found.reason
    for arm in found.arms:
        reason = reason.replace(arm, ARM_LABEL.get(arm, arm))
    return reason


def conjecture_sentence(judged: dict[str, judge.Verdict]) -> str:
    """What the plans, by name, say of the paper's conjecture; for a page that only points to the causal test.

    A verdict that calls induction not necessary is told with what the causal page says against it.
    """
    said = "; ".join(f"by the rule of {name} {SHORT[found.word].format(UNDER_THE_MASK * found.by_mask)}" + (
        f": {_reason(found)}" if found.arms and not found.copying_trained else "") for name, found in judged.items())
    text = ("**A stepping stone?** Do FV heads need induction? Lab models were trained with earlier "
            "copies hidden from attention in running text (a *mask*, its *sham* hides as much at random), at last "
            f"without the prompts that train copying (*glossaries*): {said}.")
    against = [f"Against {name}: " + "; ".join(
        ["models learned to copy running text under this mask"] * (found.by_mask and bool(found.losses))
        + ["copying inside prompts was left trainable"] * found.copying_trained) + "."
        for name, found in judged.items() if found.word in WITHOUT and (found.by_mask or found.copying_trained)]
    changed = ["The rule was changed after runs, as the page of the test tells."] if any(
        found.word in WITHOUT for found in judged.values()) else []
    return " ".join([text, *against, *changed])


def copying_sentence(found: judge.Verdict) -> str:
    """How often models without induction in running text copy inside prompts, where it was measured, and the controls.

    It speaks against a verdict that FV heads need no induction where training had text that such copying predicts.
    """
    start = ("Copying inside prompts was left trainable" if found.copying_trained else
             "No text trained copying inside prompts")
    if not found.prompt_copying:
        return f"{start}; how often they do it was not measured."
    rates = [", ".join(f"{rate:.2f}" for rate, formed in found.prompt_copying.values() if formed == wanted) or "none"
             for wanted in (True, False)]
    controls = [f"{'sham' if arm.startswith('sham_') else _label(arm)} {rate:.2f}"
                for arm, rate in found.controls_copying.items()]
    if unmeasured := len(found.seeds) - len(found.prompt_copying):
        controls.append(f"not measured in {unmeasured} seeds")
    sham = [rate for arm, rate in found.controls_copying.items() if arm != "none"]
    blank = (f" It tells nothing: induction heads do not raise it above a random label of the prompt ({PICKED:.2f})."
             if sham and max(sham) <= PICKED else "")
    beside = f" ({'; '.join(controls)})" if controls else ""
    return (f"{start}: a query gets its label in the prompt at rates of {rates[0]} with FV heads and {rates[1]} without"
            f"{beside}.{blank}")


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


def arms_shown(plan: dict[str, Any], descriptions: dict[str, str], shares: Shares) -> pd.DataFrame:
    """The arms: what is changed, at which strengths, for how long, and whether the verdict may rest on it.

    `shares`: of the loss that lies on few-shot prompts, by arm and strength (`lab.batches.few_shot_shares`).
    """
    def share(arm: str | None, entry: dict[str, Any]) -> str:
        return f"{shares[arm, float(entry['strengths'][0])]:.2f}" if arm else ""

    rows = [{"arm": _label(arm), "what changes": descriptions[entry["intervention"]],
             "strengths": ", ".join(f"{s:g}" for s in entry["strengths"]), "sham": "yes" * ("control" in entry),
             "steps": entry.get("change", {}).get("steps", plan["change"]["steps"]),
             "few-shot share of the loss halfway": share(arm, entry),
             "of the sham's": share(entry.get("control"), entry),
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
        "high": found["high"], "p_value": found["p_value"], "smallest_p": found["smallest_p"], "n": found["n"],
        "notebook": "causal_test", "model": plan["rung"]})


def _label(arm: str) -> str:
    return f"sham of {ARM_LABEL.get(arm[5:], arm[5:])}" if arm.startswith("sham_") else ARM_LABEL.get(arm, arm)


def dose_shown(table: pd.DataFrame, shares: Shares) -> pd.DataFrame:
    """A `dose_table` by share of repeats: means of the last scores and when each kind came (`emergence_words`).

    `shares`: of the loss that lies on few-shot prompts, by arm and strength (`lab.batches.few_shot_shares`).
    """
    by_repeats, told = table.groupby("repeats"), {}
    for kind, words, score, label, digits in (("induction", "induction heads", "prefix_matching", "prefix matching", 2),
                                              ("fv", "FV heads", "fv_score", "FV score", 3)):
        told[f"{label}, best head"] = by_repeats[score].mean().round(digits)
        told[f"{words} came"] = by_repeats.apply(lambda runs, came=f"{kind} came": emergence_words(
            runs.assign(emergence=runs[came], emerged=np.isfinite(runs[came]))))
    few_shot = {round(1 - strength, 9): round(share, 2) for (_, strength), share in shares.items()}
    told |= {"accuracy": by_repeats["accuracy"].mean().round(2),
             "few-shot share of the loss": pd.Series({of: few_shot[round(of, 9)] for of in by_repeats.groups})}
    return pd.DataFrame(told).rename_axis("share of repeats")


def dose_sentence(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """How many runs of a `dose_table` have FV heads, and what the plan's `dose_tests` found, if they are given."""
    formed = {kind: np.isfinite(table[f"{kind} came"]) for kind in ("induction", "fv")}
    alone, lost = int((formed["fv"] & ~formed["induction"]).sum()), int(table["fv lost"].sum())
    count = f"; {lost} had them at some step and not at the last, and count as never" if lost else ""
    found = "; ".join(f"{words} {value:.2f} ({p:.2g})" for words, value, p in zip(
        tests["with the share of repeats"], tests["rank correlation"], tests["p (Holm)"], strict=True))
    return (f"Of {len(table)} runs {int(formed['fv'].sum())} have FV heads, {alone} of these no induction heads, and "
            f"so no order{count}. With fewer repeats, few-shot prompts have more of the loss, so that the series "
            "changes both." + f" Rank correlation with the share of repeats (p by Holm): {found}." * bool(found))


def dose_rows(tests: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """The tests of the dose series as rows of the table `statistics`, with p-values by Holm as planned."""
    return pd.DataFrame({
        "name": "dose series, " + tests["with the share of repeats"], "value": tests["rank correlation"], "low": np.nan,
        "high": np.nan, "p_value": tests["p (Holm)"], "n": tests["runs"], "notebook": "causal_test",
        "model": plan["rung"]})
