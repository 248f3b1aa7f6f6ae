"""For every statistic of claims.yaml tables in which its claim is true, false, or beyond what they could decide."""

import numpy as np

from icl_lib.analysis.claims import FAILS, HOLDS, POWERLESS
from tests.planted_tables import background, layer, with_heads

ACCURACY, LOSS, ZERO = "first_token_accuracy", "token_loss_difference", "zero_shot_accuracy"
STEPS = [0, 10, 20, 40, 100, 200, 400]


def both_kinds(tables, model="m", step=100, induction=None, fv=None, **options):
    """A model with four induction heads in layer 1 and four FV heads in layer 2, or others."""
    induction = with_heads(layer(1), 0.4) if induction is None else induction
    tables.scores(model, step, induction=induction, fv=with_heads(layer(2), 0.1) if fv is None else fv, **options)


def effect(tables, state, claim):
    sign = 1 if "above" in claim.holds else -1
    model, size = claim.given.get("among", ["m"])[0], 1 + claim.given.get("larger_than", 0)
    value = 0.3 * sign * (-1 if state == FAILS else 1)
    both_kinds(tables, model)
    controls = [("none", "random")] if state == POWERLESS else []
    tables.effects(model, [(claim.given["metric"], claim.given["ranking"], claim.given["excluded"], value, *controls)],
                   positions=claim.given.get("positions", "all"))
    return tables.suite({model: size})


def effect_trend(tables, state, claim):
    for size in range(4 if state == POWERLESS else 5):
        both_kinds(tables, f"m{size}")
        value = 0.1 * (-size if state == FAILS else size)
        tables.effects(f"m{size}", [(claim.given["metric"], "fv_minus_induction", claim.given["excluded"], value)])
    return sized(tables)


def sized(tables):
    return tables.suite({model: 1000 * 2**i for i, model in enumerate(sorted(tables.steps["scores"]))})


def shared_heads(tables, state, claim):
    both_kinds(tables, fv=with_heads(layer(1 if state == FAILS else 2), 0.1))
    return tables.suite(overlap_fraction=0.02 if state == POWERLESS else 0.1)  # 0.02 of 40 heads: one


def along(tables, model="m", steps=STEPS, *, induction=None, fv=None):
    """A model at every step: `induction`, `fv`: from which step on which heads have the score."""
    came = {"induction": induction or {20: layer(1)}, "fv": fv or {100: layer(2)}}
    for step in steps:
        now = {kind: [head for since, heads in of_kind.items() if step >= since for head in heads]
               for kind, of_kind in came.items()}
        tables.scores(model, step, induction=with_heads(now["induction"], 0.4), fv=with_heads(now["fv"], 0.1, seed=1))


def induction_first_share(tables, state, claim):
    heads = layer(1, 10) + layer(2, 6)
    if state == POWERLESS:
        along(tables, induction={20: heads}, fv={100: layer(1)})
    else:
        along(tables, induction={20: heads if state == HOLDS else layer(3)}, fv={100: heads})
    return tables.suite()


def transitions_beyond_chance(tables, state, claim):
    everywhere = [head for row in range(4) for head in layer(row, 10)]
    half = layer(0, 10) + layer(1, 10)
    came = {HOLDS: (layer(1, 8), layer(1)), FAILS: (half, layer(2, 10) + layer(3, 10)),
            POWERLESS: (everywhere, layer(1))}[state]
    if claim.given["among"] == "place":
        return at_places(tables, state)
    along(tables, induction={20: came[0]}, fv={100: came[1]})
    return tables.suite()


def emergence_order(tables, state, claim):
    for seed in range(5 if state == POWERLESS else 6):
        late = {"induction": {100: layer(1)}, "fv": {20: layer(2)}} if state == FAILS else {}
        along(tables, f"m-seed{seed}", **late)
    return tables.suite()


def at_places(tables, state):
    """Of each seed another head has both scores, or all but that which has one; or the same head of all."""
    for seed, head in enumerate(layer(1, 6)):
        others = [other for other in layer(1, 6) if other != head]
        fv = layer(1, 1) if state == POWERLESS else [head]
        along(tables, f"m-seed{seed}", induction={20: others if state == FAILS else fv}, fv={100: fv})
    return tables.suite()


