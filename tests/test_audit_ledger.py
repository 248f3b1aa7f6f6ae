"""Every number that the ledger, the front page and the page of figures print, recomputed from the tables alone."""

import re
from collections import Counter
from html import unescape

import numpy as np
import pandas as pd
import pytest
import yaml
from IPython.display import HTML

from icl_lib.analysis.claims import FAILS, HOLDS, OPEN, POWERLESS, read_claims
from icl_lib.figures.common import Figure
from icl_lib.names import size_of
from icl_lib.pages.claims import rule_words
from lab.causal_statistics import read_runs
from lab.files import NO_GLOSSARIES, read_plan
from tests import audit_pages
from tests.audit import check, covered, frames, near, numbers_in, rows_of, run_page, texts
from tests.audit_ledger import AUDIT, NOT_AUDITED
from tests.audit_suite import LAST, MODELS, SHARES, made_up_suite, parameters_by_model
from tests.audit_tables import Suite
from tests.project import ROOT

FRACTIONS = [0.05, 0.1]
STEPS = [step for steps in MODELS.values() for step in steps]
REAL = {model: LAST[model] for model in ("lab-40k", "lab-110k")}


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """A made-up suite and what its pages show: {page: [Markdown, HTML, DataFrame or Figure]}."""
    results = tmp_path_factory.mktemp("made_up")
    made_up_suite(results)
    common = {"suite": "made up", "seed": 0, "results": str(results), "models": MODELS, "ablated_models": LAST}
    pages = {"model_scaling": run_page("model_scaling", **common, **SHARES, overlap_fractions=FRACTIONS)[0],
             "claims": run_page("claims", **common, **SHARES, executed_models=LAST)[0],
             "index": None}
    for notebook in ("model_scaling", "claims"):  # once more, over the "real" models of an included suite
        given = common | {"models": REAL, "ablated_models": REAL, "table": f"statistics/{notebook}/real.parquet"} | (
            {"executed_models": REAL} if notebook == "claims" else {"overlap_fractions": FRACTIONS})
        pages[f"{notebook}/real"] = run_page(notebook, **given, **SHARES)[0]
    pages["index"] = run_page("index", **common, real_models={"real": REAL})[0]
    del common["ablated_models"]
    pages["paper_figures"] = run_page("paper_figures", **common, real_models={"real": REAL})[0]
    return results, pages


@pytest.fixture(scope="session")
def sizes():
    return parameters_by_model()


def test_every_claim_with_a_statistic_is_audited_or_says_why_not():
    ids = {claim.id for claim in read_claims()}
    assert AUDIT.keys() | NOT_AUDITED.keys() == ids and not AUDIT.keys() & NOT_AUDITED.keys()


@pytest.fixture(scope="session")
def ledger(suite):
    return pd.read_parquet(suite[0] / "statistics" / "claims.parquet")


@pytest.fixture(scope="session")
def plainly(suite, sizes):
    return Suite(suite[0], MODELS, sizes, SHARES)


@pytest.mark.parametrize("claim", read_claims(), ids=lambda claim: claim.id)
def test_the_ledger_has_the_recomputed_numbers(plainly, ledger, claim):
    rows = ledger[ledger["name"] == claim.id]
    if claim.id in NOT_AUDITED:
        assert rows["value"].isna().all()
        return
    wanted = {model: numbers if isinstance(numbers, tuple) and len(numbers) == 4 else (numbers, *[np.nan] * 3)
              for model, numbers in AUDIT[claim.id](plainly).items()
              if model == "" or set(claim.needs) <= plainly.kinds(model)}
    assert set(rows["model"]) == (set(wanted) or {""})
    for row in rows.drop(columns=["notebook", "name"]).itertuples(index=False):
        numbers = (row.value, row.low, row.high, row.p_value)
        told = wanted.get(row.model, (np.nan,) * 4)
        assert near(numbers[0], told[0]), (row.model, numbers, told)
        for number, expected in zip(numbers[1:], told[1:], strict=True):
            unknown = np.isnan(expected[0] if isinstance(expected, tuple) else expected)
            assert unknown or np.isnan(number) or near(number, expected), (row.model, numbers, told)


