"""The causal test judged: the check of absence, FV heads, effects and verdict by the rules of its plans."""

import numpy as np
import pandas as pd
import pytest

from lab import causal
from lab import causal_page as causal_report
from lab import causal_statistics as judge
from lab.batches import mask_told
from lab.files import CAUSAL, CONFIRMATION, DOSE, PLANS, read_plan
from lab.interventions import DESCRIPTIONS

RULES = read_plan()["rules"]
PLAN = {
    "seeds": [0, 1, 2, 3, 4], "rules": RULES,
    "arms": {
        "none": {"intervention": "none", "strengths": [1]},
        "a": {"intervention": "no_repeats", "strengths": [1], "control": "sham_a", "specific": True},
        "sham_a": {"intervention": "no_repeats", "sham": True, "strengths": [1]},
        "b": {"intervention": "clamp", "strengths": [1], "control": "sham_b", "specific": True},
        "sham_b": {"intervention": "clamp", "sham": True, "strengths": [1]},
    },
}  # fmt: skip
WITH = {"prefix_matching": 0.9, "repeat_gain": 4.0, "fv_score": 0.08, "accuracy": 0.9}
WITHOUT = WITH | {"prefix_matching": 0.05, "repeat_gain": 0.1}
FAILED = WITHOUT | {"fv_score": 0.001, "accuracy": 0.3}


def runs_of(**arms):
    """Two steps of five seeds per arm; an arm is its measures at the last step, or a list of these by seed."""
    rows = []
    for arm, given in ({"none": WITH, "sham_a": WITH, "sham_b": WITH} | arms).items():
        for seed in range(5):
            measures = given[seed] if isinstance(given, list) else given
            jitter = 0.003 * seed * (-1) ** seed if arm.startswith("sham") else 0.002 * seed
            end = measures | {"accuracy": measures["accuracy"] + jitter, "fv_score": measures["fv_score"] + jitter / 10}
            start = {"prefix_matching": 0.01, "repeat_gain": 0.0, "order_gain": 0.0, "fv_score": 0.0, "accuracy": 0.3}
            for step, found in ((500, start), (1000, end)):
                rows.append({"arm": arm, "strength": 1.0, "seed": seed, "step": step, "fv_null": 0.005,
                             "accuracy_shuffled": 0.25, "repeat_gain_ablated": 0.0, **found})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("arms", "word", "rests_on"), [
    ({"a": FAILED, "b": FAILED}, "necessary", ["a", "b"]),
    ({"a": FAILED, "b": WITH}, "undecided", ["a"]),  # one arm alone does not show it
    ({"a": WITH, "b": WITH}, "undecided", []),  # induction was not gone
    ({"a": WITHOUT, "b": WITH}, "neither", ["a"]),
    ({"a": WITHOUT | {"fv_score": 0.05}, "b": WITH}, "helpful", ["a"]),
    ({"a": WITHOUT | {"accuracy": 0.7}, "b": WITH}, "helpful", ["a"]),
    ({"a": WITHOUT, "b": FAILED}, "helpful", ["a"]),  # a way without it exists, but not every time
    ({"a": [WITHOUT] * 4 + [FAILED], "b": WITH}, "not_necessary", ["a"]),  # whether it helps stays open
    ({"a": [WITHOUT] * 3 + [FAILED] * 2, "b": WITH}, "undecided", ["a"]),
    ({"a": FAILED, "b": FAILED, "sham_a": FAILED}, "undecided", ["b"]),  # the sham shows that cost alone does it
    ({"a": [WITHOUT] * 4 + [WITH], "b": WITH}, "undecided", []),  # induction in one seed
])  # fmt: skip
def test_the_verdict_follows_the_rule(arms, word, rests_on):
    found = judge.verdict(runs_of(**arms), PLAN)
    assert (found.word, found.arms) == (word, rests_on)


