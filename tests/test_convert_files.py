"""Conversion end to end: each source format, through the command, to equal outputs."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

from sammi_jax.cli.main import main
from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.model import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    MaskConfig,
    MaskFilterConfig,
    TsppConfig,
)
from sammi_jax.convert import sammi as convert_sammi
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.layers.init import Keys
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.proposals import SamInput
from sammi_jax.ops.views import ViewLayout
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import describe, read_model
from sammi_jax.weights.params import build
from tests.parity import assert_parity
from tests.sam_reference import SIDE, SMALL, HfConfig, make_model, meta_tensors
from tests.sam_reference import tensors_of as sam_tensors
from tests.test_clip import openai_names, openai_scalars, state_dict, torch_model

pytestmark = pytest.mark.filterwarnings("default:no tokenizer beside")

# Heads 64 wide, as in OpenAI's models: nothing else says their number in a bare state dict.
CLIP = ClipConfig(
    ClipVisionConfig(image_size=16, patch_size=4, width=128, num_layers=3, num_heads=2),
    ClipTextConfig(vocab_size=50, context_length=9, width=64, num_layers=2, num_heads=1),
    embed_dim=24,
)
SAM = SMALL | {"mask_decoder_config": SMALL["mask_decoder_config"] | {"num_attention_heads": 8}}


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def load(folder):
    found = read_model(folder)
    return build(model_maker(found.config), jax.tree.map(jnp.asarray, found.params))


def run(function, *modules_and_arrays):
    """``function`` under jit; programs are shared between models of one structure."""
    model, *arrays = modules_and_arrays
    graphdef, state = nnx.split(model)
    return _run(function, graphdef, state, *arrays)


@jax.jit(static_argnums=(0, 1))
def _run(function, graphdef, state, *arrays):
    return function(nnx.merge(graphdef, state), *arrays)


# --- CLIP ---------------------------------------------------------------------------------------


def tensors_at(model, half=False):
    values = {key: torch.from_numpy(value) for key, value in state_dict(model).items()}
    return {k: v.half() if half and v.is_floating_point() else v for k, v in values.items()}


def openai_state(model, half):
    names = openai_names({k: v.numpy() for k, v in tensors_at(model).items()})
    state = {k: torch.from_numpy(np.array(v, order="C")) for k, v in names.items()}
    state = {k: v.half() if half else v for k, v in state.items()}
    return state | {k: torch.from_numpy(v) for k, v in openai_scalars(CLIP).items()}


class Root(torch.nn.Module):
    """Holds a state dict under its own names, so that it can be scripted like OpenAI's CLIP."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            *path, name = key.split(".")
            node = self
            for part in path:
                if part not in node._modules:
                    node.add_module(part, torch.nn.Module())
                node = node._modules[part]
            node.register_buffer(name, value)

    def forward(self):
        return self.logit_scale


def write_hf_safetensors(model, folder):
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    return folder


def write_hf_sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="300KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def write_hf_bin(model, folder):
    model.config.save_pretrained(folder)
    torch.save(tensors_at(model), folder / "pytorch_model.bin")
    return folder


def write_openai_archive(model, folder):
    torch.jit.script(Root(openai_state(model, half=True))).save(str(folder / "ViT.pt"))
    return folder / "ViT.pt"


def write_openai_state_dict(model, folder):
    torch.save(openai_state(model, half=False), folder / "clip.pt")
    return folder / "clip.pt"


def openclip_state(model):
    return {k: v for k, v in openai_state(model, half=False).items() if v.is_floating_point()}


def write_openclip_folder(model, folder):
    description = {
        "model_cfg": {
            "embed_dim": CLIP.embed_dim,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 16, "layers": 3, "width": 128, "patch_size": 4},
            "text_cfg": {"vocab_size": 50, "width": 64, "heads": 1, "layers": 2},
        }
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    torch.save(openclip_state(model), folder / "open_clip_pytorch_model.bin")
    return folder


