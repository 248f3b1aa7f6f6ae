"""Section 5 from the scoring tables of checkpoints: curves and emergence; heads with both scores: transitions.py.

Top heads are ranked by `kinds.RANKED_BY`; whether a head is of a kind follows the definition of `kinds`, at each step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from icl_lib import kinds
from icl_lib.analysis.reading import number, table_of
from icl_lib.heads import top_heads
from icl_lib.kinds import DEFINED_BY, INDUCTION_THRESHOLD, KINDS, RANKED_BY
from icl_lib.stats.emergence import Emergence, emergence_interval, emergence_step
from icl_lib.stats.intervals import bootstrap_mean


def score_array(scores: pd.DataFrame, score: str) -> tuple[list[int], Float[ndarray, "step layer head"]]:
    """Steps in rising order and the mean over tasks of a score at each."""
    means = kinds.rows_of(scores, score).groupby(["step", "layer", "head"])["value"].mean()
    return means.index.levels[0].tolist(), means.to_numpy().reshape(means.index.levshape)


class Heads(NamedTuple):
    """Heads of a model, or of several seeds side by side; kinds in the order of `KINDS`."""

    of_kind: Bool[ndarray, "kind step head"]
    scores: Float[ndarray, "kind step head"]  # that define the kinds, of FV also where labels are not read
    layers: Int[ndarray, "head"]


@dataclass(frozen=True)
class Training:
    """One model's scores along training; steps rise. Without labels read it has no FV heads at a step."""

    model: str
    steps: list[int]
    scores: dict[str, Float[ndarray, "step layer head"]]  # mean over tasks, by score
    fv_by_task: Float[ndarray, "step task layer*head"]
    fv_thresholds: Float[ndarray, "step"]  # the FV score from which a head is an FV head; see `kinds.fv_threshold`
    reads_labels: Bool[ndarray, "step"]  # see `kinds.reads_labels`; True for a step without accuracies

    @property
    def coarse(self) -> bool:
        """Whether there are fewer than two checkpoints after step 0, so that nothing can be in order."""
        return sum(step > 0 for step in self.steps) < 2

    @property
    def defining(self) -> dict[str, Float[ndarray, "step layer head"]]:
        """For both kinds the score that says whether a head is of it; FV at minus infinity without labels."""
        fv = np.where(self.reads_labels[:, None, None], self.scores[DEFINED_BY["fv"]], -np.inf)
        return {"induction": self.scores[DEFINED_BY["induction"]], "fv": fv}

    @cached_property
    def emergence(self) -> dict[str, Emergence]:
        """By kind the step from which the best head stays above its threshold, and the last step below it."""
        thresholds = {"induction": INDUCTION_THRESHOLD, "fv": self.fv_thresholds}
        return {kind: emergence_step(self.steps, values.max(axis=(1, 2)), thresholds[kind])
                for kind, values in self.defining.items()}

    def heads(self, *, induction_threshold: float = INDUCTION_THRESHOLD, each_steps_threshold: bool = False) -> Heads:
        """All heads; the FV threshold is the highest of all checkpoints', unless each step's own is asked for."""
        induction, fv = self.defining.values()
        thresholds = self.fv_thresholds[:, None, None] if each_steps_threshold else self.fv_thresholds.max()
        flat = 2, len(self.steps), fv[0].size
        return Heads(np.stack([induction > induction_threshold, fv > thresholds]).reshape(flat),
                     np.stack([self.scores[score] for score in DEFINED_BY.values()]).reshape(flat),
                     np.indices(fv[0].shape)[0].ravel())

    def curve(self, kind: str, fraction: float) -> pd.Series:
        """Mean ranking score of a kind's top heads, selected anew at each step, by step."""
        tops = [at[top_heads(at, fraction=fraction)].mean() for at in self.scores[RANKED_BY[kind]]]
        return pd.Series(tops, index=self.steps)


def half_level(curve: pd.Series) -> float:
    """First step, of those in a curve's index, at which it has half of its last value."""
    return float(curve.index[(curve >= curve.iloc[-1] / 2).to_numpy().argmax()])


def trainings(scores: pd.DataFrame, accuracy: pd.DataFrame) -> list[Training]:
    """The training of each model in the tables of these names, in order of names."""
    found = []
    for model, own in scores.groupby("model"):
        arrays = {score: score_array(own, score)[1] for score in {*RANKED_BY.values(), *DEFINED_BY.values()}}
        by_step = {int(step): at for step, at in own.groupby("step")}
        labels = {step: kinds.reads_labels(at) for step, at in accuracy[accuracy["model"] == model].groupby("step")}
        found.append(Training(
            str(model), list(by_step), arrays, np.stack([kinds.scores_by_task(at, "fv") for at in by_step.values()]),
            np.array([kinds.fv_threshold(kinds.null_draws(at)) for at in by_step.values()]),
            np.array([labels.get(step, True) for step in by_step])))
    return found


