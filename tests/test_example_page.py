"""The worked example's page from its committed table, without weights: every number recomputed."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from icl_lib.figures.common import Figure
from icl_lib.pages import example as report
from icl_lib.tables import read_table, run_path
from tests.audit import check, rows_of, run_page
from tests.project import ROOT
from workflow.inert import active
from workflow.notebooks import Run
from workflow.suite import read_suite

MODEL, STEP = "smollm2-135m", -1
KINDS = ("fv", "induction")


@pytest.fixture(scope="module")
def committed():
    return {kind: read_table(run_path(ROOT / "pretrained", kind, MODEL, STEP), schema_name=kind)
            for kind in ("example", "scores", "accuracy")}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page shows from the committed tables, where no model can be loaded."""
    results = tmp_path_factory.mktemp("results")
    for kind in ("example", "scores", "accuracy"):
        target = run_path(results, kind, MODEL, STEP)
        target.parent.mkdir(parents=True)
        shutil.copy(run_path(ROOT / "pretrained", kind, MODEL, STEP), target)
    given = read_suite(ROOT / "config/pretrained.yaml").given(Run("example", MODEL, STEP))

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icl_lib.load.load_model", refuse)
        shown, _ = run_page("example", **given | {"results": str(results)})
    return [getattr(item, "data", item) for item in shown]


def probabilities(example):
    rows = example[example["metric"] == "answer_probability"]
    return rows.set_index(["prompts", "replacement", "positions", "ranking"])["value"]


def tables_of(page):
    return [item for item in page if isinstance(item, pd.DataFrame)]


def check_rows(table, *rows, names=()):
    """Every number of a table with its index, row by row."""
    assert len(table) == len(rows)
    for (name, row), numbers in zip(table.iterrows(), rows, strict=True):
        check(f"{name} {' '.join(row)}", numbers, names=names)


@pytest.fixture(scope="module")
def heads(committed):
    scores = committed["scores"]
    means = {score: own.groupby(["layer", "head"])["value"].mean() for score, own in scores.groupby("score")}
    return {kind: means[score] for kind, score in (("fv", "fv"), ("induction", "induction_prefix_matching"))}


def test_heads_and_task_are_the_chosen_ones(page, committed, heads):
    example, scores, accuracy = (committed[kind] for kind in ("example", "scores", "accuracy"))
    of_heads, *_, averages = tables_of(page)
    check(of_heads.index.name, [scores[axis].max() + 1 for axis in ("layer", "head")], names=[MODEL])
    check_rows(of_heads, *([*heads[kind].idxmax(), *sorted(heads[kind])[-1:-3:-1]] for kind in reversed(KINDS)))
    attention = example[example["metric"] == "attention"].set_index(
        ["prompts", "ranking", "position", "to_position"])["value"]
    text = [item for item in page if isinstance(item, str) and not item.startswith("<")]
    check(text[0], [x for kind in reversed(KINDS) for x in (*heads[kind].idxmax(), np.mean(
        [attention["repeated", kind, i, i - 9] for i in range(11, 20)]))])
    fv = scores[scores["score"] == "fv"].set_index(["task", "layer", "head"])["value"]
    rows = accuracy.query("metric == 'first_token_accuracy' and labels == 'clean' and n_shots == 10")
    done = rows.query("split == 'scoring' and task_type == 'abstractive' and value >= 0.6").set_index("task")["value"]
    top = heads["fv"].idxmax()
    task = max(done.index, key=lambda name: fv[(name, *top)])
    passed = int(example.loc[example["metric"] == "passed_over", "value"].item())
    assert f"**{task}**" in text[1] and set(example["task"]) == {task} and len(text) == 2
    check(text[1], [len(done), 0.6, fv[(task, *top)], done[task], passed + 1])
    of_tasks = [fv.xs(heads[kind].idxmax(), level=["layer", "head"]) for kind in KINDS]
    check_rows(averages, *([*heads[kind].idxmax(), own[task], own.mean(), own.min(), own.max()]
                           for kind, own in zip(KINDS, of_tasks, strict=True)), names=[*fv.index.levels[0]])
    check(" ".join([averages.index.name, *averages]), [25, len(of_tasks[0])], names=[task])


