"""What the pages' numbers have to be: recomputed from the tables in pandas, numpy and scipy, without icl_lib."""

import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

MASS, PREFIX, FV = "induction_attention_mass", "induction_prefix_matching", "fv"
ACCURACY, LOSS = "first_token_accuracy", "token_loss_difference"
# An end of a bootstrap interval over 2000 resamples may lie this far from that of another bootstrap, in standard
# deviations of the resampled values: about four times what the two differ by on average.
TOLERANCE = 0.3


def read(results, kind, models, last=True):
    """One kind of table of all models at their last or at all steps, as one; missing files are left out."""
    paths = [results / kind / model / f"step{step}.parquet" for model, steps in models.items()
             for step in (steps[-1:] if last else steps)]
    return pd.concat([pd.read_parquet(path, partitioning=None) for path in paths if path.is_file()], ignore_index=True)


def heads(scores, score):
    """Mean over tasks of a score as an array of layers by heads."""
    return scores[scores["score"] == score].pivot_table(index="layer", columns="head", values="value").to_numpy()


def top(values, fraction):
    """Flat indices of the top share of heads, as many as the share rounded up."""
    n = math.ceil(fraction * values.size - 1e-9)
    return sorted(range(values.size), key=lambda i: (-values.ravel()[i], i))[:n]


def tops(scores, fraction):
    return {"induction": set(top(heads(scores, MASS), fraction)), "fv": set(top(heads(scores, FV), fraction))}


def threshold(scores):
    """The FV score from which a head is one: the percentile 99 of the best of each null draw, and at least 0.005."""
    best = scores[scores["score"] == "fv_null"].groupby("task")["value"].max()
    return max(0.005, np.quantile(best, 0.99))


def label_gap(accuracy):
    """Accuracy lost to shuffled labels on the scoring tasks at the most demonstrations, by task."""
    rows = accuracy[(accuracy["metric"] == ACCURACY) & (accuracy["split"] == "scoring")]
    rows = rows[rows["n_shots"] == rows["n_shots"].max()].set_index("task")
    return (rows[rows["labels"] == "clean"]["value"] - rows[rows["labels"] == "shuffled"]["value"]).dropna()


def kinds(scores, accuracy):
    """How many heads of each kind a model has."""
    gap = label_gap(accuracy)
    reads = len(gap) > 0 and gap.mean() >= 0.05 and (
        len(gap) < 2 or np.ptp(gap) == 0 or stats.ttest_1samp(gap, 0, alternative="greater").pvalue < 0.05)
    is_fv = heads(scores, FV) > (threshold(scores) if reads else np.inf)
    return {"induction": int((heads(scores, PREFIX) > 0.3).sum()), "fv": int(is_fv.sum())}


def both_kinds(scores, accuracy):
    """How many heads are of both kinds."""
    is_fv = heads(scores, FV) > (threshold(scores) if kinds(scores, accuracy)["fv"] else np.inf)
    return int(((heads(scores, PREFIX) > 0.3) & is_fv).sum())


def percentiles(values):
    """Share of heads below each plus half the share of its equals, itself included."""
    flat = values.ravel()
    return np.array([(flat < v).mean() + (flat == v).mean() / 2 for v in flat])


def rank_correlation(first, second, rng_seed=1):
    """Spearman's rho and the ends of a bootstrap interval over heads, each with its tolerance."""
    first, second = first.ravel(), second.ravel()
    rows = np.random.default_rng(rng_seed).integers(len(first), size=(1500, len(first)))
    rows = rows[(np.ptp(first[rows], axis=1) > 0) & (np.ptp(second[rows], axis=1) > 0)]
    ranks = [stats.zscore(stats.rankdata(values[rows], axis=1), axis=1) for values in (first, second)]
    return stats.spearmanr(first, second).statistic, *ends((ranks[0] * ranks[1]).mean(1))


