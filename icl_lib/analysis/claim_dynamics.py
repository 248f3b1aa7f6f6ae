"""Statistics of section 5 that claims.yaml names and explains: checkpoints of a suite's models in, estimates out."""

from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np
import pandas as pd
from scipy import stats

from icl_lib.analysis import transitions
from icl_lib.analysis.claim_estimates import Estimate, tested, undecidable
from icl_lib.analysis.dynamics import Training, half_level
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.heads import head_count
from icl_lib.kinds import KINDS
from icl_lib.names import size_of
from icl_lib.stats.permutation import gehan_scores, sign_test, trend_test

FEW_STEPS = "fewer than two checkpoints after the first step"
# So many checkpoints after the rise tell whether a score stays.
PLATEAU = 3


def emergence_share(suite: SuiteTables, *, kind: str, early: float, fewest_steps: int) -> Iterator[Estimate]:
    """First step with a kind of heads as a share of the last; of a short training the share says nothing."""
    for training in suite.trainings:
        model, steps, (step, last_below) = training.model, training.steps, training.emergence[kind]
        if step is None:
            continue
        last, share = steps[-1], step / steps[-1]
        first = next((step for step in steps if step > 0), 0) / last
        if last < fewest_steps:
            yield undecidable(model, f"came by step {step} of a training of {last} steps", share, len(steps))
        elif not 0 < first < early:
            yield undecidable(model, f"the first checkpoint is at {first:.0%} of the training", share, len(steps))
        else:
            yield Estimate(model, share, (last_below or 0) / last, share, n=len(steps))


def emergence_gap(suite: SuiteTables) -> Iterator[Estimate]:
    """First step with FV heads minus first with induction heads, in steps, between the ends that checkpoints allow."""
    for training in suite.trainings:
        induction, fv = training.emergence.values()
        if induction.step is None or fv.step is None:
            continue
        model, gap, n = training.model, float(fv.step - induction.step), len(training.steps)
        low, high = (fv.last_below or 0) - induction.step, fv.step - (induction.last_below or 0)
        yield undecidable(model, FEW_STEPS, gap, n) if training.coarse else Estimate(model, gap, low, high, n=n)


def emergence_trend(suite: SuiteTables, *, kind: str) -> list[Estimate]:
    """Rank correlation (`gehan_scores`) with size of the first step with a kind of heads, if it came or not."""
    able = [training for training in suite.trainings if not training.coarse]
    if not able:
        return []
    came = [training.emergence[kind].step for training in able]
    steps = [of.steps[-1] if step is None else step for of, step in zip(able, came, strict=True)]
    scores = gehan_scores(np.array(steps, dtype=float), np.array([step is not None for step in came]))
    return size_trend(suite, {training.model: score for training, score in zip(able, scores, strict=True)})


def rise_difference(suite: SuiteTables) -> Iterator[Estimate]:
    """Doublings of the step between a tenth and nine tenths of the top heads' final mean score: FV minus induction."""
    for training in suite.trainings:
        model, steps, by_task = training.model, training.steps, training.fv_by_task
        induction, fv = (training.curve(kind, suite.top_fraction).to_numpy() for kind in KINDS)
        if induction[-1] <= 0 or fv[-1] <= 0:
            continue
        n_tasks, n_top = by_task.shape[1], head_count(suite.top_fraction, by_task.shape[2])
        drawn = np.random.default_rng(suite.seed).integers(n_tasks, size=(1000, n_tasks))
        resamples = [np.sort(by_task[:, tasks].mean(1), axis=1)[:, -n_top:].mean(1) for tasks in drawn]
        rises = np.array([_rise(steps, curve) for curve in resamples if curve[-1] > 0])
        shortest, own, longest = _rise(steps, induction)
        value = _rise(steps, fv)[1] - own
        low, high = np.quantile(rises[:, 0], 0.025) - longest, np.quantile(rises[:, 2], 0.975) - shortest
        doublings = np.log2(np.array(steps) + 1)
        # the slowest rise that these checkpoints can show, against the fastest
        if n_tasks < 2 or len(steps) < 4 or doublings[-2] - doublings[1] <= np.diff(doublings).min():
            yield undecidable(model, f"{len(steps)} checkpoints, {n_tasks} scoring tasks", value, len(steps))
        else:
            yield Estimate(model, float(value), float(low), float(high), n=len(steps))


def plateau(suite: SuiteTables) -> Iterator[Estimate]:
    """Mean score of the top induction heads at the last checkpoint as a share of its highest at any."""
    for training in suite.trainings:
        curve = training.curve("induction", suite.top_fraction).to_numpy()
        if curve.max() <= 0:
            continue
        share = curve / curve.max()
        last, after = share[-PLATEAU:], len(share) - 1 - int(np.argmax(share >= 0.9))
        if after < PLATEAU:
            yield undecidable(training.model, f"{after} checkpoints after the rise", float(share[-1]), len(share))
        else:
            yield Estimate(training.model, float(share[-1]), float(last.min()), float(last.max()), n=len(share))


def accuracy_follows(suite: SuiteTables) -> Iterator[Estimate]:
    """Rank correlation of few-shot accuracy and the top FV heads' mean score over checkpoints, permuted."""
    for training in suite.trainings:
        curves = [training.curve("fv", suite.top_fraction), suite.accuracy(training.model)]
        both = pd.concat(curves, axis=1).dropna().to_numpy(float)
        if 0 < len(both) < 3:
            yield undecidable(training.model, f"{len(both)} checkpoints", n=len(both))
        elif len(both):
            yield tested(training.model, trend_test(*both.T, seed=suite.seed), n=len(both), of="checkpoints")


