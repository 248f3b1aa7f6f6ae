"""Every claim with a statistic, on tables in which it is true, false, or beyond what they could decide."""

import nbformat
import pytest

from icl_lib.analysis import claims
from icl_lib.analysis.claims import FAILS, HOLDS, OPEN, POWERLESS, ledger, overall, read_claims
from icl_lib.tables import read_table
from tests import planted_claims
from tests.audit import rows_of
from tests.planted_claims import ACCURACY, LOSS, STEPS, along, both_kinds, sized
from tests.planted_tables import PlantedTables, layer, with_heads
from workflow.run import run_notebook
from workflow.suite import TEMPLATES

WITH_STATISTIC = {claim.id: claim for claim in read_claims() if claim.holds}
STATES = (HOLDS, FAILS, POWERLESS)
# What cannot be planted, and why.
IMPOSSIBLE = {
    ("H5", FAILS): "families can be shown to differ, not to be alike: the largest difference is never below 0",
    ("3e, 5g", POWERLESS): "one number of one model: where the model is, it lies inside or outside",
}


@pytest.mark.parametrize(("claim", "state"), [
    (claim, state) for claim in WITH_STATISTIC for state in STATES if (claim, state) not in IMPOSSIBLE])
def test_a_planted_claim_comes_out_as_planted(tmp_path, claim, state):
    claim = WITH_STATISTIC[claim]
    suite = getattr(planted_claims, claim.statistic)(PlantedTables(tmp_path), state, claim)
    found = ledger(suite, (claim,))
    assert overall(found) == state, found.drop(columns="claim").to_string()
    again = claims.with_verdicts(claims.statistics_rows(found))  # from the table alone
    assert again["verdict"].tolist() == found["verdict"].tolist()
    if state == POWERLESS:
        assert found["why"].ne("").all() and again["smallest_p"].ge(0.05).all()


@pytest.mark.parametrize(("claim", "state"), sorted(IMPOSSIBLE))
def test_what_cannot_be_planted_does_not_come_out(tmp_path, claim, state):
    claim = WITH_STATISTIC[claim]
    if claim.id == "H5":  # families that are alike
        tables = PlantedTables(tmp_path)
        for name in ("gpt2", "pythia"):
            for size in range(4):
                tables.scores(f"{name}-{size}", fv=with_heads(layer(2), 0.1 + 0.001 * size))
        assert overall(ledger(sized(tables), (claim,))) == OPEN
    else:
        both_kinds(PlantedTables(tmp_path), "another")
        assert overall(ledger(PlantedTables(tmp_path).suite(), (claim,))) == claims.ABSENT


def test_a_share_of_a_benefit_that_one_task_carries_is_not_estimated(tmp_path):
    """Some resamples of its tasks have no benefit to lose a share of."""
    tables, gained = PlantedTables(tmp_path), [0.0, 0.0, 0.0, 0.8]
    both_kinds(tables)
    tables.patterns("m", 0.3, {"none": gained, "random_layer_matched": gained, "induction": [0.0] * 4})
    claim, = (claim for claim in read_claims() if claim.statistic == "benefit_lost")
    assert overall(ledger(tables.suite(), (claim,))) == POWERLESS


def test_an_order_that_hangs_on_the_bar_for_fv_heads_is_not_taken_for_one(tmp_path):
    """The bar rises: by its highest value induction came first, by each checkpoint's own the FV score did."""
    tables, heads = PlantedTables(tmp_path), [head for row in range(4) for head in layer(row, 10)]
    for step in STEPS:
        tables.scores("m", step, induction=with_heads(heads if step >= 40 else [], 0.4), null=0.09 * (step >= 100),
                      fv=with_heads(heads if step >= 20 else [], 0.1 if step >= 100 else 0.05, seed=1))
    of_order = WITH_STATISTIC["H2 (connected), 5e"], WITH_STATISTIC["5f"]
    rows = ledger(tables.suite(), of_order)
    assert rows["verdict"].tolist() == [FAILS, FAILS] and rows["value"].tolist() == [0, 1]


