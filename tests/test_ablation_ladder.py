"""The full grid over the ladder: its committed table, what the page counts in it, and how it is collected."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icl_lib.forward.replacements import REPLACEMENTS
from icl_lib.provenance import provenance
from icl_lib.tables import write_table
from lab import grid as command
from lab.files import GRID
from lab.grid_figures import _differences as differences
from lab.grid_table import (
    COLUMNS,
    cell_counts,
    counts_table,
    draws_words,
    left_out_sentence,
    order_sentence,
    read_grid,
    statistics_rows,
)
from tests.test_ablation_protocols import scores
from workflow.notebooks import Run
from workflow.suite import read_suite


def cell(model="m", metric="first_token_accuracy", replacement="mean", positions="all", fraction=0.1, n_heads=1,
         of_kind=3, controls=("random_layer_matched", "none"), **by_ranking):
    """Rows of one cell: ranking to (value, low, high) beyond layer-matched heads; twice that against no ablation."""
    return [{"model": model, "metric": metric, "replacement": replacement, "positions": positions, "fraction": fraction,
             "ranking": ranking, "excluded": "", "control": control, "of_kind": of_kind, "n_heads": n_heads,
             "n_draws": 9 * times % 18, "n_prompts": 60, "value": times * value, "low": times * low,
             "high": times * high, "p_value": 0.001 if low > 0 or high < 0 else 0.5}
            for times, control in ((1, "random_layer_matched"), (2, "none")) if control in controls
            for ranking, (value, low, high) in by_ranking.items()]


FV_MORE = {"fv": (0.5, 0.4, 0.6), "induction": (0.0, -0.1, 0.1), "fv_minus_induction": (0.5, 0.3, 0.7)}
INDUCTION_MORE = {"fv": (0.1, -0.1, 0.3), "induction": (0.4, 0.3, 0.5), "fv_minus_induction": (-0.3, -0.4, -0.2)}
ALIKE = {"fv": (0.2, 0.1, 0.3), "induction": (0.2, 0.1, 0.3), "fv_minus_induction": (0.0, -0.1, 0.1)}


def test_fractions_that_come_to_the_same_heads_are_one_cell():
    rows = cell(fraction=0.01, **FV_MORE) + cell(fraction=0.03, **FV_MORE) + cell(fraction=0.2, n_heads=2, **ALIKE)
    rows += cell(replacement="zero", fraction=0.2, n_heads=2, **INDUCTION_MORE)
    counts = cell_counts(pd.DataFrame(rows)[COLUMNS]).iloc[0]
    assert counts[["cells", "fv", "induction", "fv_more", "induction_more"]].tolist() == [3, 2, 2, 1, 1]
    assert (counts["lowest"], counts["highest"]) == (-0.3, 0.5)


def test_holm_takes_away_what_one_cell_alone_would_show():
    rows = [row for i in range(60) for row in cell(replacement=str(i), **(ALIKE if i else FV_MORE))]
    table = pd.DataFrame(rows)[COLUMNS]
    assert cell_counts(table.iloc[:3]).iloc[0][["fv", "fv_holm"]].tolist() == [1, 1]
    assert cell_counts(table).iloc[0][["fv", "fv_holm"]].tolist() == [60, 0]


def test_the_sentence_says_in_which_models_the_order_holds():
    rows = cell("small", **ALIKE) + cell("middle", **FV_MORE) + cell("large", **FV_MORE)
    rows += cell("large", replacement="zero", **INDUCTION_MORE)
    rows += [row for model in ("small", "middle", "large")
             for row in cell(model, metric="token_loss_difference", **INDUCTION_MORE)]
    text = order_sentence(cell_counts(pd.DataFrame(rows)[COLUMNS]))
    accuracy, loss = text.split("**token-loss difference**")
    assert "in 2 of 4 cells of 3 models that have both, less in 1 " in accuracy
    assert "more for FV heads somewhere and for induction heads nowhere in middle;" in accuracy
    assert "more for either kind somewhere in large" in accuracy
    assert "more for induction heads somewhere and for FV heads nowhere in small, middle, large" in loss


def test_models_without_a_kind_or_a_control_are_left_out_and_named():
    rows = cell("both", **FV_MORE) + cell("neither", of_kind=0, **FV_MORE)
    rows += cell("bare", controls=("none",), **FV_MORE)
    one_kind = cell("induction only", **INDUCTION_MORE)
    rows += [row | {"of_kind": 3 * (row["ranking"] == "induction")} for row in one_kind]
    grid = pd.DataFrame(rows)[COLUMNS]
    counts = cell_counts(grid).set_index("model")
    assert counts.index.tolist() == ["both", "induction only"]
    assert counts.loc["both", ["cells", "fv", "induction", "fv_more"]].tolist() == [1, 1, 0, 1]
    assert counts.loc["induction only", ["cells", "fv", "induction", "induction_more"]].tolist() == [0, 0, 1, 0]
    text = order_sentence(cell_counts(grid))
    assert "in 1 of 1 cells of 1 models that have both" in text and "neither" not in text
    assert left_out_sentence(grid) == ("Left out: no FV heads in neither, induction only; no induction heads in "
                                       "neither; no valid control in bare.")
    assert left_out_sentence(pd.DataFrame(cell(**FV_MORE))[COLUMNS]) == ""
    assert draws_words(grid) == "9 to 9 different draws"
    assert counts_table(cell_counts(grid))["drops more for FV heads"].sum() == 1


def test_the_committed_table_is_the_whole_grid():
    suite = read_suite("config/grid.yaml")
    grid, given = read_grid(GRID), suite.given(Run("ablation", "lab-1m", 0))
    assert list(dict.fromkeys(grid["model"])) == list(suite.chosen["ablation"])
    assert sorted(grid["fraction"].unique()) == given["fractions"] and (grid["of_kind"] > 0).all()
    for (_, control, _, _), rows in grid[grid["excluded"] == ""].groupby(["model", "control", "metric", "ranking"]):
        assert not rows.duplicated(["replacement", "positions", "fraction"]).any()
        assert len(rows) == 5 * 2 * len(given["fractions"]) or control != "none"
        assert rows["n_draws"].between(control != "none", given["n_draws"] * (control != "none")).all()
    assert set(grid["control"]) == {"none", "random_layer_matched"} and left_out_sentence(grid) == ""
    assert (grid["low"] <= grid["value"]).all() and (grid["value"] <= grid["high"]).all()
    assert len(statistics_rows(grid).drop_duplicates(["model", "name"])) == len(grid)


def test_the_figure_marks_the_cells_whose_interval_is_clear_of_zero():
    kinds = itertools.cycle([FV_MORE, ALIKE, INDUCTION_MORE, ALIKE, ALIKE])
    places = list(itertools.product(("a", "b"), REPLACEMENTS, ("all", "last"), (0.1, 0.2)))
    rows = [row for model, replacement, positions, fraction in places for row in cell(
        model, replacement=replacement, positions=positions, fraction=fraction, **next(kinds),
        controls=("none",) if (model, fraction) == ("b", 0.2) else ("none", "random_layer_matched"))]
    grid = pd.DataFrame(rows + cell("c", of_kind=0, **FV_MORE))[COLUMNS]
    axes = differences(grid, "first_token_accuracy", "accuracy lost")
    assert [ax.get_title() for ax in axes] == ["a", "b"]  # c has neither kind
    for ax, model in zip(axes, "ab", strict=True):
        own = grid[(grid["model"] == model) & (grid["ranking"] == "fv_minus_induction")
                   & (grid["control"] == "random_layer_matched")]
        clear = own[(own["low"] > 0) | (own["high"] < 0)]
        assert len(ax.collections[1].get_offsets()) == len(clear)
        values = np.ma.filled(ax.collections[0].get_array(), np.nan).ravel()
        np.testing.assert_allclose(sorted(values[~np.isnan(values)]), sorted(own["value"]))
    plt.close("all")


@pytest.mark.parametrize(("text", "message"), [
    (None, "cannot be read (FileNotFoundError)"), ("", "cannot be read (EmptyDataError)"),
    ("model,value\nm,1\n", "has the columns model, value, expected model, metric"),
    (",".join(name for name in COLUMNS if name not in ("control", "of_kind")) + "\n", "expected model, metric"),
])  # fmt: skip
def test_a_table_that_is_not_the_grids_is_refused_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "grid.csv").write_text(text)
    with pytest.raises(ValueError, match="make sweep SUITE=grid") as error:
        read_grid(tmp_path / "grid.csv")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A suite of two models whose tables `effects` are there, the larger one listed first."""
    monkeypatch.setattr(command, "GRID", tmp_path / "grid.csv")
    monkeypatch.chdir(tmp_path)
    made_by = provenance(suite="few", seed=0, dtype="", device="", bos="", parameters={})
    for model, step in (("lab-20k", 8192), ("lab-7k", 8192)):
        reads = model == "lab-20k"  # the other has FV scores, but does not read labels
        rows = pd.DataFrame(cell(model, **FV_MORE)).drop(columns="of_kind")
        random = rows[rows["control"] == "none"].assign(control="random")  # not written, nor other rankings
        rows = pd.concat([rows, random, rows.iloc[:1].assign(ranking="fv_lowest")])
        accuracy = [("clean", 0.9), ("shuffled", 0.4 if reads else 0.9)]
        accuracy = pd.DataFrame(
            [(task, *row) for task in "ab" for row in accuracy], columns=["task", "labels", "value"])
        tables = {"effects": rows, "scores": scores(4, 8, n_of_kind=2), "accuracy": accuracy.assign(
            metric="first_token_accuracy", split="scoring", task_type="abstractive", n_shots=10)}
        for kind, table in tables.items():
            table = table.assign(model=model, step=step)
            if kind != "effects":
                table = table.assign(standard_error=0.1, n_prompts=5)
            write_table(table, f"results/few/{kind}/{model}/step{step}.parquet", schema_name=kind, provenance=made_by)
    return tmp_path