def test_a_longer_run_tells_never_from_later():
    longer = {"intervention": "no_repeats", "strengths": [1], "long_of": "a"}
    plan = PLAN | {"arms": PLAN["arms"] | {"a_long": longer}}
    for late, word in ((FAILED, "necessary"), (WITHOUT, "helpful"), ([WITHOUT] * 2 + [FAILED] * 3, "undecided"),
                       (WITH, "undecided")):  # the last has FV heads and induction: neither never nor without
        runs = runs_of(a=FAILED, b=FAILED, a_long=late)
        runs.loc[runs["arm"] == "a_long", "step"] *= 3
        assert judge.verdict(runs, plan).word == word, word


def test_there_is_no_verdict_while_runs_are_missing():
    runs = runs_of(a=FAILED, b=FAILED)
    found = judge.verdict(runs[~((runs["arm"] == "b") & (runs["seed"] == 3))], PLAN)
    assert found.word == "undecided" and "1 of" in found.reason


def test_a_mask_that_hides_what_fv_heads_read_decides_nothing():
    plan = PLAN | {"arms": PLAN["arms"] | {"a": PLAN["arms"]["a"] | {"specific": False}}}
    assert judge.verdict(runs_of(a=WITHOUT, b=WITH), plan).word == "undecided"


def by_order(measures, any_order):
    return measures | {"order_gain": measures["repeat_gain"] - any_order}


def test_a_gain_that_does_not_go_with_the_order_is_not_induction():
    plan = PLAN | {"rules": RULES | {"induction_absent": read_plan(CONFIRMATION)["rules"]["induction_absent"]
                                     | {"reference": "sham_a"}}}
    arms = {"none": by_order(WITH, 0.5), "sham_a": by_order(WITH, 0.5), "sham_b": by_order(WITH, 0.5)}
    any_order = by_order(WITHOUT | {"repeat_gain": 3.0}, 2.9)
    copying = by_order(WITHOUT | {"repeat_gain": 3.0}, 1.0)
    found = judge.arms_table(runs_of(**arms, a=any_order, b=copying), plan)
    assert found["absent"].to_dict() == {"a": True, "b": False}
    assert judge.manipulation_checks(runs_of(**arms, a=any_order), plan).loc[("a", 1.0), "gain"] == pytest.approx(
        0.1 / 3.5)
    unmeasured = runs_of(**arms, a=any_order, b=copying)
    unmeasured.loc[(unmeasured["arm"] == "a") & (unmeasured["seed"] == 2), "order_gain"] = np.nan
    assert not judge.arms_table(unmeasured, plan).loc["a", "absent"]


def test_effects_are_differences_to_the_sham_paired_by_seed():
    runs = runs_of(a=[WITHOUT | {"accuracy": 0.8 - 0.01 * seed} for seed in range(5)], b=WITH)
    row, = judge.effects(runs, PLAN).query("arm == 'a' and outcome == 'accuracy'").itertuples()
    differences = np.array([-0.1 - 0.01 * seed + 0.002 * seed - 0.003 * seed * (-1) ** seed for seed in range(5)])
    assert row.value == pytest.approx(differences.mean())
    reach = 2.776445 * differences.std(ddof=1) / np.sqrt(5)  # Student's t of four degrees of freedom, 97.5 %
    assert (row.low, row.high) == pytest.approx((row.value - reach, row.value + reach), abs=1e-6)
    assert row.margin == 0.1 and row.n == 5


def emergence_of(runs, arm="a"):
    return judge.effects(runs, PLAN).query("arm == @arm and outcome == 'emergence'").iloc[0]


def test_heads_that_never_emerge_are_later_and_not_at_a_step():
    runs = runs_of(a=FAILED, b=[WITHOUT] * 4 + [FAILED])
    last = judge.last_rows(runs, PLAN)
    words = {arm: causal_report.emergence_words(rows) for arm, rows in last.groupby("arm")}
    assert words["a"] == "not within 1000 steps" and words["sham_a"] == "1000"
    assert words["b"] == "1000; not within 1000 steps in 1 of 5"
    never = emergence_of(runs)
    assert never["value"] == 1 and never["p_value"] == pytest.approx(2 / 252)  # of all ways to choose five of ten
    assert np.isnan(never["low"]) and np.isnan(never["high"])
    # one run of ten is the latest: it is in the arm in half of the ways, so that nothing can come of it
    one = emergence_of(runs, "b")
    assert one["value"] == pytest.approx(5 / 25) and one["p_value"] == one["smallest_p"] == 1
    table = causal_report.effect_table(runs, PLAN)
    assert not table["p"].isin(["0", "0.0"]).any() and "+500" not in table.to_string()