def test_only_what_cannot_be_is_left_out():
    assert {claim for claim, _ in IMPOSSIBLE} <= set(WITH_STATISTIC)
    assert all(len(reason) > 20 for reason in IMPOSSIBLE.values())
    for claim in WITH_STATISTIC.values():
        assert callable(getattr(planted_claims, claim.statistic, None)), f"no tables for {claim.id} ({claim.statistic})"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The ledger's and the dynamics' page, of planted tables under the names of models whose sizes are known."""
    folder = tmp_path_factory.mktemp("planted")
    tables = PlantedTables(folder)
    steps_of = [1024, 2048, 4096, 8192]
    followed = {"lab-40k": steps_of, "lab-40k-seed1": steps_of, "lab-110k": [8192]}
    for model, steps in followed.items():
        along(tables, model, steps, induction={2048: layer(1)}, fv={8192: layer(2)})
        for step in steps:
            tables.accuracy(model, step, clean=0.2 + step / 20000, shuffled=0.1)
        controls = [("none", "random")] if model == "lab-110k" else []
        for step in steps[-2:]:
            tables.effects(model, [
                (metric, ranking, excluded, 0.3, *controls) for metric in (ACCURACY, LOSS)
                for ranking in ("fv", "induction", "fv_minus_induction") for excluded in (False, True)], step)
        tables.ablations(model, {ACCURACY: 0.8, LOSS: -0.1}, step=steps[-1])
    common = {"suite": "planted", "seed": 0, "results": str(folder)}
    ablated = {model: steps[-1:] for model, steps in followed.items()}
    seeds = ("lab-40k", "lab-40k-seed1")
    for name, given in {"claims": {"models": followed, "ablated_models": ablated, "executed_models": {}},
                        "training_dynamics": {"model": "lab-40k", "steps": steps_of,
                                              "ablated_steps": {m: followed[m][-2:] for m in seeds},
                                              "seeds": {m: followed[m] for m in seeds}}}.items():
        run_notebook(TEMPLATES / f"{name}.ipynb", folder / f"{name}.ipynb", common | given, log=folder / f"{name}.log")
    return folder


def text_of(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
    data = [output.data for output in outputs if "data" in output]
    return "\n".join(one.get("text/markdown", "") + one.get("text/html", "") for one in data)


@pytest.mark.slow
def test_the_pages_say_what_was_planted(pages):
    html = text_of(pages / "claims.ipynb")
    table = claims.with_verdicts(read_table(pages / "statistics" / "claims.parquet"))
    said = {claim: overall(rows) for claim, rows in table.groupby("claim")}
    assert (said["H1, 4a"], said["4e (metrics)"], said["5b"], said["3a"]) == (HOLDS, POWERLESS, HOLDS, HOLDS)
    assert "no heads of neither kind left for a control" in html and "nothing to lose" in html
    assert f"{sum(word == POWERLESS for word in said.values())} cannot be decided here" in html
    assert "<summary>1 for, 1 no power<" in html  # two seeds of a size, one without control
    text = text_of(pages / "training_dynamics.ipynb")
    assert "Induction heads came by step 2048, after 1024. FV heads came by step 8192, after 4096." in text
    _, heads, by_chance, p_value = next(row for row in rows_of(text) if row[0] == "induction first")
    assert (float(heads), round(float(by_chance), 1), p_value.split()[0]) == (0, 0.4, "1")
    of_seeds = [row for row in rows_of(text) if row[0] in ("0", "1", "all") and len(row) == 8][-3:]
    assert [(row[0], int(row[1]), round(float(row[2]), 1)) for row in of_seeds] == [
        ("0", 0, 0.4), ("1", 0, 0.4), ("all", 0, 0.8)]
    assert all(float(row[3].split("(")[1].rstrip(")")) < 0.05 for row in of_seeds)  # the smallest p: none without power
    assert "FV heads matter by step" in text and "It takes ablations" not in text
