"""Faults that hostile files once caused, each in a plain test."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from safetensors.numpy import save_file

from sammi_jax.config.experiment import CaptionConfig, TrainConfig
from sammi_jax.config.fields import from_dict, override
from sammi_jax.config.files import find_config, load_config, read_run_config
from sammi_jax.config.model import ClipConfig, SegmenterConfig
from sammi_jax.convert.api import read_source
from sammi_jax.convert.torch_file import read_tensors
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.input.embeddings import SamCache
from sammi_jax.data.prepare.labels import READERS, open_label
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.sources import FolderSource
from sammi_jax.errors import SammiError, printable
from sammi_jax.files import parse_json, read_json
from sammi_jax.images import load_image
from sammi_jax.inference.geotiff import read_geotiff
from sammi_jax.inference.image_files import find_images
from sammi_jax.ops.rle import decode_rle
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.text.vocabulary import check_class_names, read_class_file
from sammi_jax.weights.bundled import FOLDER, find_model
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import describe, load_tokenizer
from tests.fuzz import requests
from tests.fuzz.checkpoints import _clip
from tests.fuzz.texts import _tokenizer as tokenizer_json

DEEP = "[" * 100_000 + "]" * 100_000


def refuse(read, path, words):
    with pytest.raises(SammiError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# --- checkpoints ---


class Setting(torch.nn.Module):
    """A module whose archive writes a file while it is loaded."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.w

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0] * torch.from_file("canary", True, 4)[0]
        self.training = state[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Setting()).save("m.pt")
    refuse(read_tensors, tmp_path / "m.pt", "holds no tensors")
    assert not os.path.exists("canary")


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.narrow = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("size", torch.tensor(7))
        self.mask = torch.ones(2)  # in no state dict

    def forward(self, x):
        return x @ self.weight + self.mask + self.size


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_is_its_state_dict(tmp_path):
    module = torch.nn.Sequential(Inner(), torch.nn.Linear(2, 2))
    torch.jit.trace(module, torch.ones(1, 3)).save(str(tmp_path / "m.pt"))
    expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    found = read_tensors(tmp_path / "m.pt")
    assert list(found.tensors) == list(expected)
    assert found.dtypes["0.narrow"] == "bfloat16"
    for key, value in expected.items():
        theirs = value.float().numpy() if value.is_floating_point() else value.numpy()
        np.testing.assert_array_equal(found.tensors[key], theirs)


def write_archive(path, content, members=(), method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("m/data.pkl", content)
        archive.writestr("m/version", "3")
        for name, data in members:
            archive.writestr(name, data)


# A dictionary whose key is a tuple in a tuple, 200,000 times: hashing it overflows the stack.
NESTED_KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
HUGE_MEMO = b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."
HUGE_BYTES = b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."


@pytest.mark.parametrize("content", [NESTED_KEY, HUGE_BYTES])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_ends_the_process(tmp_path, content, zipped):
    if zipped:
        write_archive(tmp_path / "m.pt", content)
    else:
        head = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}
        start = b"".join(pickle.dumps(value, 2) for value in head)
        (tmp_path / "m.pt").write_bytes(start + content + pickle.dumps([], 2))
    refuse(read_tensors, tmp_path / "m.pt", "damaged or cut short")