def test_a_difference_without_spread_has_no_interval_and_a_p_value_above_zero():
    assert judge.paired_t(np.full(5, -0.2), level=0.95)[3] == pytest.approx(2 / 32)
    assert np.isnan(judge.paired_t(np.full(5, -0.2), level=0.95)[1:3]).all()
    assert judge.paired_t(np.zeros(5), level=0.95)[3] == 1


def test_heads_before_induction_are_told_from_heads_after_it():
    runs = runs_of(a=WITHOUT, b=WITH)
    late = (runs["arm"] == "a") & (runs["seed"] == 4) & (runs["step"] == 500)
    runs.loc[late, "repeat_gain"] = 3.0  # gone again at the last step
    found = judge.formed_while_absent(runs, PLAN).set_index(["arm", "seed"])["step"].sort_index()
    assert found["a"].tolist()[:4] == [1000] * 4 and np.isnan(found[("a", 4)])
    assert found[["b", "none", "sham_a"]].isna().all()
    told = causal_report.outcome_table(runs, PLAN)["FV heads before induction"]
    assert told.to_dict() == {"untouched": "0 of 5", "a": "4 of 5", "sham of a": "0 of 5", "b": "0 of 5",
                              "sham of b": "0 of 5"}


def test_accuracy_by_the_labels_is_counted_apart_from_fv_heads():
    runs = runs_of(a=WITHOUT | {"fv_score": 0.001}, b=FAILED).assign(accuracy_ablated=0.5, loss=1.0)
    table = causal_report.outcome_table(runs, PLAN)
    assert table.loc["a", ["FV heads formed", "labels used"]].tolist() == ["0 of 5", "5 of 5"]
    assert table.loc["b", ["FV heads formed", "labels used"]].tolist() == ["0 of 5", "0 of 5"]
    assert table["induction absent"].to_dict()["a"] == "yes" and table.loc["untouched", "induction absent"] == "no"
    assert table.loc["a", "highest prefix matching"] == 0.05 and table.loc["b", "emergence"] == "not within 1000 steps"
    assert table.loc["b", ["accuracy", "induction heads at zero", "training loss (nats)"]].tolist() == [0.3, 0.5, 1.0]


@pytest.mark.parametrize("folder", [*PLANS.values(), DOSE], ids=lambda folder: folder.name)
def test_committed_tables_are_runs_of_the_plan(folder):
    plan = read_plan(folder)
    runs = judge.read_runs(folder)
    assert set(map(tuple, runs[judge.RUN].to_numpy(dtype=object))) <= {tuple(run) for run in causal.planned(plan)}
    for (arm, *_), rows in runs.groupby(judge.RUN):
        change = plan["change"] | plan["arms"][arm].get("change", {})
        assert rows["step"].tolist() == [*change["checkpoints"], change["steps"]]
    assert runs.drop(columns=["arm"]).dtypes.map(lambda kind: kind.kind in "fi").all()


def test_a_folder_without_tables_or_with_a_row_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="python -m lab.causal"):
        judge.read_runs(tmp_path)
    pd.DataFrame({"arm": "a", "strength": 1.0, "seed": 0, "step": [1, 1]}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="twice"):
        judge.read_runs(tmp_path)


def test_the_front_page_says_what_each_plan_decided():
    told = causal_report.conjecture_sentence({
        "one": judge.Verdict("helpful", ["a"], "why"), "two": judge.Verdict("undecided", [], "why")})
    first, second = told.split(";")[:2]
    assert "rule of one" in first and "it helps" in first and "rule of two" in second and "not decided" in second


