"""The command line itself: help, exit codes, one-line errors, inspect, and the tokenizer's ways."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from test_folder import CLIP, CONFIGS, random_params, write

from sammi_jax.cli import inspect
from sammi_jax.cli.main import main, make_parser
from sammi_jax.convert.catseg import CLIP_PREFIX
from sammi_jax.convert.clip import clip_rules, detect_key_names
from sammi_jax.convert.rules import invert_rules
from sammi_jax.text.tokenizer import END, START
from sammi_jax.weights.kinds import buffer_paths
from sammi_jax.weights.model_folder import describe

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.filterwarnings("default:no tokenizer beside")


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_is_readable_and_needs_no_jax():
    code = (
        "import sys; from sammi_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'torch', 'transformers', 'tokenizers', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for command in ("convert", "inspect", "segment"):
        assert f"\n    {command} " in done.stdout


def all_commands(parser):
    """Every command and subcommand as a list of words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child.prog.split()[1:]
                yield from all_commands(child)


@pytest.mark.parametrize("command", [*all_commands(make_parser())], ids=" ".join)
def test_help_of_a_command(capsys, monkeypatch, command):
    """It fits a terminal of 100 columns and ends in examples that the parser takes."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    examples = re.split(r"\nexamples?:\n", text)[1].replace("\\\n", "")
    lines = re.findall(r"^  sammi .*", examples, re.M)
    assert lines
    for line in lines:
        words = shlex.split(line)[1:]
        assert words[: len(command)] == command
        make_parser().parse_args(words)


def test_module_is_the_command():
    done = python("-m", "sammi_jax", "inspect", "/nowhere")
    assert done.returncode == 1
    assert done.stderr == "sammi: error: /nowhere: no such file or folder\n"
    assert done.stdout == ""
    assert python("-m", "sammi_jax", "--version").stdout.startswith("sammi_jax ")


def wrong_use(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a command"),
        (["fly"], "invalid choice: 'fly'"),
        (["convert"], "required: kind, SRC, DST"),
        (["convert", "dog", "a", "b"], "invalid choice: 'dog'"),
        (["convert", "clip", "a", "b", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["convert", "sammi", "a", "b"], "sammi needs --sam DIR"),
        (["convert", "clip", "a", "b", "--sam", "c"], "--sam goes with sammi, not with clip"),
        (["convert", "sam", "a", "b", "--tokenizer", "c"], "sam has no text"),
        (["convert", "sam", "a", "b", "--clip", "c"], "sam has no text"),
        (["inspect"], "required: DIR"),
    ],
)
def test_wrong_use(capsys, arguments, message):
    assert message in wrong_use(capsys, *arguments)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "sammi: interrupted"),
        (OSError(18, "no link", "/x"), 1, "sammi: error: /x: no link"),
        (OSError("odd"), 1, "sammi: error: system: odd"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, line):
    def fail(_):
        raise error

    monkeypatch.setattr(inspect, "_checkpoint", fail)
    assert main(["inspect", "x"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_reader_that_stops_early(tmp_path):
    torch.save({f"tensor.{i}": torch.zeros(1) for i in range(5000)}, tmp_path / "many.pt")
    command = f"{sys.executable} -m sammi_jax inspect {tmp_path}/many.pt | head -1"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("checkpoint")
    assert done.stderr == ""


# --- inspect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "sammi"])
def test_inspect_model_folder(tmp_path, capsys, kind):
    params = random_params(CONFIGS[kind])
    write(tmp_path / "m", params, kind, CONFIGS[kind], dtype="bfloat16", initialized=["dmi"])
    assert main(["inspect", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert f"kind          {kind}" in out
    assert "tokenizer     none: the model cannot read text" in out
    assert "initialized   dmi" in out
    prefix = "" if kind == "clip" else "clip."
    assert f"  {prefix}vision.patch_size = 4\n" in out
    total = sum(value.size for value in params.values())
    exact = buffer_paths(CONFIGS[kind])  # float32 whatever the rest is stored as
    size = sum(value.size * (4 if path in exact else 2) for path, value in params.items())
    assert f"total {total:,} in {size:,} bytes" in out
    tensors = out.partition("tensors (")[2].partition("parameters of each part")[0].splitlines()
    for path, value in params.items():
        (line,) = [line for line in tensors if line.startswith(f"  {path} ")]
        dtype, width = ("float32", 4) if path in exact else ("bfloat16", 2)
        assert line.split()[1:4] == [dtype, f"{width * value.size:,}", "B"]
    counts = dict(
        line.split() for line in out.partition("parameters of each part\n")[2].splitlines()[:-1]
    )
    for top, count in counts.items():
        inside = sum(v.size for path, v in params.items() if path.split("/")[0] == top)
        assert int(count.replace(",", "")) == inside
    assert set(counts) == {path.split("/")[0] for path in params}


def test_inspect_checkpoint(tmp_path, capsys):
    state = {
        "visual.class_embedding": torch.ones(4).half(),
        "token_embedding.weight": torch.ones(2, 3),
    }
    torch.save({"model": state}, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    out = capsys.readouterr().out
    assert "looks like    CLIP (OpenAI)" in out
    assert "format        torch" in out
    assert "total 10 in 32 bytes" in out
    assert "float16" in out
    assert "2 x 3" in out


def test_inspect_damaged_folder(tmp_path, capsys):
    folder = write(tmp_path / "m", random_params(CLIP))
    (folder / "model.safetensors").write_bytes(b"12")
    assert main(["inspect", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "damaged or cut short" in error
    assert error.count("\n") == 1


# --- convert: tokenizers ------------------------------------------------------------------------


def save_tokenizer(path, extra=()):
    words = {word: i for i, word in enumerate(["a", "cat", *extra, START, END])}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a")).save(str(path))


@pytest.fixture
def clip_file(tmp_path):
    """A CLIP in OpenAI's layout, from random parameters through our own table, with a sidecar."""
    params = random_params(CLIP)
    names = ["visual.class_embedding", "transformer.resblocks.0.attn.in_proj_weight"]
    tensors = invert_rules(params, clip_rules(CLIP, detect_key_names(names)))
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "clip.pt"
    state = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    torch.save(state, path)
    vision, text = CLIP.vision, CLIP.text
    model = {
        "embed_dim": CLIP.embed_dim,
        "quick_gelu": True,
        "vision_cfg": {"width": vision.width, "head_width": 12, "layers": vision.num_layers},
        "text_cfg": {"width": text.width, "heads": 2, "layers": text.num_layers},
    }
    path.with_suffix(".json").write_text(json.dumps({"model_cfg": model}))
    return path