def test_a_number_of_a_memo_is_no_memory(tmp_path):
    write_archive(tmp_path / "m.pt", HUGE_MEMO)
    refuse(read_tensors, tmp_path / "m.pt", "holds a dict, not a state dict")


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced[0], self.reduced[1:]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((10**6, 10**6), (0, 0), "a tensor of shape .* in 2 numbers"),
        ((10**9,), (1,), "a tensor of shape"),
        ((2,), (2**62,), "a tensor of shape"),
    ],
)
def test_a_shape_larger_than_the_file(tmp_path, legacy, shape, strides, words):
    storage = torch.ones(2).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    tensor = Call(torch._utils._rebuild_tensor_v2, typed, 0, shape, strides, False, {})
    torch.save({"w": tensor}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    refuse(read_tensors, tmp_path / "m.pt", words)


def test_arrays_larger_than_the_file(tmp_path):
    reconstruct = np._core.multiarray._reconstruct
    for call in (
        Call(reconstruct, np.ndarray, (10**11,), b"b"),
        Call(np.ndarray, (10**6, 10**6), "f4", b"abcd", 0, (0, 0)),
    ):
        torch.save({"w": call}, tmp_path / "m.pt")
        refuse(read_tensors, tmp_path / "m.pt", "with arguments that no state dict has")


def test_a_packed_archive(tmp_path):
    write_archive(tmp_path / "m.pt", bytes(10**7), method=zipfile.ZIP_DEFLATED)
    refuse(read_tensors, tmp_path / "m.pt", "is compressed, which PyTorch never does")


def test_shared_weights_are_read_and_repeated_ones_are_not(tmp_path):
    w = torch.arange(10_000.0)
    torch.save({"a": w, "b": w, "c": w[5000:]}, tmp_path / "m.pt")
    np.testing.assert_array_equal(read_tensors(tmp_path / "m.pt").tensors["c"], w[5000:].numpy())
    torch.save({str(i): w for i in range(9)}, tmp_path / "m.pt")
    refuse(read_tensors, tmp_path / "m.pt", "declares more numbers than it holds")


def test_keys_are_texts(tmp_path):
    torch.save({1: torch.ones(1)}, tmp_path / "m.pt")
    refuse(read_tensors, tmp_path / "m.pt", "a key of type int")


@pytest.mark.parametrize("name", ["../x.safetensors", "", "a/b.safetensors", "..", "x" * 300])
def test_a_list_of_shards_names_files_beside_it(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refuse(lambda path: read_tensors(path.parent), index, "no file beside it|no path of a file")


def test_layers_are_counted_and_not_believed(tmp_path):
    keys = {
        "visual.class_embedding": (8,),
        "visual.conv1.weight": (8, 3, 4, 4),
        "visual.positional_embedding": (5, 8),
        "visual.proj": (8, 4),
        "token_embedding.weight": (9, 8),
        "positional_embedding": (6, 8),
        "text_projection": (8, 4),
        "visual.transformer.resblocks.999999999.ln_1.weight": (8,),
        "transformer.resblocks.0.ln_1.weight": (8,),
        "input_resolution": (),
    }
    tensors = {key: np.zeros(shape, np.float32) for key, shape in keys.items()}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    options = {"vision_heads": 1, "text_heads": 1}
    refuse(
        lambda path: read_source(path, ("clip",), None, options),
        path,
        "num_layers 1000000000: must",
    )


@pytest.mark.filterwarnings("ignore:this CLIP checkpoint does not say its activation")
@pytest.mark.parametrize(
    "change",
    [
        {"config": {"layer_indexes": [1]}},
        {"config": {"layer_indexes": ["1", 2]}},
        {"config": {"agg": []}},
        {"sliding": {"out_res": ["a", "a"], "stride": 1}},
        {"pad_len": 10**30},
    ],
)
def test_a_description_of_a_catseg_of_other_types(tmp_path, goldens, change):
    shutil.copy(goldens / "catseg_tiny.safetensors", tmp_path / "m.safetensors")
    described = json.loads((goldens / "catseg_tiny.json").read_text())
    config = described["config"] | change.get("config", {})
    (tmp_path / "m.json").write_text(json.dumps(described | change | {"config": config}))
    path = tmp_path / "m.safetensors"
    refuse(lambda path: read_source(path, ("catseg",)), path, r"\.json beside|JSON file beside")


def test_tensors_without_numbers(tmp_path):
    tensors, path = _clip()[0] | {"input_resolution": np.zeros(())}, tmp_path / "m.safetensors"
    for key in ("visual.conv1.weight", "visual.proj", "token_embedding.weight"):
        save_file(tensors | {key: np.zeros((0, *tensors[key].shape[1:]))}, path)
        refuse(lambda path: read_source(path, ("clip",)), path, "none of them empty")


@pytest.mark.parametrize(
    "config",
    [
        {"vision_cfg": [], "text_cfg": {}},
        {"vision_cfg": {"layers": 10**9}, "text_cfg": {}},
        {"vision_cfg": {"width": "x", "head_width": 0}, "text_cfg": {}},
        {"vision_cfg": {"head_width": 0}, "text_cfg": {}},
        {"model_cfg": 3},
        {"vision_config": "x", "text_config": None},
        {"model_type": "clip", "vision_config": {"layer_norm_eps": "x", "num_hidden_layers": []}},
    ],
)
def test_a_description_of_other_types(tmp_path, config):
    save_file(_clip()[0], tmp_path / "m.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    refuse(lambda path: read_source(path, ("clip",)), tmp_path / "m.safetensors", "JSON|config")


# --- images and labels ---

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(canary) (w) file closefile\n"
)


@pytest.mark.parametrize("read", [load_image, open_label])
def test_a_drawing_named_png_starts_no_program(tmp_path, read, monkeypatch):
    (tmp_path / "a.png").write_bytes(EPS)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(
        subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started")
    )
    refuse(read, tmp_path / "a.png", "no image that can be read|cannot be decoded")


def test_a_file_named_tif_opens_no_other(tmp_path):
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "a.tif").write_text(
        '<VRTDataset rasterXSize="5" rasterYSize="4"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path / 'secret.png'}</SourceFilename>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    refuse(read_geotiff, tmp_path / "a.tif", "cannot be read as a GeoTIFF")


def test_a_geotiff_that_declares_too_much(tmp_path):
    import rasterio

    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=60_000, height=60_000, count=1, dtype="uint8",
        crs="EPSG:32632", transform=rasterio.Affine(2, 0, 0, 0, -2, 0), sparse_ok=True, tiled=True,
    ):  # fmt: skip
        pass
    refuse(read_geotiff, path, "declares 60000 x 60000 pixels")


def bomb():
    """A PNG of 20,000 x 20,000 pixels without any."""
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", b""), (b"IEND", b"")
    chunks = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", _crc(k + c)) for k, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _crc(data):
    import zlib

    return zlib.crc32(data)


def test_a_bomb_is_refused_wherever_images_are_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(bomb())
    pair = Pair("a", path, (path,))
    for read in (
        load_image,
        open_label,
        lambda _: FolderSource(tmp_path, [pair]).glance(0),
        lambda _: READERS["rgb"](pair, 0),
    ):
        refuse(read, path, "400000000 pixels")


def labels_of(kind, path):
    return READERS[kind](Pair("a", path.with_name("a.png"), (path,)), 0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([np.ones(2), "x"], dtype=object), "no matrix of whole numbers"),
        ({"a": 1}, "no matrix of whole numbers"),
        (scipy.sparse.csc_matrix(np.eye(2)), "no matrix of whole numbers"),
        ("text", "no matrix of whole numbers"),
        (np.ones((2, 2, 2)), "no matrix of whole numbers"),
        (np.eye(2) * 1j, "no matrix of whole numbers"),
        (np.array([[0.5]]), "holds other than whole numbers"),
        (np.array([[np.nan]]), "holds other than whole numbers"),
        (np.array([[2.0**40]]), "holds other than whole numbers"),
    ],
)
def test_a_mat_file_holds_a_matrix(tmp_path, value, words):
    scipy.io.savemat(tmp_path / "a.mat", {"LabelMap": value})
    refuse(lambda path: labels_of("mat", path), tmp_path / "a.mat", words)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["f8", "u1", "u2", "i4", "f4"])
