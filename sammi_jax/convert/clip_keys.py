"""CLIP checkpoints: the tables of which source tensor fills which of our parameters.

Three families of key names: OpenAI's, which OpenCLIP shares; the same with separate query, key and
value, as CAT-Seg writes it; and Hugging Face's ``CLIPModel``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sammi_jax.config.model import ClipConfig
from sammi_jax.convert.rules import (
    IDENTITY,
    LINEAR,
    PATCH_EMBED,
    BlockRow,
    Rule,
    Transform,
    layer_rules,
)
from sammi_jax.errors import SammiError

Row = tuple[str, str, Transform]


def _norm(source: str, target: str) -> list[Row]:
    return [
        (f"{source}.weight", f"{target}/scale", IDENTITY),
        (f"{source}.bias", f"{target}/bias", IDENTITY),
    ]


def _linear(source: str, target: str) -> list[Row]:
    return [
        (f"{source}.weight", f"{target}/kernel", LINEAR),
        (f"{source}.bias", f"{target}/bias", IDENTITY),
    ]


_QKV = ("attention/query", "attention/key", "attention/value")

_OPENAI_VISION: list[Row] = [
    ("visual.class_embedding", "vision/class_embedding", IDENTITY),
    ("visual.positional_embedding", "vision/position_embedding", IDENTITY),
    ("visual.conv1.weight", "vision/patch_embed/projection/kernel", PATCH_EMBED),
    *_norm("visual.ln_pre", "vision/norm_pre"),
    *_norm("visual.ln_post", "vision/norm_post"),
    ("visual.proj", "vision/projection/kernel", IDENTITY),
    ("logit_scale", "logit_scale", IDENTITY),
]
_OPENAI_TEXT: list[Row] = [
    ("token_embedding.weight", "text/token_embedding", IDENTITY),
    ("positional_embedding", "text/position_embedding", IDENTITY),
    *_norm("ln_final", "text/norm_final"),
    ("text_projection", "text/projection/kernel", IDENTITY),
]
_OPENAI_BLOCK: list[BlockRow] = [
    *_norm("ln_1", "norm1"),
    *((("attn.in_proj_bias", f"{part}/bias", IDENTITY, (i, 3))) for i, part in enumerate(_QKV)),
    *_linear("attn.out_proj", "attention/out"),
    *_norm("ln_2", "norm2"),
    *_linear("mlp.c_fc", "mlp/fc1"),
    *_linear("mlp.c_proj", "mlp/fc2"),
]
_JOINT_QKV: list[BlockRow] = [
    ("attn.in_proj_weight", f"{part}/kernel", LINEAR, (i, 3)) for i, part in enumerate(_QKV)
]
_SPLIT_QKV: list[BlockRow] = [
    (f"attn.{letter}_proj_weight", f"{part}/kernel", LINEAR)
    for letter, part in zip("qkv", _QKV, strict=True)
]

_HUGGING_FACE: list[Row] = [
    ("vision_model.embeddings.class_embedding", "vision/class_embedding", IDENTITY),
    ("vision_model.embeddings.position_embedding.weight", "vision/position_embedding", IDENTITY),
    (
        "vision_model.embeddings.patch_embedding.weight",
        "vision/patch_embed/projection/kernel",
        PATCH_EMBED,
    ),
    *_norm("vision_model.pre_layrnorm", "vision/norm_pre"),  # their spelling
    *_norm("vision_model.post_layernorm", "vision/norm_post"),
    ("visual_projection.weight", "vision/projection/kernel", LINEAR),
    ("text_model.embeddings.token_embedding.weight", "text/token_embedding", IDENTITY),
    ("text_model.embeddings.position_embedding.weight", "text/position_embedding", IDENTITY),
    *_norm("text_model.final_layer_norm", "text/norm_final"),
    ("text_projection.weight", "text/projection/kernel", LINEAR),
    ("logit_scale", "logit_scale", IDENTITY),
]
_HUGGING_FACE_BLOCK: list[BlockRow] = [
    *_norm("layer_norm1", "norm1"),
    *_linear("self_attn.q_proj", "attention/query"),
    *_linear("self_attn.k_proj", "attention/key"),
    *_linear("self_attn.v_proj", "attention/value"),
    *_linear("self_attn.out_proj", "attention/out"),
    *_norm("layer_norm2", "norm2"),
    *_linear("mlp.fc1", "mlp/fc1"),
    *_linear("mlp.fc2", "mlp/fc2"),
]

_IGNORED = {
    "input_resolution": "OpenAI's record of a size that the shapes give",
    "context_length": "OpenAI's record of a size that the shapes give",
    "vocab_size": "OpenAI's record of a size that the shapes give",
    "attn_mask": "the causal mask, which is computed",
    "vision_model.embeddings.position_ids": "0, 1, 2, ...: no weights",
    "text_model.embeddings.position_ids": "0, 1, 2, ...: no weights",
}


@dataclass(frozen=True)
class KeyNames:
    """How a file names its tensors.

    Attributes:
        name: ``openai``, ``openclip``, ``catseg`` (separate query, key, value) or ``huggingface``.
        prefix: the beginning of every key.
        text_prefix: what follows ``prefix`` in the text tower's keys.
    """

    name: str
    prefix: str = ""
    text_prefix: str = ""

    @property
    def blocks(self) -> dict[str, str]:
        """Where each tower's layers are; ``{}`` is the layer's number."""
        if self.name == "huggingface":
            towers = {t: f"{t}_model.encoder.layers.{{}}." for t in ("vision", "text")}
        else:
            towers = {
                "vision": "visual.transformer.resblocks.{}.",
                "text": f"{self.text_prefix}transformer.resblocks.{{}}.",
            }
        return {tower: self.prefix + path for tower, path in towers.items()}

    @property
    def singles(self) -> list[Row]:
        """The rows of everything outside the layers."""
        if self.name == "huggingface":
            rows = _HUGGING_FACE
        else:
            rows = [*_OPENAI_VISION, *((self.text_prefix + s, t, f) for s, t, f in _OPENAI_TEXT)]
        return [(self.prefix + source, target, f) for source, target, f in rows]

    @property
    def block(self) -> list[BlockRow]:
        """The rows of one layer."""
        if self.name == "huggingface":
            return _HUGGING_FACE_BLOCK
        return [*_OPENAI_BLOCK, *(_SPLIT_QKV if self.name == "catseg" else _JOINT_QKV)]


def detect_key_names(keys: Iterable[str]) -> KeyNames:
    """Recognize the family of a CLIP checkpoint by its keys.

    Raises:
        SammiError: the keys are not those of a CLIP with a vision transformer.
    """
    keys = set(keys)
    for key in sorted(keys):
        if key.endswith("vision_model.embeddings.class_embedding"):
            return KeyNames(
                "huggingface", key.removesuffix("vision_model.embeddings.class_embedding")
            )
        if key.endswith("visual.class_embedding"):
            prefix = key.removesuffix("visual.class_embedding")
            if any(k.startswith(prefix) and k.endswith(".attn.q_proj_weight") for k in keys):
                return KeyNames("catseg", prefix)
            if f"{prefix}text.token_embedding.weight" in keys:
                return KeyNames("openclip", prefix, "text.")
            return KeyNames("openai", prefix)
    if any("visual.layer1.0.conv1" in key for key in keys):
        raise SammiError("this CLIP has a ResNet; only vision transformers can be converted")
    raise SammiError(
        "not a CLIP checkpoint: neither visual.class_embedding (OpenAI, OpenCLIP) nor "
        f"vision_model.embeddings.class_embedding (Hugging Face) among its {len(keys)} keys"
    )


def clip_rules(config: ClipConfig, names: KeyNames, target: str = "") -> list[Rule]:
    """The table of all keys; ``target`` is the path of the `Clip` in the model, with a slash."""
    rules = [Rule(source, target + path, f) for source, path, f in names.singles]
    sizes = {"vision": config.vision.num_layers, "text": config.text.num_layers}
    for tower, source in names.blocks.items():
        path = f"{target}{tower}/transformer/block/"
        rules += layer_rules(source, path, names.block, sizes[tower])
    return rules


def ignored_keys(keys: Iterable[str], names: KeyNames) -> dict[str, str]:
    """The keys among ``keys`` that hold no weights, with the reason."""
    prefixes = {names.prefix, names.prefix + names.text_prefix}
    known = {prefix + key: reason for prefix in prefixes for key, reason in _IGNORED.items()}
    return {key: known[key] for key in keys if key in known}
