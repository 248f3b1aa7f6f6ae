"""Models by name, loaded: lab models, local folders, packaged models and hub ids through one path."""

from pathlib import Path
from typing import Any

import torch

from icl_lib.check.model_check import eager_log_probabilities, line_of, prove, refusal, refuse_without_heads
from icl_lib.models.hub import download
from icl_lib.models.locate import at_step, locate
from icl_lib.models.mixed import to_mixed
from icl_lib.models.packaged import packaged_folder, packaged_models
from icl_lib.models.placement import MIXED, choose_device, choose_dtype, refuse_too_large
from icl_lib.models.quiet import quiet


def load_model(
    name_or_path: str | Path, *, step: int | None = None, device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Any:
    """A TransformerBridge in evaluation mode, its tokenizer with it, from safetensors only and without remote code.

    `name_or_path`: a lab model (`lab-<rung>`, `lab-<rung>-seed<k>`, seed 0 if not said), a packaged model
    (`smollm2-135m`, see `icl_lib.models.packaged`, fetched on first use), a local folder, with weights or with
    `step<N>` subfolders, or a full hub id (`EleutherAI/pythia-70m-deduped`; section 2 of the paper). `step`: the
    optimiser step of a checkpoint; None is the last one, for a hub id the revision of the table of the paper's models
    or main. `dtype` "auto": on a CPU float32, or "mixed" where the table of packaged models says so; on a GPU the type
    of the paper's table, for other models bfloat16 above 0.8 billion parameters. "mixed": `icl_lib.models.mixed`.
    Weights in half precision are widened on loading. The bridge's `revision` says which revision and commit of the hub
    it is, its `number_type` what it computes in, its `checked` how it proved itself (`icl_lib.check.model_check`).

    Raises FileNotFoundError for a folder without weights and ValueError for an unknown model, step,
    device or dtype, for what the hub refuses (`hub.download`; pickled weights too), for a model larger than the memory
    and for one whose numbers here would not be those of transformers, in one line.
    """
    source, revision = locate(name_or_path, step)
    device, made_of = choose_device(device), ""
    if source in packaged_models():
        made_of, source = f"gguf {packaged_models()[source].gguf_sha256}", str(packaged_folder(source))
    elif not Path(source).is_dir():
        snapshot = download(source, revision)
        made_of, source = f"{revision or 'main'} (commit {snapshot.name})", str(snapshot)
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        options = {"trust_remote_code": False, "local_files_only": True}
        try:
            config = AutoConfig.from_pretrained(source, **options)
            refuse_without_heads(config)
            dtype, mixed = choose_dtype(dtype, device, str(name_or_path), config)
            refuse_too_large(device, dtype, config)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            hf_model, loaded = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True,
                use_safetensors=any(Path(source).glob("*.safetensors")), **options
            )
            _refuse_incomplete(loaded, tokenizer)
            bridge = wrap_model(hf_model.to(device), tokenizer, name=source)
        except Exception as error:  # transformers, safetensors and huggingface_hub raise errors of their own
            raise ValueError(f"cannot load model {str(name_or_path)!r}{at_step(step)}: {line_of(error, 300)}") from None
    if mixed:  # after the model has proved itself in float32
        to_mixed(bridge)
    bridge.revision, bridge.number_type = made_of, MIXED if mixed else str(dtype).removeprefix("torch.")
    return bridge


def wrap_model(hf_model: torch.nn.Module, tokenizer: Any, *, name: str = "model") -> Any:
    """A transformers model as `load_model` gives it: evaluation mode, no gradients, in a bridge.

    For models that are in memory already (random weights of a public shape, say). Its parameters are shared, not
    copied; the bridge puts its wrappers into the model given, and holds queries, keys and values of fused projections a
    second time. Raises ValueError in one line for a model that `icl_lib.check.model_check` refuses.
    """
    hf_model.eval().requires_grad_(False)
    with quiet():
        from transformer_lens.model_bridge import TransformerBridge

        if hf_model.config.architectures is None:  # what the bridge goes by
            hf_model.config.architectures = [type(hf_model).__name__]
        expected = eager_log_probabilities(hf_model)
        # eager is what the bridge switches to for its attention hooks; our own sweeps switch per pass
        bos_token = tokenizer.bos_token
        try:
            bridge = TransformerBridge.boot_transformers(
                name, hf_model=hf_model, tokenizer=tokenizer, device=str(hf_model.device), dtype=hf_model.dtype
            )
        except Exception as error:  # adapters raise errors of every kind
            raise refusal(hf_model, f"TransformerLens puts no bridge around it ({line_of(error)})") from None
        if bos_token is None:
            bridge.tokenizer.bos_token = None  # where there is none the bridge calls the end-of-text token so
    bridge.eval().requires_grad_(False)
    prove(bridge, expected)
    return bridge


def _refuse_incomplete(loaded: dict[str, Any], tokenizer: Any) -> None:
    """Weights that are not in the files would be drawn at random, and a tokenizer without files knows no token."""
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ValueError(f"its files lack {len(missing)} weights that its config.json asks for, first {missing[0]}")
    if len(tokenizer) < 10:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens; are its tokenizer files missing?")
