"""Checkpoints of other projects, and the descriptions beside them."""

import io
import json
import pickle
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from sammi_jax.convert.api import read_source
from sammi_jax.convert.torch_file import read_tensors
from sammi_jax.weights.kinds import KINDS
from tests.fuzz.guard import check
from tests.fuzz.mutate import dumps, hostile_json, hostile_value, mutated, numbers, texts, values
from tests.fuzz.target import Target, file_target, write

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"


def _state() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(12.0).reshape(3, 4),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "ids": torch.arange(3),
    }


def _saved(value: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _safetensors() -> list[bytes]:
    arrays = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "ids": np.arange(3)}
    return [save(arrays), save({"x": np.ones((2, 2), np.float16)}, {"format": "pt"})]


@st.composite
def _safetensors_headers(draw: st.DrawFn) -> bytes:
    """A header that says anything, before a few numbers."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {
            "dtype": draw(
                st.sampled_from(
                    ["F16", "BF16", "I64", "BOOL", "F8_E4M3", "U16", "C64", "F4", "F6_E2M3", "I32"]
                )
            ),
            "shape": draw(st.lists(st.sampled_from([0, 1, 2, 8, 2**31, 2**62, 2**63]), max_size=4)),
            "data_offsets": [48, 48 + draw(st.sampled_from([0, 1, 2, 8, 16]))],
        },
    }
    text = dumps(draw(st.one_of(st.just(header), hostile_value([header]))))
    size = draw(st.sampled_from([len(text)] * 8 + [0, len(text) + 10**9, 2**63]))
    return struct.pack("<Q", size) + text + bytes(draw(st.sampled_from([48, 50, 64, 200])))


class _Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


def _calls() -> list[Any]:
    """What would run code, take much memory, or is no tensor."""
    import os
    import subprocess

    storage = torch.ones(2).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    rebuild = torch._utils._rebuild_tensor_v2
    view = lambda size, stride: _Call(rebuild, typed, 0, size, stride, False, {})  # noqa: E731
    reconstruct = np._core.multiarray._reconstruct
    return [
        _Call(os.system, "touch canary"),
        _Call(subprocess.check_output, ["touch", "canary"]),
        _Call(eval, "open('canary', 'w')"),
        _Call(exec, "open('canary', 'w')"),
        _Call(torch.hub.load, "a/b", "c"),
        _Call(np.load, "canary"),
        _Call(print, "canary"),
        _Call(getattr, torch, "save"),
        view((10**6, 10**6), (0, 0)),
        view((2**31, 2**31), (0, 0)),
        view((50_000, 50_000), (0, 0)),
        view((10**9,), (1,)),
        view((2,), (-1,)),
        view((2, 0), (0, 2**62)),
        view((1,), (2**62,)),
        _Call(rebuild, typed, 2**40, (1,), (1,), False, {}),
        _Call(rebuild, typed, -1, (1,), (1,), False, {}),
        _Call(reconstruct, np.ndarray, (10**10,), b"b"),
        _Call(np.ndarray, (10**6, 10**4), "f4"),
        _Call(np.ndarray, (10**6, 10**6), "f4", b"abcd", 0, (0, 0)),
        _Call(np.ndarray, (3,), "O"),
        _Call(bytearray, 10**10),
        torch.sparse_coo_tensor([[0], [1]], [1.0], (3, 3), check_invariants=True),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(0, 5),
        torch.tensor(1.0),
        np.float32(1),
        np.arange(4, dtype="f2"),
        np.array(["a"]),
        torch.Size([1, 2]),
        torch.device("cpu"),
        torch.float32,
        {"inner": torch.ones(1)},
    ]


@st.composite
def _objects(draw: st.DrawFn) -> bytes:
    """A pickled object: a state dict with hostile keys and values, or something else."""
    strange = draw(st.one_of(st.sampled_from(_calls()), values))
    key = draw(st.one_of(texts, numbers, st.just(("a", 1)), st.none(), st.just(b"\n")))
    shape = draw(st.integers(0, 5))
    if shape == 0:
        value: Any = strange
    elif shape == 1:
        value = {draw(st.sampled_from(["model", "state_dict"])): strange}
    elif shape == 2:
        value = {"model": {key: strange, **_state()}}
    else:
        value = {**_state(), key: strange}
    try:
        data = _saved(value, legacy=draw(st.booleans()))
    except (
        TypeError,
        ValueError,
        AttributeError,
        pickle.PicklingError,
        UnicodeError,
        RuntimeError,
    ):
        data = pickle.dumps(None)
    return draw(mutated([data])) if draw(st.integers(0, 3)) == 0 else data


_ZIP_NAMES = [
    "data.pkl",
    "m/data.pkl",
    "m/data/0",
    "m/version",
    "m/byteorder",
    "m/constants.pkl",
    "m/code/__torch__.py",
    "../m/data.pkl",
    "/m/data.pkl",
    "m/data/../data.pkl",
    "m\ndata.pkl",
]


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    """A ZIP archive with the members of a checkpoint, some of which are compressed to nothing."""
    source = zipfile.ZipFile(io.BytesIO(_saved(_state())))
    members = {name: source.read(name) for name in source.namelist()}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from([*members, *_ZIP_NAMES]))
        kind = draw(st.sampled_from(["bomb", "pop", "bytes", "same", "pickle"]))
        if kind == "pop":
            members.pop(name, None)
        elif kind == "bomb":
            members[name] = members.get(name, b"")[:200] + bytes(10**6)
        elif kind == "bytes":
            members[name] = draw(mutated([*members.values(), b"little", b"3\n"]))
        elif kind == "pickle":
            members[name] = draw(_pickles())
    file = io.BytesIO()
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return draw(mutated([file.getvalue()])) if draw(st.booleans()) else file.getvalue()


_OPCODES = b"(.0123FIJKLMNPQRSTUVX]abcdefghijklmnopqrstu}" + bytes(range(0x80, 0x99))


@st.composite
def _pickles(draw: st.DrawFn) -> bytes:
    """Opcodes of pickle, with arguments that are too large."""
    parts = [b"\x80\x02"]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 5))
        if kind == 0:
            parts.append(bytes([draw(st.sampled_from(list(_OPCODES)))]))
        elif kind == 1:
            parts.append(
                b"r" + struct.pack("<I", draw(st.sampled_from([0, 1, 2**24, 2**31, 2**32 - 1])))
            )
        elif kind == 2:
            parts.append(
                draw(st.sampled_from([b"\x8e", b"\x8d", b"\x96", b"\x95"]))
                + struct.pack("<Q", draw(st.sampled_from([0, 5, 2**31, 2**34, 2**63])))
            )
        elif kind == 3:
            name = draw(
                st.sampled_from(
                    [
                        "os\nsystem",
                        "builtins\neval",
                        "torch\nFloatStorage",
                        "collections\nOrderedDict",
                        "torch._utils\n_rebuild_tensor_v2",
                        "__torch__\nM",
                        "numpy\nndarray",
                        "a\nb",
                    ]
                )
            )
            parts.append(b"c" + name.encode() + b"\n")
        elif kind == 4:
            parts.append(pickle.dumps(draw(values), 2)[2:-1])
        else:
            parts.append(
                b"\x8b"
                + struct.pack("<i", draw(st.sampled_from([0, 3, 2**31 - 1, -1])))
                + b"\x01\x02\x03"
            )
    return b"".join(parts) + b"."


class _Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))
        self.register_buffer("input_resolution", torch.tensor(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@cache
def torchscript() -> bytes:
    """A small TorchScript archive."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(_Scripted(), torch.ones(1, 2)), file)
    return file.getvalue()