def test_a_mat_file_is_read_as_scipy_does(tmp_path, packed, dtype, rng):
    label = rng.integers(0, 200, (5, 7)).astype(dtype)
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"Other": np.ones(3), "LabelMap": label}, do_compression=packed)
    found = labels_of("mat", file)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, scipy.io.loadmat(file)["LabelMap"])


def test_a_mat_file_with_an_imaginary_part_of_no_type(tmp_path):
    """SciPy ends the process over it."""
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"LabelMap": np.eye(6)})
    data = bytearray(file.read_bytes())
    assert data[144] == 6  # the class, double
    data[145] |= 0x08  # complex
    file.write_bytes(data + b"\xff" * 64)
    refuse(lambda path: labels_of("mat", path), file, "no matrix of whole numbers|cut short")


def test_a_mat_file_is_not_unpacked_without_end(tmp_path):
    import zlib

    packed = zlib.compress(struct.pack("<II", 14, 2**29) + bytes(2**29))
    file = tmp_path / "a.mat"
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x100, b"IM")
    file.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    refuse(lambda path: labels_of("mat", path), file, "cut short")


def test_a_stack_of_masks_holds_what_it_declares(tmp_path):
    index = tmp_path / "paxray.json"
    for number, name in enumerate(("a.npy", "a.npz")):
        index.write_text(json.dumps({"test": [{"image": f"{number}.png", "target": name}]}))
        with (tmp_path / name).open("wb") as file:
            if name.endswith("npz"):
                np.savez_compressed(file, np.zeros((200, 100, 100)))
            else:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 9, 9)}
                )
        pair = Pair(str(number), index, (index,))
        from sammi_jax.data.prepare import labels

        labels._paxray_targets.cache_clear()
        with pytest.raises(SammiError, match=f"{name}: cannot be read"):
            READERS["stack"](pair, 0)


