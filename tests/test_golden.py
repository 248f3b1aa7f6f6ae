"""Agreement with values from plain transformers in float64, one full pass per head."""

import pytest
import torch

from icl_lib import fv_scores, induction_scores, token_loss_differences, token_losses
from tests.conftest import ARCHITECTURES, Golden, ablated_answer_probabilities, golden_case

CASES = [(a, d) for a in ARCHITECTURES for d in ("float32", "float64")]


def tolerance(case: Golden, architecture: str) -> float:
    if case.model.original_model.dtype == torch.float32:
        return 1e-3
    # the expected values took softmax in float32 inside rotary models, as transformers' eager attention does
    return 1e-9 if architecture == "gpt2" else 1e-5


def assert_close(actual, expected, tolerance: float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_fv_scores(architecture, dtype):
    case = golden_case(architecture, dtype)
    result = fv_scores(case.model, case.prompts)
    limit = tolerance(case, architecture)
    assert_close(result.scores, case.expected["fv_scores"], limit)
    for task, expected in case.expected["fv_scores_by_task"].items():
        assert_close(result.by_task[task], expected, limit)


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_induction_in_both_conventions(architecture, dtype):
    case = golden_case(architecture, dtype)
    expected = case.expected["induction"]
    tokens = torch.tensor(expected["tokens"])
    limit = tolerance(case, architecture)
    assert_close(induction_scores(case.model, tokens), expected["attention_mass"], limit)
    stripe = induction_scores(case.model, tokens, convention="prefix_matching")
    assert_close(stripe, expected["stripe"], limit)


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_mean_ablation_at_last_and_all_positions(architecture, dtype):
    case = golden_case(architecture, dtype)
    for ablation in case.expected["ablation"]:
        heads = torch.zeros(case.model.cfg.n_layers, case.model.cfg.n_heads, dtype=torch.bool)
        heads[tuple(torch.tensor(ablation["heads"]).T)] = True
        actual = ablated_answer_probabilities(
            case.model, case.prompts, heads, positions=ablation["positions"]
        )
        for task, expected in ablation["answer_probability"].items():
            assert_close(actual[task], expected, tolerance(case, architecture))


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_token_loss(architecture, dtype):
    case = golden_case(architecture, dtype)
    expected = case.expected["token_loss"]
    losses = token_losses(case.model, torch.tensor(expected["tokens"]))
    early, late = (torch.tensor(expected[k], dtype=torch.float64) for k in ("loss_at_50", "loss_at_500"))
    limit = tolerance(case, architecture)
    assert_close(losses[:, 50], early, limit)
    assert_close(losses[:, 500], late, limit)
    tokens = torch.tensor(expected["tokens"])
    assert_close(token_loss_differences(case.model, tokens, [None])[0, 0], early - late, limit)