@st.composite
def _scripts(draw: st.DrawFn) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(torchscript()))
    members = {name: source.read(name) for name in source.namelist()}
    if draw(st.booleans()):
        return draw(mutated([torchscript()]))
    top = next(iter(members)).split("/")[0]
    name = draw(
        st.sampled_from([*members, f"{top}/data.pkl", f"{top}/data.pkl", f"{top}/data.pkl"])
    )
    members[name] = draw(st.one_of(mutated([members[name]]), _pickles()))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


def _indexes() -> st.SearchStrategy[bytes]:
    index = {"metadata": {"total_size": 60}, "weight_map": {"a.weight": "one.safetensors"}}
    return hostile_json([index, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}])


@cache
def _catseg() -> dict[str, bytes]:
    """The tiny CAT-Seg of the goldens with its description."""
    description = json.loads((GOLDENS / "catseg_tiny.json").read_text())
    small = {key: description[key] for key in ("config", "template", "pad_len", "sliding")}
    arrays = load_file(GOLDENS / "catseg_tiny.safetensors")
    return {"c.safetensors": save(arrays), "c.json": json.dumps(small).encode()}


def _descriptions() -> st.SearchStrategy[bytes]:
    return hostile_json([json.loads(_catseg()["c.json"])])


@cache
def _clip() -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """A CLIP with OpenAI's names, and what OpenCLIP and Hugging Face write beside one."""
    from sammi_jax.config.model import ClipConfig, ClipTextConfig, ClipVisionConfig
    from sammi_jax.convert.clip_keys import KeyNames, clip_rules
    from sammi_jax.convert.rules import invert_rules
    from sammi_jax.weights.kinds import expected_params

    config = ClipConfig(
        ClipVisionConfig(image_size=16, patch_size=8, width=64, num_layers=2, num_heads=1),
        ClipTextConfig(vocab_size=20, context_length=6, width=64, num_layers=1, num_heads=1),
        embed_dim=8,
    )
    params = {path: np.zeros(p.shape, p.dtype) for path, p in expected_params(config).items()}
    arrays = {
        key: np.ascontiguousarray(v)
        for key, v in invert_rules(params, clip_rules(config, KeyNames("openai"))).items()
    }
    openclip = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 16,
            "layers": 2,
            "width": 64,
            "patch_size": 8,
            "head_width": 64,
        },
        "text_cfg": {"context_length": 6, "vocab_size": 20, "width": 64, "heads": 1, "layers": 1},
    }
    tower = {
        "hidden_size": 64,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
    }
    hugging_face = {
        "model_type": "clip",
        "vision_config": tower,
        "text_config": tower | {"num_hidden_layers": 1},
    }
    return arrays, openclip, hugging_face


