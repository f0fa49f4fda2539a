"""Several prompt templates, from the configuration through every command to the cost map."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sammi_jax.cli.main import main
from sammi_jax.config.experiment import MeshConfig, SegmentConfig, TrainConfig
from sammi_jax.config.model import CLIP_SIZES, SEGMENTER_SIZES, check_config
from sammi_jax.convert.catseg_keys import CLIP_PREFIX, model_rules
from sammi_jax.convert.clip import KeyNames
from sammi_jax.convert.rules import invert_rules
from sammi_jax.convert.sammi import segmenter_config
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.errors import SammiError
from sammi_jax.inference.segmenter import Segmenter, load
from sammi_jax.inference.towers import load_clip
from sammi_jax.inference.zero_shot import load_predictor
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.pods.aot import abstract_step
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.text.vocabulary import read_template_file
from sammi_jax.training.loop import train
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import read_model, write_model
from tests.test_sammi import SAMMI

TEMPLATES = ("A photo of a {} in the scene", "photo a {}")
NAMES = ["red thing", "blue waves", "green bricks"]
TOKENIZER = Tokenizer(build_tokenizer())


def with_templates(config, templates=TEMPLATES):
    aggregator = dataclasses.replace(config.aggregator, num_templates=len(templates))
    return dataclasses.replace(config, aggregator=aggregator, templates=templates)


TEXT = dataclasses.replace(SAMMI.clip.text, vocab_size=30, context_length=12)
CONFIG = with_templates(
    dataclasses.replace(SAMMI, clip=dataclasses.replace(SAMMI.clip, text=TEXT), sliding=None)
)
CATSEG = dataclasses.replace(CONFIG, masks=None)


def random_params(config):
    rng = np.random.default_rng(0)
    return {
        path: 0.3 * rng.normal(size=want.shape).astype("f")
        for path, want in expected_params(config).items()
    }


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_as_many_templates_as_channels():
    check_config(CONFIG)
    for templates, match in [
        (TEMPLATES[:1], "templates: 1 given, but aggregator.num_templates is 2"),
        ((), "no prompt template"),
        (("a {}", "a photo"), "'a photo' must hold one {}"),
    ]:
        wrong = dataclasses.replace(CONFIG, templates=templates)
        with pytest.raises(SammiError, match=match):
            check_config(wrong)
        with pytest.raises(SammiError, match=match):
            expected_params(wrong)


def test_tokens_of_every_class_and_template():
    tokens = class_tokens(TOKENIZER, NAMES, TEMPLATES, 12)
    assert (tokens.shape, tokens.dtype) == ((3, 2, 12), np.int32)
    np.testing.assert_array_equal(tokens[2, 1], TOKENIZER("photo a green bricks", 12)[0])
    with pytest.warns(UserWarning, match="longer than 5 tokens") as caught:
        class_tokens(TOKENIZER, NAMES, TEMPLATES, 5)
    assert len(caught) == 1
    with pytest.raises(SammiError, match="no prompt template"):
        class_tokens(TOKENIZER, NAMES, (), 12)


def test_template_file(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("A photo of a {} in the scene\n\n  photo a {}\n", encoding="utf-8")
    assert read_template_file(file) == TEMPLATES
    for text, match in [("\n", "no prompt template"), ("a {}\na photo\n", "'a photo' must hold")]:
        file.write_text(text)
        with pytest.raises(SammiError, match=rf"templates\.txt: .*{match}"):
            read_template_file(file)
    with pytest.raises(SammiError, match="cannot be read as a list of templates"):
        read_template_file(tmp_path / "absent.txt")


def test_template_of_a_channel(image):
    """Templates and the channels of conv1 exchanged alike change nothing; either alone does."""
    params = random_params(CATSEG)
    kernel = "aggregator/embedding/kernel"
    exchanged = params | {kernel: np.ascontiguousarray(params[kernel][:, :, ::-1])}
    backward = dataclasses.replace(CATSEG, templates=TEMPLATES[::-1])

    def scores(config, params):
        return Segmenter(config, params, lambda: TOKENIZER).segment(image, NAMES).scores

    expected = scores(CATSEG, params)
    np.testing.assert_allclose(scores(backward, exchanged), expected, atol=1e-5)
    assert np.abs(scores(backward, params) - expected).max() > 1e-3
    assert np.abs(scores(CATSEG, exchanged) - expected).max() > 1e-3


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    config = dataclasses.replace(CLIP_SIZES["openshapes"], text=CATSEG.clip.text)
    folder = tmp_path_factory.mktemp("clip") / "clip"
    params = random_params(config)
    return write_model(folder, "clip", config, params, source={}, licence="", tokenizer=TOKENIZER)


def test_zero_shot_averages_unit_vectors(clip_folder, image):
    """CLIP's ensemble: the cosine with the templates' mean, not the mean of the cosines."""
    config = SEGMENTER_SIZES["openshapes"]

    def cosines(*templates):
        found = load_predictor(clip_folder, dataclasses.replace(config, templates=templates))
        return np.asarray(found.predict_batch(found.prepare(image), NAMES).probabilities)

    first, second, both = cosines(TEMPLATES[0]), cosines(TEMPLATES[1]), cosines(*TEMPLATES)
    clip = load_clip(clip_folder)
    vectors = [np.asarray(clip.encode_text(class_tokens(TOKENIZER, NAMES, [t], 12)[:, 0]))
               for t in TEMPLATES]  # fmt: skip
    total = sum(v / np.linalg.norm(v, axis=-1, keepdims=True) for v in vectors)
    length = np.linalg.norm(total, axis=-1)[:, None, None]
    assert (length < 1.995).all()  # the two means differ
    np.testing.assert_allclose(both, (first + second) / length, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model folder of a CAT-Seg that was trained for two steps, and its run's task."""
    config = TrainConfig(
        task=SegmentConfig(model=CATSEG), steps=2, batch_size=8, checkpoint_every=2
    )
    task = make_task(config)
    return train(task, config, tmp_path_factory.mktemp("run") / "run"), task


