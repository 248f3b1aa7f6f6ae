"""Every number that the page on two papers prints, recomputed from the tables alone."""

import numpy as np
import pandas as pd
import pytest
from IPython.display import HTML, Markdown

from icl_lib.figures.common import Figure
from tests import audit_patterns, audit_plain
from tests.audit import check, numbers_in, rows_of, run_page
from tests.audit_suite import ABLE, MODELS, TASKS, made_up_suite

LAST = {model: MODELS[model][-1:] for model in ABLE}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page shows of a made-up suite, its table of numbers, and the tables that it reads, by model."""
    results = tmp_path_factory.mktemp("made_up")
    made_up_suite(results)
    shown, _ = run_page("two_papers", suite="made up", results=str(results), pattern_models=LAST)
    tables = {kind: audit_plain.read(results, kind, LAST) for kind in ("patterns", "pattern_effects", "effects")}
    of_model = {model: {kind: table[table["model"] == model] for kind, table in tables.items()} for model in ABLE}
    return shown, pd.read_parquet(results / "statistics" / "two_papers.parquet"), of_model


def walks(of_model):
    """By model and kind the numbers of each measured step; those of patterns and the paper's tasks recomputed."""
    found = {}
    for model, tables in of_model.items():
        for kind, rows in audit_patterns.walk(tables["pattern_effects"], tables["effects"]):
            for row in rows:
                if hasattr(row, "task_set"):
                    assert audit_patterns.lost(tables["patterns"], row) == pytest.approx(row.value, abs=1e-9)
            found[model, kind] = [(row.value, row.low, row.high) for row in rows]
    return found


def test_the_steps_in_the_table(page):
    shown, numbers, of_model = page
    found = walks(of_model)
    html = next(thing.data for thing in shown if isinstance(thing, HTML) and "In numbers" in thing.data)
    *_, table = [[row for row in rows_of(html) if row and row[0].startswith(("their", "20%", "the p", "contr", "ranked",
                                                                            "top", "10%", "last"))]]
    kinds = [(model, kind) for model in ABLE for kind in ("induction", "fv")]
    for column, key in enumerate(kinds, 1):
        cells = [row[column] for row in table if row[column]]
        assert len(cells) == len(found[key])
        for cell, wanted in zip(cells, found[key], strict=True):
            check(cell, wanted)


def test_the_patterns_that_models_can_do(page):
    shown, _, of_model = page
    text = next(thing.data for thing in shown if isinstance(thing, Markdown) and "above chance at" in thing.data)
    for line, (model, n_able) in zip(text.splitlines(), ABLE.items(), strict=True):
        rows = of_model[model]["patterns"]
        clean = rows[(rows["ranking"] == "none") & (rows["task_set"] == "patterns") & (rows["n_shots"] == 10)]
        accuracy = clean.set_index("task")["value"]
        check(line, [n_able, TASKS, 10, *(accuracy[f"patterns {i}"] for i in range(n_able))],
              names=[model, *(f"patterns {i}" for i in range(n_able))])


def test_the_benefit_of_demonstrations(page):
    shown, _, of_model = page
    table = next(thing for thing in shown if isinstance(thing, pd.DataFrame) and "no ablation" in thing)
    assert list(table)[1:] == ["20% random heads, layer-matched", "20% induction heads", "20% FV heads"]
    rows = iter(table.iterrows())
    for model, n_able in ABLE.items():
        for task_set, tasks in (("patterns", [f"patterns {i}" for i in range(n_able)]), ("paper", None)):
            if tasks == []:
                continue
            name, cells = next(rows)
            assert name == model + (", patterns" if tasks else ", the paper's tasks")
            for cell, ranking in zip(cells, ("none", audit_patterns.SAME_LAYERS, "induction", "fv"), strict=True):
                by_task = audit_patterns.benefit(
                    of_model[model]["patterns"], ranking, 0.2 * (ranking != "none"), task_set)
                by_task = by_task[tasks] if tasks else by_task
                ends = [(by_task.mean() + side * 2.571 * by_task.std(ddof=1) / len(by_task) ** 0.5) for side in (-1, 1)]
                if tasks:  # resamples of few tasks have their mean between the lowest and the highest task
                    ends = [by_task.min(), by_task.max()]
                check(cell, [by_task.mean(), *((end, abs(end - by_task.mean()) / (1 if tasks else 2)) for end in ends)])
    assert next(rows, None) is None


def test_which_heads_carry_the_benefit_on_which_tasks(page):
    shown, _, of_model = page
    table = next(thing for thing in shown if isinstance(thing, pd.DataFrame) and "difference" in thing)
    assert list(table.index) == list(ABLE)
    for model, n_able in ABLE.items():
        more = {}
        for task_set in ("patterns", "paper") if n_able else ("paper",):
            induction, fv = (audit_patterns.benefit(of_model[model]["patterns"], kind, 0.2, task_set)
                             for kind in ("induction", "fv"))
            more[task_set] = (induction - fv).to_numpy()
        cells = [[value for value, _ in numbers_in(cell)] for cell in table.loc[model]]
        if not n_able:
            assert (cells[0], cells[2]) == ([], []) and cells[1][0] == pytest.approx(more["paper"].mean(), abs=0.0051)
            continue
        means = [more["patterns"].mean(), more["paper"].mean()]
        assert [cell[0] for cell in cells] == pytest.approx([*means, means[1] - means[0]], abs=0.0051)
        for cell, of in zip(cells, more.values(), strict=False):
            assert of.min() - 0.0051 <= cell[1] < cell[0] < cell[2] <= of.max() + 0.0051
        (b, b_low, b_high), (a, a_low, a_high), (_, *ends) = cells  # the ends move by the two sets' own, squared
        assert ends == pytest.approx([a - b - np.hypot(a - a_low, b_high - b), a - b + np.hypot(a_high - a, b - b_low)],
                                     abs=0.03)


def test_the_table_of_numbers_holds_them_all_and_figures_say_what_they_show(page):
    shown, numbers, of_model = page
    assert not numbers.duplicated(["model", "name"]).any() and set(numbers["model"]) == set(ABLE)
    found = walks(of_model)
    for (model, kind), rows in found.items():
        named = numbers[(numbers["model"] == model) & numbers["name"].str.endswith(f": {kind}")]
        assert sorted(named["value"]) == pytest.approx(sorted(value for value, *_ in rows))
    captions = [thing.caption for thing in shown if isinstance(thing, Figure)]
    assert len(captions) == 2 and all("95 %" in caption for caption in captions)
    assert {value for caption in captions for value, _ in numbers_in(caption.replace("95 %", ""))} == set()
    assert np.isfinite(numbers["value"]).all()
