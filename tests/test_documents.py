"""Documents from the lab, a text file and a dataset: rows, order, one-line errors."""

import sys
from types import SimpleNamespace

import pytest
import torch

from icl_lib import load_model
from icl_lib.data.documents import read_documents

WANTED = {"n_documents": 3, "length": 20, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("lab-40k").tokenizer


class Stream(list):
    def shuffle(self, seed, buffer_size):
        return Stream(self[seed:] + self[:seed])


def pretend(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_lab_documents_are_the_default(tokenizer):
    rows = read_documents("lab", tokenizer, **WANTED)
    assert rows.shape == (3, 20) and (rows[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(rows, read_documents("lab", tokenizer, **WANTED))
    assert not torch.equal(rows, read_documents("lab", tokenizer, **WANTED | {"seed": 1}))


def test_a_text_file_is_cut_into_rows_of_bos_and_tokens(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"red blue winter {i} sea" for i in range(60)), encoding="utf-8")
    rows = read_documents(str(path), tokenizer, **WANTED)
    assert rows.shape == (3, 20) and (rows[:, 0] == tokenizer.bos_token_id).all()
    ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    pieces = {tuple(ids[i : i + 19]) for i in range(0, len(ids), 19)}
    assert {tuple(row) for row in rows[:, 1:].tolist()} < pieces
    assert torch.equal(rows, read_documents(str(path), tokenizer, **WANTED))
    with pytest.raises(ValueError, match="rows of 20 tokens, expected 9999; give more text") as error:
        read_documents(str(path), tokenizer, **WANTED | {"n_documents": 9999})
    assert "\n" not in str(error.value)


def test_a_dataset_is_streamed_and_joined(tokenizer, monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return Stream({"text": f"winter {i} red", "body": "blue sea " * 5} for i in range(100))

    pretend(monkeypatch, load_dataset)
    rows = read_documents("owner/name", tokenizer, **WANTED)
    assert asked == [("owner/name", {"revision": None, "split": "train", "streaming": True})]
    joined = [i for n in range(100) for i in tokenizer(f"winter {n} red", add_special_tokens=False)["input_ids"]]
    assert rows[:, 1:].flatten().tolist() == joined[: 3 * 19]
    other = read_documents("owner/name:body", tokenizer, **WANTED)
    assert not torch.equal(rows, other)
    with pytest.raises(ValueError, match="no column 'title'; name the text column"):
        read_documents("owner/name:title", tokenizer, **WANTED)


def test_bad_sources_are_refused_in_one_line(tokenizer, monkeypatch, tmp_path):
    def offline(name, **options):
        raise ConnectionError("cannot reach\nthe hub")

    pretend(monkeypatch, offline)
    with pytest.raises(ValueError, match="cannot read the dataset: cannot reach$"):
        read_documents("owner/name", tokenizer, **WANTED)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="package datasets is missing; pip install datasets$"):
        read_documents("owner/name", tokenizer, **WANTED)
    for source in ("missing.txt", str(tmp_path / "none"), "a/b/c", "laboratory"):
        with pytest.raises(FileNotFoundError, match="no such file; give 'lab', 'python-reference', a text file"):
            read_documents(source, tokenizer, **WANTED)
    with pytest.raises(ValueError, match="0 documents of 20 tokens"):
        read_documents("lab", tokenizer, **WANTED | {"n_documents": 0})
    bare = SimpleNamespace(bos_token_id=None)
    with pytest.raises(ValueError, match="the tokenizer has none"):
        read_documents("lab", bare, **WANTED)
