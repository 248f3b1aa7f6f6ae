"""The benchmark on a tiny shape: its columns, its count of operations, and that all methods do the same work."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import book, gpu, training
from benchmarks import fv_scores as bench
from icl_lib import fv_scores, load_model
from icl_lib.data.sources import read_tasks
from icl_lib.forward.means import clean_means
from icl_lib.forward.passes import plain_transformers
from icl_lib.models.locate import count_parameters
from lab.files import read_rung
from lab.text import Generator

COLUMNS = ["shape", "method", "seconds", "spread", "peak_memory_mib", "forward_equivalents", "ratio_to_flop_limit",
           "vocabulary_share", "device"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_model(bench.LAB).tokenizer


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "tiny", (3, 4, 64))
    monkeypatch.setattr(bench, "VOCABULARY", 2000)
    monkeypatch.setattr(bench, "N_ROUNDS", 2)
    return "tiny"


def test_columns_and_rows(tiny, tokenizer, monkeypatch):
    _, runs = bench.build(tiny, 20, 2)
    in_use = {name: bench.peak_memory_mib(run) + 0.1 for name, (run, _) in runs.items()}
    monkeypatch.setattr(bench, "memory_in_use", lambda *_: in_use)  # its process does not know the tiny shape
    table = bench.measure(tiny, n_tokens=20, n_prompts=2)
    assert list(table)[: len(COLUMNS)] == COLUMNS
    assert set(table["method"]) == {bench.PLAIN, "one pass per head", "one bridge pass per head",
                                    "TransformerLens patching", bench.OURS}  # fmt: skip
    assert (table["seconds"] > 0).all() and set(table["device"]) == {"cuda" if torch.cuda.is_available() else "cpu"}
    plain = table[table["method"] == bench.PLAIN].iloc[0]
    assert plain["forward_equivalents"] == 1 and pd.isna(plain["ratio_to_flop_limit"])
    assert table.drop(columns=["ratio_to_flop_limit", "vocabulary_share"]).notna().all(axis=None)
    # 12 heads and the unedited prompt, 64 weights for each of 2000 words, of all multiplications
    share = table.set_index("method").loc[bench.OURS, "vocabulary_share"]
    assert share == 13 * 64 * 2000 / bench.operations(3, 4, 64, 2000, 20)[1]


@pytest.mark.slow
def test_memory_in_use_is_measured_in_a_process_of_its_own():
    memory = bench.memory_in_use(bench.LAB, 20, 1)
    assert set(memory) == set(bench.build(bench.LAB, 20, 1)[1])
    assert all(isinstance(value, float) for value in memory.values())


def test_prompts_have_the_length_asked_for(tokenizer):
    prompts = bench.random_prompts(tokenizer, 50, 3, seed=0)
    ids = tokenizer([p.text for p in [*prompts.clean, *prompts.shuffled]], add_special_tokens=False)["input_ids"]
    assert [len(row) for row in ids] == [50] * 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts attention otherwise on a GPU")
@pytest.mark.parametrize("n_tokens", [5, 60])
def test_operations_are_those_that_torch_counts(tiny, tokenizer, n_tokens):
    model = bench.random_model(tiny, tokenizer)
    prompts = bench.random_prompts(tokenizer, n_tokens, 2, seed=0)
    tokens = torch.tensor(tokenizer([p.text for p in prompts.shuffled], add_special_tokens=False)["input_ids"])

    def counted(run) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 2 / 2  # two operations a multiplication, two prompts

    layers, heads, width = bench.SHAPES[tiny]
    plain, scoring = bench.operations(layers, heads, width, bench.VOCABULARY, n_tokens)
    attention = layers * n_tokens**2 * width  # torch does not count its fused kernel on a CPU
    with torch.no_grad(), plain_transformers(model) as hf_model:
        forward = counted(lambda: hf_model(tokens, use_cache=False, logits_to_keep=1))
    assert forward == plain - attention
    ours = counted(lambda: fv_scores(model, {"task": prompts}))
    # both prompt passes stop in the last layer once its keys and values are there; a row without edits joins there
    not_run, unedited = 2 * 9 * n_tokens * width**2, 12 * width**2 + 2 * n_tokens * width
    assert ours == scoring - 2 * attention - not_run + unedited
    assert bench.operations_of(model, n_tokens) == (plain, scoring)


def test_transformer_lens_gives_the_scores_too(tiny, tokenizer):
    model = bench.random_model(tiny, tokenizer)
    prompts = bench.random_prompts(tokenizer, 20, 3, seed=1)
    scored = fv_scores(model, {"task": prompts})
    mean_z = clean_means(model, {"task": prompts})["task"]
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    patched = bench.patched_probabilities(model, prompts, mean_z, heads).unflatten(0, (3, 4))
    effects = patched - scored.shuffled_probability["task"].mean()
    assert (effects - scored.scores).abs().max() < 1e-8 and scored.scores.abs().max() > 1e-7


def test_a_gpu_adds_the_large_shapes():
    assert not set(bench.default_shapes(gpu=False)) & set(bench.GPU_SHAPES)
    assert set(bench.default_shapes(gpu=True)) == {bench.LAB, *bench.SHAPES, *bench.REAL, *bench.GPU_SHAPES}
    shapes = bench.SHAPES | bench.GPU_SHAPES | bench.OTHER_SHAPES
    assert len(shapes) == 12 and sum(name.startswith("pythia") for name in shapes) == 7


def test_hours_of_the_paper_follow_from_the_measured_rate():
    rate = 1e13  # multiplications a second
    shapes = bench.SHAPES | bench.GPU_SHAPES | bench.OTHER_SHAPES
    table = pd.DataFrame([
        {"shape": shape, "method": method, "n_prompts": 16,
         "seconds": 16 * bench.operations(*shapes[shape], bench.VOCABULARY, bench.TOKENS)[1] / rate}
        for shape in (*bench.SHAPES, *bench.GPU_SHAPES) for method in (bench.PLAIN, bench.OURS)])  # fmt: skip
    runs = {shape: 9 if "pythia" in shape else 1 for shape in shapes}
    expected = sum(n * bench.operations(*shapes[shape], bench.VOCABULARY, bench.TOKENS)[1] for shape, n in runs.items())
    assert sum(runs.values()) == 12 + 56
    assert bench.paper_hours(table) == pytest.approx(2900 * expected / rate / 3600)


def test_training_bench_counts_the_tokens_and_shares_of_a_step(monkeypatch):
    monkeypatch.setattr(training, "N_ROUNDS", 2)
    monkeypatch.setattr(training, "N_STEPS", 1)
    table = training.measure(["lab-7k"])
    row = table.iloc[0]
    assert row["parameters"] == count_parameters("lab-7k")
    batch = Generator(load_model("lab-7k").tokenizer, read_tasks()).batch(
        np.random.default_rng(0), read_rung("lab-7k")["mixture"])
    assert training.tokens_per_step(read_rung("lab-7k")) == sum(rows.tokens.size for rows in batch)
    assert row["tokens_per_second"] > 0
    assert 0 < row["drawing_share"] < 1 and 0 < row["product_share"] < 1


def test_seconds_of_a_cold_book_go_to_the_notebook_that_used_them():
    kernel, scoring = ["-f", "c.json"], ["notebooks/scoring.ipynb", "results/lab/notebooks/scoring/org/m/step0.ipynb"]
    lines = [json.dumps(entry) for entry in (
        ["workflow.run", scoring, "", 1.5],
        ["ipykernel_launcher", kernel, "/x/logs/scoring/org/m/step0.made_from.json", 6.0],
        ["workflow.run", ["notebooks/ablation.ipynb", "results/lab/notebooks/ablation/m/step0.ipynb"], "", 1.0],
        ["workflow.run", [scoring[0], "results/lab/notebooks/scoring/m/step0.ipynb"], "", 0.5],
        ["ipykernel_launcher", kernel, "results/lab/logs/claims/real.made_from.json", 2.0],
        ["ipykernel_launcher", kernel, "results/lab/logs/ablation/m/step0.made_from.json", 20.0])]
    table = book.by_part(lines, 36.0, ["real", "org/m"]).set_index("part")
    assert list(table.index) == ["ablation", "scoring", "claims", book.REST]
    assert table["processor_seconds"].tolist() == [21.0, 8.0, 2.0, 5.0] and table["runs"].tolist() == [1, 2, 0, 0]
    assert table["of_real_models"].tolist() == [0, 7.5, 2.0, 0] and table["share"].sum() == pytest.approx(1)


def test_an_unknown_rung_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "lab-8k"])
    with pytest.raises(SystemExit, match="unknown rung 'lab-8k'; known: lab-110k"):
        training.main()


def test_the_gpu_command_on_a_processor(tmp_path, monkeypatch):
    """Rows of two methods that took 8 s and 2 s, and a lab model in place of a real one."""
    monkeypatch.setitem(bench.SHAPES, "tiny", (3, 4, 64))
    monkeypatch.setattr(bench, "VOCABULARY", 2000)
    methods = {bench.PLAIN: 1.0, "one pass per head": 8.0, bench.OURS: 2.0}
    rows = pd.DataFrame([{
        "shape": "tiny", "method": name, "seconds": seconds, "n_prompts": 4, "n_tokens": 20, "device": "cpu",
        "ratio_to_flop_limit": 1.2, "peak_memory_mib": 5.0} for name, seconds in methods.items()])
    monkeypatch.setattr(bench, "measure", lambda shape, n_prompts: rows)
    monkeypatch.setattr(gpu, "TABLE", tmp_path / "gpu.csv")
    monkeypatch.setattr("sys.argv", ["gpu", "tiny", "--model", "lab-7k", "--prompts", "1"])
    gpu.main()
    table = pd.read_csv(tmp_path / "gpu.csv").set_index("model")
    assert table.loc["tiny", "times_faster"] == 4
    # per token 12 x 64^2 weights in each layer, attention over 20 positions, logits once; two operations each
    weights = 3 * (20 * 12 * 64**2 + 20**2 * 64) + 64 * 2000
    assert table.loc["tiny", "tflop_per_s"] == pytest.approx(2 * weights * 4 / 1e12, rel=1e-3)
    scoring = [task for task in read_tasks("lab").values() if task.split == "scoring"]
    assert table.loc["lab-7k", "prompts"] == len(scoring) and table.loc["lab-7k", "fv_scores_s"] > 0
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["gpu"])
        with pytest.raises(SystemExit, match="there is no GPU"):
            gpu.main()
