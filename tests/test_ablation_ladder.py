"""The full grid over the ladder: its committed table, what the page counts in it, and how it is collected."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from icl_lib.ablation_ladder import COLUMNS, cell_counts, order_sentence, read_grid, statistics_rows
from icl_lib.ladder_figures import differences
from icl_lib.tables import provenance, write_table
from lab.files import GRID
from workflow import grid as command
from workflow.suite import read_suite


def cell(model="m", metric="first_token_accuracy", replacement="mean", fraction=0.1, n_heads=1, **by_ranking):
    """Rows of one cell: ranking to (value, low, high)."""
    return [{"model": model, "metric": metric, "replacement": replacement, "positions": "all", "fraction": fraction,
             "ranking": ranking, "excluded": "", "control": "random_layer_matched", "n_heads": n_heads,
             "n_draws": 20, "n_prompts": 60, "value": value, "low": low, "high": high,
             "p_value": 0.001 if low > 0 or high < 0 else 0.5}
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
    assert "of 4 cells of all models FV heads cost more in 2, induction heads in 1" in accuracy
    assert "nowhere do in middle;" in accuracy and "either kind costs more somewhere in large" in accuracy
    assert "induction heads cost more and FV heads nowhere do in small, middle, large" in loss


def test_the_committed_table_is_the_whole_grid():
    suite = read_suite("config/grid.yaml")
    grid, given = read_grid(GRID), suite.parameters("ablation", model="lab-1m", step=0)
    assert list(dict.fromkeys(grid["model"])) == list(suite.ablated)
    assert sorted(grid["fraction"].unique()) == given["fractions"] and given["n_draws"] == 20
    for (_, _, ranking), rows in grid[grid["excluded"] == ""].groupby(["model", "metric", "ranking"]):
        assert len(rows) == 5 * 2 * 7 and not rows.duplicated(["replacement", "positions", "fraction"]).any()
        assert (rows["n_draws"] == 20).all(), ranking
    assert (grid["low"] <= grid["value"]).all() and (grid["value"] <= grid["high"]).all()
    assert len(statistics_rows(grid).drop_duplicates(["model", "name"])) == len(grid)


def test_the_figure_marks_the_cells_whose_interval_is_clear_of_zero():
    grid = read_grid(GRID)
    rows = grid[(grid["metric"] == "first_token_accuracy") & (grid["excluded"] == "")
                & (grid["ranking"] == "fv_minus_induction")]
    axes = differences(grid, "first_token_accuracy", "accuracy lost")
    for ax, (model, own) in zip(axes, rows.groupby("model", sort=False), strict=True):
        assert ax.get_title() == model
        clear = own[(own["low"] > 0) | (own["high"] < 0)]
        assert len(ax.collections[1].get_offsets()) == len(clear)
        shown = np.ma.filled(ax.collections[0].get_array(), np.nan).ravel()
        np.testing.assert_allclose(sorted(shown), sorted(own["value"]))
    plt.close("all")


@pytest.mark.parametrize(("text", "message"), [
    (None, "cannot be read (FileNotFoundError)"), ("", "cannot be read (EmptyDataError)"),
    ("model,value\nm,1\n", "has the columns model, value, expected model, metric"),
])  # fmt: skip
def test_a_table_that_is_not_the_grids_is_refused_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "grid.csv").write_text(text)
    with pytest.raises(ValueError, match="make grid") as error:
        read_grid(tmp_path / "grid.csv")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A suite of two models whose tables `effects` are there, the larger one listed first."""
    models = [{"name": "lab-20k", "steps": "last"}, {"name": "lab-7k", "steps": "last"}]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"suite": "few", "models": models}))
    monkeypatch.setattr(command, "GRID", tmp_path / "grid.csv")
    monkeypatch.chdir(tmp_path)
    made_by = provenance(suite="few", seed=0, dtype="", device="", bos="", parameters={})
    for model, (step,) in read_suite("grid.yaml").ablated.items():
        rows = pd.DataFrame(cell(model, **FV_MORE)).assign(step=step)
        write_table(rows, f"results/few/effects/{model}/step{step}.parquet", schema_name="effects", provenance=made_by)
    return tmp_path


def test_the_command_collects_all_models_by_size(finished, capsys):
    assert command.main(["grid.yaml"]) == 0
    assert capsys.readouterr().out == "6 rows of 2 models -> grid.csv\n"
    grid = read_grid(finished / "grid.csv")
    assert grid["model"].unique().tolist() == ["lab-7k", "lab-20k"]
    assert grid[grid["ranking"] == "fv"]["value"].tolist() == [0.5, 0.5]


def test_an_unfinished_grid_leaves_the_old_table_alone(finished, capsys):
    (finished / "grid.csv").write_text("old")
    next((finished / "results/few/effects/lab-7k").iterdir()).unlink()
    assert command.main(["grid.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: table results/few/effects/lab-7k/") and error.count("\n") == 1
    assert (finished / "grid.csv").read_text() == "old" and not list(finished.glob("*.partial"))
