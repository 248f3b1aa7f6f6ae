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


def transitions(share, **options):
    """`share`: what is told of the first places of the heads with either score, a pair for each seed."""
    return lambda suite: {
        size: share([[suite.crossings(model)[0][kind] for kind in ("induction", "fv")] for model in models],
                    len(suite.models[models[0]]), **options)
        for size, models in seeds(suite).items()}


def induction_first(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    return ((fv < end) & (induction < fv)).sum() / (fv < end).sum()


def reverse(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    both = (fv < end) & (induction < end)
    return (both & (fv < induction)).sum() / both.sum()


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


def before(among):
    """Percentiles of heads in prefix matching before they were FV heads, less those of random heads in their place."""
    def of(suite):
        found, rng = {}, np.random.default_rng(1)
        for size, models in seeds(suite).items():
            own, drawn, elsewhere = [], [], []
            by_model = [[plain.heads(scores, plain.PREFIX) for _, scores, _ in suite.by_step(model)]
                        for model in models]
            for model, prefix in zip(models, by_model, strict=True):
                first = suite.crossings(model)[0]["fv"].reshape(prefix[0].shape)
                for room in [np.s_[row] for row in range(len(first))] if among == "layer" else [np.s_[:]]:
                    came = [(at, int(step)) for at, step in enumerate(first[room].ravel()) if 0 < step < len(prefix)]
                    ranks = [[plain.percentiles(np.max([p[room] for p in other[:step]], axis=0)).ravel()
                              for other in (prefix, *by_model)] for _, step in came]
                    own += [rank[0][at] for (at, _), rank in zip(came, ranks, strict=True)]
                    places = [rng.permutation(first[room].size)[: len(ranks)] for _ in range(3000)]
                    drawn.append([[rank[0][to] for to, rank in zip(place, ranks, strict=True)] for place in places])
                    elsewhere.append([sum(rank[1 + i][at] for (at, _), rank in zip(came, ranks, strict=True))
                                      for i in range(len(models))])
            null = np.concatenate(drawn, axis=1).mean(1) if among != "place" else np.array([
                sum(row[to] for row, to in zip(elsewhere, order, strict=True)) / len(own)
                for order in itertools.permutations(range(len(models)))])
            middle = null.mean() if among == "place" else 0.5
            far = np.abs(null - middle) >= abs(np.mean(own) - middle) - 1e-9
            found[size] = (np.mean(own) - middle, np.nan, np.nan, (far.mean(), 0.04))
        return found
    return of
