"""Class names, templates, tokenizers, lists of splits, configurations, model folders, caches."""

import gzip
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sammi_jax.config.experiment import CaptionConfig, PromptConfig, SegmentConfig, TrainConfig
from sammi_jax.config.fields import override, to_dict
from sammi_jax.config.files import load_config, read_run_config, resolved, save_config
from sammi_jax.config.model import SAM_SIZES, SEGMENTER_SIZES
from sammi_jax.convert.api import read_source
from sammi_jax.data.input.embeddings import CacheInfo, SamCache
from sammi_jax.data.openshapes.tokenizer import build_tokenizer
from sammi_jax.data.prepare.pairs import Templates, find_pairs
from sammi_jax.data.prepare.split_lists import context_ids, cub_ids, lines, paxray_ids
from sammi_jax.errors import SammiError
from sammi_jax.inference.classes import make_class_list
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.text.vocabulary import parse_class_list, read_class_file, read_template_file
from sammi_jax.weights.bundled import FOLDER
from sammi_jax.weights.model_card import model_card
from sammi_jax.weights.model_folder import describe, load_tokenizer, read_model
from sammi_jax.weights.provenance import checkpoints, read_origin
from tests.fuzz.guard import check
from tests.fuzz.mutate import dumps, hostile_json, hostile_text, mutated, texts
from tests.fuzz.target import Target, file_target, write

_NAMES = ["wall", "building, edifice", "sky", "crane, bird"]


def _read_classes(path: Path) -> Any:
    names = read_class_file(path)
    assert all(isinstance(name, str) and name.strip() for name in names)
    return make_class_list(names)


def _parse_classes(case: str, folder: Path) -> Any:
    return check(lambda: make_class_list(parse_class_list(case)))


def _ids(case: tuple[str, bytes], folder: Path) -> Any:
    name, content = case
    read = {
        "val.txt": lines("val.txt"),
        "paxray.json": paxray_ids,
        "trainval_merged.json": context_ids,
        "images.txt": cub_ids,
        "train_test_split.txt": cub_ids,
    }[name]
    files = {"images.txt": b"1 a/b.jpg\n2 c.jpg\n", "train_test_split.txt": b"1 0\n2 1\n"}
    write(folder, {**files, name: content, "i/a.jpg": b"", "l/a.png": b""})
    templates = Templates(("i/{id}.jpg",), ("l/{id}.png",), "val", read)
    return check(lambda: find_pairs(folder, templates), str(folder))


@st.composite
def _id_files(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(
        st.sampled_from(
            ["val.txt", "paxray.json", "trainval_merged.json", "images.txt", "train_test_split.txt"]
        )
    )
    if name.endswith("txt"):
        return name, draw(hostile_text(["1 a.jpg\n2 b.jpg\n", "a\nb\n"]))
    seed = {"test": [{"image": "a.png"}], "images": [{"file_name": "a.jpg", "phase": "val"}]}
    return name, draw(hostile_json([seed]))


@cache
def _tokenizer() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer(build_tokenizer()).save(folder)
        return json.loads(Path(folder, "tokenizer.json").read_text())


@cache
def _byte_pairs() -> dict[str, Any]:
    """A small CLIP tokenizer, as transformers writes it."""
    words = {
        "a": 0,
        "c": 1,
        "t</w>": 2,
        "a</w>": 3,
        "at</w>": 4,
        "cat</w>": 5,
        "<|startoftext|>": 6,
        "<|endoftext|>": 7,
    }
    special = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **special} for token, i in list(words.items())[6:]
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": "[\\p{L}]+|[^\\s\\p{L}]+"},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": words,
            "merges": [["a", "t</w>"], ["c", "at</w>"]],
        },
    }


_STEPS = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"},
    {"type": "Prepend", "prepend": "a" * 99},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "NFKD"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False},
]