def write_openclip_training_checkpoint(model, folder):
    write_openclip_folder(model, folder)
    (folder / "open_clip_config.json").rename(folder / "epoch_32.json")
    (folder / "open_clip_pytorch_model.bin").unlink()
    state = {f"module.{k}": v for k, v in openclip_state(model).items()}
    torch.save({"epoch": 32, "name": "x", "state_dict": state}, folder / "epoch_32.pt")
    return folder / "epoch_32.pt"


def write_openclip_with_model_file(model, folder):
    write_openclip_folder(model, folder)
    description = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (folder / "open_clip_config.json").unlink()
    (folder / "ViT-S-4.json").write_text(json.dumps(description))  # as in its model_configs
    (folder / "params.json").write_text('{"lr": 1e-3}')
    (folder / "open_clip_pytorch_model.bin").rename(folder / "epoch_1.pt")
    return folder / "epoch_1.pt"


CLIP_WRITERS = {
    "Hugging Face safetensors": (write_hf_safetensors, "huggingface"),
    "Hugging Face shards": (write_hf_sharded, "huggingface"),
    "Hugging Face .bin": (write_hf_bin, "huggingface"),
    "OpenAI TorchScript": (write_openai_archive, "openai"),
    "OpenAI state dict": (write_openai_state_dict, "openai"),
    "OpenCLIP folder": (write_openclip_folder, "openclip"),
    "OpenCLIP training checkpoint": (write_openclip_training_checkpoint, "openclip"),
    "OpenCLIP checkpoint and model file": (write_openclip_with_model_file, "openclip"),
}


@pytest.fixture(scope="module")
def clip_reference():
    return torch_model(CLIP)


def encode(model, image, ids):
    return model.encode_image(image), model.encode_text(ids)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", CLIP_WRITERS)
def test_clip(tmp_path, clip_reference, name, rng, capsys):
    writer, layout = CLIP_WRITERS[name]
    (tmp_path / "source").mkdir()
    source = writer(clip_reference, tmp_path / "source")
    assert convert("clip", source, tmp_path / "clip") == 0
    out = capsys.readouterr()
    assert "no tokenizer beside" in out.err
    assert "parameters, float32" in out.out
    found = describe(tmp_path / "clip")
    assert found.config == CLIP
    assert found.meta["source"]["key_names"] == layout
    assert found.meta["source"]["file"] == source.name
    image = rng.normal(size=(2, 16, 16, 3)).astype("f")
    ids = np.array([[48, 3, 7, 49, 0, 0, 0, 0, 0], [48, 4, 4, 9, 9, 2, 49, 0, 0]], np.int32)
    reference = torch_model(CLIP)
    if name == "OpenAI TorchScript":  # the file holds half precision
        reference.load_state_dict(reference.half().float().state_dict())
    with torch.no_grad():
        image_features = reference.get_image_features(torch.tensor(image).movedim(-1, 1))
        text_features = reference.get_text_features(torch.tensor(ids))
    ours = run(encode, load(tmp_path / "clip"), image, ids)
    assert_parity(ours[0], tensor(image_features), name=f"converted CLIP image, {name}")
    assert_parity(ours[1], tensor(text_features), name=f"converted CLIP text, {name}")


