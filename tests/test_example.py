"""The worked example: its values against plain transformers, its page from the committed table without weights."""

import copy
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from icl_lib.data.tasks import draw_prompts, read_tasks
from icl_lib.example import measure as module
from icl_lib.example.measure import candidate_tasks, example_table, token_texts, top_head_of_each_kind
from icl_lib.models.load import LAB_MODELS, load_model, quiet, wrap_model
from icl_lib.pages import example as report
from icl_lib.scores.induction import induction_scores
from icl_lib.tables import read_table, run_path
from tests.audit import Figure, check, rows_of, run_page
from tests.conftest import projections_of
from tests.project import ROOT
from workflow.inert import active
from workflow.notebooks import Run
from workflow.suite import read_suite

TASK, OTHER, N_PROMPTS, SHOTS = "numbers_next", "capital-continent", 4, 3
HEADS = {"induction": (1, 3), "fv": (1, 0)}
MODEL, STEP = "smollm2-135m", -1
LAB = LAB_MODELS / "lab-450k/seed0/step4096"


def tables(n_layers, n_heads):
    """Scores in which the two heads are highest, and the accuracy of both tasks."""
    scores = [{"score": score, "task": task, "layer": layer, "head": head, "n_prompts": N_PROMPTS,
               "value": size * (0.5 if (layer, head) == HEADS[kind] else 0.1)}
              for kind, score, of in (("induction", "induction_prefix_matching", {"": 1}),
                                      ("fv", "fv", {TASK: 0.2, OTHER: 0.1}))
              for task, size in of.items() for layer in range(n_layers) for head in range(n_heads)]
    # a head that is better on one task is not better on the mean; a task that the model does not do is not chosen
    scores += [{"score": "fv", "task": "undone", "layer": layer, "head": head, "value": 0.3, "n_prompts": N_PROMPTS}
               for layer in range(n_layers) for head in range(n_heads)]
    accuracy = [{"metric": "first_token_accuracy", "labels": labels, "split": "scoring", "task_type": "abstractive",
                 "n_shots": n, "task": task, "value": value if n else 0.0}
                for task, value in ((TASK, 0.6), (OTHER, 0.9), ("undone", 0.59)) for labels in ("clean", "shuffled")
                for n in (0, SHOTS)]
    return pd.DataFrame(scores), pd.DataFrame(accuracy)


def lab():
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(LAB, attn_implementation="eager").eval()
    return load_model("lab-450k", device="cpu"), plain