def percentile_before(tables, state, claim):
    return at_places(tables, state)


def family_difference(tables, state, claim):
    n = 3 if state == POWERLESS else 4
    for place, name in enumerate(("gpt2", "pythia")):
        for size in range(n):
            tables.scores(f"{name}-{size}", fv=with_heads(layer(2), 0.1 - 0.05 * place + 0.001 * size))
    return sized(tables)


def depth_difference(tables, state, claim):
    places = {HOLDS: (0, 3), FAILS: (3, 0), POWERLESS: (0, 3)}[state]
    induction, fv = (with_heads(layer(place), 0.4) for place in places)
    both_kinds(tables, induction=induction, fv=fv)
    return tables.suite(top_fraction=0.05 if state == POWERLESS else 0.1)


def percentile(tables, state, claim):
    own, other = layer(2), {HOLDS: 0.03, FAILS: -1.0, POWERLESS: 0.03}[state]
    first = with_heads(layer(1), 0.4)
    second = with_heads(own, 0.1)
    if claim.given["of"] == "fv":
        for place in own:
            first[place] = other + 0.02 if other > 0 else 0.0
        both_kinds(tables, induction=first, fv=second)
    else:
        swapped = with_heads(layer(1), 0.1)
        for place in own:
            swapped[place] = 0.05 if other > 0 else -0.1
        both_kinds(tables, induction=with_heads(own, 0.4), fv=swapped)
    return tables.suite(top_fraction=0.02 if state == POWERLESS else 0.1)


def strength_trend(tables, state, claim):
    for size in range(4 if state == POWERLESS else 5):
        tables.scores(f"m{size}", fv=with_heads(layer(2), 0.1 + (-0.01 if state == FAILS else 0.01) * size))
    return sized(tables)


def highest_induction(tables, state, claim):
    tables.scores(claim.given["model"], induction=with_heads(layer(1), 0.42 if state == HOLDS else 0.2))
    return tables.suite()


def dissociation(tables, state, claim):
    sign = -1 if state == FAILS else 1
    both_kinds(tables)
    tables.effects("m", [(ACCURACY, "fv_minus_induction", False, 0.3 * sign),
                         (LOSS, "fv_minus_induction", False, -0.3 * sign)])
    tables.ablations("m", {ACCURACY: 0.8, LOSS: -0.2 if state == POWERLESS else 1.0})
    return tables.suite()


def rank_correlation(tables, state, claim):
    if state == POWERLESS:
        both_kinds(tables, induction=[[0.4, 0.01, 0.02]], fv=[[0.0, 0.1, 0.001]])
    else:
        induction = with_heads(layer(1), 0.4)
        noise = background(seed=5) / 5
        both_kinds(tables, induction=induction, fv=noise + (induction if state == HOLDS else 0.4 - induction) / 4)
    return tables.suite()


def tasks_with_larger_fv_loss(tables, state, claim):
    n = 4 if state == POWERLESS else 8
    more, less = ("induction", "fv") if state == FAILS else ("fv", "induction")
    both_kinds(tables)
    tables.ablations("m", {ACCURACY: 0.8}, {
        (ACCURACY, more): [0.5] * n, (ACCURACY, less): [0.1] * n, **{
            (ACCURACY, f"random_layer_matched {kind}"): [0.0] * n for kind in ("fv", "induction")}})
    return tables.suite()


def few_shot_loss_beyond_zero_shot(tables, state, claim):
    by_task, none = np.linspace(0.3, 0.5, 8).tolist(), [0.0] * 8
    few, zero = (none, by_task) if state == FAILS else (by_task, none)
    lost = {(ACCURACY, "fv"): few, (ZERO, "fv"): zero, (ACCURACY, "random_layer_matched"): none,
            (ZERO, "random_layer_matched"): none}
    both_kinds(tables)
    tables.ablations("m", {ACCURACY: 0.8, ZERO: 0.04 if state == POWERLESS else 0.6}, lost)
    return tables.suite()