def verdicts(html):
    """Of each row of the ledger its id, verdict, and every model's verdict and words, read from the page."""
    found = {}
    for row in html.split("<tr>")[2:]:
        name = re.match(r"<td>(.*?)</td>", row)[1]
        chips = re.findall(r'<span class="verdict [\w-]+">([^<]*)</span>', row)
        models = re.findall(r"<li><span[^>]*>([^<]*)</span> ([^:<]+): ([^<]*)</li>", row)
        # of one model the estimate stands without a list
        models += re.findall(r'"><span class="verdict [\w-]+">([^<]*)</span><br><small>([^:<]+): ([^<]*)</small>', row)
        tally = re.search(r"<summary>(.*?)</summary>", row)
        found[name] = (chips[0], models, tally[1] if tally else "")
    return found


def test_the_ledger_prints_its_numbers_and_tallies(suite, ledger):
    html, = texts(suite[1]["claims"], HTML)
    said = verdicts(html)
    for claim in read_claims():
        overall, models, tally = said[claim.id]
        rows = ledger[ledger["name"] == claim.id].set_index("model")
        for verdict, model, text in models:
            row = rows.loc["" if model == "all models" else model]
            # counts in reasons: heads, tasks, checkpoints, sizes, millions of parameters; a share of the training
            counts = [row["n"], *range(2, 9), 0.05, row["smallest_p"], claim.given.get("larger_than", 0) / 1e6, *STEPS]
            covered(text, [*row[["value", "low", "high", "p_value"]], *counts, *_shares()], names=MODELS)
            assert verdict in (HOLDS, FAILS, OPEN, POWERLESS)
        votes = Counter()
        for size in {size_of(model) for _, model, _ in models if model != "all models"}:
            own = [verdict for verdict, model, _ in models if size_of(model) == size]
            best = [v for v in (HOLDS, FAILS) if own.count(v) > len(own) / 2]
            votes[POWERLESS if set(own) == {POWERLESS} else (best or [OPEN])[0]] += 1
        if votes:
            if len(models) > 1:
                check(tally, [votes[word] for word in (HOLDS, FAILS, OPEN, POWERLESS) if votes[word]])
            powered = sum(votes.values()) - votes[POWERLESS]
            wanted = next((v for v in (HOLDS, FAILS) if votes[v] > powered / 2), OPEN) if powered else POWERLESS
            assert overall == wanted, claim.id
    counts = Counter(overall for overall, *_ in said.values())
    sentence = texts(suite[1]["claims"])
    assert len(sentence) == 1
    order = [counts[v] for v in (HOLDS, FAILS, OPEN, POWERLESS, "not measured here") if counts[v]]
    check(sentence[0], [len(said), *order])
    assert all(row[1].count(rule_words(c.holds)) for c, row in zip(read_claims(), rows_of(html)[1:], strict=True)
               if c.holds)


def stands_for(said, sizes, table):
    """The model that a claim's estimate is printed of: the largest with power, of its seeds one that says what most do.

    `said`: the claim's verdicts as printed; those without an estimate in `table` are left out.
    """
    with_value = set(table["model"][table["value"].notna()])
    models = [(verdict, model) for verdict, model, _ in said if model.replace("all models", "") in with_value]
    able = [one for one in models if one[0] != POWERLESS] or models
    if not able or able[0][1] == "all models":
        return able and ""
    most = max(sizes[model] for _, model in able)
    seeds = [one for one in able if sizes[one[1]] == most]
    same = [verdict for verdict, model, _ in said if size_of(model) == size_of(seeds[0][1])]
    vote = next((v for v in (HOLDS, FAILS) if same.count(v) > len(same) / 2), OPEN)
    return next((model for verdict, model in seeds if verdict == vote), seeds[0][1])


def _shares():
    """Where the first checkpoint after step 0 lies, as a share of the training."""
    return [steps[0] / steps[-1] for steps in MODELS.values() if len(steps) > 1]