def ends(resamples, level=0.95):
    """The ends of the percentile interval of resampled values, each with its tolerance."""
    spread = TOLERANCE * np.std(resamples)
    return tuple((float(np.quantile(resamples, q)), spread) for q in ((1 - level) / 2, (1 + level) / 2))


def overlap(tops, n_heads):
    """Share of both top sets, two-sided p, chance and smallest p: sets with as many heads in each layer, counted."""
    ways = {0: 1}
    for layer in {i // n_heads for own in tops.values() for i in own}:
        a, b = (sum(i // n_heads == layer for i in own) for own in tops.values())
        here = {k: math.comb(a, k) * math.comb(n_heads - a, b - k) for k in range(min(a, b) + 1)}
        ways = {total: sum(n * here.get(total - k, 0) for k, n in ways.items()) for total in range(max(ways) + b + 1)}
    every = sum(ways.values())
    tails = {k: min(1.0, 2 * min(sum(n for j, n in ways.items() if j >= k),
                                 sum(n for j, n in ways.items() if j <= k)) / every) for k, n in ways.items() if n}
    shared, size = len(tops["fv"] & tops["induction"]), len(tops["fv"])
    return shared / size, tails[shared], sum(k * n for k, n in ways.items()) / every / size, min(tails.values())


def depth(chosen, n_heads):
    """Mean layer of FV minus induction heads; exact permutation p-value and the smallest one possible."""
    fv, induction = chosen["fv"], chosen["induction"]
    observed = np.mean([i // n_heads for i in fv]) - np.mean([i // n_heads for i in induction])
    shared, pool = sorted(fv & induction), sorted(fv ^ induction)
    null = []
    for own in itertools.combinations(pool, len(fv - induction)):
        other = [i for i in pool if i not in own]
        null.append(np.mean([i // n_heads for i in [*shared, *own]])
                    - np.mean([i // n_heads for i in [*shared, *other]]))
    far, null = abs(observed - np.mean(null)), np.abs(np.array(null) - np.mean(null))
    return observed, (null >= far - 1e-9).mean(), (null >= null.max() - 1e-9).mean()


def trend(sizes, values):
    """Rank correlation with size, its exact two-sided permutation p-value and the smallest one possible."""
    x, y = stats.rankdata(sizes), stats.rankdata(np.round(values, 12))  # equal but for rounding is a tie
    rho = np.corrcoef(x, y)[0, 1]
    null = np.abs([np.corrcoef(x, order)[0, 1] for order in itertools.permutations(y)])
    return rho, (null >= abs(rho) - 1e-9).mean(), (null >= null.max() - 1e-9).mean()


def losses(ablations, fraction=0.1, positions="all"):
    """What is lost, mean over tasks, by (metric, excluded, control, ranking): from the table `ablations` alone."""
    rows = ablations[(ablations["replacement"] == "mean") & (ablations["positions"] == positions)]
    rows = rows[rows["fraction"] == fraction]
    found = {}
    for metric in (ACCURACY, LOSS):
        clean = ablations[(ablations["ranking"] == "none") & (ablations["metric"] == metric)].set_index("task")["value"]
        own = rows[rows["metric"] == metric]
        for excluded in (False, True):
            for control in ("none", "random", "random_layer_matched"):
                for ranking in ("induction", "fv"):
                    treated = own[(own["ranking"] == ranking) & (own["excluded"].ne("") == excluded)]
                    against = own[own["ranking"] == control]
                    if control == "random_layer_matched":
                        against = against[(against["matched"] == ranking) & (against["excluded"].ne("") == excluded)]
                    by_draw = clean.to_frame().T if control == "none" else against.pivot_table(
                        index="draw", columns="task", values="value")
                    if len(treated) and len(by_draw):
                        lost = by_draw - treated.set_index("task")["value"]
                        found[metric, excluded, control, ranking] = float(lost.mean().mean())
                both = [found.get((metric, excluded, control, ranking), np.nan) for ranking in ("fv", "induction")]
                if not np.isnan(both).any():
                    found[metric, excluded, control, "fv_minus_induction"] = both[0] - both[1]
    return found
