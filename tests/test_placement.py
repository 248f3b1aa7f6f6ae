"""Device, number type and memory of a model, without a GPU: the arithmetic and what is refused."""

import pytest
import torch

from icl_lib import load_model
from icl_lib.models import placement
from icl_lib.models.paper_models import paper_models
from icl_lib.models.placement import choose_dtype, free_gib, refuse_too_large, shape_of
from tests.architectures import configuration
from tests.conftest import GOLDEN

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("name", paper_models())
def test_needs_from_a_configuration_are_those_of_the_table(name):
    model = paper_models()[name]
    for dtype in ("float32", "bfloat16"):
        found = shape_of(configuration(model)).memory_gib(dtype)
        assert found == pytest.approx(model.memory_gib(dtype), rel=0.03)


def test_number_types_follow_the_table_on_a_gpu_and_are_float32_on_a_cpu():
    for name, model in paper_models().items():
        config = configuration(model)
        assert choose_dtype("auto", CUDA, name, config) == (getattr(torch, model.gpu_dtype), False)
        assert choose_dtype("auto", CPU, name, config) == (torch.float32, False)
        # another model of this shape, by its size
        by_size = torch.bfloat16 if model.parameters > 0.8e9 else torch.float32
        assert choose_dtype("auto", CUDA, "owner/another", config) == (by_size, False)
        assert choose_dtype("float16", CPU, name, config) == (torch.float16, False)
        assert choose_dtype("mixed", CPU, name, config) == (torch.float32, True)
    assert choose_dtype("auto", CPU, "qwen2.5-coder-1.5b", config) == (torch.float32, True)
    assert choose_dtype("float32", CPU, "qwen2.5-coder-1.5b", config) == (torch.float32, False)


def test_a_model_larger_than_the_memory_is_refused_with_the_number(monkeypatch):
    config = configuration(paper_models()["EleutherAI/pythia-6.9b-deduped"])
    monkeypatch.setattr(placement, "free_gib", lambda device: 24.0)
    refuse_too_large(CUDA, torch.bfloat16, config)
    needed = shape_of(config).memory_gib("float32")
    words = f"{needed:.1f} GiB in float32.*cuda has 24.0 GiB free.*'bfloat16' needs 2"
    with pytest.raises(ValueError, match=words) as e:
        refuse_too_large(CUDA, torch.float32, config)
    assert "\n" not in str(e.value)
    monkeypatch.setattr(placement, "free_gib", lambda device: 8.0)
    with pytest.raises(ValueError, match="8.0 GiB free; or take a device with more memory"):
        refuse_too_large(CUDA, torch.bfloat16, config)
    monkeypatch.setattr(placement, "free_gib", lambda device: None)  # not known: not refused
    refuse_too_large(CUDA, torch.float32, config)


def test_loading_refuses_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(placement, "free_gib", lambda device: 0.01)
    with pytest.raises(ValueError, match="cannot load model .*it needs about 0.2 GiB in float32"):
        load_model(GOLDEN / "gpt_neox" / "model", device="cpu")


def test_free_memory_of_this_machine_is_known():
    assert 0 < free_gib(CPU) < 1e5
