"""What a mask gives away of what it hides, what a predictor blind to order loses, and how arms share the loss."""

import numpy as np
import pytest
import torch

from icl_lib.scores.induction import induction_targets
from lab.batches import drawn, few_shot_shares, mask_told, named_by_holes, order_blind_losses
from lab.files import DOSE, NO_GLOSSARIES, read_plan
from lab.interventions import Intervention, attention_bias
from lab.text import Rows


def listing(*segments_and_copies, attention=False):
    """A row of BOS and segments, each with its copies; only copies count."""
    ids = np.array([0, *(token for segment, copies in segments_and_copies for token in segment * (1 + copies))])
    weights = np.array([0.0, *(float(i >= len(segment)) for segment, copies in segments_and_copies
                               for i in range(len(segment) * (1 + copies)))])
    tokens = ids[None]
    targets = induction_targets(torch.from_numpy(tokens)).numpy()
    return Rows("listings", tokens, weights[None], attention_bias(targets, 1.0) if attention else None)


def test_the_holes_of_a_mask_name_the_next_token_of_a_copy():
    named = named_by_holes(listing(([1, 2, 3, 4], 1), ([5, 6, 7], 1), attention=True))
    assert named.tolist() == [1.0] * 5  # the first token of a copy is no token after a copy of the one before it
    without = named_by_holes(listing(([1, 2, 3, 4], 1), ([5, 6, 7], 1)))
    assert without.tolist() == pytest.approx([1 / 5] * 3 + [1 / 8] * 2, abs=0.15) and without.max() < 0.3


def test_of_tokens_with_several_followers_the_one_that_lost_most_is_named():
    named = named_by_holes(listing(([1, 2, 1, 3], 1), attention=True))
    # 2 and 3 both went from sight; 1 alone; two 2s and one 3, which comes next
    assert named.tolist() == [0.5, 1.0, 0.0]


def brute(segment, copy):
    """The losses on a copy by counting what is left of the segment."""
    return [-np.log(segment_left.count(token) / len(segment_left)) for i, token in enumerate(copy)
            for segment_left in [_left(segment, copy[:i])]]


def _left(segment, used):
    left = list(segment)
    for token in used:
        left.remove(token)
    return left


def test_a_predictor_blind_to_order_knows_what_is_left_of_the_segment():
    rows = listing(([1, 2, 2, 3], 2), ([4, 5], 1))
    wanted = 2 * brute([1, 2, 2, 3], [1, 2, 2, 3]) + brute([4, 5], [4, 5])
    np.testing.assert_allclose(order_blind_losses(rows), wanted)
    cut = Rows("listings", rows.tokens[:, :7], rows.weights[:, :7])  # inside the first copy
    np.testing.assert_allclose(order_blind_losses(cut), wanted[:2])


@pytest.mark.parametrize("folder", [None, NO_GLOSSARIES], ids=["plan", "no_glossaries"])
def test_the_mask_tells_what_it_hides_and_its_sham_does_not(folder):
    plan = read_plan(folder) if folder else read_plan()
    told = mask_told(plan)
    assert told.mask > 0.85 and told.sham < 0.02 and told.off < 0.02 and told.n > 3000
    assert 0.9 < told.blind < 1.2 and told == mask_told(plan)
    assert told.mask == pytest.approx(mask_told(plan, seed=1).mask, abs=0.05)


def test_arms_without_loss_on_copies_raise_the_share_of_few_shot_prompts_and_their_shams_do_not():
    plan = read_plan()
    shares = few_shot_shares(plan)
    assert set(shares) == {(arm, float(s)) for arm, entry in plan["arms"].items() for s in entry["strengths"]}
    untouched = shares["none", 1.0]
    assert untouched == pytest.approx(0.43, abs=0.02)
    for arm, wanted in (("no_repeats", 0.73), ("no_copy_loss", 0.89)):
        assert shares[arm, 1.0] == pytest.approx(wanted, abs=0.02)
        assert shares[f"sham_{arm}", 1.0] == pytest.approx(untouched, abs=0.02)
    assert shares["mask_outside", 1.0] == shares["sham_mask_outside", 1.0] == untouched


def test_the_share_of_few_shot_loss_rises_as_repeats_go():
    shares = few_shot_shares(read_plan(DOSE))
    by_dose = [shares["repeats", strength] for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert by_dose == sorted(by_dose) and by_dose[0] < 0.45 and by_dose[-1] > 0.7


def test_batches_are_those_of_training():
    plan = read_plan(NO_GLOSSARIES)
    first = drawn(plan, Intervention("mask_outside"))[0]
    assert "glossary" not in {rows.kind for rows in first}
    assert {rows.kind for rows in first if rows.attention is not None} == {"documents", "listings"}
