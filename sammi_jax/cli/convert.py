"""``sammi convert``: make a model folder of a checkpoint."""

import argparse
from collections.abc import Iterable
from typing import Any

from sammi_jax.object_store import AnyPath, as_path

_DESCRIPTION = """\
Make a model folder of a checkpoint.

SRC is a file (.safetensors, .pt, .pth, .bin, .ckpt) or a folder as Hugging Face and OpenCLIP
write it:
  clip    CLIP from Hugging Face, OpenAI (TorchScript archive or state dict) or OpenCLIP
  sam     SAM from Meta's .pth or from Hugging Face
  catseg  CAT-Seg's released .pth
  sammi   SAM-MI assembled from a CLIP or CAT-Seg (SRC) and a SAM (--sam)
  openshapes_clip and openshapes_sam are the small ones that come with the package
SRC may also be a model folder (to add a tokenizer, to change templates or dtype), or a
checkpoint of 'sammi train': RUN/checkpoints/STEP, or RUN for the newest one.

SRC, --sam, --clip and --tokenizer may be ORG/NAME or ORG/NAME@REVISION of the Hugging Face Hub,
which is downloaded (docs/weights.md); what exists on this machine comes first. 'sammi weights'
lists published checkpoints. A file among them is recognized by its SHA-256.

Conversion is strict: every key must be mapped or explicitly ignored, and every parameter filled.
Otherwise the error lists the keys, and nothing is written."""

_EXAMPLE = """\
examples:
  sammi convert clip openai/clip-vit-base-patch16 weights/clip
  sammi convert catseg model_base.pth weights/catseg --tokenizer openai/clip-vit-base-patch16
  sammi convert sammi weights/catseg weights/sammi --sam sam_vit_b_01ec64.pth
  sammi convert sammi runs/sammi weights/trained"""


_CLIP_FIELDS = ("activation", "vision_heads", "text_heads")


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="make a model folder of a PyTorch checkpoint or of a training run",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kind", choices=("clip", "sam", "catseg", "sammi"), help="the kind of model to make"
    )
    parser.add_argument(
        "source", metavar="SRC", type=as_path, help="a checkpoint, model folder or training run"
    )
    parser.add_argument("destination", metavar="DST", type=as_path, help="the model folder to make")
    parser.add_argument(
        "--sam",
        metavar="DIR",
        type=as_path,
        help="a SAM checkpoint or model folder; sammi needs it",
    )
    parser.add_argument(
        "--clip", metavar="DIR", type=as_path, help="a folder with CLIP's tokenizer files"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE_OR_DIR",
        type=as_path,
        help="CLIP's tokenizer.json or bpe_simple_vocab_16e6.txt.gz, or a folder with one of them "
        "or with vocab.json and merges.txt; default: the tokenizer in the folder of SRC",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        type=as_path,
        help='for catseg and sammi: a text file with one prompt template a line, such as "a photo '
        'of a {}"; a checkpoint that was trained with several templates needs it',
    )
    told = parser.add_argument_group(
        "what a CLIP's tensors do not say", "They override the file beside SRC."
    )
    told.add_argument(
        "--activation", choices=("quick_gelu", "gelu"), help="OpenAI: quick_gelu; OpenCLIP: gelu"
    )
    told.add_argument("--vision-heads", type=int, metavar="N", help="heads of the image tower")
    told.add_argument("--text-heads", type=int, metavar="N", help="heads of the text tower")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the stored weights; default: float32",
    )
    parser.set_defaults(run=run, wrong_use=parser.error)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was made."""
    from sammi_jax.training.export import find_run

    if run_and_step := find_run(args.source):
        return _run_of_training(args, *run_and_step)
    from sammi_jax.weights.model_folder import describe, is_model_folder

    if args.kind == "sammi" and args.sam is None and not is_model_folder(args.source):
        args.wrong_use("sammi needs --sam DIR, a SAM checkpoint or model folder")
    if args.kind != "sammi" and args.sam is not None:
        args.wrong_use(f"--sam goes with sammi, not with {args.kind}")
    if args.kind == "sam" and (args.clip or args.tokenizer):
        args.wrong_use("sam has no text: --clip and --tokenizer do not go with it")

    if args.templates and args.kind not in ("catseg", "sammi"):
        args.wrong_use(f"--templates goes with catseg and sammi, not with {args.kind}")
    fields = {name: getattr(args, name) for name in _CLIP_FIELDS if getattr(args, name)}
    if fields and args.kind not in ("clip", "sammi"):
        args.wrong_use(f"{_flags(fields)} goes with a CLIP, not with {args.kind}")

    from sammi_jax.convert.api import convert
    from sammi_jax.text.vocabulary import read_template_file

    folder = convert(
        args.kind,
        args.source,
        args.destination,
        clip=args.clip,
        sam=args.sam,
        tokenizer=args.tokenizer,
        templates=None if args.templates is None else read_template_file(args.templates),
        dtype=args.dtype,
        clip_fields=fields,
    )
    _say(args, describe(folder))
    return 0


def _flags(fields: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in fields)


def _run_of_training(args: argparse.Namespace, workdir: AnyPath, step: int | None) -> int:
    others = (args.sam, args.clip, args.tokenizer, args.templates)
    others += tuple(getattr(args, name) for name in _CLIP_FIELDS)
    if any(others) or args.dtype != "float32":
        args.wrong_use(
            "a checkpoint of 'sammi train' has its towers, tokenizer, templates and dtype: give no "
            "other option; to change them, convert the model folder that this makes"
        )
    from sammi_jax.config.files import read_run_config
    from sammi_jax.errors import SammiError
    from sammi_jax.training.checkpoint import quiet_orbax
    from sammi_jax.training.export import convert_run, kind_of_run
    from sammi_jax.weights.model_folder import describe

    quiet_orbax()
    kind = kind_of_run(read_run_config(workdir))
    if kind != args.kind:
        raise SammiError(f"{workdir}: trains a {kind}; use: sammi convert {kind} SRC DST")
    step = convert_run(workdir, step, args.destination)
    found = describe(args.destination)
    _say(args, found)
    source = found.meta["source"]
    print(
        f"from the checkpoint after step {step}; trained on {source['trained_on']}, "
        f"seed {source['seed']}, configuration {source['config_sha256']}"
    )
    return 0


def _say(args: argparse.Namespace, found: Any) -> None:
    from sammi_jax.weights.provenance import checkpoints, read_origin

    count = sum(tensor.size for tensor in found.tensors.values())
    print(f"{args.destination}: {args.kind}, {count:,} parameters, {args.dtype}")
    for part in checkpoints(read_origin(found.meta)):
        if "published" in part.source:
            name = part.source.get("file") or part.source["hub"]
            print(f"{name} is {part.source['published']}")
    print(f"license: {found.meta['licence']}")
    if found.meta["initialized"]:
        print(f"initialized, because in no checkpoint: {', '.join(found.meta['initialized'])}")
