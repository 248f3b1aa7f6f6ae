"""What a grid of 40 ablation conditions costs in plain forward passes: `make bench`, or `python -m
benchmarks.ablation_grid [SHAPE ...]`.

The same prompts in one run: a plain forward pass of the transformers model, 40 conditions at the last position
(`answer_readouts`, first answer token), 40 conditions at all positions, and, on a sample counted for all, what 40
plain passes with hooks take. The conditions are those of an ablation page: the top heads of two rankings at four
shares of all heads, and random heads. Times are medians over rounds in which the methods take turns; spread is the
range over rounds, relative. The limit is what the floating-point operations would take at the plain pass's rate: at the
last position one pass over the prompt and one token per condition from the first layer that it edits, at all positions
one pass per condition from that layer upwards.
"""

import argparse
from dataclasses import replace

import pandas as pd
import torch

from benchmarks.common import RESULTS, in_turns, refuse_unknown, save
from benchmarks.cost import multiplications
from benchmarks.fv_scores import LAB, N_PROMPTS, N_ROUNDS, PLAIN, TOKENS, layer_of, model_of, random_prompts
from icl_lib.forward.edits import Edit, edited_heads
from icl_lib.forward.encoded import encode_prompts
from icl_lib.forward.passes import device_of, plain_transformers
from icl_lib.heads import layer_matched_random_heads, random_heads, top_heads
from icl_lib.metrics.evaluate import answer_readouts

TABLE = RESULTS / "ablation_grid.csv"
SHAPES = (LAB, "pythia-70m", "smollm2-135m")
N_CONDITIONS, FRACTIONS, SAMPLED = 40, (0.03, 0.1, 0.15, 0.2), 2
AT_LAST, AT_ALL = f"{N_CONDITIONS} conditions, last position", f"{N_CONDITIONS} conditions, all positions"
LIMIT = 3.0


def conditions(model) -> list[torch.Tensor]:
    """40 head sets: per share the top heads of two random rankings, four random sets each in their layers and in
    any."""
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    generator = torch.Generator().manual_seed(0)
    rankings = [torch.rand(shape, generator=generator) for _ in range(2)]
    found = []
    for fraction in FRACTIONS:
        tops = [top_heads(ranking.numpy(), fraction=fraction) for ranking in rankings]
        found += tops
        found += [layer_matched_random_heads(top, seed=0, draw=draw) for top in tops for draw in range(2)]
        found += [random_heads(shape, int(tops[0].sum()), seed=0, draw=draw) for draw in range(4)]
    assert len(found) == N_CONDITIONS
    return [torch.from_numpy(heads) for heads in found]


def limits(model) -> dict[str, float]:
    """Forward equivalents of the grid's operations, by method."""
    cfg, masks = model.cfg, conditions(model)
    layer, row, unembed = multiplications(cfg.d_model, cfg.d_vocab, TOKENS, **layer_of(model))
    above = sum(cfg.n_layers - int(mask.any(1).nonzero()[0]) for mask in masks)
    plain, logits = cfg.n_layers * layer + unembed, len(masks) * unembed
    return {AT_LAST: (cfg.n_layers * layer + above * row + logits) / plain, AT_ALL: (above * layer + logits) / plain}


def methods(model, prompts) -> dict[str, tuple]:
    """Name to (function, how many times it has to run for all conditions)."""
    encoded = [replace(p, answer=p.answer[:1]) for p in encode_prompts(model, prompts.clean, "task")]
    tokens = torch.tensor([p.tokens for p in encoded], device=device_of(model))
    values = torch.zeros(1, model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    masks = conditions(model)

    @torch.inference_mode()
    def plain(edit=None):
        with edited_heads(model, edit), plain_transformers(model) as hf_model:
            hidden = hf_model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            hf_model.get_output_embeddings()(hidden[:, -1])

    def shared(positions):
        edits = [Edit(mask, values, positions) for mask in masks]
        return lambda: answer_readouts(model, encoded, edits)

    def pass_each():
        for mask in masks[:SAMPLED]:
            plain(Edit(mask, values, "all"))

    return {
        PLAIN: (plain, 1),
        AT_LAST: (shared("last"), 1),
        AT_ALL: (shared("all"), 1),
        f"{N_CONDITIONS} conditions, one plain pass each": (pass_each, N_CONDITIONS / SAMPLED),
    }


def measure(shape: str) -> pd.DataFrame:
    """One row per method for one shape."""
    model = model_of(shape)
    runs = methods(model, random_prompts(model.tokenizer, TOKENS, N_PROMPTS, seed=0))
    for run, _ in runs.values():
        run()  # warm-up
    table = in_turns(runs, N_ROUNDS)
    passes = table["seconds"] / table["seconds"][PLAIN]
    table = table.assign(forward_equivalents=passes, ratio_to_flop_limit=passes / pd.Series(limits(model)),
                         device=device_of(model).type).reset_index()
    table.insert(0, "shape", shape)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES, help=f"among {', '.join(SHAPES)}")
    shapes = parser.parse_args().shapes
    refuse_unknown("shape", shapes, SHAPES)
    table = pd.concat([measure(shape) for shape in shapes], ignore_index=True)
    save(table, TABLE)
    at_last = table[table["method"] == AT_LAST].set_index("shape")["forward_equivalents"]
    for shape, cost in at_last.items():
        print(f"{shape}: {cost:.2f} plain passes per prompt, {'below' if cost < LIMIT else 'NOT below'} {LIMIT:g}")


if __name__ == "__main__":
    main()