def tensor(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_bfloat16(tmp_path, clip_reference, capsys):
    source = write_hf_safetensors(clip_reference, tmp_path / "source")
    assert convert("clip", source, tmp_path / "clip", "--dtype", "bfloat16") == 0
    assert {t.dtype for t in describe(tmp_path / "clip").tensors.values()} == {"bfloat16"}
    kernel = clip_reference.visual_projection.weight.detach().bfloat16().float().numpy().T
    found = read_model(tmp_path / "clip").params["vision/projection/kernel"]
    np.testing.assert_array_equal(found, kernel)


# --- SAM ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    """Meta's layout; the weights of `sam_model`."""
    path = tmp_path_factory.mktemp("sam") / "sam_tiny.pth"
    tensors = meta_tensors(sam_tensors(sam_model(1e-5)))
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
    return path


def sam_model(eps):
    config = HfConfig(**SAM)
    config.mask_decoder_config.layer_norm_eps = eps
    return make_model(config)


def segment(model, image, points):
    labels = jnp.ones(points.shape[:2], jnp.int32)
    return model.decode(model.encode_image(image), points, labels)


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
def test_sam(tmp_path, sam_file, layout, rng):
    source, eps = sam_file, 1e-5
    if layout == "huggingface":
        source, eps = tmp_path / "source", 1e-6
        sam_model(eps).save_pretrained(source)
    assert convert("sam", source, tmp_path / "sam") == 0
    assert describe(tmp_path / "sam").meta["source"]["key_names"] == layout
    image = rng.normal(size=(1, SIDE, SIDE, 3)).astype("f")
    points = rng.uniform(0, SIDE, (1, 2, 2)).astype("f")
    with torch.no_grad():
        reference = sam_model(eps)(
            torch.tensor(image).movedim(-1, 1),
            input_points=torch.tensor(points)[:, :, None],
            input_labels=torch.ones(1, 2, 1, dtype=torch.int32),
        )
    masks, iou = run(segment, load(tmp_path / "sam"), image, points)
    assert_parity(masks, reference.pred_masks, name=f"converted SAM masks, {layout}")
    assert_parity(iou, reference.iou_scores, name=f"converted SAM iou, {layout}")


# --- CAT-Seg and SAM-MI -------------------------------------------------------------------------


def segment_plainly(model, clip_in, text):
    texts = ClassTexts(text[:, None], jnp.ones(len(text), bool))
    layout = ViewLayout(model.config.aggregator.grid_size)
    output = model(clip_in[:, None], None, texts, layout=layout, pooling_size=1)
    return output.logits[:, 0]


def catseg_logits(folder, goldens):
    data = np.load(goldens / "catseg_tiny_eval.npz")
    clip_in = data["eval_pool1/clip_in"].transpose(0, 2, 3, 1)
    return run(segment_plainly, load(folder), clip_in, data["text_test"]), data["eval_pool1/logits"]


@pytest.fixture(scope="module")
def catseg_folder(tmp_path_factory, catseg_pth):
    folder = tmp_path_factory.mktemp("catseg") / "model"
    assert convert("catseg", catseg_pth, folder) == 0
    return folder


def test_catseg(catseg_folder, goldens):
    ours, reference = catseg_logits(catseg_folder, goldens)
    assert_parity(ours, reference, name="converted CAT-Seg, plain logits")
    assert describe(catseg_folder).meta["source"]["file"] == "catseg_tiny.pth"


@pytest.fixture(scope="module")
def sammi_folder(tmp_path_factory, catseg_folder, sam_file):
    folder = tmp_path_factory.mktemp("sammi") / "model"
    assert convert("sammi", catseg_folder, folder, "--sam", sam_file) == 0
    return folder


def test_sammi_from_catseg(sammi_folder, catseg_folder, sam_file, tmp_path):
    assert convert("sam", sam_file, tmp_path / "sam") == 0
    found, base, sam = map(read_model, (sammi_folder, catseg_folder, tmp_path / "sam"))
    assert found.config.masks.sam == sam.config
    assert dataclasses.replace(found.config, masks=None) == base.config
    assert sorted(found.meta["initialized"]) == ["dmi", "tspp"]
    assert set(found.meta["source"]["from"]) == {"catseg", "sam"}
    given = base.params | {f"sam/{path}": value for path, value in sam.params.items()}
    for path, value in given.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)
    fresh = {path.split("/")[0] for path in set(found.params) - set(given)}
    assert fresh == {"tspp", "dmi"}


def segment_with_masks(model, clip_in, text, sam_image):
    texts = ClassTexts(text[:, None], jnp.ones(len(text), bool))
    layout = ViewLayout(model.config.aggregator.grid_size)
    sam_input = SamInput(sam_image, jnp.full((1, 2), float(SIDE)))
    output = model(clip_in[:, None], sam_input, texts, layout=layout, pooling_size=1)
    return output.logits[:, 0]


