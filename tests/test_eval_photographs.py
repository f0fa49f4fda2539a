"""`eval.py` on real photographs: a set that `sammi datasets prepare` made, and a user's own folder.

The models are random and tiny, but read English and see windows, as the real ones do. Every number
is computed again from the label maps that the evaluation wrote and from the owner's label files.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from sammi_jax.cli.main import main
from sammi_jax.config.fields import to_dict
from sammi_jax.config.files import config_digest, load_config
from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_hash
from sammi_jax.evaluation import confusion_matrix, scores
from sammi_jax.parallel.mesh import AXES
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import write_model
from tests.test_sammi import SAMMI

TEXT = dataclasses.replace(SAMMI.clip.text, vocab_size=49408, context_length=24)
CONFIG = dataclasses.replace(
    SAMMI,
    clip=dataclasses.replace(SAMMI.clip, text=TEXT),
    aggregator=dataclasses.replace(SAMMI.aggregator, pad_length=0),
    templates=("A photo of a {} in the scene",),
)
CONFIG_FILE = f"""
from sammi_jax.config import SegmentConfig, SegmenterConfig, TrainConfig, from_dict

config = TrainConfig(task=SegmentConfig(model=from_dict(SegmenterConfig, {to_dict(CONFIG)!r})))
"""
SETTINGS = ("eval.batch_size=2", "eval.save_labels=True", "eval.panels=1")
VOC = "voc_labelme"
IGNORE = 255


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


def random_params(config):
    """Weights under which places differ: a random bias would drown the picture."""
    rng = np.random.default_rng(0)
    constant = {"bias": 0.0, "scale": 1.0}
    return {
        path: np.full(want.shape, constant[path.rpartition("/")[2]], "f")
        if path.rpartition("/")[2] in constant
        else rng.normal(0, 0.5, want.shape).astype("f")
        for path, want in expected_params(config).items()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory, bpe_file):
    """A CLIP and a SAM-MI around one of the same sizes."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.from_file(bpe_file)
    for kind, config in (("clip", CONFIG.clip), ("sammi", CONFIG)):
        params = random_params(config)
        write_model(
            folder / kind, kind, config, params, source={}, licence="none", tokenizer=tokenizer
        )
    return folder


@pytest.fixture
def data(photographs, tmp_path):
    """ADE20K's two photographs, prepared; and two of VOC's as a user's own folder."""
    source = photographs / "ADEChallengeData2016"
    prepare = ["datasets", "prepare", "ade20k_150", "--source", source, "--data-dir", tmp_path]
    assert main([*map(str, prepare), "--allow-incomplete", "--split", "validation"]) == 0
    own = tmp_path / "own"
    shutil.copytree(photographs / VOC / "JPEGImages", own / "images")
    shutil.copytree(photographs / VOC / "SegmentationClass", own / "labels")
    shutil.copy(photographs / VOC / "class_names.txt", own / "classes.txt")
    return tmp_path


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Two photographs on eight devices would be eight, six of them copies."""
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), AXES, devices=jax.devices()[:1], axis_types=axis_types)
    monkeypatch.setattr("sammi_jax.parallel.mesh.make_mesh", lambda config: mesh)


def ade_labels(photographs):
    """The owner's labels as class indices, by the stem of their photograph; 0 becomes 255."""
    files = (photographs / "ADEChallengeData2016/annotations/validation").glob("*.png")
    return {path.stem: np.asarray(Image.open(path)) - np.uint8(1) for path in files}


def own_labels(photographs):
    """Of the user's own folder."""
    files = (photographs / VOC / "SegmentationClass").glob("*.png")
    return {path.stem: np.asarray(Image.open(path)) for path in files}


def evaluate(config_file, checkpoint, data, datasets, *settings):
    arguments = ["--config", config_file, "--model", checkpoint, "--data-dir", data]
    arguments += ["--datasets", ",".join(datasets), "--workdir", data / "out"]
    for setting in settings:
        arguments += ["--set", setting]
    assert main(["eval", *map(str, arguments)]) == 0
    return json.loads((data / "out/results.json").read_text())


