"""The generated tasks are what they say, and the likelier label is found as by reading all labels apart."""

from collections import Counter

import pytest
import torch

from icl_lib.data.patterns import LETTERS, PAIRS, WORDS, pattern_tasks
from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import draw_prompts, tasks_sum
from icl_lib.forward.edits import Edit
from icl_lib.forward.encoded import encode_prompts
from icl_lib.load import load_model
from icl_lib.metrics.evaluate import answer_metrics, label_metrics
from tests import planted_patterns

# Of the places of a sequence which have to hold the same letter.
SAME = {"repetition": [(0, 2), (1, 3)], "recursion": [(1, 2), (2, 3)], "centre-embedding": [(0, 4), (1, 3)]}


@pytest.mark.parametrize("name", LETTERS)
def test_patterns_of_letters(name):
    tasks = read_tasks("patterns")
    alphabets = []
    for task in (tasks[name], tasks[f"{name}-scoring"]):
        assert len(set(task.pairs)) == len(task.pairs) == 120
        for sequence, label in task.pairs:
            letters = sequence.split()
            equal = [(i, j) for j in range(len(letters)) for i in range(j) if letters[i] == letters[j]]
            assert len(letters) == len(LETTERS[name])
            assert set(SAME[name]) <= set(equal) if label == "Foo" else not equal
            assert len(set(letters)) == (len(set(LETTERS[name])) if label == "Foo" else len(letters))
        alphabets.append({letter for sequence, _ in task.pairs for letter in sequence.split()})
    assert not alphabets[0] & alphabets[1], "scoring has letters of its own"


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_categories(name):
    tasks, of_word = read_tasks("patterns"), {word: kind for kind, words in WORDS.items() for word in words.split()}
    assert len(of_word) == sum(len(words.split()) for words in WORDS.values()), "no word is of two categories"
    labels = {tuple(kinds): label for kinds, label in zip(PAIRS[name], ("Foo", "Bar", "Mur", "Res"), strict=False)}
    for task in (tasks[name], tasks[f"{name}-scoring"]):
        assert all(labels[tuple(of_word[word] for word in pair.split())] == label for pair, label in task.pairs)
        assert task.floor == 1 / len(labels)
    words = [{word for pair, _ in tasks[task].pairs for word in pair.split()} for task in (name, f"{name}-scoring")]
    assert not words[0] & words[1]


@pytest.mark.parametrize("n_shots", [0, 5, 10])
@pytest.mark.parametrize("name", ["repetition", "pairs-four-way"])
def test_prompts_are_balanced_and_ask_for_nothing_shown(name, n_shots):
    task = read_tasks("patterns")[name]
    prompts = draw_prompts(task, n_prompts=8, n_shots=n_shots, bos="<s>", seed=3)
    assert set(Counter(p.answer for p in prompts.clean).values()) == {8 // len(task.label_names)}
    for clean, shuffled in zip(prompts.clean, prompts.shuffled, strict=True):
        instruction, body = clean.text.removeprefix("<s>").split("\n\n")
        *shown, query = body.split("\n")
        assert instruction.startswith("Say") and all(label in instruction for label in task.label_names)
        assert len(shown) == n_shots and query.endswith(":") and not any(line.startswith(query) for line in shown)
        pairs = [tuple(line.split(": ")) for line in shown]
        assert set(pairs) <= set(task.training_pairs)
        assert (query.removesuffix(":"), clean.answer.strip()) in task.query_pairs
        times = Counter(label for _, label in pairs)
        assert max(times.values(), default=0) - min((times[x] for x in task.label_names), default=0) <= 1
        assert times == Counter(line.split(": ")[1] for line in shuffled.text.split("\n\n")[1].split("\n")[:-1])
    assert prompts == draw_prompts(task, n_prompts=8, n_shots=n_shots, bos="<s>", seed=3)
    assert prompts != draw_prompts(task, n_prompts=8, n_shots=n_shots, bos="<s>", seed=4)


def test_labels_are_where_they_are_asked_for():
    """Which label comes last says nothing of the answer, and shuffled labels are no swap of the two."""
    task = read_tasks("patterns")["repetition"]
    prompts = draw_prompts(task, n_prompts=200, n_shots=10, bos="", seed=0)
    last = [p.text.split("\n")[-2].split(": ")[1] == p.answer.strip() for p in prompts.clean]
    assert 70 < sum(last) < 130
    kept = [sum(a == b for a, b in zip(c.text.split("\n"), s.text.split("\n"), strict=True))
            for c, s in zip(prompts.clean, prompts.shuffled, strict=True)]
    assert len(set(kept)) > 3


def test_the_sum_of_the_tasks_knows_their_form():
    tasks = pattern_tasks()
    assert tasks_sum(tasks) != tasks_sum(pattern_tasks("ABCDEFGHIJKLMNOPQRST"))
    for name, task in read_tasks("lab").items():
        assert task.template.query == "Q: {}\nA:" and not task.balanced, name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pattern")
    planted_patterns.write_model(folder, by="induction")
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("positions", ["all", "last"])
def test_label_metrics_agree_with_answers_fed_one_by_one(model, positions):
    """The oracle gives each prompt every label as its answer, and compares their probabilities."""
    task = planted_patterns.tasks("repetition")["repetition"]
    clean = draw_prompts(task, n_prompts=6, n_shots=2, bos="<s>", seed=0).clean
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 4, generator=generator) < 0.4
    edits = [None, *(Edit(mask, torch.randn(1, 3, 4, 48, generator=generator), positions) for mask in masks)]
    found = label_metrics(model, encode_prompts(model, clean, "repetition"), task.label_names, edits, batch_size=4)
    named = {str(i): edit for i, edit in enumerate(edits)}
    by_label = torch.stack([
        torch.from_numpy(answer_metrics(model, {"t": [type(p)(p.text, f" {label}") for p in clean]}, named)
                         ["first_token_probability"].to_numpy().reshape(6, 3).T.copy())
        for label in task.label_names], 2)
    own = torch.tensor([task.label_names.index(p.answer.strip()) for p in clean])
    assert torch.equal(found["label_correct"], (by_label.argmax(2) == own).double())
    assert 0 < found["label_correct"].mean() < 1, "some right, some wrong"
    probability = by_label.gather(2, own.expand(3, -1)[..., None])[..., 0]
    assert torch.allclose(found["first_token_probability"], probability, atol=1e-6)


def test_bad_labels_are_refused_in_one_line(model):
    clean = draw_prompts(planted_patterns.tasks("recursion")["recursion"], n_prompts=2, n_shots=0, bos="<s>", seed=0)
    encoded = encode_prompts(model, clean.clean, "recursion")
    for labels in (["Foo", "Foo"], ["Foo", "w1:"]):
        with pytest.raises(ValueError, match="task 'recursion': expected every answer to be one of Foo, "):
            label_metrics(model, encoded, labels, [None])
