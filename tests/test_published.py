"""The list of published checkpoints, and recognizing their files."""

import hashlib
import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sammi_jax.cli.main import main, make_parser
from sammi_jax.config.model import CLIP_SIZES, SAM_SIZES
from sammi_jax.convert.api import convert
from sammi_jax.weights import published
from sammi_jax.weights.bundled import FOLDER
from sammi_jax.weights.model_folder import describe
from sammi_jax.weights.published import PUBLISHED

NAMES = [entry.name for entry in PUBLISHED]


def test_the_list(capsys):
    assert main(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(NAMES) + 1]] == NAMES
    sizes = [f"clip_{n}" for n in CLIP_SIZES] + [f"sam_{n}" for n in SAM_SIZES]
    assert {name for name in sizes if "openshapes" not in name} == set(NAMES[:6])
    assert len(set(NAMES)) == len({entry.file for entry in PUBLISHED}) == 8
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_an_entry(name, capsys):
    assert main(["weights", name]) == 0
    text = capsys.readouterr().out
    assert main(["weights", name, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    for fact in ("title", "owner", "license", "file", "url", "sha256_from"):
        assert entry[fact] in text
    assert entry["url"].endswith("/" + entry["file"])
    digest = entry["sha256"]
    assert digest is None or re.fullmatch("[0-9a-f]{64}", digest)
    assert (digest is None) == (entry["sha256_from"] == "not published")
    if entry["owner"] == "OpenAI":
        assert f"/{digest}/" in entry["url"]
    for command in entry["commands"]:  # the command line takes it
        args = make_parser().parse_args(shlex.split(command)[1:])
        assert args.kind == entry["kind"]


def test_the_list_as_json(capsys):
    assert main(["weights", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == NAMES


def test_no_such_entry(capsys):
    assert main(["weights", "sam_vitx"]) == 1
    assert "'sam_vitx' is none of clip_vitb16, " in capsys.readouterr().err


@pytest.fixture
def sam_pth(tmp_path):
    """A small SAM under the name of the published one."""
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(load_file(FOLDER / "openshapes_sam" / "model.safetensors"), path)
    config = (FOLDER / "openshapes_sam" / "config.json").read_text()
    path.with_suffix(".json").write_text(config)
    return path


def test_a_published_file_is_recognized(sam_pth, tmp_path, monkeypatch, capsys):
    digest = hashlib.sha256(sam_pth.read_bytes()).hexdigest()
    entries = [replace(e, sha256=digest) if e.name == "sam_vitb" else e for e in PUBLISHED]
    monkeypatch.setattr(published, "PUBLISHED", tuple(entries))
    renamed = sam_pth.rename(tmp_path / "mine.pth")
    sam_pth.with_suffix(".json").rename(tmp_path / "mine.json")
    assert main(["convert", "sam", str(renamed), str(tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert "\nmine.pth is Meta's SAM ViT-B\nlicense: Apache-2.0\n" in out
    assert err == ""
    meta = describe(tmp_path / "model").meta
    assert meta["licence"] == "Apache-2.0"
    assert meta["source"]["published"] == "Meta's SAM ViT-B"
    assert meta["source"]["sha256"] == digest


@pytest.mark.filterwarnings("always::UserWarning")
def test_its_name_with_other_content_is_a_warning(sam_pth, tmp_path, capsys):
    assert main(["convert", "sam", str(sam_pth), str(tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert " is Meta's" not in out
    assert err.count("\n") == 1
    assert err.startswith("sammi: warning: sam_vit_b_01ec64.pth has the name of Meta's SAM ViT-B")
    assert "may be damaged or altered; to be sure, download it again from https://dl.fba" in err
    meta = describe(tmp_path / "model").meta
    assert "published" not in meta["source"]
    assert meta["licence"] == "unknown: Apache-2.0 if from Meta"
    with pytest.warns(UserWarning, match="may be damaged or altered"):
        convert("sam", sam_pth, tmp_path / "again")


def test_a_name_without_a_published_digest_is_no_warning(sam_pth, tmp_path, capsys):
    path = sam_pth.rename(tmp_path / "model_base.pth")
    sam_pth.with_suffix(".json").rename(tmp_path / "model_base.json")
    assert main(["convert", "sam", str(path), str(tmp_path / "model")]) == 0
    assert capsys.readouterr().err == ""
