"""The page of the paper's figures: the words that planted ledgers give, and the links to our figures."""

import ast
import importlib
import json
import pkgutil
import re
from html import unescape

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from IPython.display import HTML

from icl_lib import figures as drawing
from icl_lib.analysis import paper_figures
from icl_lib.analysis.claims import read_claims, with_verdicts
from icl_lib.figures import common as figures
from icl_lib.figures import dynamics as dynamics_figures
from icl_lib.figures.scoring import layers_by_model
from icl_lib.pages.claims import figures_table
from tests.project import ROOT
from workflow.book import link_figures

OVERLAP, FV, INDUCTION = "H2 (distinct), 3b", "3c (FV)", "3c (induction)"
# As value, low, high, p, smallest p: what the ledger's rules call so. Overlap is below 0.2, percentiles above 0.
HOLDS = {OVERLAP: (0.05, 0.0, 0.1), FV: (0.43, None, None, 0.01, 0.001), INDUCTION: (0.41, None, None, 0.02, 0.001)}
FAILS = {OVERLAP: (0.6, 0.4, 0.7), FV: (-0.3, None, None, 0.01, 0.001), INDUCTION: (-0.2, None, None, 0.02, 0.001)}
OPEN = {OVERLAP: (0.15, 0.0, 0.3), FV: (0.1, None, None, 0.4, 0.001), INDUCTION: (0.1, None, None, 0.4, 0.001)}
NO_POWER = {OVERLAP: (0.0, None, None, None, 1.0), FV: (0.4, None, None, 0.01, 0.2)}
NONE = dict.fromkeys((OVERLAP, FV, INDUCTION), (None, None, None, None, None))


def ledger(**models):
    """The ledger with verdicts from its table `statistics`, as the pages read it; per model the claims' numbers."""
    rows = []
    for model, claims in models.items():
        for claim, (value, low, high, *rest) in claims.items():
            p_value, smallest = rest or (None, None)
            rows.append(("claims", model, claim, value, low, high, p_value, smallest, 9))
    numbers = ["value", "low", "high", "p_value", "smallest_p"]
    table = pd.DataFrame(rows, columns=["notebook", "model", "name", *numbers, "n"])
    return with_verdicts(table.astype(dict.fromkeys(numbers, float)))


def of_figure(worlds, number=3, sizes=None):
    """The word of a figure, and its row of the page."""
    rows = paper_figures.compared(worlds, sizes or {})
    html = figures_table(rows, {world: "/real" if world == "real" else "" for world in worlds}).data
    row, = (row for row in html.split("<tr>") if f"<b>{number}. " in row)
    printed = re.search(r'data-head="agreement"><span class="verdict [\w-]+">([^<]*)<', row)[1]
    assert printed == paper_figures.figure_words(rows)[number]
    return printed, row


@pytest.mark.parametrize(("real", "lab", "word"), [
    (HOLDS, FAILS, "agrees"), (FAILS, HOLDS, "differs"), (OPEN, HOLDS, "undecided"), (NONE, NONE, "not measured"),
    (NONE, HOLDS, "agrees"), (NONE, FAILS, "differs"),
    (HOLDS | {FV: OPEN[FV]}, NONE, "agrees"), (FAILS | {FV: OPEN[FV]}, NONE, "differs"),
    (OPEN | {FV: HOLDS[FV]}, NONE, "undecided"), (OPEN | {FV: FAILS[FV]}, NONE, "undecided"),
    (HOLDS | {FV: FAILS[FV]}, NONE, "partly"), (OPEN | {FV: FAILS[FV], INDUCTION: HOLDS[INDUCTION]}, NONE, "partly"),
    (HOLDS | NO_POWER, NONE, "undecided"), (NONE | {FV: HOLDS[FV]}, FAILS, "partly"),
], ids=str)  # fmt: skip
def test_a_figures_word_follows_from_its_claims_real_models_first(real, lab, word):
    assert of_figure({"real": ledger(r=real), "lab": ledger(m=lab)})[0] == word


def test_without_real_models_there_is_one_column():
    word, row = of_figure({"here": ledger(m=HOLDS)})
    assert word == "agrees" and row.count("<td") == 4 and 'data-head="here"' in row


