"""The tables of a suite as the claims' statistics read them; what is missing is left out."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pandas as pd

from icl_lib.analysis import dynamics, scaling, transitions
from icl_lib.analysis.reading import found_tables, one_intervention
from icl_lib.kinds import heads_of_kind
from icl_lib.names import size_of
from icl_lib.stats.emergence import Emergence, Transitions, pooled

# The field of `SuiteTables` that says which models and steps have a kind of table; the others: `ablated`.
_MODELS = {"scores": "models", "accuracy": "models", "executions": "executed"}


@dataclass(frozen=True)
class SuiteTables:
    """The tables that the statistics read, and the shares of heads that they are read at.

    `models`, `ablated` and `executed` give each model's steps; the last one counts where one step is asked for.
    """

    results: Path
    models: dict[str, list[int]]
    ablated: dict[str, list[int]]
    executed: dict[str, list[int]]
    top_fraction: float = 0.1
    overlap_fraction: float = 0.05
    ablated_fraction: float = 0.1
    seed: int = 0

    @cached_property
    def sizes(self) -> pd.Series:
        """Parameters by model; see `scaling.model_sizes`."""
        return scaling.model_sizes(self.models).set_index("model")["parameters"]

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Each model's table `scores` at its last step."""
        return {model: table for model in self.models if len(table := self.table("scores", model))}

    @cached_property
    def kinds(self) -> dict[str, set[str]]:
        """Which kinds of heads each model has at its last step; see `kinds.heads_of_kind`."""
        tables = {model: self.table("accuracy", model) for model in self.scores}
        masks = {model: heads_of_kind(scores, tables[model] if len(tables[model]) else None)
                 for model, scores in self.scores.items()}
        return {model: {kind for kind, mask in of.items() if mask.any()} for model, of in masks.items()}

    @cached_property
    def followed(self) -> dict[str, pd.DataFrame]:
        """The tables `scores` of all steps of the models that have at least two."""
        found = {model: self.table("scores", model, last=False) for model in self.models}
        return {model: table for model, table in found.items() if table["step"].nunique() >= 2}

    @cached_property
    def accuracies(self) -> dict[str, pd.DataFrame]:
        """The tables `accuracy` of all steps of the followed models."""
        return {model: self.table("accuracy", model, last=False) for model in self.followed}

    def steps(self, model: str) -> list[int]:
        """The steps of a followed model that were scored, in rising order."""
        return sorted(self.followed[model]["step"].unique().tolist())

    def coarse(self, model: str) -> bool:
        """Whether a followed model has fewer than two checkpoints after step 0, so that nothing can be in order."""
        return sum(step > 0 for step in self.steps(model)) < 2

    @cached_property
    def emergence(self) -> dict[str, dict[str, Emergence]]:
        """When each kind came in each followed model; see `dynamics.emergence`."""
        return {model: dynamics.emergence(scores, self.accuracies[model]) for model, scores in self.followed.items()}

    @cached_property
    def seeds(self) -> list[list[str]]:
        """Followed models with both kinds; seeds of a size together."""
        able = [model for model in self.followed if len(self.kinds[model]) == 2]
        return [list(group) for _, group in groupby(sorted(able, key=lambda m: (size_of(m), m)), key=size_of)]

    @cached_property
    def _counts(self) -> dict[str, Transitions]:
        return {model: transitions.transitions(self.followed[model], self.accuracies[model], seed=self.seed + i)
                for group in self.seeds for i, model in enumerate(m for m in group if not self.coarse(m))}

    def transitions(self, models: list[str], among: str = "all") -> pd.DataFrame:
        """Heads of models together by which score came first; chance among all heads or at the same "place"."""
        counts = pooled(self._counts[model] for model in models) if among == "all" else (
            transitions.transitions_at_places(*self.together(models), seed=self.seed))
        return counts.table().set_index("order")

    def together(self, models: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables `scores` and `accuracy` of all steps of several followed models."""
        return tuple(pd.concat([of[model] for model in models]) for of in (self.followed, self.accuracies))

    def curves(self, model: str) -> dict[str, pd.Series]:
        """Per kind the mean ranking score of the top heads of a followed model, selected at each step, by step."""
        curves = dynamics.seed_curves(self.followed[model], fraction=self.top_fraction)
        return {str(kind): rows.set_index("step")["value"] for kind, rows in curves.groupby("kind")}

    @cached_property
    def effects(self) -> dict[str, dict[str, pd.DataFrame]]:
        """By positions each model's table `effects`: the mean there, at the share nearest to the one asked for."""
        tables = {model: table for model in self.ablated if len(table := self.table("effects", model))}
        return {positions: {model: one_intervention(table, self.ablated_fraction, positions=positions)
                            for model, table in tables.items()} for positions in ("all", "last")}

    def ablations(self, model: str) -> pd.DataFrame:
        """A model's table `ablations`: the clean model and the mean at all positions, plain rankings, one share."""
        table = self.table("ablations", model)
        edited = one_intervention(table, self.ablated_fraction)
        return pd.concat([table[table["ranking"] == "none"], edited[edited["excluded"] == ""]])

    def executions(self, model: str) -> pd.DataFrame:
        """A model's table `executions`, each task's own vector, all items."""
        table = self.table("executions", model)
        return table[(table["preset"] == "task") & (table["items"] == "all")]

    def accuracy(self, model: str) -> pd.Series:
        """Mean accuracy over tasks seen in training at the most demonstrations, by step."""
        table = self.accuracies[model]
        rows = table.query("metric == 'first_token_accuracy' and labels == 'clean' and split != 'unseen'")
        return rows[rows["n_shots"] == rows["n_shots"].max()].groupby("step")["value"].mean()

    def table(self, kind: str, model: str, *, last: bool = True) -> pd.DataFrame:
        """One kind of table of a model at its last step, or at all; without rows where it is missing."""
        steps = getattr(self, _MODELS.get(kind, "ablated"))[model]
        return found_tables(self.results, kind, {model: steps[-1:] if last else steps})
