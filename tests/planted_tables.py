"""Tables of a suite that was never measured: what is true of its models is written into them.

`PlantedTables` writes one table at a time from what its heads do; `PlantedSuite` reads them with sizes as given.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.provenance import provenance
from icl_lib.tables import write_table

SHAPE = (4, 10)  # layers and heads per layer
N_TASKS = 8
MADE_BY = provenance(suite="planted", seed=0, dtype="", device="", bos="", parameters={})
Heads = list[tuple[int, int]]


@dataclass(frozen=True)
class PlantedSuite(SuiteTables):
    """`SuiteTables` of models that are nowhere: `parameters` gives their sizes."""

    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> pd.Series:
        return pd.Series({model: self.parameters.get(model, 1000) for model in self.models})


class PlantedTables:
    """Writes tables into a results folder and remembers which models and steps have them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.steps: dict[str, dict[str, list[int]]] = {"scores": {}, "ablations": {}, "effects": {}, "executions": {}}

    def suite(self, parameters: dict[str, int] | None = None, **options) -> PlantedSuite:
        """The suite of all tables written so far."""
        ablated = self.steps["ablations"] | self.steps["effects"]
        return PlantedSuite(self.folder, self.steps["scores"], ablated, self.steps["executions"],
                            parameters=parameters or {}, **options)

    def scores(self, model: str, step: int = 100, *, induction=None, fv=None, n_tasks: int = N_TASKS, null=0.001):
        """Scores of all heads. `induction`: attention mass [layer, head], half of prefix matching; `fv`: mean FV score.

        Scoring tasks differ by up to a tenth from the mean; the null has three draws with `null` for every head.
        """
        induction = background(SHAPE) if induction is None else np.asarray(induction, dtype=float)
        fv = background(induction.shape) / 100 if fv is None else np.asarray(fv, dtype=float)
        spread = 1 + np.linspace(-0.1, 0.1, n_tasks) if n_tasks > 1 else np.ones(1)
        parts = [("induction_attention_mass", "", induction), ("induction_prefix_matching", "", 2 * induction)]
        parts += [("fv", f"task {i}", fv * scale) for i, scale in enumerate(spread)]
        parts += [("fv_null", f"draw {i}", np.full(fv.shape, null)) for i in range(3)]
        rows = [(score, task, layer, head, values[layer, head]) for score, task, values in parts
                for layer, head in np.ndindex(*values.shape)]
        self._write("scores", model, step, pd.DataFrame(rows, columns=["score", "task", "layer", "head", "value"]))

    def accuracy(self, model: str, step: int = 100, *, clean: float = 0.8, shuffled: float = 0.3):
        """Ten-shot accuracy on scoring tasks with clean and with shuffled labels, and the token-loss difference."""
        rows = [(10, labels, f"task {i}", "abstractive", "scoring", "first_token_accuracy", value)
                for labels, value in (("clean", clean), ("shuffled", shuffled)) for i in range(N_TASKS)]
        rows.append((0, "clean", "documents", "documents", "documents", "token_loss_difference", 1.0))
        columns = ["n_shots", "labels", "task", "task_type", "split", "metric", "value"]
        self._write("accuracy", model, step, pd.DataFrame(rows, columns=columns))

    def effects(self, model: str, rows, step: int = 100, *, fraction: float = 0.1, half: float = 0.1, positions="all"):
        """Effects against every control; `rows`: metric, ranking, excluded, value, and if wanted the controls."""
        found = []
        for metric, ranking, excluded, value, *rest in rows:
            for control in rest[0] if rest else ("none", "random", "random_layer_matched"):
                found.append({
                    "metric": metric, "ranking": ranking, "excluded": "top 10 %" if excluded else "",
                    "control": control,
                    "value": value if control == "random_layer_matched" else value + 0.05})
        table = pd.DataFrame(found)
        self._write("effects", model, step, table.assign(
            replacement="mean", positions=positions, fraction=fraction, n_heads=4, n_draws=3, low=table["value"] - half,
            high=table["value"] + half, p_value=0.01, n_prompts=80))

    def ablations(self, model: str, clean: dict[str, float], lost: dict[tuple[str, str], list[float]] | None = None,
                  step: int = 100):
        """Values of the clean model by metric; by metric and ranking what tasks lose with 10 % of heads ablated.

        "random_layer_matched" is matched to FV heads, "random_layer_matched induction" to induction heads.
        """
        rows = [(metric, "none", f"task {i}", value) for metric, value in clean.items() for i in range(N_TASKS)]
        rows += [(metric, ranking, f"task {i}", clean[metric] - loss) for (metric, ranking), by_task in
                 (lost or {}).items() for i, loss in enumerate(by_task)]
        table = pd.DataFrame(rows, columns=["metric", "ranking", "task", "value"])
        edited, kind = table["ranking"] != "none", table["ranking"].str.partition(" ")
        self._write("ablations", model, step, table.assign(
            ranking=kind[0], replacement=np.where(edited, "mean", "none"), positions=np.where(edited, "all", "none"),
            excluded="", matched=np.where(kind[0] == "random_layer_matched", kind[2].replace("", "fv"), ""),
            fraction=np.where(edited, 0.1, 0.0), n_heads=np.where(edited, 4, 0), draw=0))

    def executions(self, model: str, accuracy: dict[str, list[float]], step: int = 100, *, n_layers: int = 6):
        """Accuracy on shuffled prompts by task with the vector of each set of heads, best at a third of the layers.

        "none" is with nothing added.
        """
        rows = [(heads, layer, f"task {i}", value if layer in (-1, n_layers // 3) else 0.1)
                for heads, by_task in accuracy.items() for layer in ([-1] if heads == "none" else range(n_layers))
                for i, value in enumerate(by_task)]
        table = pd.DataFrame(rows, columns=["heads", "layer", "task", "value"])
        self._write("executions", model, step, table.assign(preset="task", prompts="shuffled", draw=0, items="all"))

    def patterns(self, model: str, lost: float | None, zero: dict[str, list[float]], step: int = 100, *,
                 controls=("none", "random", "random_any", "random_layer_matched"), half: float = 0.1):
        """A pattern, of which `lost` is lost at 1 %, more at 3 % (None: it was not ablated), and the paper's tasks.

        `zero`: by what ("none", "induction", "random_layer_matched") accuracy of 0.8 at ten demonstrations falls by
        task without any.
        """
        columns = dict(metric="label_accuracy", excluded="", matched="", fraction=0.0, n_heads=0, draw=0, ranked_by="")
        rows = [columns | dict(task_set="patterns", task="repetition", n_shots=10, ranking="none", value=0.8)]
        for ranking, by_task in zero.items():
            edited = {} if ranking == "none" else {"ranked_by": "prefix matching", "fraction": 0.03, "n_heads": 2}
            rows += [columns | edited | dict(
                task_set="paper", metric="first_token_accuracy", task=f"task {i}", n_shots=n, ranking=ranking,
                matched="induction" if ranking == "random_layer_matched" else "", value=0.8 - fall * (n == 0))
                for i, fall in enumerate(by_task) for n in (10, 0)]
        self._write("patterns", model, step, pd.DataFrame(rows))
        found = [
            dict(task_set="patterns", task="", n_shots=n, ranking="induction", control=control, fraction=share,
                 value=(value or 0) + 0.5 * (control != "random_layer_matched"))
            for n, share, value in ((10, 0.01, lost), (10, 0.03, 2), (5, 0.01, 2)) for control in controls
        ]
        if lost is not None:
            found = pd.DataFrame(found)
            self._write("pattern_effects", model, step, found.assign(
                metric="label_accuracy", ranked_by="prefix matching", excluded="", n_heads=1, n_draws=3, p_value=0.01,
                low=found["value"] - half, high=found["value"] + half, n_prompts=30))
        self.steps["ablations"].setdefault(model, [step])

    def _write(self, kind: str, model: str, step: int, table: pd.DataFrame):
        own = self.steps.setdefault(kind, {}).setdefault(model, [])
        own.append(step)
        own.sort()
        for name, value in (("standard_error", 0.01), ("n_prompts", 10)):
            if not kind.endswith("effects"):
                table = table.assign(**{name: value})
        path = self.folder / kind / model / f"step{step}.parquet"
        write_table(table.assign(model=model, step=step), path, schema_name=kind, provenance=MADE_BY)


def background(shape=SHAPE, seed: int = 0) -> np.ndarray:
    """A small score for every head, all different."""
    n = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(np.arange(1, n + 1)).reshape(shape) / n / 50


def with_heads(heads: Heads, score: float, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """The background with some heads that have a score, each a little less than the one before."""
    values = background(shape, seed) * min(1.0, score)
    for rank, (layer, head) in enumerate(heads):
        values[layer, head] = score * (1 - 0.002 * rank)
    return values


def layer(index: int, n: int = 4, start: int = 0) -> Heads:
    """The first heads of a layer."""
    return [(index, head) for head in range(start, start + n)]