def test_the_numbers_are_the_largest_models_and_the_verdict_that_of_most_sizes():
    found = ledger(small=FAILS, large=FAILS | {OVERLAP: (0.25, 0.1, 0.4)}, middle=FAILS)
    word, row = of_figure({"real": ledger(r=NONE), "lab": found}, sizes={"small": 1, "middle": 2, "large": 3})
    assert word == "differs"
    real, lab = (re.search(rf'data-head="{world}">(.*?)</td>', row)[1] for world in ("real", "lab"))
    assert re.sub("<[^>]*>", "", real) == "not measured"
    assert re.sub("<[^>]*>", "", lab).startswith("differslarge: 0.25 (0.1 to 0.4)2 more")
    assert "large: -0.3 (p = 0.01)" in lab and "large: -0.2 (p = 0.02)" in lab


def test_a_figure_of_training_says_why_real_models_have_none():
    claim = "H2 (connected), 5e"
    missing, there = {claim: NONE[OVERLAP]}, {claim: (0.6, 0.4, 0.8)}
    word, row = of_figure({"real": ledger(r=missing), "lab": ledger(m=there)}, number=6)
    assert word == "agrees" and row.count("no checkpoints") == 1
    assert row.index('data-head="real"') < row.index("no checkpoints") < row.index('data-head="lab"')


@pytest.mark.parametrize(("words", "message"), [
    ({"claims": ["3z"]}, "figure 1 of f.yaml: claim '3z' is not in claims.yaml"),
    ({"claims": ["5d (FV)"]}, "figure 1 of f.yaml: claim '5d (FV)' is not in here"),
])
def test_a_claim_that_is_not_in_the_ledger_is_refused_by_name(tmp_path, words, message):
    entry = {"number": 1, "title": "t", "shows": "s", "claims": [], "ours": []} | words
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump({"here": {"3a": "layers"}, "figures": [entry]}))
    with pytest.raises(ValueError, match=re.escape(message)):
        paper_figures.read_figures(path)


# What each function that draws returns: a figure, a list of them, or the map of heads.
DRAWING = {name: function.__annotations__["return"] for module in pkgutil.iter_modules(drawing.__path__)
           for name, function in vars(importlib.import_module(f"icl_lib.figures.{module.name}")).items()
           if getattr(function, "__annotations__", {}).get("return") in (figures.Figure, list[figures.Figure], HTML)}


def test_our_figures_are_drawn_by_cells_of_the_notebooks():
    places = [place for figure in paper_figures.read_figures() for place in figure.ours]
    places += [f"{claim.page}#{claim.front['figure']}" for claim in read_claims() if claim.front]
    for place in places:
        name, cell, nth = re.fullmatch(r"(\w+)#([\w-]+)(?:\.(\d))?", place).groups()
        cells = {c.id: c for c in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells}
        called = [node.func for node in ast.walk(ast.parse(cells[cell].source)) if isinstance(node, ast.Call)]
        drawn = {DRAWING.get(getattr(of, "attr", getattr(of, "id", ""))) for of in called} - {None}
        assert drawn, place
        assert nth is None or list[figures.Figure] in drawn or "for " in cells[cell].source, place