def test_training(trained):
    """Every template's channel of the cost map learns."""
    folder, task = trained
    found, start = read_model(folder), task.initial_params(0)
    assert found.config == CATSEG
    assert task.batch(0).shared["token_ids"].shape[1:] == (2, 12)
    kernel = "aggregator/embedding/kernel"
    moved = np.abs(found.params[kernel] - np.asarray(start[kernel])).max(axis=(0, 1, 3))
    assert (moved > 0).all()


def test_segment(trained, image):
    model = load(trained[0])
    texts = model.encode_classes(NAMES)
    assert texts.features.shape[:2] == (8, 2)
    assert model.segment(image, NAMES).scores.shape == (3, 40, 56)


def test_evaluate(trained, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from sammi_jax.config import SegmentConfig, TrainConfig\n"
        "config = TrainConfig(task=SegmentConfig())\n"
    )
    arguments = ["--config", config, "--model", trained[0], "--datasets", "os48/val_seen",
                 "--workdir", tmp_path / "eval", "--set", "eval.num_examples=8"]  # fmt: skip
    assert main(["eval", *map(str, arguments)]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["templates"] == list(TEMPLATES)
    assert results["results"][0]["num_images"] == 8


def test_compilation_ahead_of_time():
    config = TrainConfig(task=SegmentConfig(model=CONFIG), batch_size=8)
    _, state, batch = abstract_step(config, config.task, make_mesh(MeshConfig()))
    assert batch.shared["token_ids"].shape[1:] == (2, 12)
    assert state.trainable["aggregator/embedding/kernel"].shape[2] == 2


# --- Conversion ---------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A CAT-Seg of two templates with CAT-Seg's key names, and what is described beside it."""
    params = random_params(CATSEG)
    tensors = invert_rules(params, model_rules(CATSEG, KeyNames("catseg", CLIP_PREFIX)))
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "two.safetensors"
    save_file({key: np.array(value, order="C") for key, value in tensors.items()}, path)
    vision, text, head = CATSEG.clip.vision, CATSEG.clip.text, CATSEG.aggregator
    description = {
        "config": {
            "clip": {"vision_heads": vision.num_heads, "transformer_heads": text.num_heads},
            "agg": {
                "num_heads": head.num_heads,
                "window": head.window_size,
                "grid": [head.grid_size] * 2,
            },
            "layer_indexes": list(CATSEG.taps),
            "crop": CATSEG.crop_size,
        },
        "pad_len": head.pad_length,
    }
    TOKENIZER.save(path.parent)
    return path, params, description


def convert(capsys, *arguments):
    code = main(["convert", *map(str, arguments)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("how", ["description", "file"])
def test_conversion(tmp_path, checkpoint, capsys, how):
    path, params, description = checkpoint
    options = []
    if how == "description":
        description["templates"] = list(TEMPLATES)
    else:
        description["template"] = "not used {}"  # the option comes first
        (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
        options = ["--templates", tmp_path / "templates.txt"]
    path.with_suffix(".json").write_text(json.dumps(description))
    assert convert(capsys, "catseg", path, tmp_path / "catseg", *options) == (0, "")
    found = read_model(tmp_path / "catseg")
    assert found.config == CATSEG
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value)
    assert load(tmp_path / "catseg").encode_classes(NAMES).features.shape[:2] == (8, 2)


@pytest.mark.parametrize("known", [None, "template", "templates", "file"])
def test_conversion_must_know_every_template(tmp_path, checkpoint, capsys, known):
    path, _, description = checkpoint
    options, count = [], 1
    if known == "template":
        description["template"] = TEMPLATES[0]
    elif known == "templates":
        description["templates"], count = [*TEMPLATES, "{}"], 3
    elif known == "file":
        (tmp_path / "templates.txt").write_text("{}")
        options = ["--templates", tmp_path / "templates.txt"]
    path.with_suffix(".json").write_text(json.dumps(description))
    code, error = convert(capsys, "catseg", path, tmp_path / "catseg", *options)
    assert code == 1
    assert (
        f"{path}: trained with 2 prompt templates (input channels of conv1), not {count}" in error
    )
    assert "--templates FILE" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "catseg").exists()


def test_templates_of_a_model_folder(tmp_path, capsys):
    """Others may be given, as many as it was trained with."""
    file = tmp_path / "templates.txt"
    file.write_text("a {}\nphoto {}\n")
    options, catseg = ["--templates", file], tmp_path / "catseg"
    write_model(catseg, "catseg", CATSEG, random_params(CATSEG), source={}, licence="",
                tokenizer=TOKENIZER)  # fmt: skip
    assert convert(capsys, "catseg", catseg, tmp_path / "m", *options) == (0, "")
    assert read_model(tmp_path / "m").config.templates == ("a {}", "photo {}")
    file.write_text("a {}\n")
    code, error = convert(capsys, "catseg", catseg, tmp_path / "n", *options)
    assert (code, "templates: 1 given, but aggregator.num_templates is 2" in error) == (1, True)


def test_templates_over_a_clip():
    """A fresh aggregation takes any number of templates."""
    config = segmenter_config(CLIP_SIZES["vitb16"], SAMMI.masks.sam, TEMPLATES)
    check_config(config)
    assert (config.templates, config.aggregator.num_templates) == (TEMPLATES, 2)


def test_only_segmenters_have_templates(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["convert", "clip", "a", "b", "--templates", "c"])
    assert "--templates goes with catseg and sammi, not with clip" in capsys.readouterr().err
