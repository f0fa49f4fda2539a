"""Reading checkpoints: every form they come in, and every way in which they are broken."""

import argparse
import builtins
import hashlib
import importlib
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sammi_jax.convert import torch_file
from sammi_jax.convert.torch_file import plain_keys, read_tensors
from sammi_jax.errors import SammiError


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "a.bias": torch.randn(4, generator=generator),
        "scale": torch.tensor(2.5),
        "ids": torch.arange(5),
    }


def assert_same(found, state):
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.numpy())
        assert found[key].dtype == value.numpy().dtype


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.model.", "model.sam."])
def test_pickled_state_dict(tmp_path, state, wrapper, prefix):
    named = {prefix + key: value for key, value in state.items()}
    torch.save({wrapper: named, "iteration": 3} if wrapper else named, tmp_path / "m.pth")
    found = read_tensors(tmp_path / "m.pth")
    assert_same(found.tensors, state)
    assert found.format == "torch"
    assert found.sha256 == hashlib.sha256((tmp_path / "m.pth").read_bytes()).hexdigest()


def test_prefixes_go_in_safetensors_too_and_only_if_all_share_them(tmp_path, state):
    named = {"_orig_mod.model.module." + key: value for key, value in state.items()}
    save_file(named, tmp_path / "m.safetensors")
    found = read_tensors(tmp_path / "m.safetensors")
    assert_same(found.tensors, state)
    assert found.dtypes.keys() == state.keys()
    assert plain_keys(["model.a", "head.b"]) == {"model.a": "model.a", "head.b": "head.b"}
    assert plain_keys(["a._orig_mod.b"]) == {"a._orig_mod.b": "a.b"}
    twice = {key: torch.zeros(2) for key in ("a.b", "a._orig_mod.b")}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(SammiError, match="holds the same weights twice"):
        read_tensors(tmp_path / "twice.safetensors")


def test_legacy_pickle_without_zip(tmp_path, state):
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "m.bin")
    assert_same(read_tensors(tmp_path / "m.bin").tensors, state)


def test_numpy_values(tmp_path, state):
    arrays = {key: value.numpy() for key, value in state.items()}
    torch.save({"model": {**arrays, "number": 3.0}}, tmp_path / "m.pth")
    found = read_tensors(tmp_path / "m.pth").tensors
    assert found.pop("number") == 3.0
    assert_same(found, state)


