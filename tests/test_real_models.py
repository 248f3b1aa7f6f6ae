"""Scores and ablations of real weights against brute force: one full pass per head with a plain hook.

`make spot-check MODEL=smollm2-135m` runs them; weights that are not in the cache come from the package index.
"""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from icl_lib import load_model
from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import TaskPrompts
from icl_lib.measurements import prompts_of
from icl_lib.models.locate import count_parameters
from icl_lib.models.packaged import packaged_folder
from icl_lib.models.quiet import quiet
from icl_lib.scores.function_vectors import fv_scores
from tests.conftest import ablated_answer_probabilities, projections_of

pytestmark = pytest.mark.weights
N_HEADS, TASK, OTHER = 20, "capital-country", "antonym"


NAME = os.environ.get("MODEL") or "smollm2-135m"


@pytest.fixture(scope="module")
def case():
    """The model as this project loads it, the same weights in plain transformers, and a few prompts."""
    model = load_model(NAME, device="cpu", dtype="float32")
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(
            packaged_folder(NAME), attn_implementation="eager", dtype=torch.float32).eval()
    prompts = prompts_of(model, read_tasks(f"lab[{TASK},{OTHER}]"), n_prompts=2, n_shots=4, seed=0)
    heads = torch.randperm(model.cfg.n_layers * model.cfg.n_heads, generator=torch.Generator().manual_seed(0))[:N_HEADS]
    return model, plain, prompts, [divmod(int(head), model.cfg.n_heads) for head in heads]


def ids(model, prompt):
    return torch.tensor([model.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]])


def answer_id(model, prompt):
    return model.tokenizer(prompt.answer, add_special_tokens=False)["input_ids"][0]


@torch.inference_mode()
def run(model, plain, prompt, hooks=()):
    """P(first answer token) from one full pass, with pre-hooks (layer, hook) on the output projections."""
    handles = [projections_of(plain)[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
    try:
        logits = plain(ids(model, prompt)).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()
    return float(logits.softmax(-1)[answer_id(model, prompt)])


def outputs(model, plain, prompt):
    """Each layer's input of the output projection at the last position, heads apart."""
    seen = {}
    hooks = [(layer, lambda _module, args, layer=layer: seen.update({layer: args[0][0, -1]}))
             for layer in range(model.cfg.n_layers)]
    run(model, plain, prompt, hooks)
    return torch.stack([seen[layer].unflatten(-1, (model.cfg.n_heads, -1)) for layer in range(model.cfg.n_layers)])


def replace(head, value, *, everywhere=False):
    def hook(_module, args):
        z = args[0].clone()
        width = len(value)
        z[:, slice(None) if everywhere else -1, head * width : (head + 1) * width] = value
        return (z,)

    return hook


def test_fv_scores_of_twenty_heads(case):
    model, plain, prompts, heads = case
    own = prompts[TASK]
    mean = torch.stack([outputs(model, plain, p) for p in own.clean]).double().mean(0).float()
    scores = fv_scores(model, {TASK: own}).by_task[TASK]
    found = []
    for layer, head in heads:
        hook = replace(head, mean[layer, head])
        gains = [run(model, plain, p, [(layer, hook)]) - run(model, plain, p) for p in own.shuffled]
        found.append(sum(gains) / len(gains))
    expected = torch.tensor(found, dtype=torch.float64)
    assert (torch.stack([scores[layer, head] for layer, head in heads]).double() - expected).abs().max() < 1e-5


def test_scores_in_the_number_type_that_the_model_is_measured_in(case):
    model, _, prompts, _ = case
    exact, measured = (fv_scores(m, {TASK: prompts[TASK]}).scores for m in (model, load_model(NAME, device="cpu")))
    assert (measured - exact).abs().max() < 0.01
    assert torch.corrcoef(torch.stack([exact.flatten(), measured.flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_ablation_of_one_set_of_heads(case, positions):
    model, plain, prompts, heads = case
    mask = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    mask[tuple(zip(*heads, strict=True))] = True
    both = torch.stack([torch.stack([outputs(model, plain, p) for p in prompts[task].clean]).double().mean(0)
                        for task in (TASK, OTHER)]).mean(0).float()
    few = {TASK: TaskPrompts(prompts[TASK].clean[:1], [])}
    found = ablated_answer_probabilities(model, few, mask, positions=positions, scoring_prompts=prompts)[TASK]
    hooks = [(layer, replace(head, both[layer, head], everywhere=positions == "all")) for layer, head in heads]
    assert abs(float(found[0]) - run(model, plain, few[TASK].clean[0], hooks)) < 1e-5


def test_the_table_counts_the_parameters_and_the_bos_stands_first(case):
    model, plain, prompts, _ = case
    embeddings = {id(p) for m in plain.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    embeddings |= {id(p) for p in plain.get_output_embeddings().parameters()}
    assert count_parameters(NAME) == sum(p.numel() for p in plain.parameters() if id(p) not in embeddings)
    assert int(ids(model, prompts[TASK].clean[0])[0, 0]) == model.tokenizer.bos_token_id