def test_sammi_starts_as_catseg(sammi_folder, goldens, rng):
    data = np.load(goldens / "catseg_tiny_eval.npz")
    clip_in = data["eval_pool1/clip_in"].transpose(0, 2, 3, 1)
    sam_image = rng.normal(size=(1, SIDE, SIDE, 3)).astype("f")
    logits = run(segment_with_masks, load(sammi_folder), clip_in, data["text_test"], sam_image)
    assert_parity(logits, data["eval_pool1/logits"], name="SAM-MI put together, untrained")


def test_sammi_is_the_same_each_time(sammi_folder, catseg_folder, sam_file, tmp_path, catseg_pth):
    """From the checkpoint instead of its folder: the same bytes, fresh parts included."""
    assert convert("sammi", catseg_pth, tmp_path / "again", "--sam", sam_file) == 0
    first, again = (
        (folder / "model.safetensors").read_bytes() for folder in (sammi_folder, tmp_path / "again")
    )
    assert first == again


def test_sammi_from_clip(tmp_path, clip_reference, sam_file, capsys):
    source = write_hf_safetensors(clip_reference, tmp_path / "source")
    assert convert("sammi", source, tmp_path / "sammi", "--sam", sam_file) == 0
    fresh = ["upsample1", "upsample2", "aggregator", "tspp", "dmi"]
    found = read_model(tmp_path / "sammi")
    assert sorted(found.meta["initialized"]) == sorted(fresh)
    out = capsys.readouterr().out
    assert all(part in out for part in fresh)
    assert found.config.clip == CLIP
    assert (found.config.clip_size, found.config.taps) == (24 * 4, (0, 1))
    assert convert("clip", source, tmp_path / "clip") == 0
    for path, value in read_model(tmp_path / "clip").params.items():
        np.testing.assert_array_equal(found.params[f"clip/{path}"], value)


@pytest.mark.parametrize(
    ("patch", "side", "layers", "expected"),
    [(16, 224, 12, (384, 384, (3, 7))), (14, 336, 24, (336, 384, (7, 15)))],
)
def test_published_sizes_over_a_clip(patch, side, layers, expected):
    clip = ClipConfig(ClipVisionConfig(side, patch, 1024, layers, 16))
    config = convert_sammi.segmenter_config(clip, convert_sammi.SamConfig())
    assert (config.clip_size, config.crop_size, config.taps) == expected


# --- What goes wrong ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_sources(tmp_path_factory, clip_reference, sam_file, catseg_pth):
    """A checkpoint of each kind as one file: path and state dict."""
    folder = tmp_path_factory.mktemp("good")
    save_file(openai_state(clip_reference, half=False), folder / "clip.safetensors")
    shutil.copy(sam_file, folder / "sam.pth")
    return {
        "clip": (folder / "clip.safetensors", openai_state(clip_reference, half=False)),
        "sam": (folder / "sam.pth", torch.load(sam_file, weights_only=True)),
        "catseg": (catseg_pth, torch.load(catseg_pth, weights_only=True)["model"]),
    }


KEYS = {
    "clip": "visual.transformer.resblocks.1.mlp.c_fc.weight",
    "sam": "image_encoder.blocks.3.mlp.lin1.bias",
    "catseg": "sem_seg_head.predictor.transformer.layers.1.attention.MLP.0.weight",
}
FIRST_KEYS = {
    "clip": "visual.class_embedding",
    "sam": "image_encoder.patch_embed.proj.weight",
    "catseg": "sem_seg_head.predictor.transformer.conv1.weight",
}


