"""Effects of ablations against their controls, and what the ablated sets are."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from icl_lib.ablation.conditions import Condition, ablation_conditions
from icl_lib.ablation.effects import (
    CONTROLS,
    DIFFERENCE,
    at_fraction,
    corrected,
    effects_table,
    set_table,
    with_holm,
)
from icl_lib.ablation.table import Measurement
from icl_lib.kinds import OF_EITHER_KIND

INDUCTION = "induction_attention_mass"
SETTINGS = {"n_draws": 2, "exclude_fraction": 0.05, "seed": 0}


def scores(n_layers, n_heads, n_of_kind=2, seed=0):
    """Scores in random order, all of them different; the `n_of_kind` best heads of either score are of its kind."""
    rng = np.random.default_rng(seed)
    grid = pd.MultiIndex.from_product([range(n_layers), range(n_heads)], names=["layer", "head"]).to_frame(index=False)
    mass, fv = (rng.permutation(len(grid)) / len(grid) for _ in range(2))
    limit = 1 - (n_of_kind + 0.5) / len(grid)
    return pd.concat([
        grid.assign(score=INDUCTION, value=mass, task=""), grid.assign(score="fv", value=fv, task="t"),
        grid.assign(score="induction_prefix_matching", value=np.where(mass > limit, 0.9, 0.1), task=""),
        grid.assign(score="fv_null", value=limit, task="draw 0")], ignore_index=True)


def made_up(effect_fv, effect_induction, n_draws=20, seed=0):
    rng = np.random.default_rng(seed)
    none = np.zeros((2, 2), dtype=bool)
    one, other = none.copy(), none.copy()
    one[0, 0] = other[0, 1] = True
    conditions = [Condition("none", "", "", 0.0, 0, none)]
    tasks = np.repeat([f"t{i}" for i in range(8)], 10)
    clean = rng.normal(size=len(tasks))
    values = [clean]
    for kind, effect in (("induction", effect_induction), ("fv", effect_fv)):
        conditions.append(Condition(kind, "", "", 0.1, 0, one))
        values.append(clean - effect + 0.1 * rng.normal(size=len(tasks)))
        for draw in range(n_draws):
            conditions.append(Condition("random_layer_matched", "", kind, 0.1, draw, other))
            values.append(clean + 0.1 * rng.normal(size=len(tasks)))
    return Measurement("first_token_accuracy", "mean", "all", conditions, tasks, np.stack(values))


def test_effects_find_what_was_put_in_and_are_paired():
    every = effects_table([made_up(0.5, 0.0)], name="m", step=1)
    effects = corrected(every).set_index("ranking")
    assert effects.loc["fv", "value"] == pytest.approx(0.5, abs=0.05)
    assert effects.loc["fv", "low"] > 0.4  # prompts differ by 1, so only a paired interval is this narrow
    assert effects.loc["induction", "low"] < 0 < effects.loc["induction", "high"]
    assert effects.loc[DIFFERENCE, "value"] == pytest.approx(0.5, abs=0.05)
    adjusted = with_holm(effects.reset_index())
    assert set(adjusted["ranking"]) == {"fv", "induction"} and (adjusted["p_holm"] >= adjusted["p_value"]).all()
    assert adjusted.set_index("ranking").loc["fv", "p_holm"] < 0.001
    plain = effects.reset_index()
    assert len(at_fraction(plain, 0.3)) == 3
    same = pd.concat([plain, plain.assign(excluded="top 0.05 fv")])
    assert len(at_fraction(same, 0.3)) == 3  # exclusion changes no set
    other = pd.concat([plain, plain.assign(excluded="top 0.05 fv", value=plain["value"] + 1)])
    assert len(at_fraction(other, 0.3)) == 6
    assert len(at_fraction(every, 0.3)) == 6 and set(every["control"]) == {"none", "random_layer_matched"}


def plain_loss(m, ranking, control):
    """By hand: mean over tasks of the mean over draws and prompts, control less treated."""
    kinds = [c.matched if c.ranking.startswith("random_") else c.ranking for c in m.conditions]
    of_control = {"none": lambda c, kind: c.ranking == "none", "random": lambda c, kind: c.ranking == "random",
                  "random_layer_matched": lambda c, kind: c.ranking == control and kind == ranking}[control]
    draws = [m.values[i] for i, kind in enumerate(kinds) if of_control(m.conditions[i], kind)]
    treated = m.values[[c.ranking for c in m.conditions].index(ranking)]
    return pd.Series(np.mean(draws, axis=0) - treated).groupby(m.tasks).mean().mean()


@pytest.mark.parametrize("n_others", [1, 3, 8, 20])
def test_effects_against_every_control_are_what_plain_means_say(n_others):
    m = made_up(0.5, 0.2)
    keep = [i for i, c in enumerate(m.conditions) if c.matched != "induction" or c.draw < n_others]
    conditions, values = [m.conditions[i] for i in keep], m.values[keep]
    other = np.array([[False, False], [True, False]])
    rng = np.random.default_rng(1)
    for draw in range(5):
        conditions.append(Condition("random", OF_EITHER_KIND, "", 0.1, draw, other))
        values = np.vstack([values, m.values[0] - 0.1 + 0.1 * rng.normal(size=m.values.shape[1])])
    m = dataclasses.replace(m, conditions=conditions, values=values)
    effects = effects_table([m], name="m", step=1).set_index(["control", "ranking"])
    assert len(effects) == 9
    for control in CONTROLS:
        for kind in ("fv", "induction"):
            assert effects.loc[(control, kind), "value"] == pytest.approx(plain_loss(m, kind, control))
        gap = effects.loc[(control, "fv"), "value"] - effects.loc[(control, "induction"), "value"]
        assert effects.loc[(control, DIFFERENCE), "value"] == pytest.approx(gap)
    assert effects.loc[("none", "fv"), "value"] == pytest.approx(0.5, abs=0.05)
    assert effects.loc[("random", "fv"), "value"] == pytest.approx(0.4, abs=0.05)
    n_draws = effects["n_draws"].unstack()
    assert n_draws.loc["none"].eq(0).all() and n_draws.loc["random"].eq(5).all()
    assert n_draws.loc["random_layer_matched"].to_dict() == {"fv": 20, "induction": n_others, DIFFERENCE: 20}


def test_fewer_draws_of_one_kind_leave_the_difference_as_uncertain_as_they_are():
    def width(n_others, seed):
        m = made_up(0.5, 0.2)
        keep = [i for i, c in enumerate(m.conditions) if c.matched != "induction" or c.draw < n_others]
        conditions, values = [m.conditions[i] for i in keep], m.values[keep]
        shift = np.random.default_rng(seed).normal(size=len(keep))
        moved = [c.matched == "induction" for c in conditions]
        values = values + np.where(moved, shift, 0)[:, None]
        m = dataclasses.replace(m, conditions=conditions, values=values)
        rows = corrected(effects_table([m], name="m", step=1)).set_index("ranking")
        return (rows["high"] - rows["low"])[[DIFFERENCE, "induction"]].to_numpy()

    for n_others in (3, 6, 13, 20):  # draws of the induction heads' control differ most: theirs is the uncertainty
        gap, own = np.mean([width(n_others, seed) for seed in range(4)], axis=0)
        assert gap == pytest.approx(own, rel=0.25)


def test_where_there_is_no_control_there_is_no_effect_beyond_it():
    m = made_up(0.5, 0.0, n_draws=0)
    effects = effects_table([m], name="m", step=1)
    assert set(effects["control"]) == {"none"} and len(effects) == 3 and corrected(effects).empty
    one_sided = made_up(0.5, 0.0)
    keep = [i for i, c in enumerate(one_sided.conditions) if c.matched != "fv"]
    m = dataclasses.replace(m, conditions=[one_sided.conditions[i] for i in keep], values=one_sided.values[keep])
    assert corrected(effects_table([m], name="m", step=1))["ranking"].tolist() == ["induction"]


def test_draws_that_differ_widen_an_effect_but_not_a_difference_from_the_same_draws():
    m = made_up(0.3, 0.0)
    shared = [dataclasses.replace(c, ranking="random", matched="", excluded=OF_EITHER_KIND) if c.matched == "fv" else c
              for c in m.conditions if c.matched != "induction"]
    values = np.stack([row for row, c in zip(m.values, m.conditions, strict=True) if c.matched != "induction"])

    def width(shift):
        moved = values + shift * np.array([c.draw - 9.5 if c.ranking == "random" else 0 for c in shared])[:, None]
        table = effects_table([dataclasses.replace(m, conditions=shared, values=moved)], name="m", step=1)
        rows = table[table["control"] == "random"].set_index("ranking")
        return rows["high"] - rows["low"]

    alike, apart = width(0.0), width(0.1)
    assert apart["fv"] > 3 * alike["fv"]
    assert apart[DIFFERENCE] == pytest.approx(alike[DIFFERENCE])
    # nor from layer-matched draws that are the same for both kinds: what is left is the difference against no ablation
    both = [c for c in m.conditions if c.ranking != "random_layer_matched"]
    drawn = np.random.default_rng(1).normal(size=(6, 1)) + m.values[0]
    both += [Condition("random_layer_matched", "", kind, 0.1, i, m.conditions[-1].heads)
             for kind in ("fv", "induction") for i in range(6)]
    own = [row for row, c in zip(m.values, m.conditions, strict=True) if c.ranking != "random_layer_matched"]
    table = effects_table([dataclasses.replace(m, conditions=both, values=np.stack([*own, *drawn, *drawn]))],
                          name="m", step=1)
    gaps = table[table["ranking"] == DIFFERENCE].set_index("control")[["value", "low", "high"]]
    assert gaps.loc["random_layer_matched"].to_numpy() == pytest.approx(gaps.loc["none"].to_numpy())
    # where the heads are the same too, there is nothing to tell
    same = np.stack([own[0], own[1], own[1], *drawn, *drawn])
    gap = corrected(effects_table([dataclasses.replace(m, conditions=both, values=same)], name="m", step=1)).set_index(
        "ranking").loc[DIFFERENCE]
    assert gap["value"] == gap["low"] == gap["high"] == 0


def test_sets_overlap_and_remaining_percentiles():
    table = scores(4, 8)
    conditions = ablation_conditions(table, fractions=[0.1, 0.5], **SETTINGS)
    sets = set_table(conditions, table)
    assert len(sets) == 4 and sets["overlap"].between(0, 1).all()
    plain = sets[~sets["excluded"]].set_index("fraction")
    assert plain.loc[0.5, "fv_after_fv"] == pytest.approx(0.25)  # the lower half remains
    assert (sets[sets["excluded"]]["fv_after_induction"].to_numpy() >= plain["fv_after_induction"].to_numpy()).all()
