"""Bad input of every kind ends in one line that names the value, and what is expected.

`test_any_input.py` looks for what this table forgot where the space is large.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import book as cold_book
from icl_lib import load_model, read_prompts
from icl_lib.ablation.protocols import protocol_conditions
from icl_lib.data.documents import read_documents
from icl_lib.data.sources import documents_for, read_pairs, read_tasks
from icl_lib.data.tasks import Task
from icl_lib.heads import head_count, layer_matched_random_heads, overlap, random_heads, top_heads
from icl_lib.measurements import in_split
from lab import tokenizer, train
from tests.conftest import GOLDEN, golden_case
from tests.project import ROOT
from tests.support import determinism, torture
from workflow import book, measure, run, sweep, verify
from workflow import suite as suites
from workflow.suite import check_suite, read_suite

SCORES = np.arange(6.0).reshape(2, 3)
ODD = Path("odd")


def suite_with(**changes):
    def case():
        check_suite({"suite": "x", "models": [{"name": "lab-7k"}]} | changes).check_templates()

    return case


def model_with(**changes):
    return suite_with(models=[{"name": "lab-7k"} | changes])


def suite_file(content):
    def case():
        ODD.write_bytes(content.encode() if isinstance(content, str) else content)
        read_suite(ODD)

    return case


def given_to(notebook, **parameters):
    return suite_with(parameters={notebook: parameters})


def pairs(content):
    def case():
        ODD.write_bytes(content.encode() if isinstance(content, str) else content)
        read_pairs(ODD)

    return case


def prompts(content):
    def case():
        ODD.write_text(json.dumps(content))
        read_prompts(ODD)

    return case


def card(name="t", **changes):
    good = {"type": "abstractive", "split": "scoring", "held_out": 0, "inputs": "", "labels": "", "relation": ""}

    def case():
        Path("tasks/abstractive").mkdir(parents=True)
        Path("tasks/abstractive/t.json").write_text('[{"input": "a", "output": "b"}]')
        Path("cards.json").write_text(json.dumps({name: good | changes}))
        read_tasks("tasks")

    return case


def model_folder(change, content=None):
    """A golden model with one thing wrong: `change` is applied to its folder, or is a file that gets `content`."""

    def case():
        shutil.copytree(GOLDEN / "gpt_neox" / "model", "m")
        if callable(change):
            change(Path("m"))
        else:
            Path("m", change).write_text(content)
        load_model("m")

    return case


def config(**changes):
    def change(folder):
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | changes))

    return model_folder(change)


def truncated(size):
    return model_folder(lambda m: os.truncate(m / "model.safetensors", size))


def command(main, *arguments):
    """A command's main function: what it prints as its error is raised, if its status says that it failed."""

    def case():
        sys.stderr = caught = Path("stderr").open("w+")
        try:
            status = main(list(arguments))
        finally:
            sys.stderr = sys.__stderr__
            caught.seek(0)
            text = caught.read()
            caught.close()
        assert status and text.startswith("error: ") and text.endswith("\n"), (status, text)
        raise ValueError(text.removesuffix("\n"))

    return case


def run_with(parameters):
    def main(given):
        return run.main([str(ROOT / "notebooks/scoring.ipynb"), "out.ipynb", "--log", "l.log", *given])

    return command(main, "--parameters", json.dumps(parameters))


TASK = Task("t", "abstractive", "scoring", [("a", "b"), ("c", "d")])

