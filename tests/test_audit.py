"""Every number that the scaling and scoring pages print, recomputed from the tables alone."""

import json

import pandas as pd
import pytest
from IPython.display import HTML

from icl_lib.data.sources import read_tasks
from icl_lib.tables import read_table
from tests import audit_pages, audit_plain
from tests.audit import check, frames, near, numbers_in, rows_of, run_page, texts
from tests.audit_suite import LAST, MODELS, SHARES, made_up_suite, parameters_by_model
from tests.project import ROOT

FRACTIONS = [0.05, 0.1]
SCORED = {"n_prompts": 2, "n_sequences": 4, "n_null_draws": 3, "shots": [0, 4], "n_documents": 3, "loss_window": 5,
          "top_fraction": 0.1, "sequence_length": 20}


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """A made-up suite and what its scaling page shows."""
    results = tmp_path_factory.mktemp("made_up")
    made_up_suite(results)
    given = {"suite": "made up", "seed": 0, "results": str(results), "models": MODELS, "ablated_models": LAST}
    return results, run_page("model_scaling", **given, **SHARES, overlap_fractions=FRACTIONS)[0]


@pytest.fixture(scope="session")
def sizes():
    return parameters_by_model()


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """The scoring page of a model without either kind of heads and of one with both."""
    results = tmp_path_factory.mktemp("scored")
    common = {"suite": "scored", "seed": 0, "results": str(results), "step": 8192, **SCORED}
    return results, {model: run_page("scoring", model=model, **common)[0] for model in ("lab-7k", "lab-40k")}


def tables(results):
    return [audit_plain.read(results, kind, MODELS) for kind in ("scores", "accuracy", "ablations", "effects")]


@pytest.fixture(scope="session")
def recomputed(suite, sizes):
    return audit_pages.scaling(tables(suite[0]), sizes, SHARES | {"overlap_fractions": FRACTIONS})


def test_the_scaling_page_writes_the_recomputed_numbers_and_no_others(suite, recomputed):
    table = pd.read_parquet(suite[0] / "statistics" / "model_scaling.parquet")
    found = {(row.model, row.name): (row.value, row.low, row.high, row.p_value, row.n, row.smallest_p)
             for row in table.drop(columns="notebook").itertuples(index=False)}
    assert found.keys() == recomputed.keys()
    for key, numbers in found.items():
        assert all(map(near, numbers, recomputed[key])), (key, numbers, recomputed[key])


def test_the_sentences_of_the_scaling_page_print_these_numbers(suite, recomputed):
    left, models = texts(suite[1])
    check(models, audit_pages.scaling_words(recomputed)[0], names=MODELS)
    assert left.startswith("Left out: lab-7k (no induction heads and no FV heads); lab-20k (no FV heads); lab-450k (")
    audit_pages.captions(suite[1], *SHARES.values())


def test_the_tables_of_the_scaling_page_print_these_numbers(suite, recomputed):
    main, of_sizes, counts, overlaps = frames(suite[1])
    for table, rows in zip((main, counts), audit_pages.scaling_words(recomputed)[1:], strict=True):
        for (words, row), wanted in zip(table.iterrows(), rows, strict=True):
            check(f"{words} {' '.join(map(str, row))}", wanted)
    for (heads, row), wanted in zip(overlaps.iterrows(), audit_pages.scaling_overlaps(
            recomputed, {"overlap_fractions": FRACTIONS}), strict=True):
        check(f"{heads} {' '.join(map(str, row))}", wanted)
    for column in ("parameters", "induction heads", "FV heads"):
        assert of_sizes[column].to_dict() == {model: recomputed[model, column][0] for model in MODELS}
    places = {"p (overlap)": ("overlap", 3), "p (depth)": ("depth difference (layers)", 3), "heads": ("top heads", 4),
              "smallest possible p (depth)": ("depth difference (layers)", 5)}
    for end, low in (("these", "induction percentile of FV heads"), ("those", "FV percentile of induction heads")):
        places |= {f"lowest of {end}": (low, 1), f"highest of {end}": (low, 2)}
    places |= {f"rank correlation, {end}": ("rank correlation", i) for i, end in ((1, "low"), (2, "high"))}
    (models, *comparison), (head, *effects) = map(rows_of, texts(suite[1], HTML))
    assert set(models[1:]) == set(MODELS) and len(comparison) > 10 and len(effects) == 12
    for row, *by_model in comparison:
        name, i = places.get(row, (row, 0))
        for model, text in zip(models[1:], by_model, strict=True):
            check(text, [recomputed[model, name][i]])
    words = {"against no ablation": "none", "beyond random heads": "random",
             "beyond random heads of the same layers": "random_layer_matched"}
    metric = {words: name for name, words in audit_pages.METRICS.items()}
    for cells in effects:
        row = dict(zip(head, cells, strict=True))
        excluded = row["ranking"] != "plain"
        fv, induction, gap = (
            audit_pages.name_of(metric[row["metric"]], ranking, words[row["drop"]], excluded)
            for ranking in ("fv", "induction", "fv_minus_induction"))
        wanted = [recomputed["", gap][4], *(recomputed["", name][0] for name in (
            fv, induction, f"{gap}, above zero", f"{gap}, interval above zero", f"{gap}, interval below zero"))]
        trend = f"{gap}, trend with size"
        if ("", trend) in recomputed:
            wanted += [recomputed["", trend][0], recomputed["", trend][3], recomputed["", trend][5]]
        check(" ".join(cells[4:]), wanted)


