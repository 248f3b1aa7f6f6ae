"""What FV scores of all heads cost: `make bench`, or `python -m benchmarks.fv_scores [SHAPE ...]`.

Four ways on the same prompts in one run: a full pass of the transformers model per head, a full pass of the
TransformerBridge per head with its hooks, TransformerLens's own patching loop over heads, and `fv_scores`. The first
three are timed on a sample of heads and counted for all. Times are medians over rounds in which the methods take
turns; spread is the range over rounds, relative. The unit beside seconds is a plain forward pass over the same prompts,
and the limit is what the floating-point operations of the shared prefix and of one last token per head would take at
the plain pass's rate. Memory is the peak in use beyond what was there before, `memory_ratio` that peak over the plain
pass's plus the keys and values of all layers, and `resident_mib` the peak with what the CPU's allocator keeps of freed
blocks. Lab models and packaged ones are measured with their weights, Pythia's shapes with random ones; with a GPU also
the larger of these, in bfloat16.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from benchmarks.common import RESULTS, in_turns, peak_memory_mib, refuse_unknown, save
from benchmarks.cost import operations
from icl_lib.data.tasks import Prompt, TaskPrompts
from icl_lib.forward.means import clean_means
from icl_lib.forward.passes import device_of, output_projections, plain_transformers, split_heads
from icl_lib.load import load_model, wrap_model
from icl_lib.models.packaged import packaged_models
from icl_lib.scores.function_vectors import fv_scores

TABLE = RESULTS / "fv_scores.csv"
# public configurations: layers, heads, width
SHAPES = {"pythia-70m": (6, 8, 512), "pythia-160m": (12, 12, 768), "pythia-410m": (24, 16, 1024)}
GPU_SHAPES = {"pythia-1b": (16, 8, 2048), "pythia-2.8b": (32, 32, 2560), "pythia-6.9b": (32, 32, 4096)}
OTHER_SHAPES = {"pythia-1.4b": (24, 16, 2048), "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024),
                "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600), "llama-2-7b": (32, 32, 4096)}
# packaged models by the name of their rows, with the number type on a CPU
REAL = {"smollm2-135m": ("smollm2-135m", "float32"), "gemma3-270m": ("gemma3-270m", "float32"),
        "qwen2.5-coder-0.5b": ("qwen2.5-coder-0.5b", "float32"),
        "qwen2.5-coder-0.5b mixed": ("qwen2.5-coder-0.5b", "mixed")}
VOCABULARY = 50304
PLAIN, OURS = "plain forward pass", "fv_scores"
LAB, TOKENS = "lab-450k", 174  # 174 is the mean length of the paper's scoring prompts
N_PROMPTS, N_PROMPTS_GPU, N_ROUNDS, SAMPLED_HEADS = 4, 16, 3, 3
N_TASKS, N_TASK_PROMPTS, N_CHECKPOINTS = 29, 100, 8  # of the paper's released code


def default_shapes(gpu: bool) -> list[str]:
    """The shapes that are measured if none is named."""
    return [LAB, *SHAPES, *REAL, *(GPU_SHAPES if gpu else ())]


def random_model(shape: str, tokenizer):
    """A GPT-NeoX of a public Pythia shape with random weights, in a bridge: bfloat16 for the large ones on a GPU."""
    layers, heads, width = (SHAPES | GPU_SHAPES)[shape]
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0)
    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu and shape in GPU_SHAPES else torch.float32
    with torch.device("cuda" if gpu else "cpu"):
        hf_model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return wrap_model(hf_model, tokenizer, name=f"EleutherAI/{shape}")


def model_of(shape: str):
    """A lab model or a packaged one with its weights, or a shape with random weights."""
    name, dtype = REAL.get(shape, (LAB, "auto"))
    known = load_model(name, dtype=dtype)
    model = known if shape in (LAB, *REAL) else random_model(shape, known.tokenizer)
    model.name = name
    return model


def random_prompts(tokenizer, n_tokens: int, n_prompts: int, seed: int) -> TaskPrompts:
    """Prompts of exactly `n_tokens` tokens: one-token words that stay apart when tokenised again."""
    text_of = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    words = [text for i, text in text_of.items() if re.fullmatch(r" [a-z]+", text)
             and tokenizer(text, add_special_tokens=False)["input_ids"] == [i]]
    rng = np.random.default_rng(seed)
    texts = [tokenizer.bos_token + "".join(rng.choice(words, n_tokens - 1)) for _ in range(2 * n_prompts)]
    prompts = [Prompt(text, words[0]) for text in texts]
    return TaskPrompts(prompts[:n_prompts], prompts[n_prompts:])


def layer_of(model) -> dict[str, int]:
    """The weights of a layer of a model and the width of its heads, for `operations`."""
    cfg, counted = model.cfg, packaged_models().get(getattr(model, "name", ""))
    return {"per_token": counted.parameters // cfg.n_layers if counted else 12 * cfg.d_model**2,
            "attended": cfg.n_heads * cfg.d_head}


def operations_of(model, n_tokens: int) -> tuple[int, int]:
    """Multiplications of one plain forward pass of a model and of scoring one prompt; see `operations`."""
    cfg = model.cfg
    return operations(cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_vocab, n_tokens, **layer_of(model))


def prefix_cache_mib(model, n_tokens: int, n_prompts: int) -> float:
    """Keys and values of all layers for the prompts."""
    cfg = model.cfg
    n_bytes = next(model.original_model.parameters()).element_size()
    return 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * n_tokens * n_prompts * n_bytes / 2**20


def memory_in_use(shape: str, n_tokens: int, n_prompts: int) -> dict[str, float]:
    """Peak memory of each method, in a process whose C library gives large freed blocks back at once.

    By its own rule glibc keeps blocks up to 32 MiB; rows grow by layer, so that every layer's would count.
    """
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18)}
    command = [sys.executable, "-m", "benchmarks.fv_scores", shape, "--memory", str(n_tokens), str(n_prompts)]
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def build(shape: str, n_tokens: int, n_prompts: int):
    """The model of a shape and its methods."""
    model = model_of(shape)
    return model, methods(model, random_prompts(model.tokenizer, n_tokens, n_prompts, seed=0))


def methods(model, prompts: TaskPrompts) -> dict[str, tuple]:
    """Name to (function, how many times it has to run for all heads of all prompts)."""
    tokens = torch.tensor(model.tokenizer([p.text for p in prompts.shuffled], add_special_tokens=False)["input_ids"])
    tokens = tokens.to(device_of(model))
    n_passes = model.cfg.n_layers * model.cfg.n_heads + 1
    layer = model.cfg.n_layers // 2
    mean_z = clean_means(model, {"task": prompts})["task"]
    heads = [(layer, i % model.cfg.n_heads) for i in range(SAMPLED_HEADS)]

    def forward(hf_model):
        hidden = hf_model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return hf_model.get_output_embeddings()(hidden[:, -1])

    @torch.inference_mode()
    def plain():
        with plain_transformers(model) as hf_model:
            forward(hf_model)

    @torch.inference_mode()
    def pass_per_head():
        def edit(_module, args):
            split_heads(model, args[0])[:, -1, 0] = 0.0

        handle = output_projections(model)[layer].register_forward_pre_hook(edit)
        try:
            with plain_transformers(model) as hf_model:
                for _ in range(SAMPLED_HEADS):
                    forward(hf_model)
        finally:
            handle.remove()

    @torch.inference_mode()
    def bridge_pass_per_head():
        def edit(z, hook):
            z[:, -1, 0] = 0.0
            return z

        for _ in range(SAMPLED_HEADS):
            model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", edit)])

    scored = {"task": prompts}
    return {
        PLAIN: (plain, 1),
        "one pass per head": (pass_per_head, n_passes / SAMPLED_HEADS),
        "one bridge pass per head": (bridge_pass_per_head, n_passes / SAMPLED_HEADS),
        "TransformerLens patching": (lambda: patched_probabilities(model, prompts, mean_z, heads),
                                     n_passes / SAMPLED_HEADS),
        OURS: (lambda: fv_scores(model, scored, batch_size=len(prompts.shuffled)), 1),
    }


@torch.inference_mode()
def patched_probabilities(model, prompts: TaskPrompts, mean_z, heads: list[tuple[int, int]]) -> torch.Tensor:
    """P(first answer token), mean over shuffled prompts of one length, each head replaced by its mean at the last
    position: by `transformer_lens.patching.generic_activation_patch`, a full pass per head."""
    from transformer_lens import patching

    tokens, answers = (model.tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (
        [p.text for p in prompts.shuffled], [p.answer for p in prompts.shuffled]))
    answers = torch.tensor([answer[0] for answer in answers], device=device_of(model))
    cache = {f"blocks.{layer}.attn.hook_z": z[None, None].to(device_of(model)) for layer, z in enumerate(mean_z)}
    index = pd.DataFrame([(layer, -1, head) for layer, head in heads], columns=["layer", "pos", "head"])

    def metric(logits):
        return logits[:, -1].float().softmax(-1).gather(1, answers[:, None]).mean()

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        return patching.generic_activation_patch(
            model, torch.tensor(tokens, device=device_of(model)), cache, metric,
            patching.layer_pos_head_vector_patch_setter, "z", index_df=index)


def measure(shape: str, *, n_tokens: int = TOKENS, n_prompts: int = N_PROMPTS) -> pd.DataFrame:
    """One row per method for one shape."""
    memory = pd.Series(memory_in_use(shape, n_tokens, n_prompts))
    model, runs = build(shape, n_tokens, n_prompts)
    resident = pd.Series({name: peak_memory_mib(run) for name, (run, _) in runs.items()})  # also the warm-up
    table = in_turns(runs, N_ROUNDS)
    cfg, (once, scoring) = model.cfg, operations_of(model, n_tokens)
    passes = table["seconds"] / table["seconds"][PLAIN]
    of_logits = (cfg.n_layers * cfg.n_heads + 1) * cfg.d_model * cfg.d_vocab  # of every head's row
    table = table.assign(
        peak_memory_mib=memory, forward_equivalents=passes,
        ratio_to_flop_limit=(passes / (scoring / once)).where(table.index != PLAIN),
        vocabulary_share=np.where(table.index == OURS, of_logits / scoring, np.nan), device=device_of(model).type,
        memory_ratio=memory / (memory[PLAIN] + prefix_cache_mib(model, n_tokens, n_prompts)), resident_mib=resident,
        n_prompts=n_prompts, n_tokens=n_tokens).reset_index()
    table.insert(0, "shape", shape)
    return table


def paper_hours(table: pd.DataFrame) -> float:
    """Hours that scoring the paper's 12 models and the 8 checkpoints of its 7 Pythia models would take.

    29 tasks of 100 prompts each, of `TOKENS` tokens; every model at the rate of operations of the measured shape that
    is nearest in operations. Loading is not counted.
    """
    shapes = SHAPES | GPU_SHAPES | OTHER_SHAPES

    def scoring(shape: str) -> int:
        return operations(*shapes[shape], VOCABULARY, TOKENS)[1]

    ours = table[(table["method"] == OURS) & table["shape"].isin(list(shapes))].set_index("shape")
    seconds = {shape: row["seconds"] / row["n_prompts"] / scoring(shape) for shape, row in ours.iterrows()}
    total = 0.0
    for shape in shapes:
        nearest = min(seconds, key=lambda known: abs(math.log(scoring(known) / scoring(shape))))
        n_runs = 1 + N_CHECKPOINTS if shape.startswith("pythia") else 1
        total += n_runs * N_TASKS * N_TASK_PROMPTS * scoring(shape) * seconds[nearest]
    return total / 3600


def main() -> None:
    gpu = torch.cuda.is_available()
    known = (LAB, *SHAPES, *REAL, *GPU_SHAPES)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=default_shapes(gpu), help=f"among {', '.join(known)}")
    parser.add_argument("--memory", nargs=2, type=int, metavar=("TOKENS", "PROMPTS"),
                        help="only measure memory, of the first shape, and print it as JSON")
    given = parser.parse_args()
    refuse_unknown("shape", given.shapes, known)
    if given.memory:
        _, runs = build(given.shapes[0], *given.memory)
        print(json.dumps({name: peak_memory_mib(run) for name, (run, _) in runs.items()}))
        return
    table = pd.concat([measure(shape, n_prompts=N_PROMPTS_GPU if gpu else N_PROMPTS) for shape in given.shapes],
                      ignore_index=True)
    save(table, TABLE)
    seconds = table.pivot(index="shape", columns="method", values="seconds")
    for method in (name for name in seconds if name not in (PLAIN, OURS)):
        print(f"\n{method} / {OURS}:", (seconds[method] / seconds[OURS]).round(1).to_dict())
    if gpu and set(given.shapes) & set(GPU_SHAPES):
        print(f"\nhours for the paper's 12 models and 56 checkpoints at these rates: {paper_hours(table):.1f}")


if __name__ == "__main__":
    main()