def test_runs_of_a_mask_are_short_numbers():
    with pytest.raises(SammiError, match="a run of more than 60 bits"):
        decode_rle({"size": [2, 2], "counts": "o" * 10**6}, "a.json")
    for counts in ([1.5, 2.5], ["4"], None, 4, [[4]], "\ud800"):
        with pytest.raises(SammiError, match=r"a\.json"):
            decode_rle({"size": [2, 2], "counts": counts}, "a.json")
    for size, counts in (([2.0, 2], [4]), ([0, -1], []), ([-2, -2], [4])):
        with pytest.raises(SammiError, match=r"a\.json"):
            decode_rle({"size": size, "counts": counts}, "a.json")


# --- texts and configurations ---


def test_messages_are_one_printable_line():
    error = SammiError("a.png: \x1b[31m\r\nred\u202e" + "x" * 10**6)
    text = str(error)
    assert text.startswith("a.png: \\x1b[31m red\\u202e")
    assert text.isprintable()
    assert len(text) < 2100
    assert str(pickle.loads(pickle.dumps(error))) == text
    assert printable("é\xa0猫") == "é\xa0猫"


def test_json_is_not_nested_without_end(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ' + DEEP + "}")
    refuse(read_json, tmp_path / "a.json", "nested too deeply")
    refuse(read_class_file, tmp_path / "a.json", "nested too deeply")
    assert parse_json("[" * 90 + "]" * 90)


@pytest.mark.parametrize("name", ["a\x1b[31m", "\ud800", "a\nb", ", b", "\u202ea"])
def test_class_names_are_texts_that_can_be_shown(name):
    with pytest.raises(SammiError, match="is no class name"):
        check_class_names(["sky", name])


def test_configurations_of_other_types(tmp_path):
    with pytest.raises(SammiError, match=r"eps: .* is too large"):
        from_dict(ClipConfig, {"eps": 10**400})
    with pytest.raises(SammiError, match="task is missing"):
        from_dict(TrainConfig, {})
    (tmp_path / "config.json").write_text('{"kind": ["caption"]}')
    with pytest.raises(SammiError, match="not the configuration of a training run"):
        read_run_config(tmp_path)
    with pytest.raises(SammiError, match="no such configuration"):
        find_config("x" * 5000)
    with pytest.raises(SammiError, match=r"steps: '{\[\]: 1}' is not of type int"):
        override(TrainConfig(CaptionConfig()), "steps={[]: 1}")


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "import sys; sys.exit('done')"])
def test_a_configuration_that_ends_the_program(tmp_path, text):
    (tmp_path / "c.py").write_text(text)
    refuse(load_config, tmp_path / "c.py", "ends the program")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "猫" * 90])
def test_names_that_no_file_has(name):
    for read in (find_model, read_tensors, open_dataset, lambda name: find_images([name])):
        with pytest.raises(SammiError, match=r"no path of a file|no such data set"):
            read(name)


def test_absurd_sizes_make_no_model():
    for values in (
        {"clip": {"vision": {"num_layers": 10**6}}},
        {"aggregator": {"grid_size": 10**6}},
        {"clip": {"text": {"vocab_size": 2**40}}},
        {"clip": {"eps": float("nan")}},
        {"aggregator": {"num_heads": -1}},
    ):
        with pytest.raises(SammiError, match="must be"):
            expected_params(from_dict(SegmenterConfig, values))


