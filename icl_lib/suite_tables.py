"""The tables of a suite as the claims' statistics read them; what is missing is left out."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from icl_lib import dynamics, scaling
from icl_lib.tables import SCHEMAS, read_table


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
    induction_threshold: float = 0.3
    null_quantile: float = 0.99
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
    def followed(self) -> dict[str, pd.DataFrame]:
        """The tables `scores` of all steps of the models that have at least three."""
        found = {model: self._read("scores", model, steps, last=False)
                 for model, steps in self.models.items() if len(steps) >= 3}
        return {model: table for model, table in found.items() if len(table) and table["step"].nunique() >= 3}

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Effects of the mean at all positions at the ablated share, with parameters; see `scaling.effects_by_size`."""
        found = [self._read("effects", model, steps) for model, steps in self.ablated.items()]
        found = [table for table in found if len(table)]
        return scaling.effects_by_size(pd.concat(found), self.sizes, fraction=self.ablated_fraction) if found else \
            pd.DataFrame(columns=["model", "metric", "ranking", "excluded", "parameters"])

    @cached_property
    def transitions(self) -> dict[str, pd.DataFrame]:
        """Heads by which score came first, of each followed model; see `dynamics.transition_table`."""
        return {model: dynamics.transition_table(
                    scores, induction_threshold=self.induction_threshold, null_quantile=self.null_quantile,
                    seed=self.seed).set_index("order")
                for model, scores in self.followed.items()}

    def ablations(self, model: str) -> pd.DataFrame:
        """A model's table `ablations`: the clean model and the mean at all positions, plain rankings, one share."""
        table = self._read("ablations", model, self.ablated[model])
        if table.empty:
            return table
        edited = table[(table["replacement"] == "mean") & (table["positions"] == "all") & (table["excluded"] == "")]
        # The historical protocols measure the loss alone at further shares.
        at = edited[edited["metric"] == "first_token_accuracy"]["fraction"].unique()
        nearest = at[np.abs(at - self.ablated_fraction).argmin()]
        return pd.concat([table[table["ranking"] == "none"], edited[edited["fraction"] == nearest]])

    def executions(self, model: str) -> pd.DataFrame:
        """A model's table `executions`, each task's own vector, all items."""
        table = self._read("executions", model, self.executed[model])
        return table if table.empty else table[(table["preset"] == "task") & (table["items"] == "all")]

    def accuracy(self, model: str) -> pd.Series:
        """Mean accuracy over tasks seen in training at the most demonstrations, by step."""
        table = self._read("accuracy", model, self.models[model], last=False)
        rows = table.query("metric == 'first_token_accuracy' and labels == 'clean' and split != 'unseen'")
        return rows[rows["n_shots"] == rows["n_shots"].max()].groupby("step")["value"].mean()

    def _read(self, kind: str, model: str, steps: list[int], *, last: bool = True) -> pd.DataFrame:
        paths = [self.results / kind / model / f"step{step}.parquet" for step in (steps[-1:] if last else steps)]
        found = [read_table(path, schema_name=kind) for path in paths if path.is_file()]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(SCHEMAS[kind]))
