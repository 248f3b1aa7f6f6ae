"""The tables of a suite as the claims' statistics read them; what is missing is left out."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pandas as pd

from icl_lib.analysis import scaling
from icl_lib.analysis.dynamics import Training, trainings
from icl_lib.analysis.reading import found_tables, one_intervention
from icl_lib.kinds import heads_of_kind
from icl_lib.names import size_of

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
    def trainings(self) -> list[Training]:
        """The models with at least two scored steps along these."""
        scores = {model: self.table("scores", model, last=False) for model in self.models}
        return [training for model, table in scores.items() if table["step"].nunique() >= 2
                for training in trainings(table, self.table("accuracy", model, last=False))]

    @cached_property
    def seeds(self) -> list[list[Training]]:
        """Trainings of models with both kinds; seeds of a size together."""
        able = [training for training in self.trainings if len(self.kinds[training.model]) == 2]
        able.sort(key=lambda training: (size_of(training.model), training.model))
        return [list(group) for _, group in groupby(able, key=lambda training: size_of(training.model))]

    @cached_property
    def effects(self) -> dict[str, dict[str, pd.DataFrame]]:
        """By positions each model's table `effects`: the mean there, at the share nearest to the one asked for."""
        tables = {model: table for model in self.ablated if len(table := self.table("effects", model))}
        return {positions: {model: one_intervention(table, self.ablated_fraction, positions=positions)
                            for model, table in tables.items()} for positions in ("all", "last")}

    @cached_property
    def ablations(self) -> dict[str, pd.DataFrame]:
        """Each model's table `ablations`: the clean model and the mean at all positions, plain rankings, one share."""
        found = {}
        for model in self.ablated:
            table = self.table("ablations", model)
            edited = one_intervention(table, self.ablated_fraction)
            found[model] = pd.concat([table[table["ranking"] == "none"], edited[edited["excluded"] == ""]])
        return found

    def executions(self, model: str) -> pd.DataFrame:
        """A model's table `executions`, each task's own vector, all items."""
        table = self.table("executions", model)
        return table[(table["preset"] == "task") & (table["items"] == "all")]

    def accuracy(self, model: str) -> pd.Series:
        """Mean accuracy over tasks seen in training at the most demonstrations, by step."""
        table = self.table("accuracy", model, last=False)
        rows = table.query("metric == 'first_token_accuracy' and labels == 'clean' and split != 'unseen'")
        return rows[rows["n_shots"] == rows["n_shots"].max()].groupby("step")["value"].mean()

    def table(self, kind: str, model: str, *, last: bool = True) -> pd.DataFrame:
        """One kind of table of a model at its last step, or at all; without rows where it is missing."""
        steps = getattr(self, _MODELS.get(kind, "ablated"))[model]
        return found_tables(self.results, kind, {model: steps[-1:] if last else steps})
