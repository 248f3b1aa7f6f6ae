"""Whatever a file holds: it is read for what it says where it is good, and refused in one line where it is not."""

import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from icl_lib import read_prompts
from icl_lib.data.sources import read_pairs
from icl_lib.data.tasks import Task, draw_prompts
from workflow.suite import check_suite, read_suite

ODD = Path("odd")
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD_TEXT = ["", " ", "\ud800", "a\n\nQ: b\nA:", "x" * 20_000, "\u202e", "\0", "../..", "lab-7k", "; ls", "<b>"]
ANY_TEXT = st.text(st.characters(), max_size=30) | st.sampled_from(ODD_TEXT)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
                      max_leaves=8)
MODEL = st.dictionaries(st.sampled_from(["name", "steps", "ablate", "protocols", "execute", "example"]),
                        VALUES | st.sampled_from(["lab-7k", "all", "last", [0]]), max_size=4)
SUITES = VALUES | st.fixed_dictionaries(
    {}, optional={"suite": VALUES | st.just("x"), "models": st.lists(MODEL, max_size=2) | VALUES, "seed": VALUES,
                  "threads": VALUES, "parameters": st.dictionaries(st.sampled_from(["scoring", "lab"]), VALUES)})


def one_line_or_fine(call, *arguments, **options):
    """What the call gives, None when it refuses in one line; anything else fails the test."""
    try:
        return call(*arguments, **options)
    except (ValueError, FileNotFoundError) as error:
        assert str(error) and "\n" not in str(error), error
        return None


@QUICK
@given(SUITES)
def test_any_suite_is_fine_or_refused(elsewhere, config):
    found = one_line_or_fine(check_suite, config)
    if found is not None:
        assert Path(found.results).resolve().parent == Path("results").resolve()
        one_line_or_fine(found.check_templates)


@QUICK
@given(st.binary(max_size=60) | SUITES.map(lambda x: yaml.safe_dump(x, allow_unicode=True).encode("utf-8", "replace")))
def test_any_suite_file_is_fine_or_refused(elsewhere, content):
    ODD.write_bytes(content)
    one_line_or_fine(read_suite, ODD)


@settings(QUICK, max_examples=20)
@given(st.fixed_dictionaries(
    {"suite": st.sampled_from(["x", "a-b_1"]),
     "models": st.lists(st.sampled_from(["lab-7k", "lab-40k"]), min_size=1, unique=True).map(
         lambda names: [{"name": name, "steps": "last"} for name in names])},
    optional={"seed": st.integers(0, 2**31), "parameters": st.just({"scoring": {"n_prompts": 2}})}))
def test_any_good_suite_is_read_from_its_file(elsewhere, config):
    path = Path(f"{config['suite']}.yaml")
    path.write_text(yaml.safe_dump(config))
    found = read_suite(path)
    assert found == check_suite(config) and found.seed == config.get("seed", 0)
    assert Path(found.results).name == config["suite"] and list(found.steps) == [m["name"] for m in config["models"]]
    found.check_templates()


def is_json_text(content):
    """Whether the file that holds `content` is JSON of finite numbers, and UTF-8."""
    try:
        json.dumps(content, allow_nan=False)
        json.dumps(content, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def is_pair(item):
    fields = [item.get(name) for name in ("input", "output")] if isinstance(item, dict) else [None]
    return all(type(field) in (str, int, float) and str(field).strip() for field in fields)


PAIRS = st.lists(st.fixed_dictionaries({"input": ANY_TEXT | st.integers(), "output": ANY_TEXT | st.floats(-9, 9)}),
                 min_size=1, max_size=4)


@QUICK
@given(PAIRS | VALUES | st.lists(st.fixed_dictionaries({"input": SCALARS, "output": SCALARS}), max_size=4))
def test_any_task_file_gives_its_pairs_and_prompts_or_is_refused(elsewhere, content):
    ODD.write_text(json.dumps(content))  # escapes what is no text
    good = isinstance(content, list) and content and all(map(is_pair, content)) and is_json_text(content)
    found = one_line_or_fine(read_pairs, ODD)
    assert found == ([(str(item["input"]), str(item["output"])) for item in content] if good else None)
    if found is not None:
        drawn = one_line_or_fine(  # refused where no label can be moved
            draw_prompts, Task("t", "abstractive", "scoring", found), n_prompts=2, n_shots=3, bos="<s>", seed=0)
        if drawn is None:
            alike = len({label for _, label in found}) == 1 or len({question for question, _ in found}) < len(found)
            assert alike or len(found) < 3, "one demonstration has nowhere to move its label"
            return
        assert all(prompt.text.startswith("<s>") and prompt.text.endswith("\nA:") for prompt in drawn.clean)
        assert all(prompt.answer.startswith(" ") and prompt.answer.strip() for prompt in drawn.clean)
        assert all(prompt.text.encode() for prompt in drawn.clean + drawn.shuffled)


def is_prompt(item):
    return isinstance(item, dict) and all(isinstance(item.get(name), str) and item[name] for name in ("text", "answer"))


def is_prompt_file(content):
    return isinstance(content, dict) and content and all(
        isinstance(entry, dict) and isinstance(entry.get(key), list) and all(map(is_prompt, entry[key]))
        for entry in content.values() for key in ("clean", "shuffled"))


PROMPTS = st.lists(st.fixed_dictionaries({"text": ANY_TEXT, "answer": ANY_TEXT}), max_size=2)


@QUICK
@example({"t": {"clean": [], "shuffled": [{"text": 0.5, "answer": "a"}]}})
@given(st.dictionaries(ANY_TEXT, st.fixed_dictionaries({"clean": PROMPTS, "shuffled": PROMPTS}), max_size=2) | VALUES
       | st.dictionaries(ANY_TEXT, st.fixed_dictionaries({}, optional={
           key: VALUES | st.lists(st.fixed_dictionaries({"text": SCALARS, "answer": SCALARS}), max_size=2)
           for key in ("clean", "shuffled")}), max_size=2))
def test_any_prompt_file_gives_its_prompts_or_is_refused(elsewhere, content):
    ODD.write_text(json.dumps(content))
    found = one_line_or_fine(read_prompts, ODD)
    if is_prompt_file(content) and is_json_text(content):
        assert {task: {key: [vars(prompt) for prompt in getattr(prompts, key)] for key in ("clean", "shuffled")}
                for task, prompts in found.items()} == content
    else:
        assert found is None