def test_verdicts_follow_from_the_printed_numbers(ledger, suite):
    html, = texts(suite[1]["claims"], HTML)
    for claim in read_claims():
        for verdict, model, _ in verdicts(html)[claim.id][1]:
            row = ledger[(ledger["name"] == claim.id) & (ledger["model"] == model.replace("all models", ""))].iloc[0]
            (rule, limit), = claim.holds.items()
            low, high = row[["low", "high"]] if row[["low", "high"]].notna().all() else [row["value"]] * 2
            sure = row["low"] == row["low"] or row["p_value"] < 0.05
            inside = {"above": low > limit, "after": low >= limit, "below": high < limit}.get(rule)
            outside = {"above": high <= limit, "after": high <= limit, "below": low >= limit}.get(rule)
            if inside is not None and verdict != POWERLESS:
                assert verdict == (HOLDS if inside and sure else FAILS if outside and sure else OPEN), (claim.id, model)


def test_the_front_page_prints_numbers_of_the_ledger_and_the_scaling_page(suite, sizes):
    answer, _, conjecture, counts = texts(suite[1]["index"])
    assert counts == texts(suite[1]["claims"])[0].replace("Here", "In the lab")
    tested = [pd.read_parquet(suite[0] / f"statistics/claims{group}.parquet") for group in ("/real", "")]
    printed = [verdicts(texts(suite[1][f"claims{group}"], HTML)[0]) for group in ("/real", "")]
    named = re.findall(r"\((lab-[\w-]+), the largest", answer)
    wanted = [(rows, stands_for(said["H1, 4a"][1], sizes, rows[rows["name"] == "H1, 4a"]))
              for rows, said in zip(tested, printed, strict=True)]
    assert named == [model for _, model in wanted] == ["lab-110k", "lab-1m"]
    covered(answer, [x for rows, model in wanted for x in rows.query(
        "name == 'H1, 4a' and model == @model")[["value", "low", "high"]].to_numpy().ravel()], names=MODELS)
    words = {HOLDS: "it does", FAILS: "it does not", OPEN: "this is not decided", POWERLESS: "this cannot be decided"}
    real, lab = (words[said["H1, 4a (last)"][0]] for said in printed)
    assert answer.endswith(f"stays: **in real language models {real}; in small models trained here {lab}.**")
    html, = texts(suite[1]["index"], HTML)
    of_front = [claim for claim in read_claims() if claim.front]
    rows = html.split("<tr>")[2:]
    assert len(rows) == len(of_front) == 6
    for claim, row in zip(of_front, rows, strict=True):
        chips = re.findall(r'<span class="verdict [\w-]+">([^<]*)</span>', row)
        assert chips == [said[claim.id][0] for said in printed]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        for cell, table in zip(cells[1:3], tested, strict=True):
            own = table[table["name"] == claim.id]
            numbers = own[["value", "low", "high", "p_value", "smallest_p"]].to_numpy().ravel()
            cell = re.sub(r"</span> <small>[^<]*</small>", "", cell)  # votes, below
            covered(cell, [*numbers, own["n"].max(), *range(2, 9), 0.05], names=MODELS)
        votes = [value for said in printed for value, _ in numbers_in(said[claim.id][2])]
        told = re.findall(r"</span> <small>([^<]*)</small>", row)
        assert [value for one in told for value, _ in numbers_in(one)] == votes
    frame, = frames(suite[1]["index"])
    scaled = pd.read_parquet(suite[0] / "statistics/model_scaling/real.parquet")
    for model, row in frame.iterrows():
        for column, text in row.items():
            metric, kind = column.split(", ")
            name = audit_pages.name_of({words: name for name, words in audit_pages.METRICS.items()}[metric],
                                       "fv" if kind == "FV heads" else "induction", "random_layer_matched")
            found = scaled[(scaled["model"] == model) & (scaled["name"] == name)]
            if found.empty:
                assert text == "no control"
                continue
            value, low, high = found[["value", "low", "high"]].to_numpy()[0]
            check(text.split(": ")[1], [value, low, high])
            assert text.split(":")[0] == ("yes" if low > 0 else "no" if high < 0 else "not told apart")
    runs, plan = read_runs(NO_GLOSSARIES), read_plan(NO_GLOSSARIES)
    at_end = runs[runs["step"] == plan["change"]["steps"]]
    formed = (at_end["fv_score"] > at_end["fv_null"].clip(lower=plan["rules"]["fv_formed"]["fv_score"])) & (
        at_end["accuracy"] - at_end["accuracy_shuffled"] > plan["rules"]["fv_formed"]["gap"])
    counts = formed.groupby(at_end["arm"]).sum()
    n = len(plan["seeds"])
    doses = pd.read_csv(ROOT / "lab/causal/dose/repeats.csv")
    none = doses[(doses["strength"] == 1) & (doses["step"] == doses["step"].max())]
    with_fv = (none["fv_score"] > none["fv_null"].clip(lower=0.02)).sum()
    of_doses = [len(none), none["step"].max(), with_fv]
    check(conjecture, [counts["mask_outside"], n, counts["sham_mask_outside"], n, *of_doses])


