"""The ledger's statistics of section 5 over a size's seeds once more; see tests/audit_ledger.py."""

import itertools

import numpy as np
from scipy import stats

from tests import audit_plain as plain
from tests.audit_plain import FV, MASS


def seeds(suite):
    """Followed models with both kinds, those together whose names differ by the seed."""
    found = {}
    for model in suite.followed:
        if len(suite.kinds(model)) == 2:
            found.setdefault(model.partition("-seed")[0], []).append(model)
    return found


def transitions(share, fv="fv", **options):
    """`share`: what is told of the first places of the heads with either score, a pair for each seed."""
    return lambda suite: {
        size: share([[suite.crossings(model)[0][kind] for kind in ("induction", fv)] for model in models],
                    len(suite.models[models[0]]), **options)
        for size, models in seeds(suite).items()}


def by_either_bar(share, choose):
    """The least or the greatest share by the two bars of FV scores."""
    def of_suite(suite):
        highest, own = (transitions(share, fv=bar)(suite) for bar in ("fv", "fv, own"))
        return {size: choose(highest[size], own[size]) for size in highest}
    return of_suite


def induction_first(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    return ((fv < end) & (induction < fv)).sum() / (fv < end).sum()


def reverse(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    both = (fv < end) & (induction < end)
    return (both & (fv < induction)).sum() / both.sum()


def changed(suite):
    """Share of the heads with both scores, induction first, that end without the induction score."""
    found = {}
    for size, models in seeds(suite).items():
        ends = []
        for model in models:
            last = plain.heads(suite.by_step(model)[-1][1], plain.PREFIX).ravel()
            induction, fv = (suite.crossings(model)[0][kind] for kind in ("induction", "fv"))
            ends += last[(fv < len(suite.models[model])) & (induction < fv)].tolist()
        found[size] = np.mean(np.array(ends) <= 0.3) if ends else np.nan
    return found


def beyond_chance(firsts, end, *, place):
    def count(a, b):
        return ((b < end) & (a < b)).sum()
    rng = np.random.default_rng(1)
    if place:
        orders = list(itertools.permutations(firsts))
        null = np.array([sum(count(own[0], other[1]) for own, other in zip(firsts, order, strict=True))
                         for order in orders])
    else:
        null = np.array([sum(count(induction, rng.permutation(fv)) for induction, fv in firsts) for _ in range(2000)])
    observed = sum(count(induction, fv) for induction, fv in firsts)
    p = min(1, 2 * min((null >= observed).mean(), (null <= observed).mean()))
    return (observed - null.mean(), 0.12), np.nan, np.nan, (p, 0.08)  # both are means over random pairings


def order(suite):
    found = {}
    for size, models in seeds(suite).items():
        fv, induction = np.array([[int(np.argmax(curve >= curve[-1] / 2)) for curve in (
            suite.curve(model, FV), suite.curve(model, MASS))] for model in models]).T
        more, fewer = (fv > induction).sum(), (fv < induction).sum()
        p = min(1, 2 * stats.binom.cdf(min(more, fewer), more + fewer, 0.5))
        found[size] = ((more + (fv == induction).sum() / 2) / len(models), np.nan, np.nan, p)
    return found


def before(suite):
    """Percentiles of heads in prefix matching before they were FV heads, less those of the same heads elsewhere."""
    found = {}
    for size, models in seeds(suite).items():
        prefix = [[plain.heads(scores, plain.PREFIX).ravel() for _, scores, _ in suite.by_step(model)]
                  for model in models]
        ranks, n = np.zeros((len(models), len(models))), 0
        for own, model in enumerate(models):
            for head, step in enumerate(suite.crossings(model)[0]["fv"]):
                if 0 < step < len(prefix[own]):
                    n += 1
                    ranks[own] += [plain.percentiles(np.max(other[:int(step)], axis=0))[head] for other in prefix]
        null = np.array([sum(ranks[own, to] for own, to in enumerate(order)) / n
                         for order in itertools.permutations(range(len(models)))])
        far = np.abs(null - null.mean()) >= abs(null[0] - null.mean()) - 1e-9
        found[size] = (null[0] - null.mean(), np.nan, np.nan, (far.mean(), 0.04))
    return found
