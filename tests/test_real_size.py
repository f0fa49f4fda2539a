"""The main job at the real sizes: released formats -> model folder -> a segmented photograph."""

import json
import resource
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sammi_jax.cli.main import main
from sammi_jax.config.model import SAM_SIZES, SEGMENTER_SIZES
from sammi_jax.convert.catseg_keys import model_rules
from sammi_jax.convert.clip_keys import KeyNames
from sammi_jax.convert.rules import invert_rules
from sammi_jax.convert.sam import sam_rules
from sammi_jax.weights.kinds import expected_params

CLASSES = "wall, building, sky, floor, tree, person, car, plant, table, window"


def _random(config, seed):
    rng = np.random.default_rng(seed)
    return {
        path: np.float32(1 if path.endswith("scale") else 0)
        + rng.normal(0, 0.02, want.shape).astype("f")
        for path, want in expected_params(config).items()
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """CAT-Seg's .pth (as its trainer writes it) and SAM's .pth, ViT-B both, random weights."""
    folder = tmp_path_factory.mktemp("released")
    catseg = SEGMENTER_SIZES["vitb16"]
    start = "sem_seg_head.predictor.clip_model."
    rules = model_rules(catseg, KeyNames("catseg", start))
    tensors = invert_rules(_random(catseg, 0), rules)
    state = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    torch.save({"model": state, "iteration": 79999}, folder / "model_base.pth")
    sam = SAM_SIZES["vitb"]
    tensors = invert_rules(_random(sam, 1), sam_rules(sam, "meta"))
    state = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    torch.save(state, folder / "sam_vit_b.pth")
    return folder


def _accept_every_mask(file):
    """Random towers give flat distributions and poor masks: without this none would be used."""
    record = json.loads(file.read_text())
    masks = record["config"]["masks"]
    masks["tspp"]["min_score"] = 0.0
    masks["filter"] |= {"min_iou": -100.0, "min_stability": 0.0, "max_area": 1.0}
    file.write_text(json.dumps(record))


@pytest.mark.slow
def test_photograph_is_segmented(checkpoints, photographs, bpe_file, tmp_path, capsys):
    folder, out = tmp_path / "sammi", tmp_path / "out"
    source, sam = checkpoints / "model_base.pth", checkpoints / "sam_vit_b.pth"
    began = time.perf_counter()
    convert = ["convert", "sammi", source, folder, "--sam", sam]
    convert += ["--tokenizer", bpe_file]
    assert main([str(part) for part in convert]) == 0
    converted = time.perf_counter()
    _accept_every_mask(folder / "config.json")
    files = sorted((photographs / "ADEChallengeData2016/images/validation").glob("*.jpg"))
    segment = ["segment", *files, "--classes", CLASSES, "--model", folder, "--out", out]
    assert main([str(part) for part in segment]) == 0
    done = time.perf_counter()
    for photograph in files:
        summary = json.loads((out / f"{photograph.stem}.json").read_text())
        with Image.open(photograph) as image:
            width, height = image.size
        assert (summary["width"], summary["height"]) == (width, height)
        assert summary["num_points"] == 64
        assert summary["num_masks"] > 0
        assert sum(entry["pixels"] for entry in summary["classes"]) == width * height
        labels = np.asarray(Image.open(out / f"{photograph.stem}_labels.png"))
        assert labels.shape == (height, width)
        assert labels.max() < len(CLASSES.split(","))
        with Image.open(out / f"{photograph.stem}_overlay.png") as overlay:
            assert overlay.size[1] >= height
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"\nconvert {converted - began:.0f} s, segment {len(files)} photographs "
            f"{done - converted:.0f} s, peak memory {peak:.1f} GiB"
        )
