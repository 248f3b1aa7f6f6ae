"""The real templates, run on the smallest lab model at its random first step and a little later."""

import nbformat
import numpy as np
import pytest

from icl_lib.dynamics import score_array
from icl_lib.tables import read_table
from workflow.run import run_notebook
from workflow.suite import TEMPLATES

MODEL, STEPS = "lab-40k", [0, 4096]
SMALL = {
    "scoring": {"n_prompts": 2, "n_sequences": 4, "n_null_draws": 2, "shots": [0, 10]},
    "ablation": {"n_prompts": 2, "n_documents": 4, "n_draws": 1, "fractions": [0.1, 0.3]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder filled by running every template once."""
    folder = tmp_path_factory.mktemp("results")
    common = {"suite": "test", "seed": 0, "results": str(folder)}

    def run(notebook, name, **parameters):
        executed = folder / "notebooks" / f"{name}.ipynb"
        run_notebook(TEMPLATES / f"{notebook}.ipynb", executed, common | parameters, log=folder / f"{name}.log")

    for step in STEPS:
        run("scoring", f"scoring{step}", model=MODEL, step=step, **SMALL["scoring"])
    run("ablation", "ablation", model=MODEL, step=STEPS[-1], **SMALL["ablation"])
    run("training_dynamics", "training_dynamics", model=MODEL, steps=STEPS)
    models = {"models": {MODEL: STEPS}, "ablated_models": {MODEL: STEPS[-1:]}}
    run("model_scaling", "model_scaling", **models)
    run("index", "index", **models)
    return folder


def page_text(results, name):
    """All text output of an executed notebook, and its HTML."""
    notebook = nbformat.read(results / "notebooks" / f"{name}.ipynb", as_version=4)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type in ("error", "stream")], "an error, a warning or a print"
    data = [o.data for o in outputs if "data" in o]
    return "\n".join(d.get("text/markdown", "") + d.get("text/html", "") for d in data)


@pytest.mark.slow
def test_scores_tell_a_trained_model_from_a_random_one(results):
    tables = [read_table(results / "scores" / MODEL / f"step{step}.parquet") for step in STEPS]
    best = [score_array(table, "induction_prefix_matching")[1].max() for table in tables]
    assert best[0] < 0.1 and best[1] > 0.6
    text = page_text(results, f"scoring{STEPS[-1]}")
    assert f"Highest prefix-matching score: {best[1]:.3f}" in text
    for table in tables:
        assert table.attrs["provenance"]["parameters"]["model"] == MODEL
        assert set(table["score"]) >= {"induction_attention_mass", "previous_token", "duplicate_token", "fv", "fv_null"}


@pytest.mark.slow
def test_ablations_hold_both_metrics_under_one_intervention(results):
    table = read_table(results / "ablations" / MODEL / f"step{STEPS[-1]}.parquet")
    edited = table[table["ranking"] != "none"]
    assert set(edited["replacement"]) == {"mean"}
    everywhere = edited[edited["positions"] == "all"]
    assert {"first_token_accuracy", "token_loss_difference"} <= set(everywhere["metric"])
    assert "token_loss_difference" not in set(edited[edited["positions"] == "last"]["metric"])
    counts = edited.groupby(["ranking", "fraction"])["n_heads"].unique()
    assert all(len(n) == 1 for n in counts) and counts["fv", 0.3] == counts["random_layer_matched", 0.3] == [3]
    assert "lost beyond random heads in the same layers" in page_text(results, "ablation")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["scoring0", "scoring4096", "ablation", "training_dynamics", "model_scaling", "index"])
def test_every_page_has_figures_with_captions_and_alternative_texts(results, page):
    html = page_text(results, page)
    n_figures = html.count('<img class="figure"')
    assert n_figures >= 1
    assert html.count("<figcaption>") == n_figures and html.count('alt=""') == 0


@pytest.mark.slow
def test_dynamics_say_when_each_kind_came(results):
    statistics = read_table(results / "statistics" / "training_dynamics" / f"{MODEL}.parquet").set_index("name")
    assert statistics.loc["emergence step, induction", "value"] == STEPS[-1]
    heads = statistics[statistics.index.str.startswith("heads, ")]["value"]
    assert heads.sum() == 12 and np.isfinite(heads).all()
    assert f"Induction heads came by step {STEPS[-1]}, after {STEPS[0]}." in page_text(results, "training_dynamics")
