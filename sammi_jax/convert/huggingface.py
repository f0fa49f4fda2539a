"""The other way: a CLIP or SAM model folder as a Hugging Face checkpoint.

``transformers`` loads the result (``CLIPModel.from_pretrained``, ``SamModel.from_pretrained``), and
so does `sammi convert`. The tables are conversion's own, read backwards.
"""

from typing import Any, cast

import numpy as np
from safetensors.numpy import save_file

from sammi_jax.config.model import ClipConfig, SamConfig
from sammi_jax.convert.clip_keys import KeyNames, clip_rules
from sammi_jax.convert.rules import invert_rules
from sammi_jax.convert.sam_keys import sam_rules
from sammi_jax.errors import SammiError
from sammi_jax.files import atomic_folder, check_destination, write_json
from sammi_jax.object_store import AnyPath, PathLike
from sammi_jax.weights.kinds import buffer_paths
from sammi_jax.weights.model_folder import DTYPES, load_tokenizer, read_model, to_store

_DTYPES = ("float16", "float32")


def write_checkpoint(source: PathLike, destination: PathLike, dtype: str = "float16") -> AnyPath:
    """Write ``config.json``, ``model.safetensors`` and CLIP's ``tokenizer.json``, atomically.

    Args:
        source: a CLIP or SAM model folder.
        destination: must not exist, or be empty.
        dtype: of the weights, "float16" or "float32"; SAM's Fourier matrix is always float32.

    Returns:
        The destination's absolute path.

    Raises:
        SammiError: ``source`` is no such model folder, ``destination`` is not empty, the dtype is
            another one, or a weight is too large for float16.
    """
    if dtype not in _DTYPES:
        raise SammiError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    model, destination = read_model(source, ["clip", "sam"]), check_destination(destination)
    if model.kind == "clip":
        description = clip_description(model.config)
        rules = clip_rules(model.config, KeyNames("huggingface"))
    else:
        description = sam_description(model.config)
        rules = sam_rules(model.config, "huggingface")
    buffers = buffer_paths(model.config)
    exact = {rule.source for rule in rules if rule.target in buffers}
    tensors = {
        key: to_store(value, np.dtype(np.float32) if key in exact else DTYPES[dtype], key)
        for key, value in invert_rules(model.params, rules).items()
    }
    with atomic_folder(destination, "config.json") as temporary:
        write_json(temporary / "config.json", description)
        # transformers reads no file that does not say which framework wrote it
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod((temporary / "config.json").stat().st_mode)
        if model.tokenizer_path is not None:
            load_tokenizer(source, model.tokenizer_path, model.config).save(temporary)
    return destination


def clip_description(config: ClipConfig) -> dict[str, Any]:
    """``config.json`` of a transformers ``CLIPModel``."""
    from transformers import CLIPConfig  # slow to import

    vision, text = (
        {
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.num_layers,
            "num_attention_heads": tower.num_heads,
            "projection_dim": config.embed_dim,
            "hidden_act": config.activation,
            "layer_norm_eps": config.eps,
        }
        for tower in (config.vision, config.text)
    )
    vision |= {"image_size": config.vision.image_size, "patch_size": config.vision.patch_size}
    text |= {
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.context_length,
        "bos_token_id": config.text.vocab_size - 2,
        "eos_token_id": config.text.vocab_size - 1,
    }
    described: Any = CLIPConfig(
        vision_config=cast(Any, vision),
        text_config=cast(Any, text),
        projection_dim=config.embed_dim,
    )
    return {**described.to_dict(), "architectures": ["CLIPModel"]}


def sam_description(config: SamConfig) -> dict[str, Any]:
    """``config.json`` of a transformers ``SamModel``."""
    from transformers import SamConfig as HuggingFaceConfig

    per_stage = config.num_layers // config.num_stages
    shared = {"image_size": config.image_size, "patch_size": config.patch_size}
    described: Any = HuggingFaceConfig(
        vision_config={
            **shared,
            "hidden_size": config.width,
            "output_channels": config.out_channels,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "mlp_dim": config.mlp_ratio * config.width,
            "window_size": config.window_size,
            "global_attn_indexes": list(range(per_stage - 1, config.num_layers, per_stage)),
            "num_pos_feats": config.out_channels // 2,
        },
        prompt_encoder_config={
            **shared,
            "hidden_size": config.out_channels,
            "mask_input_channels": config.mask_in_channels,
        },
        mask_decoder_config={
            "hidden_size": config.out_channels,
            "mlp_dim": config.decoder_mlp_dim,
            "num_hidden_layers": config.decoder_layers,
            "num_attention_heads": config.decoder_heads,
            "num_multimask_outputs": config.num_multimask_outputs,
            "iou_head_depth": config.iou_head_depth,
            "iou_head_hidden_dim": config.iou_head_hidden_dim,
            "layer_norm_eps": config.decoder_eps,
        },
    )
    return {**described.to_dict(), "architectures": ["SamModel"]}
