"""``sammi inspect``: what a model folder or a checkpoint holds."""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sammi_jax.object_store import AnyPath, as_path

if TYPE_CHECKING:
    from sammi_jax.weights.model_folder import Stored


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="show what a model folder or a checkpoint holds",
        description="Print a model's configuration, license and source, its tensors (shape, "
        "dtype, bytes),\nand the number of parameters of each part.",
        epilog="example:\n  sammi inspect weights/sammi",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        metavar="DIR",
        type=as_path,
        help="a model folder, or a checkpoint file or folder; or ORG/NAME of the Hugging Face Hub",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from sammi_jax.weights.model_folder import is_model_folder

    lines = _model_folder(args.path) if is_model_folder(args.path) else _checkpoint(args.path)
    for line in lines:
        print(line)
    return 0


def _model_folder(path: AnyPath) -> Iterable[str]:
    from sammi_jax.weights.model_folder import describe

    found = describe(path)
    yield f"model folder  {path}"
    yield f"kind          {found.kind}"
    for name in ("licence", "converter"):
        yield f"{name:13} {found.meta.get(name)}"
    yield f"tokenizer     {'yes' if found.tokenizer_path else 'none: the model cannot read text'}"
    if found.meta.get("initialized"):
        yield f"initialized   {', '.join(found.meta['initialized'])} (in no checkpoint)"
    for heading in ("source", "config"):
        yield ""
        yield heading
        yield from _flat("", found.meta.get(heading) or {})
    yield from _tensors(found.tensors, "/")


def _checkpoint(path: AnyPath) -> Iterable[str]:
    from sammi_jax.convert.families import family_of
    from sammi_jax.convert.torch_file import read_tensors
    from sammi_jax.weights.model_folder import Stored

    found = read_tensors(path)
    family = family_of(found.tensors)
    yield f"checkpoint    {path}"
    yield f"format        {found.format}"
    yield f"looks like    {family.title if family else 'none of CLIP, SAM, CAT-Seg'}"
    yield f"sha256        {found.sha256}"
    if found.config_json:
        yield ""
        yield "configuration beside it"
        yield from _flat("", found.config_json)
    yield from _tensors(
        {key: Stored(value.shape, found.dtypes[key]) for key, value in found.tensors.items()}, "."
    )


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{name}.", value)
        else:
            text = json.dumps(value)
            yield f"  {prefix}{name} = {text if len(text) <= 100 else text[:97] + '...'}"


def _tensors(tensors: "Mapping[str, Stored]", separator: str) -> Iterable[str]:
    width = max(map(len, tensors))
    yield ""
    yield f"tensors ({len(tensors)})"
    for name, tensor in tensors.items():
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        yield f"  {name:{width}}  {tensor.dtype:8}  {tensor.nbytes:>13,} B  {shape}"
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        top = name.split(separator)[0]
        counts[top] = counts.get(top, 0) + tensor.size
    yield ""
    yield "parameters of each part"
    for top, count in counts.items():
        yield f"  {top:{max(map(len, counts))}}  {count:>13,}"
    total, nbytes = sum(counts.values()), sum(t.nbytes for t in tensors.values())
    yield f"total {total:,} in {nbytes:,} bytes"
