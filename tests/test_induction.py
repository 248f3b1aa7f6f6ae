"""Induction scores on attention patterns made by hand, and on what comes in."""

import pytest
import torch

import icl_lib.scores.induction as module
from icl_lib import duplicate_token_scores, induction_scores, previous_token_scores, repeated_random_tokens

A, B, C, D = 11, 12, 13, 14
TWICE = torch.tensor([[0, A, B, C, A, B, C]])  # BOS and one run twice


@pytest.fixture
def pattern(neox, monkeypatch):
    """Lets a test say which keys every head attends to: {query: key}, position 0 for the rest."""

    def use(attended: dict[int, int], n: int = 7):
        fake = torch.zeros(1, neox.model.cfg.n_heads, n, n)
        for query in range(n):
            fake[:, :, query, attended.get(query, 0)] = 1
        monkeypatch.setattr(
            module,
            "reduced_patterns",
            lambda model, tokens, reduce: [reduce(fake.expand(len(tokens), -1, -1, -1))] * 4,
        )
        return neox.model

    return use


def test_a_perfect_induction_head_reaches_the_ceiling_of_each_convention(pattern):
    model = pattern({4: 2, 5: 3, 6: 4})
    torch.testing.assert_close(induction_scores(model, TWICE), torch.full((4, 4), 3 / 7, dtype=torch.float64))
    stripe = induction_scores(model, TWICE, convention="prefix_matching")
    assert (stripe == 1).all()


def test_other_heads_score_nothing(pattern):
    for attended in ({}, {4: 1, 5: 2, 6: 3}, {i: i - 1 for i in (1, 2, 3, 5, 6)}):  # BOS, duplicate, previous
        model = pattern(attended)
        assert (induction_scores(model, TWICE) == 0).all()
        assert (induction_scores(model, TWICE, convention="prefix_matching") == 0).all()


def test_previous_and_duplicate_token_heads(pattern):
    model = pattern({i: i - 1 for i in range(1, 7)})
    assert (previous_token_scores(model, TWICE) == 1).all()
    assert (duplicate_token_scores(model, TWICE) == 0).all()
    model = pattern({4: 1, 5: 2})
    torch.testing.assert_close(
        duplicate_token_scores(model, TWICE), torch.full((4, 4), 2 / 3, dtype=torch.float64)
    )


def test_prefix_matching_of_any_repeat_looks_after_the_first_copy(pattern):
    tokens = torch.tensor([[0, A, B, A, C, A, D]])  # queries 3 and 5, target 2 for both
    model = pattern({3: 2, 5: 4})
    stripe = induction_scores(model, tokens, convention="prefix_matching")
    assert (stripe == 0.5).all()
    # the paper's measure takes the token after any earlier copy
    torch.testing.assert_close(
        induction_scores(model, tokens), torch.full((4, 4), 2 / 7, dtype=torch.float64)
    )


def test_sequences_average_alike_whatever_the_batch(neox, monkeypatch):
    tokens = torch.tensor(neox.expected["induction"]["tokens"])
    at_once = induction_scores(neox.model, tokens)
    monkeypatch.setattr(module, "_PATTERN_BYTES", 1)
    torch.testing.assert_close(induction_scores(neox.model, tokens), at_once, rtol=1e-5, atol=0)


def test_random_tokens_repeat_after_bos_and_are_trained_ones(neox):
    tokens = repeated_random_tokens(neox.model, n_sequences=200, length=10, seed=1)
    assert tokens.shape == (200, 21)
    assert (tokens[:, 0] == neox.model.tokenizer.bos_token_id).all()
    assert torch.equal(tokens[:, 1:11], tokens[:, 11:])
    drawn = set(tokens[:, 1:].flatten().tolist())
    assert drawn <= set(range(len(neox.model.tokenizer))) - set(neox.model.tokenizer.all_special_ids)
    assert torch.equal(tokens, repeated_random_tokens(neox.model, n_sequences=200, length=10, seed=1))
    assert not torch.equal(tokens, repeated_random_tokens(neox.model, n_sequences=200, length=10, seed=2))
    assert repeated_random_tokens(neox.model, n_sequences=1, length=10, bos=False).shape == (1, 20)


def test_bad_tokens_are_refused_in_one_line(neox):
    once = torch.tensor([[0, A, B, C]])
    long = torch.zeros(1, neox.model.cfg.n_ctx + 1, dtype=torch.long)
    calls = [
        lambda: induction_scores(neox.model, once),
        lambda: induction_scores(neox.model, once, convention="prefix_matching"),
        lambda: induction_scores(neox.model, TWICE, convention="stripe"),
        lambda: induction_scores(neox.model, long),
        lambda: duplicate_token_scores(neox.model, once),
        lambda: previous_token_scores(neox.model, once[:, :1]),
    ]
    for none in ({"n_sequences": 0}, {"length": 0}):
        with pytest.raises(ValueError, match=r"\d+ sequences of \d+ tokens twice: expected at least 1 of at least 1"):
            repeated_random_tokens(neox.model, **none)
    with pytest.raises(ValueError, match="do not fit a context of 1024; make length smaller"):
        repeated_random_tokens(neox.model, length=neox.model.cfg.n_ctx)
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value)
