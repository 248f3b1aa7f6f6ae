"""What the stand-in servers serve: tiny random models of three architectures, made-up tasks and documents."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from icl_lib.data.upstream import EVALUATION_TASKS, SCORING_TASKS

STEPS = (1, 64, 1000)
ARCHITECTURES = ("gpt-neox-tiny", "gpt2-tiny", "llama-tiny")
BOS = "<|endoftext|>"
_N_WORDS, _N_PAIRS, _N_DOCUMENTS, _VOCABULARY = 120, 24, 60, 400


def make(folder: str | Path) -> Path:
    """Fill a folder for `server.serve`; one that is complete is left alone."""
    folder = Path(folder)
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    tasks, texts = make_tasks(folder / "task_files")
    documents = folder / "datasets" / "standin" / "documents" / "main" / "train.jsonl"
    documents.parent.mkdir(parents=True)
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = _tokenizer([*texts, *(f"Q: {q}\nA: {a}\n\n" for pairs in tasks.values() for q, a in pairs)])
    for name in ARCHITECTURES:
        for step in (*STEPS, None):
            revision = "main" if step is None else f"step{step}"
            _write_model(folder / "models" / "standin" / name / revision, name, tokenizer, step or max(STEPS))
    (folder / "complete").touch()
    return folder


def make_tasks(folder: str | Path) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Write made-up tasks under the names of the upstream files; gives their pairs and documents of the same words."""
    rng = np.random.default_rng(0)
    words = _words(rng)
    tasks = {name: _pairs(name, words, rng) for name in (*SCORING_TASKS, *EVALUATION_TASKS)}
    _write_tasks(Path(folder), tasks)
    return tasks, [" ".join(rng.choice(words, 700)) + "." for _ in range(_N_DOCUMENTS)]


def _words(rng: np.random.Generator) -> list[str]:
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    return sorted({"".join(rng.choice(syllables, 2)) for _ in range(_N_WORDS)})


def _pairs(name: str, words: list[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs of a made-up task: pick one of a list where the name says so, a look-up table otherwise."""
    if any(part in name for part in ("_v_", "choose_", "conll")):
        lists = [list(rng.choice(words, 3, replace=False)) for _ in range(_N_PAIRS)]
        return [(", ".join(items), str(items[len(name) % 3])) for items in lists]
    return [(str(q), str(a)) for q, a in zip(
        rng.choice(words, _N_PAIRS, replace=False), rng.choice(words, _N_PAIRS), strict=True)]


def _write_tasks(folder: Path, tasks: dict[str, list[tuple[str, str]]]) -> None:
    """Files in the layout of the upstream folder, with their checksums in `SHA256SUMS`."""
    sums = []
    for task, pairs in tasks.items():
        kind = (SCORING_TASKS | EVALUATION_TASKS)[task]
        rows = [{"input": question, "output": answer} for question, answer in pairs]
        cut = 2 * len(rows) // 3
        for part, chosen in {"": rows, "_train": rows[:cut], "_val": rows[cut:]}.items():
            path = folder / kind / f"{task}{part}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(chosen))
            sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {kind}/{path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(sorted(sums, key=lambda line: line.split()[1])))


def _tokenizer(texts: list[str]):
    """A byte-level BPE tokenizer trained on the texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=_VOCABULARY, special_tokens=[BOS], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS)


def _write_model(folder: Path, name: str, tokenizer, seed: int) -> None:
    import torch
    import transformers

    sizes = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 0}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 1024}
    config = {
        "gpt-neox-tiny": lambda: transformers.GPTNeoXConfig(**sizes, **wide),
        "gpt2-tiny": lambda: transformers.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=1024),
        "llama-tiny": lambda: transformers.LlamaConfig(**sizes, **wide, num_key_value_heads=2),
    }[name]()
    config.initializer_range = 0.2  # large enough for heads to matter
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