def model_folder(tmp_path, change):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((FOLDER / "openshapes" / name).read_bytes())
    meta = json.loads((FOLDER / "openshapes" / "config.json").read_text())
    change(meta)
    (tmp_path / "config.json").write_text(json.dumps(meta))
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"source": []},
        {"source": {"from": {"clip": 3}}},
        {"source": {"from": {"clip": {"source": {}}}}},
        {"source": {"from": {"clip": {"kind": "clip", "source": {}}}}},
        {"source": {"hub": ["a"]}},
        {"licence": {}},
        {"initialized": "dmi"},
    ],
)
def test_a_record_of_another_form(tmp_path, change):
    folder = model_folder(tmp_path, lambda meta: meta.update(change))
    refuse(describe, folder, "has another form than 'sammi convert' writes")


def test_a_tokenizer_of_another_model(tmp_path):
    folder = model_folder(tmp_path, lambda meta: None)
    content = tokenizer_json() | {}
    content = json.loads(
        json.dumps(content)
        .replace("29,", "3000,")
        .replace("29}", "3000}")
        .replace("[29]", "[3000]")
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    found = describe(folder)
    with pytest.raises(SammiError, match=r"tokenizer\.json: has 3001 tokens, but the model has"):
        load_tokenizer(folder, found.tokenizer_path, found.config)
    content = json.loads(
        json.dumps(tokenizer_json())
        .replace("29,", "2147483648,")
        .replace("29}", "2147483648}")
        .replace("[29]", "[2147483648]")
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refuse(Tokenizer.from_file, folder / "tokenizer.json", "no model has as many rows")


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}],
        [{"type": "Prepend", "prepend": "aaa"}],
        [{"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}] * 40,
    ],
)
def test_a_tokenizer_that_lengthens_texts(tmp_path, steps):
    path = tmp_path / "tokenizer.json"
    content = tokenizer_json() | {"normalizer": {"type": "Sequence", "normalizers": steps}}
    path.write_text(json.dumps(content))
    refuse(Tokenizer.from_file, path, "that lengthens texts|has 41 steps")


def test_a_vocabulary_is_not_unpacked_without_end(tmp_path):
    import gzip

    path = tmp_path / "m.gz"
    path.write_bytes(gzip.compress(bytes(10**8)))
    before = _peak_memory()
    refuse(Tokenizer.from_file, path, "holds 0 merges|cut short")
    assert _peak_memory() - before < 2 * 10**8


def _peak_memory():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_cache_holds_an_array(tmp_path):
    from tests.fuzz.texts import _INFO, _rows

    (tmp_path / "cache.json").write_text(json.dumps(_info(_INFO)))
    (tmp_path / "embeddings.npy").write_bytes(_rows())
    SamCache(tmp_path)
    file = io.BytesIO()
    np.savez(file, np.zeros(3))
    (tmp_path / "embeddings.npy").write_bytes(file.getvalue())
    with pytest.raises(SammiError, match=r"embeddings\.npy"):
        SamCache(tmp_path)


def _info(info):
    from sammi_jax.config.fields import to_dict

    return to_dict(info)


def ask(*headers, body=b""):
    served = requests._app()
    names = [(name.encode(), value.encode()) for name, value in headers]
    status, answer = served.loop.run_until_complete(
        requests._ask(served.app, "POST", "/api/segment", names, [body])
    )
    return status, json.loads(answer)["error"]


def test_a_form_in_a_codec_that_raises():
    kind = "multipart/form-data; boundary=xyz; charset=undefined"
    body = requests._form([("image", "", b"x")])
    assert ask(("content-type", kind), body=body) == (
        400,
        "the form cannot be read; send it in UTF-8",
    )


def test_a_length_of_many_digits():
    headers = ("content-type", "application/json"), ("content-length", "9" * 6000)
    assert ask(*headers)[0] == 413


def test_command_line_errors_are_one_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["a\x1b[31m\nb"]))
    done = subprocess.run(
        [sys.executable, "-m", "sammi_jax", "segment", str(tmp_path / "a.png"), "--classes",
         str(tmp_path / "a.json"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sammi: error:")
    assert line.isprintable()
