"""The model card of a model folder: the README.md that the Hugging Face Hub shows."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sammi_jax.config.model import ClipConfig, SamConfig, SegmenterConfig
from sammi_jax.weights.model_folder import Description
from sammi_jax.weights.provenance import UNKNOWN, checkpoints, read_origin

# Licenses that the Hub knows, by the names that `weights.provenance` writes.
_HUB_LICENSES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}

# By kind: the model in words, the Hub's name of its task, and the papers that describe it.
_SAM = "Segment Anything (https://arxiv.org/abs/2304.02643)"
_CLIP = "CLIP (https://arxiv.org/abs/2103.00020)"
_CATSEG = "CAT-Seg (https://arxiv.org/abs/2303.11797)"
_SAMMI = "SAM-MI (https://arxiv.org/abs/2511.20027)"
_KINDS = {
    "clip": ("CLIP, an image and a text encoder", "zero-shot-image-classification", (_CLIP,)),
    "sam": ("Segment Anything, masks from points", "mask-generation", (_SAM,)),
    "catseg": (
        "CAT-Seg, open-vocabulary semantic segmentation",
        "image-segmentation",
        (_CATSEG, _CLIP),
    ),
    "sammi": (
        "SAM-MI, open-vocabulary semantic segmentation with SAM's masks",
        "image-segmentation",
        (_SAMMI, _CATSEG, _CLIP, _SAM),
    ),
}

_USE = {
    "clip": """\
clip = sammi_jax.load_clip("{name}")
text = clip.encode_text(clip.tokenize(["a photo of a cat"]))   # [1, d]""",
    "sam": """\
sam = sammi_jax.load_sam("{name}")
embeddings = sam.encode_image(images)                          # [b, s, s, 3] -> [b, g, g, c]""",
    "catseg": """\
model = sammi_jax.load("{name}")
found = model.segment("photo.jpg", ["wall", "sky", "tree"])    # found.labels: [h, w]""",
}
_USE["sammi"] = _USE["catseg"]


def model_card(found: Description, name: str) -> str:
    """A model card, made from what config.json records.

    Args:
        found: the model folder.
        name: of the repository, ``ORG/NAME``.
    """
    title, task, papers = _KINDS[found.kind]
    origin = read_origin(found.meta)
    front = {
        "library_name": "sammi_jax",
        "pipeline_tag": task,
        "tags": ["jax", found.kind],
        **_front_license(origin.license),
    }
    bases = sorted({part.source["hub"] for part in checkpoints(origin) if "hub" in part.source})
    if bases:
        front["base_model"] = bases
    size = sum(tensor.size for tensor in found.tensors.values())
    initialized = found.meta.get("initialized") or []
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),  # JSON is YAML, too
        "---",
        "",
        f"# {name.partition('/')[2]}",
        "",
        f"{title}: a model folder of `sammi_jax`, {size:,} parameters.",
        "",
        "## Use",
        "",
        "```python",
        "import sammi_jax",
        "",
        _USE[found.kind].format(name=name),
        "```",
        "",
        f"`sammi inspect {name}` shows the whole configuration, license and source.",
        "",
        "## Architecture",
        "",
        *(f"- {line}" for line in _architecture(found.config)),
        *([f"- not trained, initialized only: {', '.join(initialized)}"] if initialized else []),
        "",
        "## License and origin",
        "",
        f"License of the weights: {origin.license}.",
        "",
        *_origin("this model", origin.record(), ""),
        "",
        "## Method",
        "",
        *(f"- {paper}" for paper in papers),
        "",
    ]
    return "\n".join(lines)


def _front_license(license: str) -> dict[str, str]:
    """The Hub's fields: it knows single licenses by name, anything else is "other"."""
    if license in _HUB_LICENSES:
        return {"license": _HUB_LICENSES[license]}
    if license.startswith(UNKNOWN):
        return {"license": UNKNOWN}
    return {"license": "other", "license_name": license}


def _architecture(config: ClipConfig | SamConfig | SegmenterConfig) -> Iterator[str]:
    if isinstance(config, ClipConfig):
        image, text = config.vision, config.text
        yield (
            f"CLIP image tower: ViT of {image.num_layers} layers, width {image.width}, patches of "
            f"{image.patch_size} pixels, native input {image.image_size} x {image.image_size}"
        )
        yield (
            f"CLIP text tower: {text.num_layers} layers, width {text.width}, "
            f"{text.vocab_size:,} tokens; joint space of {config.embed_dim} dimensions"
        )
    elif isinstance(config, SamConfig):
        yield (
            f"SAM image encoder: ViT of {config.num_layers} layers, width {config.width}, patches "
            f"of {config.patch_size} pixels, input {config.image_size} x {config.image_size}"
        )
        yield f"SAM mask decoder: {config.decoder_layers} layers, width {config.out_channels}"
    else:
        yield from _architecture(config.clip)
        aggregator = config.aggregator
        yield (
            f"CAT-Seg cost aggregation: {aggregator.num_layers} layers, width "
            f"{aggregator.hidden_dim}, cost map of {aggregator.grid_size} x {aggregator.grid_size} "
            f"cells for windows of {config.crop_size} pixels"
        )
        yield f"prompt templates: {', '.join(config.templates)}"
        if config.masks is not None:
            yield from _architecture(config.masks.sam)


def _origin(name: str, record: Mapping[str, Any], indent: str) -> Iterator[str]:
    """What a model's record says of it, then of its parts, as a nested list."""
    source = record["source"]
    facts = "; ".join(f"{key} {value}" for key, value in source.items() if key != "from")
    heading = f"{name} ({record['kind']}, license {record['licence']})"
    yield f"{indent}- {heading}: {facts or 'made of'}"
    for part, inner in source.get("from", {}).items():
        yield from _origin(part, inner, indent + "  ")
