"""The ablations of one model as its notebook names them: heads, the value that replaces them, positions, a metric."""

from pathlib import Path

from icl_lib.ablation.conditions import Condition, curve_conditions
from icl_lib.ablation.effects import effects_table
from icl_lib.ablation.measure import f1_ceilings, loss_curves, measure, measure_protocol
from icl_lib.ablation.table import Measurement, ablation_table, zero_shot
from icl_lib.data.documents import read_documents
from icl_lib.data.sources import read_tasks
from icl_lib.forward.replacements import shared_value
from icl_lib.load import load_model
from icl_lib.measurements import first_prompts, in_split, prompts_of, write_measured
from icl_lib.saved import SavedResults


class Ablations:
    """A model with its prompts and documents; each call measures one metric under one edit of all conditions.

    An edit replaces the outputs of a condition's heads `by` a value made from the scoring tasks' clean prompts
    (`forward.replacements`) `at` the last position or at all. Few-shot accuracy is measured on the evaluation tasks.
    Finished parts are kept in the folder `partial`, so that interrupted work goes on there.
    """

    def __init__(
        self, model: str, step: int, task_files: str, documents: str, *, n_prompts: int, n_shots: int, n_documents: int,
        seed: int, spread_draws: bool, partial: Path,
    ):
        self.of_run, self.seed, self.source, self.partial = dict(name=model, step=step), seed, documents, partial
        self.model, self.tasks = load_model(model, step=None if step < 0 else step), read_tasks(task_files)
        self.scoring, self.evaluation, self.without = (
            prompts_of(self.model, in_split(self.tasks, split), n_prompts=n_prompts, n_shots=shots, seed=seed)
            for split, shots in (("scoring", n_shots), ("evaluation", n_shots), ("evaluation", 0)))
        self.documents = read_documents(
            documents, self.model.tokenizer, n_documents=n_documents, length=512, seed=seed)
        self.how = dict(seed=seed, spread_draws=spread_draws, saved=SavedResults(partial, self.model))
        self.measured: list[Measurement] = []

    def accuracy(self, conditions: list[Condition], *, by: str, at: str, n_prompts: int = 0) -> None:
        """Few-shot metrics on the first `n_prompts` prompts of each task, 0 for all."""
        self.measured += self._edited(conditions, first_prompts(self.evaluation, n_prompts), None, by, at)

    def token_loss(self, conditions: list[Condition], *, by: str, at: str, window: int) -> None:
        self.measured += self._edited(conditions, {}, self.documents, by, at, loss_window=window)

    def zero_shot_accuracy(self, conditions: list[Condition], *, by: str, at: str) -> None:
        """Accuracy on the evaluation tasks without demonstrations."""
        self.measured += zero_shot(self._edited(conditions, self.without, None, by, at))

    def protocol(self, name: str, conditions: list[Condition]) -> None:
        """Both metrics as a historical protocol measures them."""
        self.measured += measure_protocol(
            name, self.model, conditions, self.evaluation, self.scoring, self.documents, seed=self.seed)

    def write(
        self, paths: dict[str, Path], conditions: list[Condition], *, curves_at: float, n_curve_documents: int, **given
    ) -> None:
        """Write the tables ablations, effects and curves, the last at one share of heads; see `write_measured`."""
        mean = shared_value(self.model, self.scoring, "mean", self.how["saved"])
        tables = {
            "ablations": ablation_table(
                self.measured, ceilings=f1_ceilings(self.model, self.evaluation), **self.of_run),
            "effects": effects_table(self.measured, **self.of_run),
            "curves": loss_curves(self.model, self.documents[:n_curve_documents],
                                  curve_conditions(conditions, curves_at), mean, **self.of_run)}
        write_measured(tables, paths, self.model, seed=self.seed, tasks=self.tasks, documents=self.source,
                       partial=self.partial, **given)

    def _edited(self, conditions, prompts, documents, by: str, at: str, **options) -> list[Measurement]:
        return measure(self.model, conditions, prompts, self.scoring, documents, replacement=by, positions=at,
                       **self.how, **options)
