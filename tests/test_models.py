"""Loading by name: lab rungs, folders and hub ids through one path, and what is refused."""

import shutil
import subprocess
import sys

import pytest
import torch

import icl_lib.models.locate as module
from icl_lib import load_model, steps_of
from tests.conftest import GOLDEN

WEIGHTS = GOLDEN / "gpt_neox" / "model"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A rung with two seeds and a few checkpoints, half-precision on disk."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained(WEIGHTS).half()
    for seed, steps in {0: (0, 8, 1000), 1: (0,)}.items():
        for step in steps:
            folder = tmp_path / "lab-tiny" / f"seed{seed}" / f"step{step}"
            hf_model.get_input_embeddings().weight.data[0, 0] = step
            hf_model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(folder)
    monkeypatch.setattr(module, "LAB_MODELS", tmp_path)
    return tmp_path


def step_in(model) -> float:
    return model.original_model.get_input_embeddings().original_component.weight[0, 0].item()


def test_lab_models_load_by_name_and_step(lab):
    model = load_model("lab-tiny", device="cpu")
    assert step_in(model) == 1000  # the last one
    assert model.original_model.dtype == torch.float32  # widened from half precision
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert step_in(load_model("lab-tiny", step=8)) == 8
    assert step_in(load_model("lab-tiny-seed1")) == 0
    assert steps_of("lab-tiny") == [0, 8, 1000] and steps_of("lab-tiny-seed1") == [0]


def test_folders_load_with_and_without_steps(lab):
    assert step_in(load_model(lab / "lab-tiny" / "seed0")) == 1000
    assert step_in(load_model(str(lab / "lab-tiny" / "seed0"), step=8)) == 8
    assert step_in(load_model(lab / "lab-tiny" / "seed0" / "step8")) == 8
    assert steps_of(WEIGHTS) == []
    assert load_model(WEIGHTS, dtype="float64").original_model.dtype == torch.float64


def test_hub_ids_take_a_revision_per_step():
    assert module.locate("EleutherAI/pythia-70m-deduped") == ("EleutherAI/pythia-70m-deduped", None)
    assert module.locate("EleutherAI/pythia-70m-deduped", 512) == ("EleutherAI/pythia-70m-deduped", "step512")
    assert steps_of("EleutherAI/pythia-160m-deduped")[-1] == 143000


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lab-tny", {}, ["unknown model 'lab-tny'", "lab-tiny"]),
        ("lab-tiny-seed7", {}, ["lab-tiny-seed7", "lab-tiny-seed1"]),
        ("pythia-70m-deduped", {}, ["'pythia-70m-deduped'", "EleutherAI/pythia-70m-deduped"]),
        ("lab-tiny", {"step": 900}, ["no step 900", "0, 8, 1000"]),
        ("lab-tiny", {"step": -1}, ["step -1"]),
        ("EleutherAI/pythia-70m-deduped", {"step": 1500}, ["no step 1500", "1000, 2000"]),
        ("./nowhere", {}, ["'./nowhere' does not exist"]),
        (str(WEIGHTS), {"step": 3}, ["no step 3", "no step<N>"]),
        (str(WEIGHTS), {"dtype": "float23"}, ["float23", "float32"]),
        (str(WEIGHTS), {"device": "gpu"}, ["'gpu'", "cuda"]),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_valid_names(lab, name, options, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(name, **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "words"), [
    ("lab-tny", "unknown model 'lab-tny'.*lab-tiny"), ("nosuch", "unknown model 'nosuch'"),
    ("./nowhere", "'./nowhere' does not exist"),
])  # fmt: skip
def test_checkpoints_of_what_does_not_exist_are_refused_as_loading_it_is(lab, name, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        steps_of(name)
    assert steps_of("owner/name") == [] and steps_of("smollm2-135m") == []


def test_a_folder_without_safetensors_is_refused(tmp_path):
    shutil.copytree(WEIGHTS, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_model(tmp_path / "m")


def test_loading_is_silent(capfd):
    load_model(WEIGHTS)
    assert capfd.readouterr() == ("", "")


def test_importing_the_library_does_not_import_transformer_lens():
    code = ("import sys, icl_lib; cheap = 'torch' not in sys.modules; [getattr(icl_lib, n) for n in icl_lib.__all__]; "
            "sys.exit(not cheap or 'transformer_lens' in sys.modules or 'transformers' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=GOLDEN.parents[1]).returncode == 0