def emergence_share(tables, state, claim):
    longer = [100 * step for step in STEPS]
    along(tables, steps=[0, *longer[-3:]] if state == POWERLESS else longer,
          induction={longer[-2] if state == FAILS else longer[2]: layer(1)}, fv={longer[-1]: layer(2)})
    return tables.suite()


def changed_share(tables, state, claim):
    heads = layer(1, 5 if state == POWERLESS else 8)
    for step in STEPS:
        gone = state != FAILS and step > 200
        both_kinds(tables, step=step, induction=with_heads(layer(3) + (heads if 20 <= step and not gone else []), 0.4),
                   fv=with_heads(heads if step >= 100 else [], 0.1, seed=1))
    return tables.suite()


def emergence_gap(tables, state, claim):
    early, late = {20: layer(1)}, {200: layer(2)}
    induction, fv = (late, early) if state == FAILS else (early, late)
    along(tables, steps=[0, 400] if state == POWERLESS else STEPS, induction=induction, fv=fv)
    return tables.suite()


def rise_difference(tables, state, claim):
    steps = [0, 10, 400] if state == POWERLESS else [0, *(2**i for i in range(11))]
    for step in steps:
        fast, slow = float(step >= 16), np.log2(step + 1) / 10
        induction, fv = (slow, fast) if state == FAILS else (fast, slow)
        both_kinds(tables, step=step, induction=with_heads(layer(1), 0.4 * induction + 1e-6),
                   fv=with_heads(layer(2), 0.1 * fv + 1e-6))
    return tables.suite()


def plateau(tables, state, claim):
    heights = {HOLDS: [0.01, 0.1, 0.4, 0.4, 0.39, 0.38, 0.37], FAILS: [0.01, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2],
               POWERLESS: [0.01, 0.05, 0.1, 0.2, 0.3, 0.3, 0.4]}[state]
    for step, height in zip(STEPS, heights, strict=True):
        tables.scores("m", step, induction=with_heads(layer(1), height))
    return tables.suite()


def emergence_trend(tables, state, claim):
    kind = claim.given["kind"]
    for size in range(4 if state == POWERLESS else 5):
        at = STEPS[1 + size] if state == FAILS else STEPS[-2 - size]
        along(tables, f"m{size}", **{kind: {at: layer(1)}})
    return sized(tables)


def reverse_share(tables, state, claim):
    everywhere = [head for row in range(4) for head in layer(row, 10)]
    heads = layer(1) if state == POWERLESS else everywhere
    induction, fv = (200, 20) if state == FAILS else (20, 200)
    along(tables, induction={induction: heads}, fv={fv: heads})
    return tables.suite()


def accuracy_follows(tables, state, claim):
    steps = STEPS[-3:] if state == POWERLESS else STEPS
    for place, step in enumerate(steps):
        both_kinds(tables, step=step, fv=with_heads(layer(2), 0.02 + 0.01 * place))
        clean = 0.4 + 0.05 * (-place if state == FAILS else place)
        tables.accuracy("m", step, clean=clean, shuffled=clean - 0.1)
    return tables.suite()


def execution_gain(tables, state, claim):
    high, low = np.linspace(0.5, 0.7, 8).tolist(), np.linspace(0.1, 0.2, 8).tolist()
    fv, control = (low, high) if state == FAILS else (high, low)
    random = {} if state == POWERLESS else {"random_layer_matched": control}
    both_kinds(tables)
    tables.executions("m", {"fv": fv, "none": control} | random)
    return tables.suite()


def pattern_effect(tables, state, claim):
    both_kinds(tables)
    tables.patterns("m", None if state == POWERLESS else -0.3 if state == FAILS else 0.3, {"none": [0.5] * 4})
    return tables.suite()


def benefit_lost(tables, state, claim):
    both_kinds(tables)
    gained = np.linspace(0.03, 0.05, 8) if state == POWERLESS else np.linspace(0.4, 0.6, 8)
    left = {HOLDS: 0.1, FAILS: 0.8, POWERLESS: 0.1}[state] * gained
    tables.patterns("m", 0.3, {"none": gained.tolist(), "random_layer_matched": gained.tolist(),
                               "induction": (left + np.linspace(0, 0.05, 8)).tolist()})
    return tables.suite()
