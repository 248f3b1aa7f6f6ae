"""Golden models, loaded once, and tiny random ones of any shape beside an untouched copy."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.project import ROOT, make_project

GOLDEN = Path(__file__).parent / "golden"
ARCHITECTURES = ("gpt_neox", "gpt2", "llama")


def pytest_collection_modifyitems(items):
    """Modules with slow tests first, or one of them is left for the end and for one process."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Golden:
    """A golden case: the model through `load_model`, its prompts, and what a slow computation gave."""

    def __init__(self, architecture: str, dtype: str):
        from icl_lib import load_model, read_prompts

        folder = GOLDEN / architecture
        self.model = load_model(folder / "model", dtype=dtype, device="cpu")
        self.prompts = read_prompts(folder / "prompts.json")
        self.expected = json.loads((folder / "expected.json").read_text())


@cache
def golden_case(architecture: str, dtype: str = "float32") -> Golden:
    return Golden(architecture, dtype)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working folder: a stand-in for this repository, with quick notebooks."""
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


@pytest.fixture(params=ARCHITECTURES)
def golden(request) -> Golden:
    return golden_case(request.param)


@pytest.fixture
def neox() -> Golden:
    return golden_case("gpt_neox")


def tiny_model(
    architecture: str, n_layers: int, n_heads: int, d_head: int = 8, n_kv_heads: int = 1, seed: int = 0
):
    """A float64 model with random weights in a bridge, and the same model left as it was."""
    import transformers

    from icl_lib import wrap_model

    d_model = n_heads * d_head
    shape = {"vocab_size": 428}
    if architecture == "gpt2":
        config = transformers.GPT2Config(
            n_embd=d_model, n_layer=n_layers, n_head=n_heads, n_positions=128, **shape
        )
    else:
        shape |= {"hidden_size": d_model, "num_hidden_layers": n_layers, "num_attention_heads": n_heads}
        shape |= {"intermediate_size": 2 * d_model, "max_position_embeddings": 128}
        if architecture == "llama":
            config = transformers.LlamaConfig(num_key_value_heads=n_kv_heads, **shape)
        else:
            config = transformers.GPTNeoXConfig(**shape)
    config.initializer_range = 0.5 / d_head**0.5  # large enough for heads to matter
    torch.manual_seed(seed)
    hf_model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    hf_model.set_attn_implementation("sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "gpt_neox" / "model")
    return wrap_model(copy.deepcopy(hf_model), tokenizer), hf_model


def ablated_answer_probabilities(model, prompts, heads, *, replacement="mean", positions="last", scoring_prompts=None,
                                 seed=0):
    """P(first answer token) on each clean prompt of each task with heads replaced."""
    from icl_lib import Edit, answer_metrics, replacement_values

    values = replacement_values(model, prompts, replacement, scoring_prompts=scoring_prompts, seed=seed)
    edit = {task: Edit(heads, value, positions) for task, value in values.items()}
    table = answer_metrics(model, {task: p.clean for task, p in prompts.items()}, {"edit": edit})
    return {task: torch.tensor(rows.to_numpy()) for task, rows in table.groupby("task")["first_token_probability"]}


def projections_of(hf_model) -> list[torch.nn.Module]:
    """The attention output projections of a plain transformers model, found by their own names."""
    names = ("attention.dense", "attn.c_proj", "self_attn.o_proj")
    return [module for name, module in hf_model.named_modules() if name.endswith(names)]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder with the repository's own files beside it, so that nothing is written into the repository."""
    for name in ("notebooks", "icl_lib", "lab", "config"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
