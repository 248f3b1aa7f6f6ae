"""Mixed precision against float32 and against bfloat16 throughout, on a model with all its heads."""

import torch

from icl_lib import load_model
from icl_lib.data.sources import read_tasks
from icl_lib.measurements import in_split, prompts_of
from icl_lib.models.mixed import to_mixed
from icl_lib.scores.function_vectors import fv_scores


def scores(dtype):
    model = load_model("lab-450k", dtype=dtype)
    tasks = dict(list(in_split(read_tasks("lab"), "scoring").items())[:4])
    return fv_scores(model, prompts_of(model, tasks, n_prompts=8, n_shots=5, seed=0)).scores.flatten()


def test_scores_in_mixed_precision_are_those_of_float32_within_a_part_of_what_bfloat16_costs():
    exact, mixed, half = (scores(dtype) for dtype in ("float32", "mixed", "bfloat16"))
    error, of_half = (mixed - exact).abs().max(), (half - exact).abs().max()
    assert 0 < error < min(0.2 * exact.abs().max(), 0.5 * of_half)
    assert torch.corrcoef(torch.stack([exact, mixed]))[0, 1] > 0.99


def test_the_residual_stream_and_the_logits_stay_in_float32():
    model = load_model("lab-40k", dtype="mixed").original_model
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _g, out, name=name: seen.setdefault(name, out))
    before = torch.get_float32_matmul_precision()
    logits = model(torch.tensor([[1, 2, 3, 4]])).logits
    assert logits.dtype == torch.float32 and torch.get_float32_matmul_precision() == before
    outputs = [out for out in seen.values() if isinstance(out, torch.Tensor) and out.is_floating_point()]
    assert {out.dtype for out in outputs} == {torch.float32}
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_a_product_is_that_of_factors_rounded_to_bfloat16():
    linear = torch.nn.Linear(64, 32)
    exact = torch.nn.Linear(64, 32)
    exact.load_state_dict({name: value.bfloat16().float() for name, value in linear.state_dict().items()})

    class Bridge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.original_model = torch.nn.ModuleDict({"layer": linear, "head": torch.nn.Linear(2, 2)})
            self.original_model.get_output_embeddings = lambda: self.original_model["head"]

    to_mixed(Bridge())
    assert linear.weight.dtype == linear.bias.dtype == torch.bfloat16
    given = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = exact(given.bfloat16().float())
    assert torch.equal(linear(given), linear(given)) and linear(given).dtype == torch.float32
    torch.testing.assert_close(linear(given), expected, rtol=2**-8, atol=2**-8)
