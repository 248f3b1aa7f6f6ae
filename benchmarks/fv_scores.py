"""What FV scores of all heads cost: `make bench`, or `python -m benchmarks.fv_scores [SHAPE ...]`.

Three ways on the same prompts in one run: a full pass of the transformers model per head, a full pass of the
TransformerBridge per head with its hooks, and `fv_scores`. A full pass per head is timed on a sample of heads and
counted for all. Times are medians over rounds in which the methods take turns; spread is the range over rounds,
relative. The unit beside seconds is a plain forward pass over the same prompts, and the limit is what the
floating-point operations of the shared prefix and of one last token per head would take at the plain pass's rate.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from icl_lib.function_vectors import fv_scores
from icl_lib.models import load_model, wrap_model
from icl_lib.passes import device_of, output_projections, plain_transformers, split_heads
from icl_lib.tasks import Prompt, TaskPrompts

TABLE = Path("results/bench/fv_scores.csv")
# public configurations: layers, heads, width
SHAPES = {"pythia-70m": (6, 8, 512), "pythia-160m": (12, 12, 768), "pythia-410m": (24, 16, 1024)}
VOCABULARY = 50304
PLAIN = "plain forward pass"
LAB, TOKENS = "lab-450k", 174  # 174 is the mean length of the paper's scoring prompts
N_PROMPTS, N_ROUNDS, SAMPLED_HEADS = 4, 3, 3


def random_model(shape: str, tokenizer):
    """A GPT-NeoX of a public Pythia shape with random weights, in a bridge."""
    layers, heads, width = SHAPES[shape]
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0)
    return wrap_model(GPTNeoXForCausalLM(config), tokenizer, name=f"EleutherAI/{shape}")


def random_prompts(tokenizer, n_tokens: int, seed: int) -> TaskPrompts:
    """Prompts of exactly `n_tokens` tokens: one-token words that stay apart when tokenised again."""
    text_of = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    words = [text for i, text in text_of.items() if re.fullmatch(r" [a-z]+", text)
             and tokenizer(text, add_special_tokens=False)["input_ids"] == [i]]
    rng = np.random.default_rng(seed)
    texts = [tokenizer.bos_token + "".join(rng.choice(words, n_tokens - 1)) for _ in range(2 * N_PROMPTS)]
    prompts = [Prompt(text, words[0]) for text in texts]
    return TaskPrompts(prompts[:N_PROMPTS], prompts[N_PROMPTS:])


def flop_limit(model, n_tokens: int) -> float:
    """Operations of scoring one prompt over those of one plain forward pass with logits at its last token.

    Counted as multiplications of weights per token, and of attention per pair of positions; the clean pass that
    gives the means is included.
    """
    cfg = model.cfg
    per_token = 12 * cfg.d_model**2
    prompt = cfg.n_layers * (n_tokens * per_token + n_tokens**2 * cfg.d_model)
    unembed = cfg.d_model * cfg.d_vocab
    layers_above = sum(range(1, cfg.n_layers + 1))
    rows = cfg.n_heads * layers_above * (per_token + 2 * n_tokens * cfg.d_model)
    return (2 * prompt + rows + (cfg.n_layers * cfg.n_heads + 1) * unembed) / (prompt + unembed)


def peak_memory_mib(run) -> float:
    """Largest resident size while `run` runs, beyond what was there before (Linux; NaN elsewhere)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        run()
        return float("nan")
    reset.write_text("5")
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    run()
    return (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before) / 1024


def methods(model, prompts: TaskPrompts) -> dict[str, tuple]:
    """Name to (function, how many times it has to run for all heads of all prompts)."""
    tokens = torch.tensor(model.tokenizer([p.text for p in prompts.shuffled], add_special_tokens=False)["input_ids"])
    tokens = tokens.to(device_of(model))
    n_passes = model.cfg.n_layers * model.cfg.n_heads + 1
    layer = model.cfg.n_layers // 2

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
        "fv_scores": (lambda: fv_scores(model, scored, batch_size=N_PROMPTS, progress=False), 1),
    }


def measure(shape: str, tokenizer) -> pd.DataFrame:
    """One row per method for one shape."""
    model = load_model(LAB) if shape == LAB else random_model(shape, tokenizer)
    prompts = random_prompts(tokenizer, TOKENS, seed=0)
    runs = methods(model, prompts)
    memory = {name: peak_memory_mib(run) for name, (run, _) in runs.items()}  # also the warm-up
    seconds = {name: [] for name in runs}
    for _ in range(N_ROUNDS):
        for name, (run, times) in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) * times)
    plain = np.median(seconds[PLAIN])
    limit = flop_limit(model, TOKENS)
    rows = []
    for name, values in seconds.items():
        median = float(np.median(values))
        rows.append({
            "shape": shape, "method": name, "seconds": median, "spread": (max(values) - min(values)) / median,
            "peak_memory_mib": memory[name], "forward_equivalents": median / plain,
            "ratio_to_flop_limit": np.nan if name == PLAIN else median / plain / limit,
            "device": device_of(model).type})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=[LAB, *SHAPES], help=f"among {LAB}, {', '.join(SHAPES)}")
    shapes = parser.parse_args().shapes
    unknown = [shape for shape in shapes if shape not in (LAB, *SHAPES)]
    if unknown:
        raise SystemExit(f"error: unknown shape {unknown[0]!r}; known: {LAB}, {', '.join(SHAPES)}")
    tokenizer = load_model(LAB).tokenizer
    table = pd.concat([measure(shape, tokenizer) for shape in shapes], ignore_index=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, index=False)
    print(table.round(3).to_string(index=False))
    seconds = table.pivot(index="shape", columns="method", values="seconds")
    for method in ("one pass per head", "one bridge pass per head"):
        print(f"\n{method} / fv_scores:", (seconds[method] / seconds["fv_scores"]).round(1).to_dict())
    print(f"\ntable: {TABLE}")


if __name__ == "__main__":
    main()