def same_checkpoints(scores: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of steps of one model with the same scores bit for bit: the same weights under two steps (it happens)."""
    columns, first, found = ["score", "layer", "head", "task"], {}, []
    for step, values in scores.pivot_table(index="step", columns=columns, values="value").dropna(axis=1).iterrows():
        same = first.setdefault(values.to_numpy().tobytes(), step)
        found += [(int(same), int(step))] if same != step else []
    return found


def top_score_curves(scores: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean of the top heads' ranking score at each step (figure 5), selected anew at each step and by the last step.

    Columns selection, kind, step, value, low, high; low and high are the lowest and highest of the selected heads.
    """
    rows = []
    for kind, score in RANKED_BY.items():
        steps, values = score_array(scores, score)
        last = top_heads(values[-1], fraction=fraction)
        for step, at in zip(steps, values, strict=True):
            anew = top_heads(at, fraction=fraction)
            for selection, mask in (("selected at each checkpoint", anew), ("selected at the end", last)):
                chosen = at[mask]
                rows.append((selection, kind, step, chosen.mean(), chosen.min(), chosen.max()))
    return pd.DataFrame(rows, columns=["selection", "kind", "step", "value", "low", "high"])


def final_heads(scores: pd.DataFrame, *, n: int) -> dict[str, list[tuple[int, int]]]:
    """The `n` highest heads of each kind at the last step, best first, as (layer, head)."""
    found = {}
    for kind, score in RANKED_BY.items():
        last = score_array(scores, score)[1][-1]
        best = np.argsort(-last, axis=None, kind="stable")[:n]
        found[kind] = [tuple(int(i) for i in np.unravel_index(at, last.shape)) for at in best]
    return found


def emergence_by_seed(trainings: list[Training], *, fraction: float) -> pd.DataFrame:
    """One row per model: first step with each kind, which came first, and for both the top heads' `half_level`."""
    rows = []
    for training in trainings:
        came = [of.step for of in training.emergence.values()]
        induction, fv = (np.inf if step is None else step for step in came)
        first = "same checkpoint" if induction == fv else "induction" if induction < fv else "FV"
        never = f"not within {training.steps[-1]} steps"
        rows.append((training.model, *(never if step is None else str(step) for step in came),
                     "neither came" if came == [None, None] else first,
                     *(int(half_level(training.curve(kind, fraction))) for kind in KINDS)))
    return pd.DataFrame(rows, columns=["model", "induction heads by step", "FV heads by step", "first",
                                       "half of induction level", "half of FV level"])


def half_levels_over_seeds(emergence: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Mean step with half of the own final level over the rows of `emergence_by_seed`, and how much later FV heads are.

    Columns step, low, high: 95 % bootstrap over models.
    """
    induction, fv = (emergence[f"half of {kind} level"].to_numpy(float) for kind in ("induction", "FV"))
    steps = {"induction heads": induction, "FV heads": fv, "FV after induction heads": fv - induction}
    rows = [(of, *bootstrap_mean(values, seed=seed)) for of, values in steps.items()]
    return pd.DataFrame(rows, columns=["half of the final level", "step", "low", "high"])


def teaser_head(trainings: list[Training]) -> tuple[str, int, int] | None:
    """The head of figure 1, as (model, layer, head), None where no model ends with an FV head.

    Of all models' final FV heads the one with the highest prefix matching at a checkpoint before it was an FV head.
    """
    highest, found = -np.inf, None
    for training in trainings:
        is_fv = training.defining["fv"] > training.fv_thresholds[:, None, None]
        earlier = np.indices(is_fv.shape)[0] < is_fv.argmax(axis=0)
        before = np.where(earlier & is_fv[-1], training.defining["induction"], -np.inf).max(axis=0)
        if before.max() > highest:
            highest = before.max()
            found = (training.model, *(int(i) for i in np.unravel_index(before.argmax(), before.shape)))
    return found


def emergence_table(training: Training) -> pd.DataFrame:
    """`Training.emergence` with the best head at the end, its score and the threshold there."""
    rows, thresholds = [], {"induction": INDUCTION_THRESHOLD, "fv": training.fv_thresholds[-1]}
    for kind, came in training.emergence.items():
        last = training.scores[DEFINED_BY[kind]][-1]  # of FV the score itself, also without labels
        layer, head = np.unravel_index(last.argmax(), last.shape)
        rows.append({"kind": kind, "first step with it": came.step, "last step without": came.last_below,
                     "best head at the end": f"L{layer}H{head}", "its score": last.max(),
                     "threshold at the end": thresholds[kind]})
    return pd.DataFrame(rows).astype({"first step with it": "Int64", "last step without": "Int64"})


def fv_emergence_interval(training: Training, *, seed: int) -> tuple[float, float]:
    """95 % interval of the step at which the best head, chosen anew at each, is an FV head: bootstrap over tasks."""
    by_task = training.fv_by_task
    drawn = np.random.default_rng(seed).integers(by_task.shape[1], size=(1000, by_task.shape[1]))
    best = np.stack([by_task[:, tasks].mean(axis=1).max(axis=1) for tasks in drawn])
    best = np.where(training.reads_labels, best, -np.inf)
    return emergence_interval(training.steps, best, training.fv_thresholds)


def statistics_table(emergence: pd.DataFrame, transitions: pd.DataFrame, *, model: str) -> pd.DataFrame:
    """Both as rows of the table `statistics`; a kind that never emerged has an infinite step."""
    steps = emergence.set_index("kind")[["last step without", "first step with it"]].astype(float)
    came, before = steps["first step with it"].fillna(np.inf), steps["last step without"].fillna(-np.inf)
    rows = [number(f"emergence step, {kind}", came[kind], before[kind], came[kind], n=1) for kind in steps.index]
    rows += [number(f"heads, {row['order']}", row["heads"], p_value=row["p"], n=transitions["heads"].sum())
             for _, row in transitions.iterrows()]
    return table_of(rows, notebook="training_dynamics", model=model)
