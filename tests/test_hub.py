"""Models on the Hugging Face Hub, against one on loopback: no network is used."""

import os
import shutil
import subprocess
import sys

import huggingface_hub.constants
import jax
import numpy as np
import pytest
import torch
import transformers

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.model import CLIP_SIZES, SAM_SIZES, SEGMENTER_SIZES
from sammi_jax.convert.api import convert
from sammi_jax.data.openshapes import get_view
from sammi_jax.errors import SammiError
from sammi_jax.files import local_copy
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.bundled import FOLDER, find_model
from sammi_jax.weights.hub import HubModel, fetch_model, fetch_tokenizer, hub_model
from sammi_jax.weights.model_folder import describe, read_model
from tests.fake_hub import FakeHub, Repository

# huggingface_hub's own upload of large files uses what its HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub, an empty cache, no token, and an empty folder to work in."""
    fake = FakeHub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    forget()
    yield fake
    fake.close()
    forget()


def forget():
    """As a new process would."""
    fetch_model.cache_clear()
    fetch_tokenizer.cache_clear()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The bundled towers, which are Hugging Face checkpoints, with files that nobody wants."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in ("clip", "sam"):
        shutil.copytree(FOLDER / f"openshapes_{kind}", folder / kind)
        (folder / kind / "README.md").unlink()  # it names a license
        for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
            (folder / kind / name).write_bytes(b"not to be opened")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, checkpoints):
    """The same as model folders."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("clip", "sam"):
        convert(kind, checkpoints / kind, folder / kind)
    return folder


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# --- names --------------------------------------------------------------------------------------


def test_what_is_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_model("a/b") == HubModel("a/b")
    assert hub_model("a/b.c@refs/pr/1") == HubModel("a/b.c", "refs/pr/1")
    for path in ("a", "/a/b", "../b", "~/a", "a/b/c", "a/model.pth", "a/b@", "a/"):
        assert hub_model(path) is None, path


def test_what_is_here_comes_first(hub, tmp_path, models):
    """Also a folder ``ORG``, so that a mistyped path downloads nothing."""
    shutil.copytree(models / "sam", "runs/model")
    assert find_model("runs/model").resolve() == tmp_path / "here" / "runs" / "model"
    with pytest.raises(SammiError) as error:
        describe("runs/modle")
    assert "no such folder" in one_line(error)
    assert "runs/modle@main" in one_line(error)
    with pytest.raises(SammiError, match=r"no such file or folder; for a model on the .*a@main"):
        convert("sam", "runs/a", "out")
    assert hub.requests == []
    hub.add("runs/modle", models / "sam")
    assert describe("runs/modle@main").kind == "sam"


# --- model folders ------------------------------------------------------------------------------


def test_models_are_loaded_by_name(hub, models):
    hub.add("shapes/model", FOLDER / "openshapes")
    for kind in ("clip", "sam"):
        hub.add(f"shapes/{kind}", models / kind)
    here, there = (sammi_jax.load(name) for name in ("openshapes", "shapes/model"))
    assert here.config == there.config
    jax.tree.map(np.testing.assert_array_equal, here.state, there.state)
    names = get_view("os48").class_names[:2]
    ids = sammi_jax.load_clip("shapes/clip").tokenize(names)
    np.testing.assert_array_equal(ids, sammi_jax.load_clip(models / "clip").tokenize(names))
    assert sammi_jax.load_sam("shapes/sam@v1").config == SAM_SIZES["openshapes"]


def test_a_run_starts_from_the_hub(hub, models):
    """Its weights, its tokenizer and the record of where they are from."""
    hub.add("shapes/clip", models / "clip")
    task = SegmentConfig(model=SEGMENTER_SIZES["openshapes"], clip="shapes/clip")
    made = make_task(TrainConfig(task=task, batch_size=2))
    started = made.initial_params(0)
    for path, value in read_model(models / "clip").params.items():
        np.testing.assert_array_equal(started[f"clip/{path}"], value)


def test_only_a_model_folders_files_are_downloaded_and_once(hub):
    repository = hub.add("shapes/model", FOLDER / "openshapes")
    repository.files["model.onnx"] = b"large"
    assert main(["inspect", "shapes/model"]) == 0
    assert sorted(hub.downloaded()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert hub.downloaded()[-1] == "model.safetensors"  # so that nothing is missing where it is
    forget()
    assert main(["inspect", "shapes/model"]) == 0
    assert len(hub.downloaded()) == 4


def test_another_projects_model_is_no_model_folder(hub, checkpoints):
    hub.add("openai/clip", checkpoints / "clip")
    with pytest.raises(SammiError) as error:
        sammi_jax.load_clip("openai/clip")
    assert "openai/clip: not a model folder" in one_line(error)
    assert "sammi convert {clip,sam,catseg,sammi} openai/clip DST" in one_line(error)
    assert "model.safetensors" not in hub.downloaded()


def test_without_network_the_cache_is_used(hub, models, monkeypatch):
    hub.add("shapes/model", models / "sam")
    describe("shapes/model")
    hub.add("shapes/other", models / "sam")
    fetch_tokenizer_files(hub, "shapes/other")
    hub.close()
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        forget()
        assert describe("shapes/model").kind == "sam"
        remedy = "unset HF_HUB_OFFLINE" if offline else "not reachable .*; try again later"
        for name in ("shapes/none", "shapes/other"):  # the second is there in part
            with pytest.raises(SammiError, match=f"^{name}: no such folder here, and .*{remedy}"):
                describe(name)


def fetch_tokenizer_files(hub, name):
    """As a download that is interrupted before the weights."""
    weights = hub.repositories[name].files.pop("model.safetensors")
    with pytest.raises(SammiError, match="has no weights"):
        describe(name)
    hub.repositories[name].files["model.safetensors"] = weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/none", "no such model on the Hugging Face Hub; check the name.*hf auth login"),
        ("a/model@v9", "the model has no revision v9; name a branch, tag or commit"),
        ("a/gated", "gated: accept its terms at http://127.*/a/gated, then log in"),
        ("a/empty", "has no config.json"),
        ("a/half", "has no weights, none of model.safetensors"),
    ],
)
def test_what_the_hub_does_not_give(hub, models, name, message):
    hub.add("a/model", models / "sam")
    hub.add("a/gated", models / "sam", gated=True)
    hub.repositories["a/empty"] = Repository({"notes.txt": b""})
    config = (models / "sam" / "config.json").read_bytes()
    hub.repositories["a/half"] = Repository({"config.json": config})
    with pytest.raises(SammiError, match=f"^{name}: .*{message}") as error:
        sammi_jax.load_sam(name)
    one_line(error)


def test_a_server_in_trouble(hub, capsys):
    hub.fails.add("/api/models")
    assert main(["inspect", "a/model"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sammi: error: a/model: no such folder here, and http://127.0.0.1")
    assert err.endswith("answered with error 500; try again later\n")


def test_the_environment_is_huggingface_hubs(hub, models, tmp_path):
    """A process of its own, as users start one: HF_ENDPOINT and HF_HOME are obeyed."""
    hub.add("shapes/model", models / "sam")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
                   "HF_HUB_OFFLINE": "0"}  # fmt: skip
    command = [sys.executable, "-m", "sammi_jax", "inspect", "shapes/model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "kind          sam\n" in done.stdout, done.stderr
    assert list((tmp_path / "home" / "hub").glob("models--shapes--model/snapshots/*/config.json"))


# --- checkpoints of others ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "sam"])
def test_checkpoints_are_converted_from_the_hub(kind, hub, checkpoints, models):
    repository = hub.add(f"owner/{kind}", checkpoints / kind)
    convert(kind, f"owner/{kind}", "model")
    found, original = read_model("model"), read_model(models / kind)
    for path, value in original.params.items():
        np.testing.assert_array_equal(value, found.params[path], err_msg=path)
    assert (found.tokenizer_path is not None) == (kind == "clip")
    source = found.meta["source"]
    assert source["hub"] == f"owner/{kind}"
    assert source["commit"] == repository.commit
    wanted = {"config.json", "model.safetensors"} | (
        {"tokenizer.json"} if kind == "clip" else set()
    )
    assert set(hub.downloaded()) == wanted


def test_a_sammi_from_the_hub_alone(hub, checkpoints, capsys):
    """Published repositories are known by name: their license is, too."""
    hub.add("openai/clip-vit-base-patch16", checkpoints / "clip")
    hub.add("facebook/sam-vit-base", checkpoints / "sam")
    arguments = ["--sam", "facebook/sam-vit-base", "--dtype", "bfloat16"]
    assert main(["convert", "sammi", "openai/clip-vit-base-patch16", "model", *arguments]) == 0
    out = capsys.readouterr().out
    assert "\nopenai/clip-vit-base-patch16 is OpenAI's CLIP ViT-B/16\n" in out
    assert "\nfacebook/sam-vit-base is Meta's SAM ViT-B\n" in out
    assert "\nlicense: Apache-2.0 (sam), MIT (clip)\n" in out


def test_the_tokenizer_alone(hub, checkpoints, tmp_path):
    hub.add("openai/clip", checkpoints / "clip")
    shutil.copy(checkpoints / "clip" / "model.safetensors", tmp_path / "clip.safetensors")
    shutil.copy(checkpoints / "clip" / "config.json", tmp_path / "clip.json")
    convert("clip", tmp_path / "clip.safetensors", "model", tokenizer="openai/clip")
    assert describe("model").tokenizer_path is not None
    assert hub.downloaded() == ["tokenizer.json"]
    hub.add("facebook/sam", checkpoints / "sam")
    with pytest.raises(SammiError, match=r"^facebook/sam: has no tokenizer, none of tokenizer"):
        convert("clip", tmp_path / "clip.safetensors", "other", tokenizer="facebook/sam")
    assert not os.path.exists("other")


def test_a_pickle_is_downloaded_only_where_there_is_nothing_else(hub, checkpoints, tmp_path):
    shutil.copytree(checkpoints / "clip", tmp_path / "old")
    model = transformers.CLIPModel.from_pretrained(checkpoints / "clip")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    hub.add("owner/old", tmp_path / "old")
    convert("clip", "owner/old", "model")
    assert describe("model").config == CLIP_SIZES["openshapes"]
    assert "pytorch_model.bin" in hub.downloaded()
    hub.close()  # what is in the cache stays usable
    forget()
    convert("clip", "owner/old", "again")


def test_weights_in_parts(hub, checkpoints, models, tmp_path):
    model = transformers.SamModel.from_pretrained(checkpoints / "sam", dtype=torch.float32)
    model.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    hub.add("owner/parts", tmp_path / "parts")
    convert("sam", "owner/parts", "model")
    original = read_model(models / "sam").params
    found = read_model("model").params
    assert all((found[path] == value).all() for path, value in original.items())
    assert len([name for name in hub.downloaded() if name.endswith(".safetensors")]) > 2


def test_nothing_is_written_or_downloaded_in_vain(hub, checkpoints, capsys):
    hub.add("owner/clip", checkpoints / "clip")
    os.mkdir("there")
    open("there/file", "w").close()
    assert main(["convert", "clip", "owner/clip", "there"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert hub.requests == []
    assert main(["convert", "sam", "owner/clip", "model"]) == 1
    assert "owner/clip: looks like a CLIP (Hugging Face) checkpoint" in capsys.readouterr().err
    assert not os.path.exists("model")


# --- push ---------------------------------------------------------------------------------------


@pytest.fixture
def writer(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def test_what_is_pushed_is_loaded(writer, checkpoints, capsys):
    convert("sammi", checkpoints / "clip", "mine", sam=checkpoints / "sam")
    before = sorted(os.listdir("mine"))
    assert main(["push", "mine", "me/model", "--private"]) == 0
    repository = writer.repositories["me/model"]
    assert repository.private
    assert f"{writer.url}/me/model/commit/{repository.commit}\n" == capsys.readouterr().out
    assert sorted(os.listdir("mine")) == before
    assert sorted(repository.files) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    there, here = read_model("me/model"), read_model("mine")
    assert there.meta == here.meta
    for path, value in here.params.items():
        np.testing.assert_array_equal(value, there.params[path], err_msg=path)


def test_the_card(writer, checkpoints):
    writer.add("openai/clip-vit-base-patch16", checkpoints / "clip")
    writer.add("facebook/sam-vit-base", checkpoints / "sam")
    convert("sammi", "openai/clip-vit-base-patch16", "mine", sam="facebook/sam-vit-base")
    assert main(["push", "mine", "me/model"]) == 0
    assert not writer.repositories["me/model"].private
    card = writer.repositories["me/model"].files["README.md"].decode()
    front = huggingface_hub.ModelCard(card).data.to_dict()
    assert front == {
        "library_name": "sammi_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["jax", "sammi"],
        "license": "other",
        "license_name": "Apache-2.0 (sam), MIT (clip)",
        "base_model": ["facebook/sam-vit-base", "openai/clip-vit-base-patch16"],
    }
    commit = writer.repositories["facebook/sam-vit-base"].commit
    for part in (
        'sammi_jax.load("me/model")',
        "License of the weights: Apache-2.0 (sam), MIT (clip).",
        f"  - sam (sam, license Apache-2.0): hub facebook/sam-vit-base; commit {commit};",
        "SAM image encoder: ViT of 3 layers, width 64, patches of 4 pixels, input 96 x 96",
        "not trained, initialized only: ",
        "https://arxiv.org/abs/2511.20027",
    ):
        assert part in card, card


def test_a_readme_of_the_folder_is_its_card(writer):
    assert main(["push", "openshapes", "me/model"]) == 0
    card = writer.repositories["me/model"].files["README.md"]
    assert card == (FOLDER / "openshapes" / "README.md").read_bytes()


def test_a_license_that_the_hub_knows(writer, checkpoints):
    writer.add("facebook/sam-vit-base", checkpoints / "sam")
    for source, license in (("facebook/sam-vit-base", "apache-2.0"), ("other", "unknown")):
        if source == "other":
            shutil.copytree(checkpoints / "sam", source)
        convert("sam", source, f"{license}-model")
        assert main(["push", f"{license}-model", f"me/{license}"]) == 0
        card = writer.repositories[f"me/{license}"].files["README.md"].decode()
        assert huggingface_hub.ModelCard(card).data.license == license
        assert "sammi_jax.load_sam(" in card


def failed_push(capsys, *arguments):
    assert main(["push", *arguments]) == 1
    *progress, error = capsys.readouterr().err.splitlines()
    assert "sammi: error" not in "".join(progress)
    return error


def test_a_push_that_may_not_be(hub, monkeypatch, capsys):
    assert "me/model: no token of the" in failed_push(capsys, "openshapes", "me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "the token may not write there (403)" in failed_push(capsys, "openshapes", "me/x")
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "not the name of a repository" in failed_push(capsys, "openshapes", "x")
    assert "no such folder" in failed_push(capsys, "nothing", "me/x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failed_push(capsys, "openshapes", "me/x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.repositories["me/public"] = Repository()
    assert "is public" in failed_push(capsys, "openshapes", "me/public", "--private")
    hub.fails.add("/commit/")
    assert "the upload failed" in failed_push(capsys, "openshapes", "me/x")
    assert hub.repositories["me/x"].files == {}


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs: in one piece
def test_a_model_in_a_bucket_is_pushed(bucket, writer):
    assert main(["convert", "clip", "openshapes_clip", f"{bucket}/model"]) == 0
    assert main(["push", f"{bucket}/model", "me/model"]) == 0
    pushed = writer.repositories["me/model"].files
    copy = local_copy(bucket / "model")
    assert set(pushed) == {"README.md", *(path.name for path in copy.iterdir())}
    for path in copy.iterdir():
        assert pushed[path.name] == path.read_bytes()