@st.composite
def _tokenizers(draw: st.DrawFn) -> bytes:
    seeds = [_tokenizer(), _byte_pairs()]
    if draw(st.integers(0, 2)):
        return draw(hostile_json(seeds))
    value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    steps = draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=30))
    part = draw(st.sampled_from(["normalizer", "pre_tokenizer"]))
    inner = "normalizers" if part == "normalizer" else "pretokenizers"
    value[part] = {"type": "Sequence", inner: steps}
    return dumps(value)


def _read_tokenizer(read: Any) -> Any:
    def run(path: Path) -> Any:
        tokenizer = read(path)
        try:
            rows = tokenizer(
                ["cat", "a red square", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", "é\U0001f600"], 16
            )
        except Exception as error:  # its message names the text
            if "tokenizer has no tokens" not in str(error):
                raise
            raise SammiError(f"{path}: {error}") from error
        assert rows.dtype == np.int32
        assert (rows >= 0).all()
        return rows

    return run


def _two_files(case: tuple[bytes, bytes], folder: Path) -> Any:
    write(folder, {"vocab.json": case[0], "merges.txt": case[1]})
    return check(lambda: _read_tokenizer(Tokenizer.from_folder)(folder), str(folder))


def _vocabularies() -> st.SearchStrategy[tuple[bytes, bytes]]:
    merges = hostile_text(["#version: 0.2\na t</w>\nc at</w>\n"])
    return st.tuples(hostile_json([_byte_pairs()["model"]["vocab"]]), merges)


@cache
def _gzips() -> list[bytes]:
    return [
        gzip.compress(b"#version\n" + b"a b\n" * 20),
        gzip.compress(bytes(10**7)),
        gzip.compress(b"a\nb\n" * 10**5),
    ]


def _runs() -> st.SearchStrategy[bytes]:
    configs = [
        TrainConfig(task)
        for task in (CaptionConfig(), PromptConfig(), SegmentConfig(SEGMENTER_SIZES["openshapes"]))
    ]
    return hostile_json([json.loads(json.dumps(resolved(config))) for config in configs])


def _read_run(path: Path) -> Any:
    config = read_run_config(path.parent)
    assert isinstance(config, TrainConfig)
    return config


def _read_script(path: Path) -> Any:
    try:
        return load_config(path)
    except SammiError as error:
        if not isinstance(error.__cause__, MemoryError):
            raise
        message = str(error)
    raise SammiError(message)  # Python's parser calls deep nesting so; no memory is taken


def _scripts() -> st.SearchStrategy[bytes]:
    return hostile_text(
        [
            "from sammi_jax.config.experiment import CaptionConfig, TrainConfig\n"
            "config = TrainConfig(CaptionConfig())\n",
            "config = 1\n",
            "raise SystemExit(3)\n",
            "def f(): f()\nf()\n",
            "x = " + "(" * 500 + ")" * 500 + "\n",
            "raise ValueError('a\\nb' * 3000)\n",
            "raise TypeError\n",
            "import nothing_such\n",
        ]
    )


@st.composite
def _overrides(draw: st.DrawFn) -> str:
    name = draw(
        st.one_of(
            st.sampled_from(
                [
                    "steps",
                    "optim.peak_lr",
                    "task.model.vision.width",
                    "validation",
                    "data.name",
                    "task",
                    "profile_steps",
                    "eval.scales",
                ]
            ),
            texts,
        )
    )
    value = draw(
        st.one_of(
            texts,
            st.sampled_from(
                [
                    "{[]: 1}",
                    "[" * 300,
                    "(" * 300,
                    "1" * 5000,
                    "-" * 3000 + "1",
                    "1e999",
                    "{1, 2}",
                    "b'x'",
                    "...",
                    "1j",
                    "'a' 'b'",
                    "[1, 2]",
                    "(1,)",
                    "0x" + "f" * 400,
                ]
            ),
        )
    )
    return f"{name}={value}" if draw(st.integers(0, 9)) else value


def _override(case: str, folder: Path) -> Any:
    config = TrainConfig(CaptionConfig())
    return check(lambda: override(config, case))


def _metas(name: str) -> Any:
    """Cases of a folder's config.json."""
    seed = json.loads((FOLDER / name / "config.json").read_text())
    return lambda: st.tuples(st.just(name), hostile_json([seed]))


def _read_folder(folder: Path) -> Any:
    found = describe(folder)
    list(checkpoints(read_origin(found.meta)))
    model_card(found, "a/b")
    return found


def _model_folder(case: tuple[str, bytes], folder: Path) -> Any:
    name, content = case
    kind: Any = name.rpartition("_")[2]
    read = _read_folder if kind == "openshapes" else partial(read_source, kinds=(kind,))
    folder = folder / "m"
    folder.mkdir()
    for file in ("model.safetensors", "tokenizer.json"):
        if (FOLDER / name / file).exists():
            (folder / file).symlink_to(FOLDER / name / file)
    write(folder, {"config.json": content})
    return check(partial(read, folder), str(folder))


@cache
def _weights() -> bytes:
    return (FOLDER / "openshapes" / "model.safetensors").read_bytes()


@cache
def _beside_weights() -> dict[str, bytes]:
    return {
        name: (FOLDER / "openshapes" / name).read_bytes()
        for name in ("config.json", "tokenizer.json")
    }


_INFO = CacheInfo(1, SAM_SIZES["openshapes"], "float32", "os48", "none", 96, 2, "a", "b", "float16")


@cache
def _rows() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.zeros(_INFO.shape, np.float16))
    return file.getvalue()


