"""The released F1 on hand-made strings, greedy generation and token losses against plain passes, bad input."""

from dataclasses import replace

import pytest
import torch

from icl_lib import Edit, Prompt, answer_metrics, edited_heads, token_losses
from icl_lib.forward.encoded import encode_prompts
from icl_lib.forward.generate import generate
from icl_lib.forward.passes import plain_transformers
from icl_lib.metrics.evaluate import edited_token_losses, token_loss_differences
from icl_lib.metrics.generation import f1_ceiling, generated_f1, generated_text
from tests.conftest import ARCHITECTURES, tiny_model


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (" Paris\n\nQ: Rome", " Paris", 1.0),
        (" paris.", "Paris", 1.0),  # case and punctuation do not count
        (" the United States of America\n", " United States", 2 / 3),  # of, america too many: 2*2 / (4+2)
        (" the cat", " a cat", 1.0),  # articles do not count
        (" A\n\nQ: b", " a", 0.0),  # A5: nothing is left of the answer
        (" a", " a", 0.0),
        (" well-known", " well-known", 0.0),  # A6: "well" against "wellknown"
        (" New York-based", " New York", 1.0),  # the span ends at the hyphen
        (" don't", " don't", 0.0),
        ("\n\nQ: nine", " Q", 1.0),  # the first run that there is
        ("---", " four", 0.0),
        ("", " four", 0.0),
        (" red red", " red", 2 / 3),  # every copy counts once
    ],
)
def test_released_f1_on_strings(text, answer, expected):
    assert generated_f1(text, answer) == pytest.approx(expected)


def test_text_ends_at_end_of_text_or_reaches_back_into_the_prompt(neox):
    model = neox.model
    end = model.tokenizer.eos_token_id
    words = model.tokenizer(" winter gentle red", add_special_tokens=False)["input_ids"][:3]
    text = model.tokenizer.decode
    assert generated_text(model, words, [*words[:2], end, 7, 7], reach_back=False) == text(words[:2])
    # the end-of-text token is generated, then the last five ids of all are decoded
    assert generated_text(model, words, [words[0], end, 7, 7, 7], reach_back=True) == text([*words, words[0], end])
    for reach_back in (False, True):
        assert generated_text(model, words, [30, 31, 32, 33, 34], reach_back=reach_back) == text([30, 31, 32, 33, 34])


def test_ceiling_of_the_released_f1_is_below_one_for_articles_and_hyphens(neox):
    answers = [" a", " red-hot", " winter"]
    assert [f1_ceiling(neox.model, a) for a in answers][:2] == [0.0, 0.0]
    assert 0 < f1_ceiling(neox.model, answers[2]) <= 1


def edits_of(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    edits = [None]
    for heads in ([(0, 1)], [(1, 0), (2, 3)], [(2, 0)]):
        mask = torch.zeros(shape, dtype=torch.bool)
        for layer, head in heads:
            mask[layer, head] = True
        values = torch.randn(1, *shape, model.cfg.d_head, generator=generator)
        edits += [Edit(mask, values, "last"), Edit(mask, values, "all")]
    return edits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_under_edits_equals_generation_one_edit_and_prompt_at_a_time(architecture):
    model, _ = tiny_model(architecture, 3, 4, n_kv_heads=2)
    texts = ["<|endoftext|>Q: red\nA:", "<|endoftext|>Q: winter gentle sea\nA: Red\n\nQ: blue\nA:", "<|endoftext|> x"]
    encoded = encode_prompts(model, [Prompt(text, " red") for text in texts], "task")
    edits = edits_of(model)
    quick = generate(model, encoded, edits)
    for i, prompt in enumerate(encoded):
        for j, edit in enumerate(edits):
            fed, past, slow = torch.tensor([prompt.tokens]), None, []
            with torch.no_grad(), edited_heads(model, edit), plain_transformers(model) as hf_model:
                for _ in range(5):
                    out = hf_model(fed, past_key_values=past, use_cache=True)
                    fed, past = out.logits[:, -1:].argmax(-1), out.past_key_values
                    slow.append(int(fed))
            assert quick[i, j].tolist() == slow
    assert len({tuple(row) for row in quick.flatten(0, 1).tolist()}) > len(encoded)  # edits change what is generated


def test_f1_of_the_metrics_is_that_of_the_generated_text(neox):
    model = neox.model
    task, prompts = next(iter(neox.prompts.items()))
    edits = {str(i): edit for i, edit in enumerate(edits_of(model))}
    table = answer_metrics(model, {task: prompts.clean}, edits, f1=True)
    encoded = encode_prompts(model, prompts.clean, task)
    generated = generate(model, encoded, list(edits.values()))
    for row in table.itertuples():
        text = model.tokenizer.decode(generated[row.prompt, int(row.edit)].tolist())
        assert row.generated_f1 == generated_f1(text.split("<|endoftext|>")[0], prompts.clean[row.prompt].answer)
    assert "generated_f1" not in answer_metrics(model, {task: prompts.clean})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_losses_of_many_edits_equal_plain_passes_at_all_and_last_positions(architecture):
    model, _ = tiny_model(architecture, 3, 4, n_kv_heads=2)
    tokens = torch.randint(0, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    edits = edits_of(model)
    wide = Edit(edits[1].heads, torch.randn(3, *edits[1].values.shape[1:]), "all")
    edits += [wide, Edit(wide.heads, wide.values, "last")]
    at = [0, 4, 5, 18]
    quick = edited_token_losses(model, tokens, edits, at=at)
    whole = edited_token_losses(model, tokens, edits, batch_size=2)
    torch.testing.assert_close(whole[:, :, at], quick)
    for j, edit in enumerate(edits):
        for row in range(len(tokens)):
            for k, place in enumerate(at):
                many = edit is not None and len(edit.values) > 1
                of_row = replace(edit, values=edit.values[row : row + 1]) if many else edit
                with torch.no_grad(), edited_heads(model, of_row):
                    logits = model(tokens[row : row + 1, : place + 1])
                slow = -logits[0, -1].log_softmax(-1)[tokens[row, place + 1]]
                torch.testing.assert_close(quick[j, row, k], slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(token_losses(model, tokens, edits[1]), whole[1])


def test_token_loss_differences_take_only_what_they_need(neox):
    model = neox.model
    tokens = torch.tensor(neox.expected["token_loss"]["tokens"])
    edits = edits_of(model)
    for window in (0, 2):
        (quick,) = token_loss_differences(model, tokens, edits, windows=[window])
        losses = torch.stack([token_losses(model, tokens, e) for e in edits if _cheap(e)]).double()
        early, late = (losses[..., at - window : at + window + 1].mean(-1) for at in (50, 500))
        slow = early - late
        torch.testing.assert_close(quick[[_cheap(e) for e in edits]], slow, rtol=1e-4, atol=1e-4)
    for short, window in ((tokens[:, :501], 0), (tokens[:, :502], 1)):
        with pytest.raises(ValueError, match="these rows have 50[12]; give longer documents") as error:
            token_loss_differences(model, short, edits, windows=[window])
        assert "\n" not in str(error.value)


def _cheap(edit) -> bool:
    return edit is None or edit.positions == "all"


def test_generation_beyond_the_context_is_refused(neox):
    prompt = encode_prompts(neox.model, [Prompt(" red", " red")], "task")[0]
    long = type(prompt)("task", 3, [5] * (neox.model.cfg.n_ctx - 3), [5])
    with pytest.raises(ValueError, match="task 'task', prompt 3: .* exceed the context"):
        generate(neox.model, [prompt, long], [None])