def page(path, **cells):
    """A staged page; per cell its figures' numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [{"id": name, "outputs": [
        {"data": {"text/html": "".join(f'<figure id="figure-{n}"></figure>' for n in numbers)}}]}
        for name, numbers in cells.items()]}))


def test_links_lead_to_the_figure_where_the_book_has_the_run(tmp_path):
    pages = {"ablation/a/step1": "notebooks/ablation/a/step1", "ablation/a/step8": "ablation",
             "ablation/ab/step1": "notebooks/ablation/ab/step1", "model_scaling": "model_scaling"}
    page(tmp_path / "ablation.ipynb", first=[1, 2], curves=[3])
    page(tmp_path / "notebooks/ablation/ab/step1.ipynb", first=[1], curves=[2])
    page(tmp_path / "model_scaling.ipynb", boxes=[], effects=[4, 5])
    wanted = {("ablation/a", "curves"): "ablation.html#figure-3", ("ablation/a", "first.2"): "ablation.html#figure-2",
              ("ablation/ab", "curves"): "notebooks/ablation/ab/step1.html#figure-2",
              ("model_scaling", "effects.2"): "model_scaling.html#figure-5", ("model_scaling", "effects.3"): None,
              ("model_scaling", "boxes"): None, ("model_scaling/real", "effects"): None, ("ablation/b", "curves"): None}
    html = "".join(f'<a data-run="{run}" data-cell="{cell}">words</a>' for run, cell in wanted)
    paper = {"cells": [{"id": "t", "outputs": [{"data": {"text/html": html}}]}]}
    (tmp_path / "paper.ipynb").write_text(json.dumps(paper))
    link_figures(tmp_path, pages)
    found = json.loads((tmp_path / "paper.ipynb").read_text())["cells"][0]["outputs"][0]["data"]["text/html"]
    for part, address in zip(found.split("</a>"), wanted.values(), strict=False):
        assert ("href" in part) == (address is not None) and (not address or f'<a href="{address}">words' == part), part


def test_places_name_the_model_whose_number_is_shown():
    found = ledger(small={"H1, 4a": (0.2, 0.1, 0.3), "4c": (0.2, 0.1, 0.3)}, large={"4c": (0.2, 0.1, 0.3)})
    row = of_figure({"real": ledger(r={"4c": (0.1, 0.05, 0.2)}), "lab": found}, number=4, sizes={"large": 2})[1]
    assert re.findall(r'data-run="([^"]*)"', unescape(row)) == ["ablation/r", "ablation/small"]
    by_size = of_figure({"real": ledger(r=HOLDS), "lab": ledger(m=HOLDS)})[1]
    assert re.findall(r'data-run="([^"]*)"', by_size) == ["model_scaling/real", "model_scaling"] * 2
    trained = ledger(m={"H2 (connected), 5e": (0.6, 0.4, 0.8)})
    alone = of_figure({"real": ledger(r={"4c": (0.1, 0.05, 0.2)}), "lab": trained}, number=1)[1]
    assert re.findall(r'data-run="([^"]*)"', alone) == ["training_dynamics/m", "ablation/r"]


def test_a_number_of_one_seed_beside_the_verdict_of_all_says_so():
    word, row = of_figure({"lab": ledger(**{"lab-1k": FAILS, "lab-1k-seed1": HOLDS, "lab-1k-seed2": HOLDS})})
    assert word == paper_figures.AGREES and "lab-1k-seed1, one of 3 seeds: 0.05 (" in unescape(row)
    assert "seeds)" not in of_figure({"lab": ledger(**{"lab-1k": HOLDS, "lab-2k": HOLDS})})[1]


def test_panels_of_all_models_show_each_model_in_the_colours_of_its_heads():
    grid = pd.DataFrame([(layer, head) for layer in range(3) for head in range(2)], columns=["layer", "head"])
    table = pd.concat([grid.assign(score=score, value=np.arange(6) / 10, step=step, task="") for step in (0, 4)
                       for score in ("induction_attention_mass", "induction_prefix_matching", "fv")])
    axes = layers_by_model({name: table[table["step"] == 4] for name in "abc"}, 0.6).axes
    assert axes.shape == (3, 2) and [ax.get_title(loc="left")[:2] for ax in axes[:, 0]] == ["a:", "b:", "c:"]
    assert [len(part.get_offsets()) for part in axes[2, 1].collections] == [2, 4]
    along, steps = {m: table.assign(model=m) for m in "abc"}, dict.fromkeys("abc", [0, 4])
    panels = dynamics_figures.training_by_model(along, steps, 0.5).axes
    assert [ax.get_title(loc="left") for ax in panels] == ["a", "b", "c"]
    assert {ax.lines[0].get_color() for ax in panels} == {figures.COLOUR["induction"]}
    paths = dynamics_figures.trajectories_by_model(along, steps, 2).axes
    colours = [figures.COLOUR[kind] for kind in ("induction", "induction", "fv", "fv")]
    assert [line.get_color() for line in paths[1, 1].lines] == colours
    assert paths[1, 1].lines[1].get_ydata().tolist() == [0.4, 0.4]