def test_the_papers_figures_have_the_ledgers_numbers_and_words(suite, sizes):
    tested = [pd.read_parquet(suite[0] / f"statistics/claims{group}.parquet") for group in ("/real", "")]
    printed = [verdicts(texts(suite[1][f"claims{group}"], HTML)[0]) for group in ("/real", "")]
    html, = texts(suite[1]["paper_figures"], HTML)
    given = yaml.safe_load((ROOT / "icl_lib/analysis/paper_figures.yaml").read_text())
    word = {HOLDS: "agrees", FAILS: "differs", OPEN: "undecided", POWERLESS: "undecided"}
    rows, said = html.split("<tr>")[2:], []
    assert [figure["number"] for figure in given["figures"]] == [1, 2, 3, 4, 5, 6, 9, 12, 14, 19, 21, 22]
    for figure, row in zip(given["figures"], rows, strict=True):
        first, *cells, agreement, _ = re.findall(r"<td[^>]*>(.*?)</td>", row)
        assert all(words in unescape(first) for words in (
            f"{figure['number']}. {figure['title']}", figure["shows"], given["here"][figure["claims"][0]]))
        for cell, table, of_ledger in zip(cells, tested, printed, strict=True):
            measured = [claim for claim in figure["claims"] if of_ledger[claim][0] in word]
            wanted = [word.get(of_ledger[claim][0], "not measured") for claim in dict.fromkeys(
                [figure["claims"][0], *measured])]
            parts = re.split(r'<span class="verdict [\w-]+">', cell)[1:]
            assert [part.split("</span>")[0] for part in parts] == wanted
            for part, claim in zip(parts, dict.fromkeys([figure["claims"][0], *measured]), strict=True):
                own = table[(table["name"] == claim) & table["value"].notna()]
                model = stands_for(of_ledger[claim][1], sizes, own)
                number = re.search(r"<small>([^<]*): ([^<:;]*)(?:; ([^<]*))?</small>", part)
                if model == [] or claim not in measured:
                    assert not number
                    continue
                seeds = re.fullmatch(r"(.*?)(?:, one of (\d) seeds)?", number[1])
                assert seeds[1] == (model or "all models")
                value, low, high, p = own[own["model"] == model][["value", "low", "high", "p_value"]].to_numpy()[0]
                check(number[2], [value, low, high] if low < high else [value] if np.isnan(p) else [value, p])
                power = own[own["model"] == model]["smallest_p"]
                limit = power[(power >= 0.05) & (power < 1)]
                assert bool(number[3]) == bool(len(limit))
                covered(number[3] or "", limit, names=MODELS)
        counts = Counter()
        for claim in figure["claims"]:
            spoken = [of_ledger[claim][0] for of_ledger in printed if of_ledger[claim][0] in word]
            counts.update(spoken[:1])
        half, (n_hold, n_fail) = sum(counts.values()) / 2, (counts[HOLDS], counts[FAILS])
        said.append("not measured" if not half else "partly" if n_hold and n_fail else "agrees" if n_hold > half else
                    "differs" if n_fail > half else "undecided")
        assert re.search(r">([^<]*)</span>$", agreement)[1] == said[-1], figure["number"]
    counted = Counter(said)
    check(texts(suite[1]["paper_figures"])[0], [12, *(counted[w] for w in (
        "agrees", "differs", "partly", "undecided", "not measured") if counted[w])])
    assert len(set(said)) > 1  # or the tables would test nothing; all words: test_paper_figures.py
    figures = [shown.caption for shown in suite[1]["paper_figures"] if isinstance(shown, Figure)]
    wanted = [[19, 0.02], [19, 0.1], [0.1], [22, 5]]
    for caption, numbers in zip(figures, wanted, strict=True):
        check(caption, numbers)
