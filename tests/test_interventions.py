"""What interventions on training change, each against its sham."""

from functools import cache

import numpy as np
import pytest
import torch

from icl_lib.data.sources import read_tasks
from lab import train as trainer
from lab.files import read_rung
from lab.interventions import (
    EARLY_SHARE,
    Intervention,
    after_the_same_token,
    attention_bias,
    clamp,
    heads_to_clamp,
    other_keys,
    read_intervention,
)
from lab.text import Generator, Rows
from lab.tokenizer import FOLDER as TOKENIZER

MIXTURE = read_rung("lab-40k")["mixture"]


@pytest.fixture(scope="module")
def tokenizer():
    return trainer.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


@cache
def generator_of(repeats):
    tokenizer = trainer.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    return Generator(tokenizer, read_tasks(), repeats=repeats)


def batch_of(name, *, sham=False, strength=1.0, step=3, progress=0.0):
    """The batch of a step without and with an intervention."""
    intervention = Intervention(name, strength, sham)
    plain = generator_of(1.0).batch(np.random.default_rng([0, step]), MIXTURE)
    generator = generator_of(intervention.repeats)
    batch = generator.batch(np.random.default_rng([0, step]), MIXTURE)
    return plain, intervention.apply(batch, generator, MIXTURE, rng=np.random.default_rng([0, step, 1]),
                                     progress=progress)


def by_kind(batch):
    return {rows.kind: rows for rows in batch}


def slow_copies(tokens):
    """After-the-same-token by definition: the token's pair with the one before it stood there earlier."""
    found = np.zeros(tokens.shape, dtype=bool)
    for row, ids in enumerate(tokens):
        for i in range(1, len(ids)):
            found[row, i] = any(ids[j - 1] == ids[i - 1] and ids[j] == ids[i] for j in range(1, i))
    return found


def test_copies_are_found_as_by_their_definition():
    tokens = np.random.default_rng(0).integers(0, 6, (5, 40))
    np.testing.assert_array_equal(after_the_same_token(tokens), slow_copies(tokens))


def test_without_loss_on_copies_only_copies_lose_it():
    plain, edited = batch_of("no_copy_loss")
    for before, after in zip(plain, edited, strict=True):
        copies = slow_copies(before.tokens)
        np.testing.assert_array_equal(after.tokens, before.tokens)
        assert not after.weights[copies].any()
        np.testing.assert_array_equal(after.weights[~copies], before.weights[~copies])


@pytest.mark.parametrize("name", ["no_copy_loss", "no_repeats"])
def test_the_sham_takes_as_much_loss_away_from_tokens_at_random(name):
    left = {False: 0.0, True: 0.0}
    kinds = {False: 0.0, True: 0.0}
    before = 0.0
    for step in range(6):
        for sham in left:
            plain, edited = batch_of(name, sham=sham, step=step)
            if sham:
                before += sum(rows.weights.sum() for rows in plain)
                for one, other in zip(plain, edited, strict=True):
                    np.testing.assert_array_equal(one.tokens, other.tokens)
            left[sham] += sum(rows.weights.sum() for rows in edited)
            kinds[sham] += by_kind(edited)["listings"].weights.sum()
    # what is left of all loss is about equal, of the listings much more with the sham
    assert left[True] == pytest.approx(left[False], rel=0.15) and left[True] < 0.8 * before
    assert kinds[True] > 5 * kinds[False]


def test_without_repeats_no_run_of_tokens_comes_again_in_listings():
    plain, edited = batch_of("no_repeats")
    listings = by_kind(edited)["listings"]
    assert not listings.weights.any() and slow_copies(listings.tokens).mean() < 0.02
    assert slow_copies(by_kind(plain)["listings"].tokens).mean() > 0.4
    half, = (batch for batch in batch_of("no_repeats", strength=0.5)[1] if batch.kind == "listings")
    assert 0 < half.weights.sum() < by_kind(plain)["listings"].weights.sum()


def test_listings_keep_the_copies_that_stay():
    generator = generator_of(1.0)
    (ids, weights), (fewer_ids, fewer) = (
        generator.listing(np.random.default_rng(5), 400, repeats=repeats) for repeats in (1.0, 0.5))
    stayed = fewer > 0
    assert 0 < stayed.sum() < (weights > 0).sum() and (weights[stayed] > 0).all()
    np.testing.assert_array_equal(fewer_ids[stayed], ids[stayed])


def test_masks_forbid_the_token_after_an_earlier_copy_and_nothing_else():
    plain, edited = batch_of("mask_outside")
    assert {rows.kind for rows in edited if rows.attention is not None} == {"documents", "listings"}
    everywhere = batch_of("mask_everywhere")[1]
    assert all(rows.attention is not None for rows in everywhere)
    rows = by_kind(everywhere)["orders"]
    for ids, bias in zip(rows.tokens[:2], rows.attention[:2], strict=True):
        for query in range(len(ids)):
            for key in range(len(ids)):
                forbidden = key > query or (key > 0 and key - 1 < query and ids[key - 1] == ids[query])
                assert bias[query, key] == (-np.inf if forbidden else 0), (query, key)


