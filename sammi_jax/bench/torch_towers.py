"""CLIP and SAM of transformers, of our configurations' sizes."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SamModel
from transformers import SamConfig as HfSamConfig

from sammi_jax.config.model import ClipConfig, SamConfig


def torch_clip(config: ClipConfig) -> CLIPModel:
    """CLIP with random weights and transformers' default attention (SDPA)."""
    shared = {"hidden_act": config.activation, "layer_norm_eps": config.eps}
    vision, text = (
        {
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.num_layers,
            "num_attention_heads": tower.num_heads,
            **shared,
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
    return CLIPModel(
        CLIPConfig(vision_config=vision, text_config=text, projection_dim=config.embed_dim)
    ).eval()


def clip_dense(
    model: CLIPModel, pixels: Tensor, taps: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """CAT-Seg's dense mode (docs/catseg.md part a) on transformers' modules.

    Returns:
        The features ``[b, d, h, w]``, and the outputs ``[b, c, h, w]`` of the blocks in ``taps``.
    """
    vision: Any = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    *blocks, last = vision.encoder.layers
    tapped = []
    rows = pixels.shape[2] // vision.config.patch_size

    def to_map(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, -1))

    for number, block in enumerate(blocks):
        x = block(x, attention_mask=None)
        if number in taps:
            tapped.append(to_map(x))
    attention = last.self_attn
    y = attention.out_proj(attention.v_proj(last.layer_norm1(x))) + x[:, :1]
    y = y + last.mlp(last.layer_norm2(y))
    return to_map(model.visual_projection(vision.post_layernorm(y))), tapped


def torch_sam(config: SamConfig) -> SamModel:
    """Segment Anything with random weights."""
    per_stage = config.num_layers // config.num_stages
    shared = {"image_size": config.image_size, "patch_size": config.patch_size}
    dim = config.out_channels
    vision = {
        "hidden_size": config.width,
        "output_channels": dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "window_size": config.window_size,
        "global_attn_indexes": [(i + 1) * per_stage - 1 for i in range(config.num_stages)],
        "num_pos_feats": dim // 2,
        "mlp_dim": config.mlp_ratio * config.width,
        **shared,
    }
    prompt = {"hidden_size": dim, "mask_input_channels": config.mask_in_channels, **shared}
    decoder = {
        "hidden_size": dim,
        "mlp_dim": config.decoder_mlp_dim,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.decoder_heads,
        "num_multimask_outputs": config.num_multimask_outputs,
        "iou_head_depth": config.iou_head_depth,
        "iou_head_hidden_dim": config.iou_head_hidden_dim,
    }
    return SamModel(
        HfSamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).eval()


@torch.no_grad()
def sam_decode(model: SamModel, embeddings: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Three masks ``[1, k, 3, h, w]`` and their IoU of each of ``k`` points, all at once.

    Args:
        model: SAM.
        embeddings: of one image, ``[1, c, g, g]``.
        points: (x, y), ``[k, 2]``, on an object.
    """
    out = model(
        image_embeddings=embeddings,
        input_points=points[None, :, None],
        input_labels=torch.ones(1, len(points), 1, dtype=torch.int64),
        multimask_output=True,
    )
    return out.pred_masks, out.iou_scores


def clip_text(model: CLIPModel, token_ids: Tensor) -> Tensor:
    """Text embeddings ``[n, d]``, not normalized, of token ids ``[n, l]``."""
    found = model.text_model(input_ids=token_ids.long())
    return model.text_projection(found.pooler_output)