def test_the_scoring_page_prints_what_its_tables_say(scored):
    results, pages = scored
    tasks = read_tasks("lab")
    groups = {name: "extractive" if task.type == "extractive" else
              "shared labels" if len(task.siblings) > 1 else "look-up" for name, task in tasks.items()}
    labels = {name: [label for _, label in task.query_pairs] for name, task in tasks.items()}
    floors = {name: max(map(own.count, own)) / len(own) for name, own in labels.items()}
    for model, shown in pages.items():
        scores, accuracy = (audit_plain.read(results, kind, {model: [8192]}) for kind in ("scores", "accuracy"))
        by_group, wanted = audit_pages.scoring_tables(
            scores, accuracy, groups, {name: task.type for name, task in tasks.items()}, floors, SCORED)
        kinds, overlap, of_groups, *others = frames(shown)
        for table, rows in zip((kinds, overlap, *others), wanted, strict=True):
            for (words, row), numbers in zip(table.iterrows(), rows, strict=True):
                check(f"{words} {' '.join(text for text in row if text != '-')}", numbers)
        assert sorted(of_groups.index) == sorted(by_group)
        for group, numbers in by_group.items():
            assert {name: value for name, value in of_groups.loc[group].items() if value == value} == pytest.approx(
                numbers, abs=0.00501)
        prompts, by_task, top, all_heads = texts(shown, HTML)
        samples = pd.read_parquet(results / "samples" / model / "step8192.parquet")
        audit_pages.check_samples(prompts, samples, audit_plain.heads(scores, audit_plain.PREFIX))
        audit_pages.check_accuracy(by_task, accuracy, floors)
        audit_pages.check_heads(all_heads, scores)
        head, _, *best = rows_of(top)
        values = {label: audit_plain.heads(scores, score) for label, score in (
            ("attention mass", audit_plain.MASS), ("prefix matching", audit_plain.PREFIX),
            ("previous token", "previous_token"), ("FV score", audit_plain.FV))}
        for name, *row in best:
            at = tuple(int(value) for value, _ in numbers_in(name))
            assert all(abs(float(row[head.index(label) - 1]) - of[at]) <= 0.000501 for label, of in values.items())
        assert len(best) >= min(8, values["FV score"].size)
        audit_pages.captions(shown, SCORED["top_fraction"])
        table = pd.read_parquet(results / "statistics" / "scoring" / model / "step8192.parquet")
        assert {"induction heads", "fv heads", "FV threshold", "token-loss difference"} <= set(table["name"])


def test_provenance_names_everything_the_tables_depend_on(scored):
    given = [read_table(scored[0] / kind / "lab-40k" / "step8192.parquet").attrs["provenance"]["parameters"]
             for kind in ("scores", "statistics/scoring")]
    cells = json.loads((ROOT / "notebooks/scoring.ipynb").read_text(encoding="utf-8"))["cells"]
    parameters = {line.split(":")[0] for line in cells[1]["source"]} - {"suite", "results", "seed"}
    assert parameters - {"top_fraction"} <= set(given[0]) and parameters <= set(given[1])