def check_numbers(record, folder, labels):
    """The record of one set against its saved label maps."""
    assert {path.stem for path in folder.iterdir()} == set(labels)
    total = 0
    for stem, label in labels.items():
        predicted = np.asarray(Image.open(folder / f"{stem}.png"))
        assert predicted.shape == label.shape
        total = total + confusion_matrix(predicted, label, record["num_classes"], IGNORE)
    expected = scores(total)
    for name in ("miou", "miou_union", "fwiou", "macc", "pacc"):
        assert record[name] == pytest.approx(expected[name], abs=1e-12), name
    found = np.array([row["iou"] for row in record["classes"]], float)  # None becomes NaN
    np.testing.assert_allclose(found, expected["iou"], atol=1e-12)
    assert [row["label_pixels"] for row in record["classes"]] == total.sum(axis=1).tolist()
    assert [row["predicted_pixels"] for row in record["classes"]] == total.sum(axis=0).tolist()
    assert len(np.unique(total.nonzero()[1])) > 1, "one class everywhere shows nothing"


def check_pictures(record, workdir, labels, pictures):
    """The label maps, and the panels: ``pictures`` side by side with 6 pixels between."""
    folder = record["dataset"].replace("/", "_").replace(":", "_")
    check_numbers(record, workdir / "labels" / folder, labels)
    (panel,) = (workdir / "panels" / folder).iterdir()
    width = labels[panel.stem].shape[1]
    with Image.open(panel) as image:
        assert image.size[0] == pictures * width + (pictures - 1) * 6


def check_head(found, config):
    assert found["config_sha256"] == config_digest(config)
    assert found["templates"] == list(CONFIG.templates)
    assert "short side 640" in found["resize"]
    assert "windows of 32 at stride 16" in found["resize"]
    assert found["eval"]["save_labels"] is True
    assert found["eval"]["panels"] == 1


def check_own(record, photographs):
    names = tuple((photographs / VOC / "class_names.txt").read_text().splitlines())
    assert (record["column"], record["num_images"], record["num_classes"]) == ("own", 2, 21)
    assert tuple(row["name"] for row in record["classes"]) == names
    assert record["vocabulary_sha256"] == vocabulary_hash(names, range(21))


TTA = ("eval.flip=True", "eval.scales=(48, 64)", "eval.class_chunk=7", "eval.max_buckets=1")


@pytest.mark.parametrize(
    ("kind", "more"), [("clip", ()), pytest.param("sammi", TTA, marks=pytest.mark.slow)]
)
def test_prepared_set_and_own_folder(models, config_file, data, photographs, kind, more):
    names = ("ade20k_150", f"folder:{data / 'own'}")
    found = evaluate(config_file, models / kind, data, names, *SETTINGS, *more)
    check_head(found, load_config(config_file, [*SETTINGS, *more]))
    ade, own = found["results"]
    assert (ade["column"], ade["num_images"], ade["num_classes"]) == ("A-150", 2, 150)
    assert ade["vocabulary_sha256"] == get_vocabulary("ade20k_150").sha256
    assert ade["classes"][0]["name"] == "wall"
    check_own(own, photographs)
    pictures = 3 if kind == "clip" else 4
    check_pictures(ade, data / "out", ade_labels(photographs), pictures)
    check_pictures(own, data / "out", own_labels(photographs), pictures)
    table = (data / "out/results.md").read_text()
    assert "| A-847 | PC-459 | A-150 | PC-59 | PAS-20 | PAS-20b |" in table
    assert f"| - | - | {100 * ade['miou']:.1f} | - | - | - |" in table


def test_windows_and_masks_on_an_own_folder(models, config_file, data, photographs):
    found = evaluate(config_file, models / "sammi", data, [f"folder:{data / 'own'}"], *SETTINGS)
    check_head(found, load_config(config_file, [*SETTINGS]))
    (own,) = found["results"]
    check_own(own, photographs)
    assert own["points_per_image"] == 6
    assert 0 < own["masks_per_image"] <= 6
    check_pictures(own, data / "out", own_labels(photographs), pictures=4)


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ("ade20k_15", "ade20k_15: no such data set; did you mean ade20k_150?"),
        ("ade20k_150", "sammi datasets prepare ade20k_150 --source DIR --data-dir "),
        (" , ", "--datasets: names no data set"),
        ("folder:nowhere", "nowhere: has no folder images"),
    ],
)
def test_data_sets_that_are_refused(config_file, tmp_path, capsys, datasets, words):
    arguments = ["--config", config_file, "--model", "none", "--datasets", datasets]
    arguments += ["--data-dir", tmp_path, "--workdir", tmp_path / "out"]
    code = main(["eval", *map(str, arguments)])
    error = capsys.readouterr().err.strip()
    assert code == 1
    assert words in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