def test_attention_is_shared_out_as_the_table_says(page, committed, heads):
    example = committed["example"]
    clean = example[(example["prompts"] == "clean") & (example["metric"] == "attention")].sort_values("to_position")
    rows = []
    for kind in KINDS:
        own = clean[clean["ranking"] == kind].reset_index(drop=True)
        labels, inside = [], False  # the tokens between "A:" and the line's end
        for i, token in enumerate(own["token"]):
            inside = (inside and not token.startswith("↵")) or "".join(own["token"][max(0, i - 2) : i]).endswith("A:")
            labels.append(inside and i < len(own))
        of = own["value"]
        ends = [i for i, token in enumerate(own["token"]) if token.startswith("↵") and i and labels[i - 1]]
        rows.append([*heads[kind].idxmax(), of[labels].sum(), of[[i - 1 for i in ends]].sum(),
                     of[own["token"].shift() == ":"].sum(), of[0]])
    check_rows(tables_of(page)[1], *rows)


def test_what_was_expected_has_the_numbers_of_the_experiments(page, committed):
    p = probabilities(committed["example"])
    right, wrong = p["clean", "none", "none", "none"], p["shuffled", "none", "none", "none"]
    back = [p["shuffled", "task_mean", "last", kind] for kind in KINDS]
    drops = [[right - p["clean", "mean", where, kind] for kind in KINDS] for where in ("last", "all")]
    table = tables_of(page)[2]
    check_rows(table, [(value - wrong) / (right - wrong) for value in back], *drops)
    said = [back[0] > max(back[1], p["shuffled", "mean", "last", "fv"]), *(fv > other for fv, other in drops)]
    assert table["it is"].tolist() == ["yes" if larger else "no" for larger in said]


def test_the_table_and_the_prompts_show_the_same(page, committed):
    example = committed["example"]
    prompts, table = [item for item in page if isinstance(item, str) and item.startswith("<")]
    assert not active(prompts) and not active(table)
    p = probabilities(example)
    _, *rows = rows_of(table)
    order = [("clean", "none", "none"), ("shuffled", "none", "none"), ("shuffled", "task_mean", "last"),
             ("shuffled", "mean", "last"), ("clean", "mean", "last"), ("clean", "mean", "all")]
    for (_, fv, _, induction, _), at in zip(rows, order, strict=True):
        for cell, kind in ((fv, "fv"), (induction, "induction")):
            check(cell, [p[(*at, "none" if at[1] == "none" else kind)]])
    for html, kind in zip(prompts.split("<figure")[1:], ("fv", "induction"), strict=True):
        own = example.query("metric == 'attention' and prompts == 'clean' and ranking == @kind")
        own = own.sort_values("to_position")
        spans = re.findall(r'<span style="background: rgba\((\d+, \d+, \d+), ([\d.]+)\)" title="([\d.]+)% of', html)
        assert len(spans) == len(own) and abs(sum(float(share) for *_, share in spans) - 100) < 6
        full = own["value"].iloc[1:].max()
        assert {colour for colour, *_ in spans} == {{"fv": "213, 94, 0", "induction": "0, 114, 178"}[kind]}
        np.testing.assert_allclose([float(alpha) for _, alpha, _ in spans], 0.6 * np.minimum(1, own["value"] / full),
                                   atol=6e-4)
        told = [int(share) for share in re.findall(r"<sub>(\d+)</sub>", html)]
        assert told == [round(100 * value) for value in own["value"] if value >= 0.05]
        text = re.sub(r"<sub>\d+</sub>|<figcaption>.*", "", html.split(">", 1)[1]).replace("<br/>", "↵")
        assert re.sub(r"<[^>]*>", "", text) == "".join(own["token"]).replace("BOS", "BOS↵", 1).replace("'", "&#x27;")
    figures = [item for item in page if isinstance(item, Figure)]
    assert len(figures) == 2 and all(len(figure.alt) > 20 for figure in figures)


def test_the_table_says_when_it_came_out_the_other_way(committed):
    example = committed["example"]
    at = example["metric"] == "answer_probability"
    fv, induction = at & (example["ranking"] == "fv"), at & (example["ranking"] == "induction")
    swapped = example.copy()
    swapped.loc[fv, "value"], swapped.loc[induction, "value"] = (
        example.loc[induction, "value"].to_numpy(), example.loc[fv, "value"].to_numpy())
    said = [report.expected_table(table)["it is"].tolist() for table in (example, swapped)]
    assert said == [["yes"] * 3, ["no"] * 3]
    same = example.copy()
    same.loc[at & (example["prompts"] == "shuffled") & (example["replacement"] == "mean"), "value"] = 1.0
    assert report.expected_table(same)["it is"].iloc[0] == "no"  # the mean over all tasks brings more