def test_the_command_collects_all_models_by_size(finished, capsys):
    assert command.main(["results/few"]) == 0
    assert capsys.readouterr().out == "12 rows of 2 models -> grid.csv\n"
    grid = read_grid(finished / "grid.csv")
    assert grid["model"].unique().tolist() == ["lab-7k", "lab-20k"]
    assert grid[(grid["ranking"] == "fv") & (grid["control"] == "none")]["value"].tolist() == [1.0, 1.0]
    assert set(grid["control"]) == {"none", "random_layer_matched"}
    of_kind = grid.drop_duplicates(["model", "ranking"]).set_index(["model", "ranking"])["of_kind"]
    assert of_kind["lab-20k"].to_dict() == {"fv": 2, "induction": 2, "fv_minus_induction": 2}
    assert of_kind["lab-7k"].to_dict() == {"fv": 0, "induction": 2, "fv_minus_induction": 0}


def test_an_unfinished_grid_leaves_the_old_table_alone(finished, capsys):
    (finished / "grid.csv").write_text("old")
    next((finished / "results/few/effects/lab-7k").iterdir()).unlink()
    assert command.main(["results/few"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: table results/few/effects/lab-7k/") and error.count("\n") == 1
    assert (finished / "grid.csv").read_text() == "old" and not list(finished.glob("*.partial"))
