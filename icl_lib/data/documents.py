"""Documents for the token loss: lab stories, Python's own reference, a text file, or a dataset of the hub."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LAB, REFERENCE = "lab", "python-reference"
_SHUFFLED = 1000  # texts of a streamed dataset that are shuffled among themselves
_PART = 100_000  # characters of a file tokenised at a time


def read_documents(
    source: str, tokenizer: Any, *, n_documents: int, length: int, seed: int
) -> Int[Tensor, "document pos"]:
    """Token ids, BOS first, every row of `length` tokens.

    `source`: "lab" for fresh stories of the lab world; "python-reference" for the language reference that comes with
    every Python (`pydoc_data.topics`: English text with code, some 180,000 tokens); the path of a text file; or the id
    of a dataset of the hub (`owner/name`, with `@revision` for a commit, branch or tag of it and `:column` if its texts
    are not in the column "text"), of which the split "train" is streamed. Texts are joined and cut into rows of BOS and
    `length` - 1 tokens without a separator, as the released code does (T4), so that a row may begin inside a text;
    those of a file or the reference are drawn at random by `seed`, and lab stories are one a row.

    Raises ValueError for a tokenizer without BOS, fewer rows than wanted, a dataset that cannot be read, and
    FileNotFoundError for a path that does not exist.
    """
    if n_documents < 1 or length < 2:
        raise ValueError(f"{n_documents} documents of {length} tokens: expected at least 1 of at least 2")
    if tokenizer.bos_token_id is None:
        raise ValueError("documents begin with BOS, but the tokenizer has none; use a model whose tokenizer has")
    if source == LAB:
        from lab.text import lab_documents

        return lab_documents(tokenizer, n_documents=n_documents, length=length, seed=seed)
    refuse_missing(source)
    if texts := _local_texts(source):
        rows = list(_rows(texts, tokenizer, length))
        order = np.random.default_rng(seed).permutation(len(rows))[:n_documents]
        rows = [rows[i] for i in order]
    else:
        rows = list(islice(_rows(_texts_of_dataset(source, seed), tokenizer, length), n_documents))
    if len(rows) < n_documents:
        raise ValueError(
            f"documents {source!r}: {len(rows)} rows of {length} tokens, expected {n_documents}; "
            "give more text or ask for fewer or shorter documents"
        )
    return torch.tensor(rows)


def refuse_missing(source: str) -> None:
    """Raise FileNotFoundError for documents that are neither named, nor a file, nor may be a dataset of the hub."""
    if source in (LAB, REFERENCE) or Path(source).is_file():
        return
    if Path(source).suffix in (".txt", ".md") or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"documents {source!r}: no such file; give {LAB!r}, {REFERENCE!r}, a text file or a "
                                "hub id owner/name")


def documents_sum(source: str) -> str:
    """The SHA-256 sum of the text that documents are cut from, "" for lab stories and datasets, which name theirs."""
    texts = _local_texts(source)
    return hashlib.sha256("".join(texts).encode()).hexdigest() if texts else ""


def _local_texts(source: str) -> Iterator[str] | None:
    """The reference, of which other versions of Python have other texts, or a file; None for what is neither."""
    if source == REFERENCE:
        from pydoc_data.topics import topics

        return (topics[name] + "\n\n" for name in sorted(topics))
    return _parts_of_file(Path(source)) if Path(source).is_file() else None


def _parts_of_file(path: Path) -> Iterator[str]:
    """Pieces of a text that end at line ends, so that a large file is not tokenised at once."""
    with open(path, encoding="utf-8") as file:
        while lines := file.readlines(_PART):
            yield "".join(lines)


def _texts_of_dataset(source: str, seed: int) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"documents {source!r}: the package datasets is missing; pip install datasets") from None
    where, _, column = source.partition(":")
    name, _, revision = where.partition("@")
    column = column or "text"
    try:
        stream = load_dataset(name, revision=revision or None, split="train", streaming=True)
        for item in stream.shuffle(seed=seed, buffer_size=_SHUFFLED):
            yield item[column]
    except KeyError:
        raise ValueError(f"documents {source!r}: no column {column!r}; name the text column, {name}:column") from None
    except Exception as error:  # the package raises its own, the network's and the file formats' errors
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise ValueError(f"documents {source!r}: cannot read the dataset: {reason}") from None


def _rows(texts: Iterable[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """BOS and `length` - 1 tokens at a time of texts joined; what is left at the end is dropped."""
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        while len(ids) >= length - 1:
            yield [tokenizer.bos_token_id, *ids[: length - 1]]
            ids = ids[length - 1 :]