def llama():
    """Random weights in float64, two heads to a key (the model of the book's page has three), the lab's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=64, initializer_range=0.2)
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config).double().eval()
    plain.set_attn_implementation("eager")
    return wrap_model(copy.deepcopy(plain), tokenizer), plain


@pytest.fixture(scope="module", params=[lab, llama])
def case(request):
    """A model, itself in plain transformers, its tasks and its table; the random one is right on no prompt."""
    (model, plain), tasks = request.param(), read_tasks(f"lab[{TASK},{OTHER}]")
    given = tables(model.cfg.n_layers, model.cfg.n_heads)
    with pytest.MonkeyPatch.context() as patch:
        if request.param is llama:
            patch.setattr(module, "_first_clear", lambda *_: 1)
        table = example_table(model, tasks, *given, name="m", step=0, n_prompts=N_PROMPTS, n_shots=SHOTS, n_words=6,
                              least_accuracy=0.6, seed=0)
    return request.param, model, plain, tasks, table


def ids(model, prompt):
    return model.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def run(plain, tokens, layer=-1, head=-1, value=None, positions="none"):
    """One full pass: probabilities after it, attention of all layers, and what each projection was fed at the end."""
    fed = []

    def hook(at):
        def replace(_module, args):
            z = args[0].clone()
            fed.append(z[0, -1])
            if at == layer and value is not None:
                width = len(value)
                z[0, slice(-1, None) if positions == "last" else slice(None), head * width : (head + 1) * width] = value
            return (z, *args[1:])
        return replace

    handles = [p.register_forward_pre_hook(hook(at)) for at, p in enumerate(projections_of(plain))]
    try:
        out = plain(torch.tensor([tokens]), output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    return out.logits[0, -1].double().softmax(-1), [a[0] for a in out.attentions], torch.stack(fed)


def drawn(model, tasks):
    return {task: draw_prompts(tasks[task], n_prompts=N_PROMPTS, n_shots=SHOTS, bos=model.tokenizer.bos_token, seed=0)
            for task in tasks}


def passed_over(table):
    return int(table.loc[table["metric"] == "passed_over", "value"].item())


# Against plain transformers


def test_probabilities_are_those_of_a_plain_pass_with_a_hook(case):
    _, model, plain, tasks, table = case
    prompts, width, at = drawn(model, tasks), model.cfg.d_head, passed_over(table)
    means = {task: torch.stack([run(plain, ids(model, p))[2] for p in of.clean]).mean(0)
             for task, of in prompts.items()}
    means = {"task_mean": means[TASK], "mean": (means[TASK] + means[OTHER]) / 2}
    rows = table[table["metric"].isin(["answer_probability", "top_probability"])]
    edits = rows[rows["metric"] == "answer_probability"].groupby(["prompts", "ranking", "replacement", "positions"])
    assert len(edits) == 10 and (edits.size() == 1).all() and (table["task"] == TASK).all()
    for row in rows.itertuples():
        assert (row.layer, row.head) == HEADS.get(row.ranking, (-1, -1))
        value = None if row.ranking == "none" else means[row.replacement][row.layer, row.head * width :][:width]
        prompt = getattr(prompts[TASK], row.prompts)[at]
        tokens = ids(model, prompt)
        probability = run(plain, tokens, row.layer, row.head, value, row.positions)[0]
        answer = model.tokenizer(prompt.answer, add_special_tokens=False)["input_ids"][0]
        token = answer if row.metric == "answer_probability" else int(probability.argmax())
        assert row.value == pytest.approx(float(probability[token]), abs=2e-6), row
        assert row.token == token_texts(model.tokenizer, [*tokens, token])[-1]
        assert (row.position, row.to_position) == (len(tokens) - 1, len(tokens))
    values = edits["value"].first()
    assert values.nunique() == len(values), "an edit that does nothing"


def test_attention_is_that_of_a_plain_pass_on_the_same_tokens(case):
    _, model, plain, tasks, table = case
    at, rows = passed_over(table), table[table["metric"] == "attention"]
    words = module.repeated_words(model, tasks, n_words=6, seed=0)
    texts = {name: ids(model, getattr(drawn(model, tasks)[TASK], name)[at]) for name in ("clean", "shuffled")}
    for name, tokens in ({"repeated": words[0].tolist()} | texts).items():
        attention = run(plain, tokens)[1]
        for kind, (layer, head) in HEADS.items():
            own = rows[(rows["prompts"] == name) & (rows["ranking"] == kind)]
            n = len(tokens)
            assert len(own) == (n * (n + 1) // 2 if name == "repeated" else n)
            expected = attention[layer][head].numpy()[own["position"], own["to_position"]]
            np.testing.assert_allclose(own["value"], expected, atol=2e-6)
            last = own[own["position"] == n - 1].sort_values("to_position")
            assert last["token"].tolist() == token_texts(model.tokenizer, tokens)
    assert np.allclose(rows.groupby(["prompts", "ranking", "position"])["value"].sum(), 1, atol=1e-6)
    for kind, head in HEADS.items():
        matching = float(induction_scores(model, words, convention="prefix_matching")[head])
        assert report.copying(table, kind) == pytest.approx(matching, abs=2e-6)


def test_words_are_whole_and_repeat(case):
    _, model, _, tasks, table = case
    words = module.repeated_words(model, tasks, n_words=6, seed=0)[0]
    texts = token_texts(model.tokenizer, words.tolist())
    assert texts[0] == "BOS" and texts[1:7] == texts[7:] and len(set(texts)) == 7
    known = {word for task in tasks.values() for word, _ in task.pairs}
    assert all(text[0] == " " and text[1:] in known for text in texts[1:])
    assert module.repeated_words(model, tasks, n_words=6, seed=1).tolist() != [words.tolist()]
    with pytest.raises(ValueError, match="words of the tasks are one token each, 1000 are asked for"):
        module.repeated_words(model, tasks, n_words=1000, seed=0)


def test_the_prompt_is_the_first_that_is_right_and_less_sure_when_shuffled(case):
    kind, model, plain, tasks, table = case
    if kind is llama:
        pytest.skip("a random model is right on no prompt")
    prompts = drawn(model, tasks)[TASK]
    clear = []
    for clean, shuffled in zip(prompts.clean, prompts.shuffled, strict=True):
        answer = model.tokenizer(clean.answer, add_special_tokens=False)["input_ids"]
        before, after = (run(plain, ids(model, prompt))[0] for prompt in (clean, shuffled))
        clear.append(len(answer) == 1 and int(before.argmax()) == answer[0] and bool(
            after[answer[0]] < before[answer[0]]))
    assert passed_over(table) == clear.index(True)
    text = "".join(report.prompt_of(table, "fv")["token"])
    assert text == prompts.clean[clear.index(True)].text.replace("<|endoftext|>", "BOS").replace("\n", "↵")


# Rules


def test_prompts_that_are_not_clear_are_passed_over(monkeypatch):
    """Answers of two tokens, not the likeliest one, surer with shuffled labels; then one that will do."""
    answers = [[3, 4], [3], [3], [3]]
    sure = [0.9, 0.3, 0.8, 0.8, 0.1, 0.1, 0.9, 0.7]  # of token 3, by prompt: clean, then shuffled
    prompts = [module.EncodedPrompt("t", i % 4, [i], answers[i % 4]) for i in range(8)]
    clean, shuffled = prompts[:4], prompts[4:]
    monkeypatch.setattr(module, "next_token_probabilities",
                        lambda _, tokens: torch.tensor([1 - sure[tokens[0]], 0, 0, sure[tokens[0]], 0]))
    assert module._first_clear(torch.nn.Module(), clean, shuffled) == 3
    with pytest.raises(ValueError, match="task 't': none of 3 prompts has an answer of one token"):
        module._first_clear(torch.nn.Module(), clean[:3], shuffled[:3])


def test_heads_and_task_are_chosen_by_rule():
    scores, accuracy = tables(2, 4)
    assert top_head_of_each_kind(scores) == HEADS
    found = candidate_tasks(scores, accuracy, 0.6)
    assert found["task"].tolist() == [TASK, OTHER] and found["fv"].tolist() == [0.1, 0.05]
    assert found["accuracy"].tolist() == [0.6, 0.9]
    assert candidate_tasks(scores, accuracy, 0.5)["task"].iloc[0] == "undone"
    with pytest.raises(ValueError, match="no abstractive scoring task has an accuracy of 0.95"):
        candidate_tasks(scores, accuracy, 0.95)


def test_tokens_are_written_so_that_a_page_may_hold_them():
    class Tokenizer:
        bos_token_id = 0
        texts = ("<s>", " <b>", "`a`", "\n\n", "\x07", " é")

        def decode(self, tokens, **_):
            return "".join(self.texts[i] for i in tokens)

    assert token_texts(Tokenizer(), range(6)) == ["BOS", " ‹b›", "´a´", "↵↵", "·", " é"]


def test_the_suites_that_show_it():
    suites = {name: read_suite(ROOT / f"config/{name}.yaml") for name in ("pretrained", "lab", "smoke")}
    chosen = {model: steps for model, steps in suites["pretrained"].chosen["example"].items() if steps}
    assert chosen == {MODEL: [STEP]}
    for name in ("lab", "smoke"):
        assert any(path.as_posix().endswith(f"example/{MODEL}/step-1.ipynb") for path in suites[name].notebooks)


# The page


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
        patch.setattr("icl_lib.models.load.load_model", refuse)
        shown, _ = run_page("example", **given | {"results": str(results)})
    return [item if isinstance(item, Figure) else item.data for item in shown]


def probabilities(example):
    rows = example[example["metric"] == "answer_probability"]
    return rows.set_index(["prompts", "replacement", "positions", "ranking"])["value"]


def test_sentences_have_the_numbers_of_the_tables(page, committed):
    example, scores, accuracy = (committed[kind] for kind in ("example", "scores", "accuracy"))
    text = [item for item in page if isinstance(item, str) and not item.startswith("<")]
    means = {score: own.groupby(["layer", "head"])["value"].mean() for score, own in scores.groupby("score")}
    heads = {kind: means[score].idxmax() for kind, score in (("fv", "fv"), ("induction", "induction_prefix_matching"))}
    best = {score: sorted(means[score])[-1:-3:-1] for score in ("fv", "induction_prefix_matching")}
    shape = [scores[axis].max() + 1 for axis in ("layer", "head")]
    check(text[0], [*shape, 0, 1, *heads["induction"], *best["induction_prefix_matching"], 0, *heads["fv"],
                    *best["fv"]], names=[MODEL])
    attention = example[example["metric"] == "attention"].set_index(
        ["prompts", "ranking", "position", "to_position"])["value"]
    stripe = {kind: np.mean([attention["repeated", kind, i, i - 9] for i in range(11, 20)]) for kind in heads}
    check(text[1], [*heads["induction"], stripe["induction"], *heads["fv"], stripe["fv"]])
    fv = scores[scores["score"] == "fv"].set_index(["task", "layer", "head"])["value"]
    rows = accuracy.query("metric == 'first_token_accuracy' and labels == 'clean' and n_shots == 10")
    done = rows.query("split == 'scoring' and task_type == 'abstractive' and value >= 0.6").set_index("task")["value"]
    task = max(done.index, key=lambda name: fv[(name, *heads["fv"])])
    assert f"**{task}**" in text[2] and set(example["task"]) == {task}
    check(text[2], [len(done), 0.6, *heads["fv"], fv[(task, *heads["fv"])], done[task], passed_over(example) + 1])
    clean = example[(example["prompts"] == "clean") & (example["metric"] == "attention")].sort_values("to_position")
    numbers = []
    for kind in ("fv", "induction"):
        own = clean[clean["ranking"] == kind].reset_index(drop=True)
        labels, inside = [], False  # the tokens between "A:" and the line's end
        for i, token in enumerate(own["token"]):
            inside = (inside and not token.startswith("↵")) or "".join(own["token"][max(0, i - 2) : i]).endswith("A:")
            labels.append(inside and i < len(own))
        of = own["value"]
        ends = [i for i, token in enumerate(own["token"]) if token.startswith("↵") and i and labels[i - 1]]
        numbers += [*heads[kind], of[labels].sum(), of[[i - 1 for i in ends]].sum(),
                    of[own["token"].shift() == ":"].sum(), of[0]]
    check(text[3], numbers)
    p, top = probabilities(example), example[example["metric"] == "top_probability"].set_index(
        ["prompts", "replacement", "positions", "ranking"])
    right, wrong = p["clean", "none", "none", "none"], p["shuffled", "none", "none", "none"]
    back = {kind: p["shuffled", "task_mean", "last", kind] for kind in heads}
    check(text[4], [right, wrong, top["value"]["shuffled", "none", "none", "none"]])
    check(text[5], [*heads["fv"], back["fv"], (back["fv"] - wrong) / (right - wrong),
                    top["value"]["shuffled", "task_mean", "last", "fv"], *heads["induction"], back["induction"],
                    (back["induction"] - wrong) / (right - wrong), *heads["fv"], p["shuffled", "mean", "last", "fv"]])
    without = [[*heads[kind], p["clean", "mean", "last", kind], p["clean", "mean", "all", kind]] for kind in heads]
    still = top[top.index.get_level_values("replacement") == "mean"].loc["clean"]["token"]
    answer = example[example["metric"] == "answer_probability"]["token"].iloc[0]
    costs = [induction - fv for fv, induction in zip(without[0][2:], without[1][2:], strict=True) if fv < induction]
    check(text[6], [*without[0], *without[1], right, *costs, (still == answer).sum(), 4])
    assert text[5].endswith("it is." if back["fv"] > max(
        back["induction"], p["shuffled", "mean", "last", "fv"]) else "it is not.")
    names = [task, *fv.index.levels[0]]
    check(text[7], [25, *(x for head in heads.values() for own in [fv.xs(head, level=["layer", "head"])]
                          for x in (*head, own[task], own.mean(), len(own), own.min(), own.max()))], names=names)
    assert len(text) == 8


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


def test_sentences_say_when_it_came_out_the_other_way(committed):
    example = committed["example"].copy()
    at = example["metric"] == "answer_probability"
    fv, induction = at & (example["ranking"] == "fv"), at & (example["ranking"] == "induction")
    swapped = example.copy()
    swapped.loc[fv, "value"], swapped.loc[induction, "value"] = (
        example.loc[induction, "value"].to_numpy(), example.loc[fv, "value"].to_numpy())
    texts = {name: report.answer_sentences(table) for name, table in (("as it is", example), ("swapped", swapped))}
    assert "largest: it is." in texts["as it is"][1] and "largest: it is not." in texts["swapped"][1]
    assert re.search(r"it does at the last token \(by 0\.\d+\) and at every token \(by", texts["as it is"][2])
    assert "it does not." in texts["swapped"][2]
    example.loc[example["metric"] == "top_probability", "token"] = " other"
    assert "answers rightly in 0 of these 4" in report.answer_sentences(example)[2]