def test_numpy_values_under_the_names_of_numpy_1(tmp_path, state, monkeypatch):
    multiarray = importlib.import_module("numpy._core.multiarray")
    monkeypatch.setattr(multiarray._reconstruct, "__module__", "numpy.core.multiarray")
    torch.save({"a.bias": state["a.bias"].numpy()}, tmp_path / "m.pth")
    monkeypatch.undo()
    assert b"numpy.core.multiarray" in (tmp_path / "m.pth").read_bytes()
    found = read_tensors(tmp_path / "m.pth").tensors
    np.testing.assert_array_equal(found["a.bias"], state["a.bias"].numpy())


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 3).half())

    def forward(self, x):
        return x @ self.weight


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 2).half())]
)
def test_torchscript_archive(tmp_path, make):
    module = Scripted()
    make(module).save(str(tmp_path / "ViT.pt"))
    found = read_tensors(tmp_path / "ViT.pt")
    assert found.format == "torchscript"
    assert found.dtypes == {"weight": "float16"}
    np.testing.assert_array_equal(found.tensors["weight"], module.weight.detach().float().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_other_floats_become_float32_exactly(tmp_path, dtype, name):
    value = torch.tensor([[1.5, -2.25], [1 / 3, 0.0]]).to(dtype)
    save = save_file if name.endswith("safetensors") else torch.save
    save({"w": value, "v": value.clone().T.contiguous()}, tmp_path / name)
    found = read_tensors(tmp_path / name)
    assert found.tensors["w"].dtype == np.float32
    np.testing.assert_array_equal(found.tensors["w"], value.float().numpy())
    np.testing.assert_array_equal(found.tensors["v"], value.float().numpy().T)
    assert found.dtypes["w"] == str(dtype).removeprefix("torch.")


def test_view_of_a_larger_storage(tmp_path):
    whole = torch.arange(12.0, dtype=torch.bfloat16).reshape(3, 4)
    torch.save({"w": whole.T[1:]}, tmp_path / "m.pt")
    np.testing.assert_array_equal(
        read_tensors(tmp_path / "m.pt").tensors["w"], whole.T[1:].float().numpy()
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_folder(tmp_path, state, name):
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    found = read_tensors(tmp_path)
    assert_same(found.tensors, state)
    assert found.config_json == {"model_type": "clip"}
    assert read_tensors(tmp_path / name).config_json == {"model_type": "clip"}


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_sharded_folder(tmp_path, state, stem, suffix):
    keys, save = list(state), save_file if suffix == "safetensors" else torch.save
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    save({k: state[k] for k in keys[:2]}, tmp_path / names[0])
    save({k: state[k] for k in keys[2:]}, tmp_path / names[1])
    index = {"weight_map": {k: names[i // 2] for i, k in enumerate(keys)}}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    assert_same(read_tensors(tmp_path).tensors, state)
    (tmp_path / names[1]).unlink()
    with pytest.raises(SammiError, match=r"names .*-00002-of-00002.*not there"):
        read_tensors(tmp_path)


def test_open_clip_folder(tmp_path, state):
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert read_tensors(tmp_path).config_json == {"model_cfg": {}}


def test_goldens_with_their_sidecar(catseg_pth, goldens):
    found = read_tensors(catseg_pth)
    assert found.config_json is not None
    assert found.config_json["config"]["agg"]["hidden"] == 32
    assert_same(
        {k: found.tensors[k] for k in found.tensors},
        {
            k: torch.from_numpy(v)
            for k, v in read_tensors(goldens / "catseg_tiny.safetensors").tensors.items()
        },
    )


def refuse(path, match):
    with pytest.raises(SammiError, match=match) as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.bin", "m.ckpt"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty; download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"<html>", "a web page"),
        (b"\x80\x02 no pickle", "damaged or cut short"),
        (bytes(range(256)) * 9, "damaged or cut short"),
    ],
)
def test_what_a_download_gave_instead(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, match)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_cut_short(tmp_path, state, name, keep):
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(keep * len(data))])
    refuse(tmp_path / name, "damaged or cut short")


def test_cut_short_legacy_pickle(tmp_path, state):
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(data[:-10])
    refuse(tmp_path / "m.pt", "damaged or cut short")


def test_nothing_there(tmp_path):
    refuse(tmp_path / "none.pt", "no such file or folder")
    refuse(tmp_path, "a folder without model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    refuse(tmp_path / "notes.txt", "not a checkpoint; expected a folder or .safetensors")
    (tmp_path / "sam.pth").write_bytes(b"x")
    refuse(tmp_path, "give the file itself, .*sam.pth")


class Evil:
    def __reduce__(self):
        return builtins.print, ("code from a checkpoint was run",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys, zipped):
    torch.save(
        {"w": torch.ones(1), "x": Evil()}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped
    )
    refuse(tmp_path / "m.pt", "would run .*print, and code in checkpoints is never run")
    assert "was run" not in capsys.readouterr().out


def test_a_pickle_with_arguments_beside_the_weights(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt", "would run argparse.Namespace")


def test_not_a_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "m.pt")
    refuse(tmp_path / "m.pt", "holds a list, not a state dict")
    torch.save({"encoder": {"w": torch.ones(1)}}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt", "encoder is a dict, not a tensor")
    torch.save({"w": torch.ones(1, dtype=torch.complex64)}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt", "w is complex64; only plain")
    save_file({}, tmp_path / "m.safetensors")
    refuse(tmp_path / "m.safetensors", "holds no tensors")


def test_eight_bit_floats_are_refused(tmp_path):
    value = torch.ones(2).to(torch.float8_e4m3fn)
    torch.save({"w": value}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt", "w is torch.float8_e4m3fn; only plain")
    save_file({"w": value}, tmp_path / "m.safetensors")
    refuse(tmp_path / "m.safetensors", "w is F8_E4M3; only plain")


def test_broken_sidecar(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(SammiError, match=r"m\.json: not readable as JSON"):
        read_tensors(tmp_path / "m.pt")


def test_without_torch(tmp_path, state, monkeypatch):
    torch.save(state, tmp_path / "m.pt")
    save_file(state, tmp_path / "m.safetensors")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(torch_file.importlib, "import_module", absent)
    refuse(tmp_path / "m.pt", r'pip install "sammi_jax\[convert\]"')
    assert_same(read_tensors(tmp_path / "m.safetensors").tensors, state)


def test_bfloat16_bits_are_kept(tmp_path):
    value = np.array([1.0, 3.140625, -0.0078125], ml_dtypes.bfloat16)
    save_file(
        {"w": torch.from_numpy(value.astype(np.float32)).bfloat16()}, tmp_path / "m.safetensors"
    )
    np.testing.assert_array_equal(
        read_tensors(tmp_path / "m.safetensors").tensors["w"], value.astype(np.float32)
    )
