"""Segment Anything in torch, small and random, and its weights under Meta's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import SamConfig as HfConfig
from transformers import SamModel

from sammi_jax.convert import sam as convert_sam
from sammi_jax.convert.rules import Source, apply_rules
from sammi_jax.layers.init import Keys
from sammi_jax.models.sam.sam import Sam
from sammi_jax.weights.params import abstract_params, build

SIDE = 128  # grid 8, windows of 3: padded to 9

SMALL = {
    "vision_config": {
        "hidden_size": 48,
        "output_channels": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 3,
        "global_attn_indexes": [2, 5],
        "num_pos_feats": 16,
        "mlp_dim": 96,
    },
    "prompt_encoder_config": {
        "hidden_size": 32,
        "image_size": SIDE,
        "patch_size": 16,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_depth": 4,
        "iou_head_hidden_dim": 24,
    },
}


def make_model(config: HfConfig, seed: int = 0) -> SamModel:
    """A SamModel in which every parameter is random and none is too small to matter."""
    model = SamModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean, scale = 0.0, 1.0  # embeddings, tokens and the Fourier matrix
            if "norm" in name and name.endswith("weight"):
                mean, scale = 1.0, 0.3
            elif name.endswith("bias") or "rel_pos" in name or "pos_embed" in name:
                scale = 0.3
            elif re.search(r"proj|qkv|lin\d|conv|layers\.\d+\.weight", name):
                fan_in = p.shape[0] if "upscale" in name else p[0].numel()
                scale = 1.4 * fan_in**-0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale + mean)
    return model


def tensors_of(model: SamModel) -> dict[str, np.ndarray]:
    """The state dictionary, copied."""
    return {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


_TO_META = [
    (
        r"^shared_image_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
    (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
    (r"^vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1"),
    (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
    (r"^vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3"),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.mask_embed\.conv1", ".mask_downscaling.0"),
    (r"\.mask_embed\.layer_norm1", ".mask_downscaling.1"),
    (r"\.mask_embed\.conv2", ".mask_downscaling.3"),
    (r"\.mask_embed\.layer_norm2", ".mask_downscaling.4"),
    (r"\.mask_embed\.conv3", ".mask_downscaling.6"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.upscale_conv1", ".output_upscaling.0"),
    (r"\.upscale_layer_norm", ".output_upscaling.1"),
    (r"\.upscale_conv2", ".output_upscaling.3"),
    (r"\.layer_norm_final_attn", ".norm_final_attn"),
    (r"\.layer_norm(\d)", r".norm\1"),
]


def meta_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as facebookresearch/segment-anything names them."""
    depths = {"output_hypernetworks_mlps": 3, "iou_prediction_head": 0}
    depths["iou_prediction_head"] = 2 + sum(
        bool(re.fullmatch(r"mask_decoder\.iou_prediction_head\.layers\.\d+\.bias", key))
        for key in tensors
    )
    renamed = {}
    for key, value in tensors.items():
        if key == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        for head, depth in depths.items():
            if head in key:
                key = re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{int(m[1]) + 1}.", key)
                key = key.replace(".proj_in.", ".layers.0.")
                key = key.replace(".proj_out.", f".layers.{depth - 1}.")
        for pattern, replacement in _TO_META:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def convert(tensors, config_json=None, overrides=None) -> tuple[Sam, dict, Source]:
    """Our model of a state dictionary, its parameters and its Source."""
    source = convert_sam.rules_for(tensors, config_json=config_json, overrides=overrides)
    make = lambda: Sam(source.config, rngs=Keys(0))  # noqa: E731
    params = apply_rules(tensors, source.rules, abstract_params(make), source.ignored)
    return build(make, jax.tree.map(jnp.asarray, params)), params, source
