"""The tables of a suite as the claims' statistics read them; what is missing is left out."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from icl_lib.analysis import dynamics, scaling
from icl_lib.analysis.reading import found_tables, one_intervention
from icl_lib.heads import head_count
from icl_lib.kinds import heads_of_kind


@dataclass(frozen=True)
class SuiteTables:
    """The tables that the statistics read, and the shares of heads that they are read at.

    `models`, `ablated` and `executed` give each model's steps; the last one counts where one step is asked for. Tables
    that are missing are left out; a statistic without tables has no estimates.
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
    def sizes(self) -> pd.DataFrame:
        """Columns model, parameters; see `scaling.model_sizes`."""
        return scaling.model_sizes(self.models)

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Each model's table `scores` at its last step."""
        found = {model: self._read("scores", model, steps) for model, steps in self.models.items()}
        return {model: table for model, table in found.items() if len(table)}

    @cached_property
    def kinds(self) -> dict[str, set[str]]:
        """Which kinds of heads each model has at its last step; see `kinds.heads_of_kind`."""
        found = {}
        for model, scores in self.scores.items():
            accuracy = self._read("accuracy", model, self.models[model])
            masks = heads_of_kind(scores, accuracy if len(accuracy) else None)
            found[model] = {kind for kind, mask in masks.items() if mask.any()}
        return found

    @cached_property
    def followed(self) -> dict[str, pd.DataFrame]:
        """The tables `scores` of all steps of the models that have at least two."""
        found = {model: self._read("scores", model, steps, last=False)
                 for model, steps in self.models.items() if len(steps) >= 2}
        return {model: table for model, table in found.items() if len(table) and table["step"].nunique() >= 2}

    def steps(self, model: str) -> list[int]:
        """The steps of a followed model that were scored, in rising order."""
        return sorted(self.followed[model]["step"].unique().tolist())

    def coarse(self, model: str) -> bool:
        """Whether a followed model has fewer than two checkpoints after step 0, so that nothing can be in order."""
        return sum(step > 0 for step in self.steps(model)) < 2

    @cached_property
    def emergence(self) -> dict[str, pd.DataFrame]:
        """When each kind came in each followed model, by kind; see `dynamics.emergence_table`."""
        return {model: dynamics.emergence_table(scores, self._accuracies(model)).set_index("kind")
                for model, scores in self.followed.items()}

    @cached_property
    def transitions(self) -> dict[str, pd.DataFrame]:
        """Heads by which score came first, of each followed model; see `dynamics.transition_table`."""
        return {model: dynamics.transition_table(scores, self._accuracies(model), seed=self.seed).set_index("order")
                for model, scores in self.followed.items()}

    def curves(self, model: str) -> dict[str, pd.Series]:
        """Per kind the mean ranking score of the top heads of a followed model, selected at each step, by step."""
        curves = dynamics.top_score_curves(self.followed[model], fraction=self.top_fraction)
        curves = curves[curves["selection"] == "selected at each checkpoint"]
        return {str(kind): rows.set_index("step")["value"] for kind, rows in curves.groupby("kind")}

    def n_top(self, scores: pd.DataFrame) -> int:
        """How many heads of a model are its top heads."""
        return head_count(self.top_fraction, len(scores[["layer", "head"]].drop_duplicates()))

    @cached_property
    def effects(self) -> dict[str, pd.DataFrame]:
        """Each model's table `effects`: the mean at all positions, at the share nearest to the one asked for."""
        found = {model: self._read("effects", model, steps) for model, steps in self.ablated.items()}
        return {model: one_intervention(table, self.ablated_fraction) for model, table in found.items() if len(table)}

    def ablations(self, model: str) -> pd.DataFrame:
        """A model's table `ablations`: the clean model and the mean at all positions, plain rankings, one share."""
        table = self._read("ablations", model, self.ablated[model])
        if table.empty:
            return table
        edited = one_intervention(table, self.ablated_fraction)
        return pd.concat([table[table["ranking"] == "none"], edited[edited["excluded"] == ""]])

    def executions(self, model: str) -> pd.DataFrame:
        """A model's table `executions`, each task's own vector, all items."""
        table = self._read("executions", model, self.executed[model])
        return table if table.empty else table[(table["preset"] == "task") & (table["items"] == "all")]

    def patterns(self, model: str) -> pd.DataFrame:
        """A model's table `patterns`."""
        return self._read("patterns", model, self.ablated[model])

    def pattern_effects(self, model: str) -> pd.DataFrame:
        """A model's table `pattern_effects`."""
        return self._read("pattern_effects", model, self.ablated[model])

    def accuracy(self, model: str) -> pd.Series:
        """Mean accuracy over tasks seen in training at the most demonstrations, by step."""
        table = self._read("accuracy", model, self.models[model], last=False)
        rows = table.query("metric == 'first_token_accuracy' and labels == 'clean' and split != 'unseen'")
        return rows[rows["n_shots"] == rows["n_shots"].max()].groupby("step")["value"].mean()

    def _accuracies(self, model: str) -> pd.DataFrame | None:
        table = self._read("accuracy", model, self.models[model], last=False)
        return table if len(table) else None

    def _read(self, kind: str, model: str, steps: list[int], *, last: bool = True) -> pd.DataFrame:
        return found_tables(self.results, kind, {model: steps[-1:] if last else steps})
