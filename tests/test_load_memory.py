"""A loaded model holds its weights once: nothing keeps the arrays that were read."""

import gc
import weakref

import pytest

import sammi_jax
from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.inference import segmenter, towers, zero_shot
from sammi_jax.inference.zero_shot import ZeroShot
from tests.test_folder import CONFIGS, random_params, write

LOADERS = {
    "segmenter": ("sammi", segmenter, sammi_jax.load),
    "clip": ("clip", towers, sammi_jax.load_clip),
    "sam": ("sam", towers, sammi_jax.load_sam),
    "zero-shot": ("clip", zero_shot, lambda f: ZeroShot(f, SEGMENTER_SIZES["openshapes"])),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_folder_in_memory_is_dropped(monkeypatch, tmp_path, name):
    kind, module, load = LOADERS[name]
    folder = write(tmp_path / "model", random_params(CONFIGS[kind]), kind, CONFIGS[kind])
    read, folders = module.read_model, []

    def watched(*args):
        found = read(*args)
        folders.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "read_model", watched)
    model = load(folder)
    gc.collect()
    (found,) = folders
    assert found() is None
    assert model is not None  # it lives, and is what would have kept the folder