def convert_clip(source, target, *options):
    return main(["convert", "clip", str(source), str(target), *map(str, options)])


def test_tokenizer_beside_the_checkpoint(tmp_path, clip_file, capsys):
    save_tokenizer(clip_file.with_name("tokenizer.json"))
    assert convert_clip(clip_file, tmp_path / "m") == 0
    assert capsys.readouterr().err == ""
    assert describe(tmp_path / "m").tokenizer_path == tmp_path / "m" / "tokenizer.json"
    assert main(["inspect", str(tmp_path / "m")]) == 0
    assert "tokenizer     yes" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--tokenizer file", "--tokenizer folder", "--clip"])
def test_tokenizer_from_elsewhere(tmp_path, clip_file, capsys, option):
    (tmp_path / "words").mkdir()
    path = tmp_path / "words" / "tokenizer.json"
    save_tokenizer(path)
    save_tokenizer(clip_file.with_name("tokenizer.json"), extra=["dog"])  # comes second
    place = path if option.endswith("file") else path.parent
    assert convert_clip(clip_file, tmp_path / "m", option.split()[0], place) == 0
    words = json.loads((tmp_path / "m" / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(words) == {"a", "cat", START, END}


def test_tokenizer_added_to_a_model_folder(tmp_path, clip_file):
    assert convert_clip(clip_file, tmp_path / "m") == 0
    save_tokenizer(tmp_path / "words.json")
    options = ["--tokenizer", tmp_path / "words.json", "--dtype", "bfloat16"]
    assert convert_clip(tmp_path / "m", tmp_path / "again", *options) == 0
    first, again = describe(tmp_path / "m"), describe(tmp_path / "again")
    assert again.tokenizer_path is not None
    assert again.meta == first.meta
    assert {tensor.dtype for tensor in again.tensors.values()} == {"bfloat16"}


def test_no_tokenizer_is_a_warning(tmp_path, clip_file, capsys):
    assert convert_clip(clip_file, tmp_path / "m") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sammi: warning: no tokenizer beside")
    assert "--tokenizer" in line


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda p: None, ["--tokenizer", "{}/none"], "none: no such file"),
        (lambda p: None, ["--tokenizer", "{}"], "no tokenizer; put tokenizer.json"),
        (lambda p: None, ["--clip", "{}/none"], "no such folder"),
        (lambda p: (p / "tokenizer.json").write_text("{"), [], "not readable as JSON"),
        (
            lambda p: save_tokenizer(p / "tokenizer.json", extra=map(str, range(17))),
            [],
            "the tokenizer has 21 tokens, but the model has rows for 20",
        ),
    ],
)
def test_tokenizer_that_cannot_serve(tmp_path, clip_file, capsys, prepare, options, message):
    prepare(clip_file.parent)
    options = [option.format(clip_file.parent) for option in options]
    assert convert_clip(clip_file, tmp_path / "m", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_layout_prefix_is_catsegs():
    """`families` tells CAT-Seg by the beginning that its table uses."""
    assert CLIP_PREFIX.startswith("sem_seg_head.predictor.")