def of_seeds(statistic: Callable[..., Estimate]) -> Callable[..., Iterator[Estimate]]:
    """A statistic of models that differ by their seed, for each size of a suite, of those with checkpoints enough."""
    @wraps(statistic)
    def of_suite(suite: SuiteTables, **given) -> Iterator[Estimate]:
        for seeds in suite.seeds:
            followed = [training for training in seeds if not training.coarse]
            yield (statistic(suite, followed, **given)._replace(model=followed[0].model) if followed else
                   undecidable(seeds[0].model, FEW_STEPS))
    return of_suite


@of_seeds
def emergence_order(suite: SuiteTables, seeds: list[Training]) -> Estimate:
    """Share of seeds in which the top FV heads reach half of their final level later than the top induction heads."""
    induction, fv = ([half_level(training.curve(kind, suite.top_fraction)) for training in seeds] for kind in KINDS)
    return tested("", sign_test(np.subtract(fv, induction)), n=len(seeds), of="seeds")


@of_seeds
def induction_first_share(suite: SuiteTables, seeds: list[Training], *, many: float) -> Estimate:
    """Share of the heads with an FV score that had an induction score at an earlier checkpoint.

    By the highest FV threshold of all checkpoints or by each checkpoint's own, whichever share is smaller.
    """
    either = [_counted(suite, seeds, each_steps_threshold=each)["heads"] for each in (False, True)]
    return min((_share(int(heads["induction_first"]), int(heads.drop(["induction_only", "neither"]).sum()), many)
                for heads in either), key=lambda estimate: estimate.value)


@of_seeds
def changed_share(suite: SuiteTables, seeds: list[Training], *, most: float) -> Estimate:
    """Share that is no induction head at the end, of the heads with an FV score that were induction heads before."""
    first = int(_counted(suite, seeds)["heads"]["induction_first"])
    return _share(first - transitions.kinds_at_the_end(seeds)["induction"], first, most)


@of_seeds
def reverse_share(suite: SuiteTables, seeds: list[Training], *, few: float) -> Estimate:
    """Share with the FV score first among heads that had both scores at some checkpoint; the larger share, as above."""
    either = [_counted(suite, seeds, each_steps_threshold=each)["heads"] for each in (False, True)]
    return max((_share(int(heads["fv_first"]), int(heads[["induction_first", "fv_first", "both_at_once"]].sum()), few)
                for heads in either), key=lambda estimate: estimate.value)


@of_seeds
def transitions_beyond_chance(suite: SuiteTables, seeds: list[Training], *, among: str) -> Estimate:
    """Heads that were induction heads first, minus their number when curves are exchanged; see `transitions`."""
    table = _counted(suite, seeds, among)
    row, n = table.loc["induction_first"], int(table["heads"].sum())
    why = "no other pairing of the curves would differ enough" if row["smallest p"] >= 0.05 else ""
    return Estimate("", float(row["heads"] - row["expected by chance"]), p_value=row["p"], n=n,
                    smallest_p=row["smallest p"], why=why)


@of_seeds
def percentile_before(suite: SuiteTables, seeds: list[Training], *, kind: str) -> Estimate:
    """Mean percentile of a kind's final heads in the other kind's score before they were of theirs, less chance."""
    found = transitions.ranks_before(seeds, kind, seed=suite.seed, among="place")
    if not found.n:
        return undecidable("", "0 such heads came after the first checkpoint")
    test = found.test()
    return tested("", test._replace(value=test.value - found.by_chance), n=int(found.n), of="heads")


def size_trend(suite: SuiteTables, values: dict[str, float]) -> list[Estimate]:
    """Rank correlation of a value by model with its parameters, nothing for no model; seeds of a size are averaged."""
    if not values:
        return []
    by_size = pd.DataFrame({"size": suite.sizes.reindex(values), "value": values}, dtype=float).groupby(size_of).mean()
    if len(by_size) < 3:
        return [undecidable("", f"sizes of model: {len(by_size)}", n=len(by_size))]
    test = trend_test(by_size["size"].to_numpy(), by_size["value"].to_numpy(), seed=suite.seed)
    return [tested("", test, n=len(by_size), of="sizes of model")]


def _rise(steps: list[int], curve: np.ndarray) -> tuple[float, float, float]:
    """Doublings from a tenth to nine tenths of the last value: the least by the gaps, at the steps, the most."""
    at = np.log2(np.array(steps) + 1)
    start, end = (int(np.argmax(curve >= share * curve[-1])) for share in (0.1, 0.9))
    least, most = max(0.0, at[max(0, end - 1)] - at[start]), at[end] - at[max(0, start - 1)]
    return float(least), float(at[end] - at[start]), float(most)


def _counted(suite: SuiteTables, seeds: list[Training], among: str = "all", **definition: bool) -> pd.DataFrame:
    return transitions.transitions(seeds, seed=suite.seed, among=among, **definition).table().set_index("order")


def _share(count: int, total: int, limit: float) -> Estimate:
    """A share of heads with its exact interval; it decides if those of none and all lie on both sides of the limit."""
    if not total:
        return undecidable("", "0 such heads")
    none, every, own = (stats.binomtest(k, total).proportion_ci() for k in (0, total, count))
    if not none.high < limit < every.low:
        return undecidable("", f"{total} such heads", count / total, total)
    return Estimate("", count / total, float(own.low), float(own.high), n=total)


STATISTICS = (emergence_share, emergence_gap, emergence_trend, rise_difference, plateau, accuracy_follows,
              emergence_order, induction_first_share, changed_share, reverse_share, transitions_beyond_chance,
              percentile_before)
