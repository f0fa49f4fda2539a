"""How every parameter of the real configurations is split over 8 devices, as text.

``python -m tests.sharding_table`` writes the tables of `tests/goldens` again, after a change that
is meant to place parameters in another way; ``git diff`` then shows what it did.
"""

import math
from pathlib import Path

import jax

from sammi_jax.config.experiment import MeshConfig
from sammi_jax.config.files import load_config
from sammi_jax.parallel.mesh import fsdp_sharding, make_mesh
from sammi_jax.pods.aot import abstract_step

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("sammi_vitb16", "sammi_vitl14_336")
DEVICES = 8
FSDP = (4, 8)


def sharding_table(name: str) -> str:
    """One line a parameter: whether it trains, its shape, and its split for each value of fsdp."""
    config = load_config(ROOT / "configs" / f"{name}.py", [f"batch_size={DEVICES}"])
    meshes = [make_mesh(MeshConfig(fsdp=fsdp)) for fsdp in FSDP]
    _, state, _ = abstract_step(config, config.task, meshes[0])
    shardings = [fsdp_sharding(state, mesh) for mesh in meshes]
    rows = [("", "shape", *(f"fsdp={fsdp}" for fsdp in FSDP), "parameter")]
    for path, leaf in sorted(state.params.items()):
        splits = [_split(sharding.params[path], len(leaf.shape)) for sharding in shardings]
        trains = "trains" if path in state.trainable else "frozen"
        rows.append((trains, " x ".join(map(str, leaf.shape)) or "scalar", *splits, path))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]))
        for row in rows
    ]
    head = [f"configs/{name}.py on {DEVICES} devices; made by: python -m tests.sharding_table"]
    head += [
        f"fsdp={fsdp}: a device holds {_mebibytes(state.params, sharding.params)} MiB of "
        f"parameters and {_mebibytes(state.opt_state, sharding.opt_state)} MiB of optimizer state"
        for fsdp, sharding in zip(FSDP, shardings, strict=True)
    ]
    return "\n".join([*head, "", *(line.rstrip() for line in lines), ""])


def _split(sharding, ndim) -> str:
    """The mesh axis of every array axis, such as ``. fsdp .``; ``whole``: on every device."""
    if sharding.is_fully_replicated:
        return "whole"
    axes = [*sharding.spec, *(None,) * ndim][:ndim]
    return " ".join(axis or "." for axis in axes)


def _mebibytes(tree, shardings) -> int:
    bytes_of = lambda leaf, sharding: (  # noqa: E731
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    )
    return round(sum(jax.tree.leaves(jax.tree.map(bytes_of, tree, shardings))) / 2**20)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for config_name in CONFIGS:
        file = ROOT / "tests" / "goldens" / f"sharding_{config_name}.txt"
        file.write_text(sharding_table(config_name))
        print(file)
