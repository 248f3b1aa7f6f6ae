"""The ledger's statistics of section 5 over a size's seeds once more; see tests/audit_ledger.py."""

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


def transitions(share):
    """`share`: what is told of the first places of the heads with either score, a pair for each seed."""
    return lambda suite: {
        size: share([[suite.crossings(model)[0][kind] for kind in ("induction", "fv")] for model in models],
                    len(suite.models[models[0]]))
        for size, models in seeds(suite).items()}


def induction_first(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    return ((fv < end) & (induction < fv)).sum() / (fv < end).sum()


def reverse(firsts, end):
    induction, fv = np.concatenate(firsts, axis=1)
    both = (fv < end) & (induction < end)
    return (both & (fv < induction)).sum() / both.sum()


def beyond_chance(firsts, end):
    def count(a, b):
        return ((b < end) & (a < b)).sum(-1)
    expected = sum(count(induction[:, None], fv[None, :]).sum() / len(fv) for induction, fv in firsts)
    rng = np.random.default_rng(1)
    null = np.array([sum(count(induction, rng.permutation(fv)) for induction, fv in firsts) for _ in range(2000)])
    observed = sum(count(induction, fv) for induction, fv in firsts)
    p = min(1, 2 * min((null >= observed).mean(), (null <= observed).mean()))
    return (observed - expected, 0.08), np.nan, np.nan, (p, 0.08)  # theirs is the mean of 2000 pairings


def order(suite):
    found = {}
    for size, models in seeds(suite).items():
        fv, induction = np.array([[int(np.argmax(curve >= curve[-1] / 2)) for curve in (
            suite.curve(model, FV), suite.curve(model, MASS))] for model in models]).T
        more, fewer = (fv > induction).sum(), (fv < induction).sum()
        p = min(1, 2 * stats.binom.cdf(min(more, fewer), more + fewer, 0.5))
        found[size] = ((more + (fv == induction).sum() / 2) / len(models), np.nan, np.nan, p)
    return found


def before(same_layer):
    """Percentiles of heads in prefix matching before they were FV heads, and of random heads in their place."""
    def of(suite):
        found, rng = {}, np.random.default_rng(1)
        for size, models in seeds(suite).items():
            own, drawn = [], []
            for model in models:
                prefix = [plain.heads(scores, plain.PREFIX) for _, scores, _ in suite.by_step(model)]
                first = suite.crossings(model)[0]["fv"].reshape(prefix[0].shape)
                rooms = [np.s_[row] for row in range(len(first))] if same_layer else [np.s_[:]]
                for room in rooms:
                    ranks = [(at, plain.percentiles(np.max([p[room] for p in prefix[: int(came)]], axis=0)).ravel())
                             for at, came in enumerate(first[room].ravel()) if 0 < came < len(prefix)]
                    own += [rank[at] for at, rank in ranks]
                    places = [rng.permutation(first[room].size)[: len(ranks)] for _ in range(3000)]
                    drawn.append([[rank[to] for to, (_, rank) in zip(place, ranks, strict=True)] for place in places])
            far = np.abs(np.concatenate(drawn, axis=1).mean(1) - 0.5) >= abs(np.mean(own) - 0.5) - 1e-9
            found[size] = (np.mean(own), np.nan, np.nan, (far.mean(), 0.04))
        return found
    return of