def test_not_necessary_is_told_with_what_speaks_against_it():
    runs = runs_of(a=[WITHOUT] * 4 + [FAILED], b=WITH).assign(prompt_retrieval=np.nan)
    end = runs["step"] == 1000
    runs.loc[end & (runs["arm"] == "a") & (runs["seed"] >= 3), "prompt_retrieval"] = [0.75, 0.125]
    runs.loc[end & (runs["arm"] == "sham_a") & (runs["seed"] >= 3), "prompt_retrieval"] = [0.5, 0.25]
    found = judge.verdict(runs, PLAN)
    assert found.word == "not_necessary" and not found.by_mask
    told = causal_report.conjecture_sentence({"one": found})
    assert "Against one: copying inside prompts was left trainable." in told and "this mask" not in told
    assert "The rule was changed after runs" in told
    rates = "at rates of 0.75 with FV heads and 0.12 without (sham 0.38; not measured in 3 seeds)."
    assert "Copying inside prompts was left trainable" in causal_report.verdict_sentence(found, "one")
    assert rates in causal_report.verdict_sentence(found, "one")
    without = judge.verdict(runs, PLAN | {"change": {"mixture": {"glossary": None}}})
    told = causal_report.verdict_sentence(without, "a plan without glossaries")
    assert "Against it" not in told and "left trainable" not in told and rates in told and "tells nothing" not in told
    assert "Against" not in causal_report.conjecture_sentence({"one": without})
    undecided = causal_report.conjecture_sentence({"one": judge.Verdict("undecided", [], "why")})
    assert "Against" not in undecided and "changed after runs" not in undecided


def test_a_rate_of_copying_that_induction_heads_do_not_raise_tells_nothing():
    found = judge.Verdict("undecided", ["a"], "why", {0: (0.05, True)}, {"none": 0.5, "sham_a": 0.07}, (0,), False)
    assert "(untouched 0.50; sham 0.07). It tells nothing" in causal_report.copying_sentence(found)
    assert "tells nothing" not in causal_report.copying_sentence(found._replace(controls_copying={"sham_a": 0.3}))
    assert "tells nothing" not in causal_report.copying_sentence(found._replace(controls_copying={}))


MASK = judge.MaskTold(mask=0.9, sham=0.01, off=0.0, n=2000, blind=1.0)
MASKED = PLAN | {"arms": PLAN["arms"] | {"a": PLAN["arms"]["a"] | {"intervention": "mask_outside"}}}


def test_not_necessary_under_a_mask_is_told_with_what_the_mask_tells():
    runs = runs_of(a=[WITHOUT | {"loss": 0.5 + 0.2 * seed} for seed in range(4)] + [FAILED | {"loss": 0.9}], b=WITH)
    found = judge.verdict(runs, MASKED)
    assert (found.word, found.by_mask) == ("not_necessary", True)
    assert found.losses == pytest.approx((0.5, 0.7, 0.9, 1.1, 0.9))
    told = causal_report.verdict_sentence(found, "one", MASK)
    assert "**the mask tells what it hides**" in told and "90% of 2,000 copies (sham 1%: no equal control" in told
    assert "0.50 to 1.10 nats, in 4 of 5 runs below" in told and "not without copying" in told
    above = causal_report.verdict_sentence(found, "one", MASK._replace(blind=0.4))
    assert "in 0 of 5 runs below" in above and "learned to copy" not in above
    front = causal_report.conjecture_sentence({"one": found})
    assert "**they do not under a mask that tells what it hides**" in front
    assert "models learned to copy running text under this mask" in front
    other = judge.verdict(runs, PLAN)
    assert "mask" not in causal_report.verdict_sentence(other, "one", MASK) and not other.by_mask


