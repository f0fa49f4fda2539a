"""The checkpoints that OpenAI, Meta and CAT-Seg's authors have published, and how to tell them.

Nothing is downloaded from here: docs/weights.md says where each fact comes from.
"""

import warnings
from dataclasses import dataclass

from sammi_jax.errors import SammiError

_TOKENIZER = "openai/clip-vit-base-patch16"  # all CLIPs of OpenAI read text with the same one


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        name: of the entry, such as "clip_vitb16".
        title: for messages, such as "OpenAI's CLIP ViT-B/16".
        kind: of model folder that it becomes.
        owner: who published it.
        license: of the weights, as its owner states it (SPDX name).
        file: the file's published name.
        url: where its owner offers the file.
        sha256: of the file, 64 hexadecimal digits; None: nobody has published it.
        sha256_from: where the digest comes from, or what takes its place.
        hub: the repository on the Hugging Face Hub with the same weights, or None.
    """

    name: str
    title: str
    kind: str
    owner: str
    license: str
    file: str
    url: str
    sha256: str | None
    sha256_from: str
    hub: str | None

    @property
    def commands(self) -> tuple[str, ...]:
        """The ways to make a model folder: from the file, then from the Hub where it is there."""
        words = "" if self.kind == "sam" else f" --tokenizer {_TOKENIZER}"
        ways = [f"sammi convert {self.kind} {self.file} weights/{self.name}{words}"]
        if self.hub is not None:
            ways.append(f"sammi convert {self.kind} {self.hub} weights/{self.name}")
        return tuple(ways)


def _clip(name: str, model: str, file: str, sha256: str, hub: str) -> Published:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    stated = "in OpenAI's address, which OpenAI's own code checks the file against"
    return Published(
        name, f"OpenAI's CLIP {model}", "clip", "OpenAI", "MIT", file, url, sha256, stated, hub
    )


def _sam(name: str, model: str, file: str, sha256: str, hub: str) -> Published:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    stated = (
        "not published by Meta (its file name ends with the first six digits of the MD5); these "
        "are the digits with which micro_sam and other public projects check their downloads"
    )
    return Published(
        name, f"Meta's SAM {model}", "sam", "Meta", "Apache-2.0", file, url, sha256, stated, hub
    )


def _catseg(name: str, model: str, file: str) -> Published:
    url = f"https://huggingface.co/spaces/hamacojr/CAT-Seg-weights/resolve/main/{file}"
    title, stated = f"CAT-Seg {model} of its authors", "not published"
    return Published(name, title, "catseg", "cvlab-kaist", "MIT", file, url, None, stated, None)


PUBLISHED = (
    _clip(
        "clip_vitb16",
        "ViT-B/16",
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "openai/clip-vit-base-patch16",
    ),
    _clip(
        "clip_vitl14",
        "ViT-L/14",
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "openai/clip-vit-large-patch14",
    ),
    _clip(
        "clip_vitl14_336",
        "ViT-L/14@336",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "openai/clip-vit-large-patch14-336",
    ),
    _sam(
        "sam_vitb",
        "ViT-B",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "facebook/sam-vit-base",
    ),
    _sam(
        "sam_vitl",
        "ViT-L",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "facebook/sam-vit-large",
    ),
    _sam(
        "sam_vith",
        "ViT-H",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "facebook/sam-vit-huge",
    ),
    _catseg("catseg_b", "B (ViT-B/16)", "model_base.pth"),
    _catseg("catseg_l", "L (ViT-L/14@336)", "model_large.pth"),
)


def get_published(name: str) -> Published:
    """The entry of that name.

    Raises:
        SammiError: there is none.
    """
    for entry in PUBLISHED:
        if entry.name == name:
            return entry
    raise SammiError(f"{name!r} is none of {', '.join(entry.name for entry in PUBLISHED)}")


def recognize(file: str, sha256: str, hub: str | None = None) -> Published | None:
    """The published checkpoint that some weights are, or None.

    Warns of a file that has the name of a published one and other content.

    Args:
        file: its name.
        sha256: of its content.
        hub: the repository on the Hugging Face Hub that it was downloaded from.
    """
    for entry in PUBLISHED:
        if entry.sha256 == sha256 or (hub is not None and entry.hub == hub):
            return entry
    for entry in PUBLISHED:
        if entry.file == file and entry.sha256 is not None:
            warnings.warn(
                f"{file} has the name of {entry.title}, but its SHA-256 is {sha256[:12]}..., not "
                f"{entry.sha256[:12]}...: it may be damaged or altered; to be sure, download it "
                f"again from {entry.url}",
                stacklevel=2,
            )
    return None
