"""License and origin of model folders: what a run started from, all the way back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from sammi_jax.cli.main import main
from sammi_jax.config.experiment import (
    CaptionConfig,
    DataConfig,
    PromptConfig,
    SegmentConfig,
    TrainConfig,
)
from sammi_jax.config.files import config_digest
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.errors import SammiError
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.training.loop import train
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import describe, write_model
from sammi_jax.weights.provenance import Origin, combine_licenses, made_of, trained
from tests.test_sammi import SAMMI
from tests.test_trained import CONFIG as CAPTION_RUN

TEXT = replace(SAMMI.clip.text, vocab_size=30, context_length=12)
MODEL = replace(SAMMI, clip=replace(SAMMI.clip, text=TEXT), sliding=None)
CATSEG = replace(MODEL, masks=None)
ORIGINALS = {"clip": ("MIT", MODEL.clip), "sam": ("Apache-2.0", MODEL.masks.sam)}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A CLIP and a SAM as if converted from their authors' checkpoints."""
    folder, rng = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    for kind, (licence, config) in ORIGINALS.items():
        params = {
            path: 0.1 * rng.normal(size=want.shape).astype("f")
            for path, want in expected_params(config).items()
        }
        tokenizer = Tokenizer(build_tokenizer()) if kind == "clip" else None
        write_model(folder / kind, kind, config, params, source={"file": f"{kind}.pt"},
                    licence=licence, tokenizer=tokenizer)  # fmt: skip
    return folder


def export(task, folder, step=0, **options):
    """The model of a run as it is after ``step`` steps (the weights are those of step 0)."""
    config = TrainConfig(task=task, batch_size=2, **options)
    made = make_task(config)
    made.export(made.initial_params(0), folder, step)
    return describe(folder).meta, config


def test_a_chain_of_runs(tmp_path, originals):
    """clip -> catseg -> sammi, each a run: nothing of the way is lost."""
    clip, sam = str(originals / "clip"), str(originals / "sam")
    catseg, first = export(SegmentConfig(model=CATSEG, clip=clip), tmp_path / "catseg", 7, seed=3)
    assert catseg["licence"] == "MIT"
    task = SegmentConfig(model=MODEL, segmenter=str(tmp_path / "catseg"), sam=sam)
    sammi, second = export(task, tmp_path / "sammi", 9)
    assert sammi["licence"] == "Apache-2.0 (sam), MIT (segmenter)"
    assert sammi["source"] == {
        "trained_on": "openshapes os48",
        "steps": 9,
        "seed": 0,
        "config_sha256": config_digest(second),
        "from": {
            "sam": {"kind": "sam", "licence": "Apache-2.0", "source": {"file": "sam.pt"}},
            "segmenter": {
                "kind": "catseg",
                "licence": "MIT",
                "source": {
                    "trained_on": "openshapes os48",
                    "steps": 7,
                    "seed": 3,
                    "config_sha256": config_digest(first),
                    "from": {
                        "clip": {"kind": "clip", "licence": "MIT", "source": {"file": "clip.pt"}}
                    },
                },
            },
        },
    }
    again, _ = export(SegmentConfig(model=MODEL, segmenter=str(tmp_path / "sammi")), tmp_path / "m")
    assert again["licence"] == "Apache-2.0 (segmenter.sam), MIT (segmenter.segmenter)"


def test_conversion_keeps_it(tmp_path, originals, capsys):
    """A trained folder converted again, or put together with a SAM."""
    export(SegmentConfig(model=CATSEG, clip=str(originals / "clip")), tmp_path / "catseg")
    before = describe(tmp_path / "catseg").meta
    options = ["--dtype", "bfloat16"]
    assert main(["convert", "catseg", str(tmp_path / "catseg"), str(tmp_path / "m"), *options]) == 0
    assert "\nlicense: MIT\n" in capsys.readouterr().out
    assert describe(tmp_path / "m").meta == before
    options = ["--sam", str(originals / "sam")]
    assert main(["convert", "sammi", str(tmp_path / "catseg"), str(tmp_path / "s"), *options]) == 0
    together = describe(tmp_path / "s").meta
    assert together["licence"] == "Apache-2.0 (sam), MIT (catseg)"
    assert together["source"]["from"]["catseg"]["source"] == before["source"]
    assert main(["inspect", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "licence       Apache-2.0 (sam), MIT (catseg)\n" in out
    assert '  from.catseg.source.from.clip.source.file = "clip.pt"\n' in out
    assert f'  from.catseg.source.config_sha256 = "{before["source"]["config_sha256"]}"\n' in out


def test_from_scratch(tmp_path):
    """On OpenShapes the license is this project's; elsewhere it is not ours to say."""
    for name, task in [
        ("caption", CaptionConfig(model=MODEL.clip)),
        ("prompt", PromptConfig(model=MODEL.masks.sam)),
        ("segment", SegmentConfig(model=CATSEG)),
    ]:
        meta, _ = export(task, tmp_path / name)
        assert meta["licence"] == "Apache-2.0"
        assert "from" not in meta["source"]
    config = TrainConfig(task=SegmentConfig(model=CATSEG), data=DataConfig(name="ade20k_150"))
    origin = trained(config, "catseg", {}, 5)
    assert (origin.license, origin.source["trained_on"]) == ("unknown", "ade20k_150")


def test_licenses_that_differ():
    part = lambda license: Origin("clip", {}, license)  # noqa: E731
    parts = {"sam": part("B"), "clip": part("A"), "segmenter": part("A")}
    assert combine_licenses(parts) == "A (clip, segmenter), B (sam)"
    mixed = made_of("sammi", parts)
    assert combine_licenses({"init": mixed, "sam": part("B")}) == (
        "A (init.clip, init.segmenter), B (init.sam, sam)"
    )
    by_hand = replace(mixed, license="non-commercial")  # what the owner wrote stands
    assert combine_licenses({"init": by_hand, "sam": part("B")}) == "B (sam), non-commercial (init)"


def test_an_unknown_license_stays_in_sight(tmp_path, originals):
    shutil.copytree(originals / "clip", tmp_path / "clip")
    file = tmp_path / "clip" / "config.json"
    sam = str(originals / "sam")
    for licence in ("", None):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"licence": licence}))
        task = SegmentConfig(model=MODEL, clip=str(tmp_path / "clip"), sam=sam)
        meta, _ = export(task, tmp_path / f"model{licence}")
        assert meta["licence"] == "Apache-2.0 (sam), unknown (clip)"


def test_origins_are_read_when_a_run_starts(tmp_path):
    """Not days later, when the model is written."""
    task = SegmentConfig(model=MODEL, clip=str(tmp_path / "nowhere"))
    with pytest.raises(SammiError, match="nowhere: no such folder"):
        make_task(TrainConfig(task=task))


def test_a_run_and_its_checkpoints(tmp_path, capsys):
    """The step is the checkpoint's, and the command says what it found."""
    train(make_task(CAPTION_RUN), CAPTION_RUN, tmp_path / "run")
    digest = config_digest(CAPTION_RUN)
    assert describe(tmp_path / "run" / "model").meta["source"] == {
        "trained_on": "openshapes", "steps": 2, "seed": 0, "config_sha256": digest
    }  # fmt: skip
    source = str(tmp_path / "run" / "checkpoints" / "1")
    assert main(["convert", "clip", source, str(tmp_path / "first")]) == 0
    out = capsys.readouterr().out
    assert "license: Apache-2.0\n" in out
    assert f"after step 1; trained on openshapes, seed 0, configuration {digest}\n" in out
    assert describe(tmp_path / "first").meta["source"]["steps"] == 1
