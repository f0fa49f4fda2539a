"""A loaded model holds its weights once: nothing keeps the arrays that were read."""

import gc
import weakref

import pytest

import sammi_jax
from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.inference import segmenter, towers, zero_shot
from sammi_jax.inference.zero_shot import ZeroShot


@pytest.mark.parametrize(
    ("module", "load"),
    [
        (segmenter, lambda: sammi_jax.load("openshapes")),
        (towers, lambda: sammi_jax.load_clip("openshapes_clip")),
        (towers, lambda: sammi_jax.load_sam("openshapes_sam")),
        (zero_shot, lambda: ZeroShot("openshapes_clip", SEGMENTER_SIZES["openshapes"])),
    ],
    ids=["segmenter", "clip", "sam", "zero-shot"],
)
def test_the_folder_in_memory_is_dropped(monkeypatch, module, load):
    read, folders = module.read_model, []

    def watched(*args):
        folder = read(*args)
        folders.append(weakref.ref(folder))
        return folder

    monkeypatch.setattr(module, "read_model", watched)
    model = load()
    gc.collect()
    (folder,) = folders
    assert folder() is None
    assert model is not None  # it lives, and is what would have kept the folder
