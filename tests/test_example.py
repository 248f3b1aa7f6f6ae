"""The worked example: its values against plain transformers, and the rules that choose heads, task and prompt."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import draw_prompts
from icl_lib.example import measure as module
from icl_lib.example.measure import (
    candidate_tasks,
    example_table,
    sample_table,
    token_texts,
    top_head_of_each_kind,
)
from icl_lib.load import load_model, wrap_model
from icl_lib.models.locate import LAB_MODELS
from icl_lib.models.quiet import quiet
from icl_lib.pages import example as report
from icl_lib.scores.induction import induction_scores, repeated_random_tokens
from tests.conftest import projections_of
from tests.project import ROOT
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


def test_samples_are_the_prompts_and_the_attention_of_a_plain_pass(case):
    _, model, plain, tasks, _ = case
    scores, prompts = tables(model.cfg.n_layers, model.cfg.n_heads)[0], drawn(model, tasks)
    layer, head = HEADS["induction"]
    scores = scores[scores["task"] != "undone"]
    tokens = repeated_random_tokens(model, n_sequences=2, length=7, seed=3)
    table = sample_table(model, prompts, tokens, scores, name="m", step=0, n_repeated=5)
    assert set(table["task"]) == {TASK} and set(table["layer"]) == {layer} and set(table["head"]) == {head}
    for labels, prompt in (("clean", prompts[TASK].clean[0]), ("shuffled", prompts[TASK].shuffled[0])):
        rows = table[table["prompts"] == labels].sort_values("to_position")
        assert "".join(rows["token"]) == prompt.text.replace("<|endoftext|>", "BOS").replace("\n", "↵")
        assert rows["value"].to_numpy() == pytest.approx(run(plain, ids(model, prompt))[1][layer][head, -1], abs=1e-5)
    rows, fed = table[table["prompts"] == "repeated"], tokens[0, [*range(6), *range(1, 6)]].tolist()
    square = rows.pivot(index="position", columns="to_position", values="value").fillna(0).to_numpy()
    assert square == pytest.approx(run(plain, fed)[1][layer][head].numpy(), abs=1e-5)
    assert rows[rows["position"] == 10]["token"].tolist() == ["BOS", *"1234512345"]


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