def test_the_committed_not_necessary_rests_on_masked_models_that_copied_while_they_trained():
    for name, folder in PLANS.items():
        runs, plan = judge.read_runs(folder), read_plan(folder)
        found, told = judge.verdict(runs, plan), mask_told(plan)
        if found.word in causal_report.WITHOUT or not found.copying_trained:
            assert found.by_mask and len(found.losses) == 5 and max(found.losses) < told.blind, name
            assert "the mask tells what it hides" in causal_report.verdict_sentence(found, name, told).lower()
    arm, sham = (pd.read_csv(CONFIRMATION / f"{side}mask_outside.csv").query("step == 4096") for side in ("", "sham_"))
    used = arm["accuracy"] - arm["accuracy_shuffled"] > 0.2
    formed = (arm["fv_score"] > arm["fv_null"].clip(lower=0.02)) & used
    own, runs = arm["prompt_retrieval"], judge.read_runs(CONFIRMATION)
    rates = [", ".join(f"{rate:.2f}" for rate in own[which].dropna()) for which in (formed, ~formed)]
    told = causal_report.verdict_sentence(judge.verdict(runs, read_plan(CONFIRMATION)), "it", MASK)
    assert (f"rates of {rates[0]} with FV heads and {rates[1]} without (sham {sham['prompt_retrieval'].mean():.2f}; "
            f"not measured in {own.isna().sum()} seeds)") in told
    assert f"ends at {arm['loss'].min():.2f} to {arm['loss'].max():.2f} nats, in 5 of 5" in told
    long = judge.last_rows(judge.read_runs(CAUSAL), read_plan()).query("arm == 'mask_outside_long'")["loss"]
    assert len(long) == 5 and long.max() < mask_told(read_plan()).blind


@pytest.mark.parametrize(("formed", "means"), [(0, "uphold"), (1, "uphold"), (2, "leave open"), (4, "take away")])
def test_a_plan_without_glossaries_says_what_its_count_means(formed, means):
    arms = {name: PLAN["arms"][name] for name in ("none", "a", "sham_a")}
    plan = PLAN | {"arms": arms, "change": {"mixture": {"glossary": None}}}
    runs = runs_of(a=[WITHOUT] * formed + [FAILED] * (5 - formed))
    trained = runs_of(a=[WITHOUT] * 4 + [FAILED]), PLAN | {"arms": arms}
    told = causal_report.objection_sentence(runs, plan, trained)
    assert f"**{means}** the objection" in told and f"({formed} of 5, with glossaries 4 of 5;" in told
    assert ("p = 0.21)" in told) == (formed == 1) and "not planned" in told and "later" not in told
    assert causal_report.objection_sentence(runs, PLAN | {"arms": arms}, trained) == ""
    few = runs_of(a=FAILED, sham_a=[WITH] * 3 + [FAILED] * 2)
    assert "**leave open**" in causal_report.objection_sentence(few, plan, trained)
    assert causal_report.objection_sentence(runs[runs["arm"] == "none"], plan, trained) == ""


def test_the_page_says_that_without_glossaries_all_comes_later():
    of = {name: (judge.read_runs(folder), read_plan(folder)) for name, folder in PLANS.items()}
    _, trained, without = of.values()
    told = causal_report.objection_sentence(*without, trained)
    step = {plan["change"].get("mixture") is None: np.median([
        run[run["fv_score"] > run["fv_null"].clip(lower=0.02)]["step"].min()
        for _, run in runs[runs["arm"] == "sham_mask_outside"].groupby("seed")]) for runs, plan in (trained, without)}
    assert f"(the sham's FV heads at step {step[False]:.0f}, not {step[True]:.0f})" in told


def test_the_page_says_where_the_first_plans_check_would_fail():
    plans = {name: (judge.read_runs(folder), read_plan(folder)) for name, folder in PLANS.items()}
    told = causal_report.rule_changed_sentence(plans)
    assert "its confirmation on new seeds fails the first one: 0.226 of the sham's gain, limit 0.2)" in told
    first, _, last = plans
    assert "fails" not in causal_report.rule_changed_sentence({"one": plans[first], "two": plans[last]})
    assert judge.gain_against_sham(runs_of(a=WITHOUT), PLAN, "a") == pytest.approx(0.1 / 4)


def test_the_arms_are_shown_with_their_share_of_few_shot_loss():
    plan = read_plan()
    shares = {(arm, float(strength)): 0.5 + ("sham" in arm) / 10
              for arm, entry in plan["arms"].items() for strength in entry["strengths"]}
    shown = causal_report.arms_shown(plan, DESCRIPTIONS, shares)
    assert shown.loc["no repeats", ["few-shot share of the loss halfway", "of the sham's"]].tolist() == ["0.50", "0.60"]
    assert shown.loc["untouched", "of the sham's"] == ""