def test_the_sham_mask_hides_as_many_other_keys():
    tokens = by_kind(batch_of("none")[0])["listings"].tokens
    from icl_lib.scores.induction import induction_targets

    targets = induction_targets(torch.from_numpy(tokens)).numpy()
    others = other_keys(targets, np.random.default_rng(0))
    assert not (others & targets).any() and not others[..., 0].any() and not np.triu(others, 1).any()
    room = np.tril(~targets)[..., 1:].sum(-1)
    np.testing.assert_array_equal(others.sum(-1), np.minimum(targets.sum(-1), room))


def test_a_bias_of_strength_takes_that_share_of_the_odds():
    targets = np.zeros((1, 3, 3), dtype=bool)
    targets[0, 2, 1] = True
    odds = np.exp(attention_bias(targets, 0.75)[0])
    np.testing.assert_allclose(odds, [[1, 0, 0], [1, 1, 0], [1, 0.25, 1]], atol=1e-6)


def test_an_empty_mask_changes_no_loss(tokenizer):
    config = read_rung("lab-40k")
    model = trainer.new_model(config["shape"], tokenizer, seed=0)
    batch = generator_of(1.0).batch(np.random.default_rng(0), MIXTURE)
    nothing = [np.zeros((*rows.tokens.shape, rows.tokens.shape[1]), bool) for rows in batch]
    empty = [Rows(rows.kind, rows.tokens, rows.weights, attention_bias(targets, 1.0))
             for rows, targets in zip(batch, nothing, strict=True)]
    forbidding = batch_of("mask_everywhere")[1]
    losses = [float(trainer.weighted_loss(model, b, "cpu").detach()) for b in (batch, empty)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != pytest.approx(float(trainer.weighted_loss(model, forbidding, "cpu").detach()), abs=1e-4)


def test_extra_repeats_come_early_only_and_the_sham_has_look_ups():
    plain, early = batch_of("early_repeats", strength=2.0)
    extra = early[len(plain)]
    assert len(extra.tokens) == 2 * MIXTURE["listings"]["rows"] and extra.weights.any()
    sham = batch_of("early_repeats", strength=2.0, sham=True)[1][len(plain)]
    assert sham.tokens.shape == extra.tokens.shape and (extra.kind, sham.kind) == ("listings", "lookups")
    assert len(batch_of("early_repeats", progress=EARLY_SHARE)[1]) == len(plain)


def test_clamped_heads_stay_silent_in_the_weights(tmp_path, tokenizer):
    heads = ((1, 0), (1, 1), (0, 1))
    config = {
        "shape": {"layers": 2, "heads": 2, "d_model": 16, "rotary": 1.0, "init_std": 0.06, "tied": True},
        "steps": 4, "lr": 0.01, "warmup": 2, "weight_decay": 0.01, "log_every": 2, "checkpoints": [2],
        "mixture": {"orders": {"rows": 2, "length": 24}},
        "intervention": {"name": "clamp", "heads": heads},
    }  # fmt: skip
    folder = trainer.train("tiny", models=tmp_path, config=config)
    model = trainer.GPTNeoXForCausalLM.from_pretrained(folder / "step4")
    for layer, block in enumerate(model.gpt_neox.layers):
        of_heads = block.attention.dense.weight.detach().view(16, 2, 8).abs().sum((0, 2))
        assert [(float(w) == 0) for w in of_heads] == [(layer, head) in heads for head in range(2)]
    with pytest.raises(ValueError, match="L7H0"):
        clamp(model, [(7, 0)])


def test_heads_to_clamp_are_the_strongest_and_the_sham_takes_others_of_their_layers():
    scores = torch.tensor([[0.1, 0.2, 0.0, 0.1], [0.9, 0.5, 0.1, 0.0]])
    chosen = heads_to_clamp(scores, threshold=0.3, strength=1.0, sham=False, seed=0)
    assert chosen.nonzero().tolist() == [[1, 0], [1, 1]]
    assert heads_to_clamp(scores, threshold=0.3, strength=0.5, sham=False, seed=0).nonzero().tolist() == [[1, 0]]
    assert heads_to_clamp(scores, threshold=0.3, strength=1.0, sham=True, seed=0).nonzero().tolist() == [[1, 2], [1, 3]]
    scores[1] = 0.5  # a layer without others
    assert heads_to_clamp(scores, threshold=0.3, strength=1.0, sham=True, seed=0).nonzero().tolist() == [
        [0, head] for head in range(4)]


@pytest.mark.parametrize(("chosen", "message"), [
    ({"name": "no_repeat"}, "no_repeat"), ({"name": "clamp", "strength": 1.5}, "1.5"), ({"dose": 1}, "dose"),
])  # fmt: skip
def test_a_wrong_intervention_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        read_intervention({"intervention": chosen})