def _load_tokenizer(path: Path) -> Any:
    found = describe(path.parent)
    return load_tokenizer(path.parent, found.tokenizer_path, found.config)


TARGETS = [
    file_target(
        "class_file",
        "classes.txt",
        lambda: hostile_text(["\n".join(_NAMES), "wall\nsky\n"]),
        _read_classes,
        5000,
    ),
    file_target(
        "class_json",
        "classes.json",
        lambda: hostile_json([_NAMES, {"0": "wall", "1": "sky"}]),
        _read_classes,
        4000,
    ),
    Target(
        "class_list",
        lambda: st.one_of(texts, st.lists(texts, max_size=4).map(",".join)),
        _parse_classes,
        3000,
    ),
    file_target(
        "templates",
        "t.txt",
        lambda: hostile_text(["a photo of a {}\na {} in the scene\n"]),
        read_template_file,
        2000,
    ),
    Target("split_lists", _id_files, _ids, 2500),
    file_target(
        "tokenizer",
        "tokenizer.json",
        _tokenizers,
        _read_tokenizer(lambda path: Tokenizer.from_folder(path.parent)),
        5000,
    ),
    Target("vocabulary", _vocabularies, _two_files, 1500),
    file_target(
        "merges", "m.gz", lambda: mutated(_gzips()), _read_tokenizer(Tokenizer.from_file), 500
    ),
    file_target("run_config", "config.json", _runs, _read_run, 4000),
    file_target(
        "run_resumed",
        "config.json",
        _runs,
        lambda path: save_config(TrainConfig(CaptionConfig()), path.parent),
        2000,
    ),
    file_target("run_script", "c.py", _scripts, _read_script, 1500),
    Target("override", _overrides, _override, 3000),
    Target("model_folder", _metas("openshapes"), _model_folder, 2500),
    Target("clip_folder", _metas("openshapes_clip"), _model_folder, 2000),
    Target("sam_folder", _metas("openshapes_sam"), _model_folder, 2000),
    file_target(
        "model_weights",
        "model.safetensors",
        lambda: mutated([_weights()]),
        lambda path: read_model(path.parent),
        1000,
        _beside_weights,
    ),
    file_target(
        "sam_cache",
        "cache.json",
        lambda: hostile_json([to_dict(_INFO)]),
        lambda path: SamCache(path.parent)[0],
        2000,
        lambda: {"embeddings.npy": _rows()},
    ),
    file_target(
        "sam_rows",
        "embeddings.npy",
        lambda: mutated([_rows()]),
        lambda path: SamCache(path.parent)[0],
        2000,
        lambda: {"cache.json": dumps(to_dict(_INFO))},
    ),
]