CASES = {
    # suite files
    "suite no mapping": (suite_file("7"), "odd: suite file: 7 is not of type 'object'"),
    "suite empty": (suite_file(""), "odd: suite file: None is not of type 'object'"),
    "suite no YAML": (suite_file("{"), "odd is not YAML: while parsing a flow node"),
    "suite tab": (suite_file("\tx: 1"), "odd is not YAML: .* cannot start any token"),
    "suite not UTF-8": (suite_file(b"\xff\xfe"), "odd is not YAML: 'utf-8' codec can't decode"),
    "suite Python object": (suite_file("a: !!python/object/apply:os.system [ls]"), "could not determine a constructor"),
    "suite key twice": (suite_file("seed: 1\nmodels: [{name: a, name: b}]"), "key name stands there twice, .* line 2"),
    "suite too deep": (suite_file("[[" * 3000), "odd is not YAML: maximum recursion depth exceeded"),
    "suite impossible date": (suite_file("seed: 2001-99-99"), "odd is not YAML: month must be in 1..12"),
    "suite of another name": (suite_file("suite: lab\nmodels: [{name: lab-7k}]"),
                              "odd: suite is 'lab', expected 'odd': each file has results of its own"),
    "suite includes itself": (suite_with(include=["x"]), "include: x is the suite itself"),
    "suite missing": (lambda: read_suite(ROOT / "config/labs.yaml"), "labs.yaml does not exist; there are .*lab"),
    "suite name with line end": (suite_with(suite="a\n"), r"suite: 'a\\n' does not match"),
    "suite name not ASCII": (suite_with(suite="é"), "suite: 'é' does not match"),
    "suite name long": (suite_with(suite="a" * 300), "suite: 'aaaa.* is too long"),
    "seed NaN": (suite_with(seed=float("nan")), "seed: nan is not of type 'integer'"),
    "seed None": (suite_with(seed=None), "seed: None is not of type 'integer'"),
    "key no text": (suite_with(**{"": 1}), "unknown key of suite file ''; valid are suite, seed"),
    "parameters None": (suite_with(parameters=None), "parameters: None is not of type 'object'"),
    "models mapping": (suite_with(models={}), "models: {} is not of type 'array'"),
    "model name long": (model_with(name="m" * 5000), "models.0.name: 'mmm.* is too long"),
    "model name empty": (model_with(name=""), "models.0.name: '' does not match"),
    "model name with line end": (model_with(name="lab-7k\n"), r"models.0.name: 'lab-7k\\n' does not match"),
    "model unknown": (model_with(name="lab-7"), "unknown model 'lab-7'; nearest valid names: lab-7k"),
    "model folder empty": (model_with(name="icl_lib"), "'icl_lib': the folder holds no config.json"),
    "model folder missing": (model_with(name="a/b/c"), "model folder 'a/b/c' does not exist"),
    "steps bool": (model_with(steps=[True]), r"models.0.steps is \[True\], expected all, last or a list"),
    "steps negative": (model_with(steps=[-1]), r"models.0.steps is \[-1\], expected"),
    "step huge": (model_with(steps=[10**30]), "has no step 1000.*; nearest steps: 0, 8192"),
    "ablate nested": (model_with(ablate=[[0]]), r"models.0.ablate is \[\[0\]\], expected none, all, last"),
    # notebook parameters
    "parameter text": (given_to("scoring", n_prompts="5"), r"n_prompts is '5' \(str\), expected int"),
    "parameter bool": (given_to("scoring", n_prompts=True), r"n_prompts is True \(bool\), expected int"),
    "parameter NaN": (given_to("ablation", exclude_fraction=float("nan")), "exclude_fraction is nan, expected float"),
    "parameter infinite": (given_to("ablation", exclude_fraction=float("inf")), "exclude_fraction is inf"),
    "parameter twice": (given_to("scoring", shots=[2, 2]), r"shots is \[2, 2\], which holds 2 twice, expected"),
    "parameter of no prompts": (given_to("scoring", n_prompts=0), "n_prompts is 0, expected int of at least 1"),
    "parameter without the mean": (given_to("ablation", replacements=["zero"]), r"\['zero'\], expected 'mean' among"),
    "parameter of unknown words": (given_to("ablation", replacements=["mean", "bogus"]),
                                   "which holds 'bogus', expected some of mean, task_mean, zero, resample, bos_value"),
    "parameter of unknown positions": (given_to("ablation", positions=["all", 1]), "holds 1, expected some of last,"),
    "parameter of other protocols": (given_to("ablation", protocols=["single"]), "holds 'single', expected some of p"),
    "parameter of unknown presets": (given_to("task_execution", presets=["tsk"]), "'tsk', expected some of task, re"),
    "parameter of unknown splits": (given_to("task_execution", splits=["evaluation", "unsen"]),
                                    "'unsen', expected some of scoring, evaluation, training, unseen"),
    "parameter of no heads": (given_to("scoring", top_fraction=0), "top_fraction is 0, expected float above 0, at"),
    "parameter of some of no heads": (given_to("ablation", fractions=[0.1, 0.0]), "holds 0.0, expected float above 0"),
    "protocol of the grid": (lambda: protocol_conditions("single", pd.DataFrame(), n_draws=1, seed=0),
                             "unknown historical protocol 'single'; valid are paper, released"),
    "parameter None": (given_to("ablation", fractions=None), r"fractions is None \(NoneType\), expected list"),
    "parameter unknown": (given_to("lab", exmple="x"), "unknown parameter of lab.ipynb 'exmple'; .*nearest: example"),
    "parameter no name": (suite_with(parameters={"lab": {None: 1}}), "unknown parameter of lab.ipynb 'None'"),
    "parameter of the workflow": (given_to("lab", seed=1), "parameters.lab: seed is set by the workflow"),
    # task files
    "pairs missing": (lambda: read_pairs("gone.json"), "no file 'gone.json'; give the path of a JSON file"),
    "pairs empty file": (pairs(""), "odd is not valid JSON .*mend or download the file again"),
    "pairs empty list": (pairs("[]"), r"odd: \[\]: List should have at least 1 item .*found \[\]"),
    "pairs not UTF-8": (pairs(b"\xff"), "odd is not valid JSON .*can't decode"),
    "pairs too deep": (pairs("[" * 100_000), "odd is not valid JSON .*recursion depth"),
    "pairs half a surrogate": (pairs(r'[{"input": "\ud800", "output": "b"}]'), "surrogates not allowed"),
    "pairs many digits": (pairs('[{"input": %s, "output": "b"}]' % ("1" * 5000)), "not valid JSON .*4300 digits"),
    "pairs NaN": (pairs('[{"input": NaN, "output": "b"}]'), "NaN is no number of JSON"),
    "pairs infinite": (pairs('[{"input": 1e999, "output": "b"}]'), "1e999 is no number of JSON"),
    "pairs no object": (pairs("[1]"), r"odd: \[0\]: Input should be a valid dictionary .*found 1"),
    "pairs lack output": (pairs('[{"input": "a"}]'), r"odd: \[0, 'output'\]: Field required, found {'input': 'a'}"),
    "pairs null": (pairs('[{"input": "a", "output": null}]'), r"\[0, 'output', 'str'\].* a valid string, found None"),
    "pairs list": (pairs('[{"input": ["a"], "output": "b"}]'), r"\[0, 'input', 'str'\].* string, found \['a'\]"),
    "pairs blank": (pairs(r'[{"input": " \t", "output": "b"}]'), r"\[0, 'input'\].* an empty field, found ' "),
    "prompts list": (prompts([]), r"odd: \[\]: Input should be a valid dictionary, found \[\]"),
    "prompts without shuffled": (prompts({"t": {"clean": []}}), r"\['t', 'shuffled'\]: Field required"),
    "prompts empty answer": (prompts({"t": {"clean": [{"text": "a", "answer": ""}], "shuffled": []}}),
                             r"\['t', 'clean', 0, 'answer'\]: String should have at least 1 character"),
    "card name": (card(name="../up"), r"\['../up', '\[key\]'\]: String should match pattern '\^\[A-Za-z0-9\]"),
    "card name with markup": (card(name="<b>"), r"\['<b>', '\[key\]'\]: String should match pattern"),
    "card type": (card(type="../../x"), r"'type'\].* be 'abstractive' or 'extractive', found '../../x'"),
    "card split": (card(split="test"), "Input should be 'scoring', 'evaluation', 'training' or 'unseen', found 'test'"),
    "card without labels": (card(labels=None), r"\['t', 'labels'\]: Input should be a valid string, found None"),
    "card held out": (card(held_out=1), "task 't' holds out 1 of 1 pairs"),
    "card held out text": (card(held_out="1"), r"\['t', 'held_out'\]: Input should be a valid integer, found '1'"),
    "card of another type": (card(type="extractive"), "abstractive/t.json has no card; describe task 't' of the type "),
    "tasks without a card": (card(name="u"), "tasks/abstractive/t.json has no card; .* in cards.json, or move the fil"),
    "tasks missing": (lambda: read_tasks("bogus"), "task_files 'bogus': no such tasks; expected lab, upstream, .* bes"),
    "tasks without cards": (lambda: (Path("tasks").mkdir(), read_tasks("tasks")), "task_files 'tasks': no such tasks;"),
    "documents of no kind": (lambda: documents_for("owner/name", "bogus"), "documents 'bogus': no such file; give 'la"),
    "task unknown": (lambda: read_tasks("lab[months_nxt]"),
                     "unknown task 'months_nxt'; nearest valid names: months_next, months_second_next, elements_next"),
    "tasks all of another split": (
        lambda: in_split(read_tasks("lab[country-capital,country-continent]"), "evaluation"),
        r"none of the 2 tasks is of the split evaluation \(they are of scoring\), expected at least 1; name others in"),
    "tasks of neither split": (lambda: in_split({"t": TASK}, "evaluation", "unseen"), "of the split evaluation or uns"),
    "one task to score": (lambda: in_split(read_tasks("lab[antonym,country-capital]"), "scoring"),
                          r"1 of the 2 tasks is of the split scoring \(they are of evaluation, scoring\), .* least 2;"),
    "tasks of an unknown split": (lambda: in_split({"t": TASK}, "scoring", "unsen"), "unknown split 'unsen'; .*unseen"),
    "documents missing": (lambda: read_documents("no.txt", golden_case("gpt_neox").model.tokenizer, n_documents=1,
                                                 length=8, seed=0), "documents 'no.txt': no such file; give 'lab'"),
    # model folders
    "weights cut short": (truncated(1000), "cannot load model 'm': Error while deserializing header"),
    "weights empty": (truncated(0), "cannot load model 'm': Error while deserializing header: header too small"),
    "weights missing": (model_folder(lambda m: (m / "model.safetensors").unlink()), "'m': the folder holds no"),
    "config no JSON": (model_folder("config.json", "{"), "cannot load model 'm': .*not a valid JSON"),
    "config empty": (model_folder("config.json", "{}"), "cannot load model 'm': .*model_type"),
    "config unknown type": (config(model_type="nosuch"), "cannot load model 'm': .*`nosuch`"),
    "config more layers": (config(num_hidden_layers=9), "its files lack 60 weights that its config.json asks for"),
    "config odd heads": (config(num_attention_heads=5), "cannot load model 'm': .*not divisible"),
    "config text": (config(hidden_size="big"), "cannot load model 'm': .*expected int, got str"),
    "config other shape": (config(hidden_size=64), "cannot load model 'm': "),
    "remote code": (config(model_type="nosuch", auto_map={"AutoConfig": "evil.Evil"}), "cannot load model 'm': .*code"),
    "tokenizer no JSON": (model_folder("tokenizer.json", "{"), "cannot load model 'm': Expecting property name"),
    "tokenizer missing": (model_folder(lambda m: [f.unlink() for f in m.glob("tok*")]), "tokenizer files missing"),
    # head sets
    "fraction NaN": (lambda: top_heads(SCORES, fraction=float("nan")), "fraction nan is outside 0..1"),
    "fraction negative": (lambda: head_count(-0.1, 6), "fraction -0.1 is outside 0..1"),
    "rounding": (lambda: head_count(0.1, 6, rounding="up"), "unknown rounding 'up'; valid are floor, ceil"),
    "both sizes": (lambda: top_heads(SCORES, n_heads=1, fraction=0.1), "give either fraction or n_heads"),
    "too many heads": (lambda: top_heads(SCORES, n_heads=7), "n_heads 7 is outside 0..6"),
    "scores NaN": (lambda: top_heads(SCORES * float("nan"), n_heads=1), r"scores of 6 heads are NaN \(first L0H0\)"),
    "empty set": (lambda: overlap(SCORES < 0, SCORES > 0), "overlap with an empty head set is undefined"),
    "seed negative": (lambda: random_heads((2, 3), 1, seed=-1, draw=0), "seed -1 and draw 0 must not be negative"),
    "matched excluded": (lambda: layer_matched_random_heads(SCORES > 2, seed=0, draw=0, exclude=SCORES < 1),
                         "n_heads 3 is outside 0..2, the heads there are after excluding 4 of 6"),
    # command line
    "suite command": (command(suites.main), "error: expected SUITE_FILE, given nothing"),
    "suite command unknown": (command(suites.main, "config/x.yaml"), "error: suite file config/x.yaml does not exist"),
    "verify command": (command(verify.main, "a", "b"), "error: expected SUITE_FILE, given a b"),
    "verify command unknown": (command(verify.main, "x.yaml"), "error: suite file x.yaml does not exist"),
    "torture without kills": (command(torture.main, "torture", "--kills", "0"), "error: 0 kills: expected at least 1"),
    "torture unknown": (command(torture.main, "tortur"), "error: suite file config/tortur.yaml does not"),
    "determinism command": (command(determinism.main), "error: expected the name of one suite"),
    "book without settings": (command(book.main, "results/x"), "error: .*No such file or directory"),
    "run with a list": (run_with([1]), r"error: --parameters \[1\]: expected a mapping of names to values"),
    "measure without model": (command(measure.main, "s.yaml"), "error: expected SUITE_FILE MODEL, given s.yaml"),
    "sweep without parts": (command(sweep.main, "j"), "error: expected JOINED PARTS, given j; see --help"),
    "cold book of no suite": (command(cold_book.main, "nosuch"), "error: suite file config/nosuch.yaml does not exist"),
    "tokenizer to two folders": (command(tokenizer.main, "a", "b"), "error: expected FOLDER, given a b; see --help"),
    "training seed negative": (command(train.main, "lab-7k", "--seed", "-1", "--models", "mine"),
                               "error: seed -1: expected a whole number from 0"),
    "training into a file": (command(train.main, "lab-7k", "--models", "icl_lib/names.py"), "error: .*names.py"),
    "run with text": (run_with({"step": "first"}), r"error: .*parameter step is 'first' \(str\), expected int"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(elsewhere, name):
    case, message = CASES[name]
    before = {path.name for path in elsewhere.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        case()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    written = {path.name for path in elsewhere.iterdir()} - before
    assert written <= {"odd", "m", "tasks", "cards.json", "stderr", "p.yaml"}, "what the case itself has written"


def test_every_area_has_cases():
    assert len(CASES) >= 90