def refused(tmp_path, capsys, *arguments) -> str:
    """The one line on stderr of a conversion that leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    assert convert(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("sammi: error: ")]
    assert len(errors) == 1
    assert all(line.startswith(("sammi: error: ", "sammi: warning: ")) for line in lines)
    assert sorted(tmp_path.iterdir()) == before
    return errors[0]


@pytest.mark.parametrize("kind", ["clip", "sam", "catseg"])
@pytest.mark.parametrize("fault", ["missing", "missing first", "extra", "shape", "truncated"])
def test_faulty_checkpoint(tmp_path, capsys, good_sources, kind, fault):
    path, state = good_sources[kind]
    state, key = dict(state), KEYS[kind]
    (tmp_path / "source").mkdir()
    bad = tmp_path / "source" / path.name
    if path.with_suffix(".json").exists():
        shutil.copy(path.with_suffix(".json"), bad.parent)
    if fault == "missing":
        del state[key]
    elif fault == "missing first":
        key = FIRST_KEYS[kind]
        del state[key]
    elif fault == "extra":
        key = "surprise.weight"
        state[key] = torch.ones(2)
    elif fault == "shape":
        state[key] = state[key][:-1].clone()
    if fault == "truncated":
        bad.write_bytes(path.read_bytes()[:-2000])
    else:
        (save_file if bad.suffix == ".safetensors" else torch.save)(state, bad)
    line = refused(tmp_path, capsys, kind, bad, tmp_path / "model")
    assert str(bad) in line
    assert ("damaged or cut short" if fault == "truncated" else key) in line


def test_another_model(tmp_path, capsys, good_sources):
    clip, sam = good_sources["clip"][0], good_sources["sam"][0]
    target = tmp_path / "model"
    line = refused(tmp_path, capsys, "clip", sam, target)
    assert "looks like a SAM (Meta) checkpoint; use: sammi convert sam SRC DST" in line
    line = refused(tmp_path, capsys, "sam", clip, target)
    assert "looks like a CLIP (OpenAI) checkpoint; use: sammi convert clip" in line
    line = refused(tmp_path, capsys, "sammi", sam, target, "--sam", sam)
    assert "looks like a SAM (Meta) checkpoint; give it as --sam" in line
    line = refused(tmp_path, capsys, "sammi", clip, target, "--sam", clip)
    assert "looks like a CLIP (OpenAI) checkpoint" in line
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    line = refused(tmp_path, capsys, "sammi", tmp_path / "other.safetensors", target, "--sam", sam)
    assert "looks like none of clip, catseg (it holds w" in line


def test_folder_of_another_kind(tmp_path, capsys, catseg_folder, sam_file):
    line = refused(tmp_path, capsys, "sammi", catseg_folder, tmp_path / "m", "--sam", catseg_folder)
    assert "holds a catseg model, not sam" in line


def test_taken_destination(tmp_path, capsys, good_sources):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    line = refused(tmp_path, capsys, "clip", good_sources["clip"][0], tmp_path / "taken")
    assert "exists already" in line
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"


OPEN_FILTER = MaskFilterConfig(min_iou=-100.0, min_stability=0.0, max_area=1.0)


def first_losses(segmenter, model, sam=None):
    """Fresh parameters for training from these model folders, and what its first step logs of
    parameters.
    """
    task = SegmentConfig(model=model, segmenter=str(segmenter), sam=sam and str(sam))
    rules = make_task(TrainConfig(task=task, batch_size=2))
    batch = jax.tree.map(jnp.asarray, rules.batch(0))

    @jax.jit
    def losses(params):
        made = build(lambda: rules.make(Keys(0)), params)
        return rules.loss(made, batch, jax.random.key(0))[1]

    return rules.initial_params(0), losses


@pytest.mark.slow
def test_training_sammi_begins_at_catsegs_loss(catseg_folder, sam_file, tmp_path, rng):
    """As configs/sammi_vitb16.py: DMI injects nothing yet, though there are masks."""
    shutil.copytree(catseg_folder, tmp_path / "catseg")
    Tokenizer(build_tokenizer()).save(tmp_path / "catseg")
    assert convert("sam", sam_file, tmp_path / "sam") == 0
    catseg, sam = (describe(tmp_path / kind).config for kind in ("catseg", "sam"))
    masks = MaskConfig(sam=sam, tspp=TsppConfig(num_points=8, min_score=0.0), filter=OPEN_FILTER)
    params, losses = first_losses(tmp_path / "catseg", catseg)
    alone = float(losses(params)["segmentation_loss"])
    sammi = dataclasses.replace(catseg, masks=masks)
    params, losses = first_losses(tmp_path / "catseg", sammi, tmp_path / "sam")
    together = losses(params)
    assert together["masks"] > 0
    assert float(together["segmentation_loss"]) == pytest.approx(alone, rel=1e-6)
    for path in params:
        if path.startswith("dmi/"):
            params[path] += rng.normal(0, 0.1, params[path].shape).astype("f")
    assert float(losses(params)["segmentation_loss"]) != pytest.approx(alone, rel=1e-3)


def test_what_openclip_s_files_say_is_obeyed_or_refused(tmp_path, clip_reference, capsys):
    source = write_openclip_with_model_file(clip_reference, tmp_path)
    file = tmp_path / "ViT-S-4.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"quick_gelu": False}))
    assert convert("clip", source, tmp_path / "gelu") == 0
    assert describe(tmp_path / "gelu").config.activation == "gelu"
    (tmp_path / "other.json").write_text(file.read_text())
    assert convert("clip", source, tmp_path / "two") == 1
    assert "ViT-S-4.json, other.json lie beside it" in capsys.readouterr().err
    (tmp_path / "other.json").unlink()
    timm = described["vision_cfg"] | {"timm_model_name": "vit_base"}
    file.write_text(json.dumps(described | {"vision_cfg": timm}))
    assert convert("clip", source, tmp_path / "timm") == 1
    assert "has timm_model_name, which cannot be converted" in capsys.readouterr().err
    wide = described["vision_cfg"] | {"width": 256}
    file.write_text(json.dumps(described | {"vision_cfg": wide}))
    assert convert("clip", source, tmp_path / "wide") == 1
    assert "another model: vision_cfg.width is 256 there and 128" in capsys.readouterr().err
    file.rename(tmp_path / "epoch_1.json").write_text('{"architecture": "ViT"}')
    assert convert("clip", source, tmp_path / "unknown") == 1
    assert "the JSON file beside it describes no CLIP" in capsys.readouterr().err


def test_openclip_s_files_do_not_change_other_models(tmp_path, clip_reference):
    write_openclip_with_model_file(clip_reference, tmp_path)
    file = tmp_path / "ViT-S-4.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quick_gelu": False}))
    shutil.copy(file, tmp_path / "second.json")
    openai = write_openai_state_dict(clip_reference, tmp_path)
    assert convert("clip", openai, tmp_path / "openai") == 0
    assert describe(tmp_path / "openai").config.activation == "quick_gelu"
    torch.save(meta_tensors(sam_tensors(make_model(HfConfig(**SMALL)))), tmp_path / "sam.pth")
    assert convert("sam", tmp_path / "sam.pth", tmp_path / "sam") == 0


def test_what_the_tensors_do_not_tell_can_be_said(tmp_path, clip_reference, capsys):
    source = write_openai_state_dict(clip_reference, tmp_path)
    options = ("--activation", "gelu", "--vision-heads", 4, "--text-heads", 2)
    assert convert("clip", source, tmp_path / "clip", *options) == 0
    config = describe(tmp_path / "clip").config
    assert (config.activation, config.vision.num_heads, config.text.num_heads) == ("gelu", 4, 2)
    assert convert("clip", tmp_path / "clip", tmp_path / "again", "--activation", "gelu") == 1
    assert "a model folder says its activation itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.index_fill_(0, torch.tensor([0]), math.nan), "values are NaN or infinite"),
        (lambda t: t.index_fill_(0, torch.tensor([0]), -math.inf), "values are NaN or infinite"),
        (lambda t: t.to(torch.int8), "holds int8; is the checkpoint quantized?"),
    ],
)
def test_impossible_weights_are_refused(tmp_path, clip_reference, capsys, change, words):
    state = openai_state(clip_reference, half=False)
    state["ln_final.weight"] = change(state["ln_final.weight"].clone())
    torch.save(state, tmp_path / "clip.pt")
    assert convert("clip", tmp_path / "clip.pt", tmp_path / "clip") == 1
    error = capsys.readouterr().err
    assert (
        "clip.pt: the checkpoint does not fit the model: no weights (1): ln_final.weight" in error
    )
    assert words in error
    assert not (tmp_path / "clip").exists()