@st.composite
def _clip_files(draw: st.DrawFn) -> dict[str, bytes]:
    """A CLIP whose description, names or shapes are wrong."""
    arrays, openclip, hugging_face = _clip()
    arrays = dict(arrays)
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(sorted(arrays)))
        kind = draw(st.sampled_from(["shape", "type", "rename", "drop", "layer", "empty"]))
        value = arrays.pop(key)
        if kind == "shape":
            arrays[key] = np.zeros(draw(st.lists(st.integers(0, 9), max_size=5)), np.float32)
        elif kind == "type":
            arrays[key] = value.astype(draw(st.sampled_from(["i4", "f2", "?", "u1", "f8"])))
        elif kind == "rename":
            arrays[draw(texts) or "x"] = value
        elif kind == "layer":
            number = draw(st.sampled_from([0, 7, 10**6, 10**9, 10**30]))
            arrays[key.replace(".0.", f".{number}.")] = value
        elif kind == "empty":
            arrays[key] = np.zeros((0, *value.shape[1:]), value.dtype)
    try:
        weights = save(arrays)
    except Exception:  # what safetensors cannot write is no case: the plain file is
        weights = save(_clip()[0])
    name = draw(st.sampled_from(["open_clip_config.json", "m.json", "other.json"]))
    seeds = [openclip, {"model_cfg": openclip, "preprocess_cfg": {}}, hugging_face]
    beside = draw(st.one_of(hostile_json(seeds), st.sampled_from([dumps(s) for s in seeds])))
    file = "open_clip_model.safetensors" if name == "open_clip_config.json" else "m.safetensors"
    return {file: weights, name: beside}


def _clip_cases() -> st.SearchStrategy[dict[str, bytes]]:
    _clip()  # not while a case is drawn: it takes keys of random numbers
    return _clip_files()


def _read_clip(files: dict[str, bytes], folder: Path) -> Any:
    write(folder, files)
    file = next(name for name in files if name.endswith(".safetensors"))
    return check(lambda: read_source(folder / file, ("clip",)), str(folder))


def _read_any(path: Path) -> Any:
    return read_source(path, KINDS)


TARGETS = [
    file_target(
        "safetensors", "m.safetensors", lambda: mutated(_safetensors()), read_tensors, 6000
    ),
    file_target("safetensors_header", "m.safetensors", _safetensors_headers, read_tensors, 6000),
    file_target(
        "torch_zip",
        "m.pt",
        lambda: mutated([_saved(_state()), _saved({"model": {"x": np.ones(3)}})]),
        read_tensors,
        5000,
    ),
    file_target("torch_archive", "m.pt", _archives, read_tensors, 3000),
    file_target(
        "torch_legacy",
        "m.bin",
        lambda: mutated([_saved(_state(), legacy=True)]),
        read_tensors,
        5000,
    ),
    file_target("torch_object", "m.pth", _objects, read_tensors, 5000),
    file_target("torch_pickle", "m.ckpt", _pickles, read_tensors, 4000),
    file_target("torchscript", "m.pt", _scripts, read_tensors, 4000),
    file_target(
        "shards",
        "model.safetensors.index.json",
        _indexes,
        lambda path: read_tensors(path.parent),
        3000,
        lambda: {"one.safetensors": _safetensors()[0]},
    ),
    file_target(
        "catseg_description",
        "c.json",
        _descriptions,
        lambda path: _read_any(path.with_name("c.safetensors")),
        1500,
        lambda: {"c.safetensors": _catseg()["c.safetensors"]},
    ),
    Target("clip_files", _clip_cases, _read_clip, 2500),
]
