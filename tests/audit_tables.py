"""The tables of a suite as the audit of the ledger reads them, with pandas alone."""

import numpy as np
from scipy import stats

from tests import audit_plain as plain
from tests.audit_plain import FV, PREFIX


class Suite:
    """The tables of a suite, read with pandas."""

    def __init__(self, results, models, sizes, shares):
        self.models, self.sizes, self.shares = models, sizes, shares
        for kind in ("scores", "accuracy", "ablations", "effects", "executions", "patterns", "pattern_effects"):
            setattr(self, kind, {model: rows for model, rows in plain.read(results, kind, models).groupby("model")})
        self.all_scores, self.all_accuracy = (
            plain.read(results, kind, models, last=False) for kind in ("scores", "accuracy"))
        self.followed = [model for model, steps in models.items() if len(steps) > 1]
        self.losses, self.losses_last = ({
            model: plain.losses(rows, shares["ablated_fraction"], positions) for model, rows in self.ablations.items()}
            for positions in ("all", "last"))

    def kinds(self, model):
        count = plain.kinds(self.scores[model], self.accuracy[model])
        return {kind for kind, n in count.items() if n}

    def by_step(self, model):
        """Per step its scores and accuracies."""
        return [(step, *(table[(table["model"] == model) & (table["step"] == step)] for table in
                         (self.all_scores, self.all_accuracy))) for step in self.models[model]]

    def curve(self, model, score):
        """Mean of the top heads by step."""
        values = [plain.heads(scores, score) for _, scores, _ in self.by_step(model)]
        return np.array([at.ravel()[plain.top(at, self.shares["top_fraction"])].mean() for at in values])

    def crossings(self, model):
        """Per kind and head the place of the first step with the score, and by step whether the model has a head.

        FV scores by the highest bar of all steps and, as "fv, own", by each step's own.
        """
        steps = self.by_step(model)
        prefix = np.array([plain.heads(scores, PREFIX).ravel() for _, scores, _ in steps])
        fv = np.array([plain.heads(scores, FV).ravel() for _, scores, _ in steps])
        reads = np.array([_reads(accuracy) for *_, accuracy in steps])
        bars = np.array([plain.threshold(scores) for _, scores, _ in steps])
        first = {"induction": _first(prefix > 0.3), "fv": _first((fv > bars.max()) & reads[:, None]),
                 "fv, own": _first((fv > bars[:, None]) & reads[:, None])}
        has = {"induction": (prefix > 0.3).any(1), "fv": (fv > bars[:, None]).any(1) & reads}
        return first, has


def _reads(accuracy):
    gap = plain.label_gap(accuracy)
    return bool(gap.mean() >= 0.05 and stats.ttest_1samp(gap, 0, alternative="greater").pvalue < 0.05)


def _first(above):
    return np.where(above.any(0), above.argmax(0), len(above)).astype(float)
