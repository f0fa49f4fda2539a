"""The real training step compiled for a TPU pod that is not there, and what that tells.

libtpu compiles for any topology on any machine. Parameters and batches are shapes only: nothing is
allocated, no checkpoint and no data set is needed.
"""

import os
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from sammi_jax.data.loader import Batch
from sammi_jax.data.openshapes import IGNORE_LABEL, get_view
from sammi_jax.data.sam_cache import EMBEDDINGS
from sammi_jax.data.vocabulary import get_vocabulary
from sammi_jax.errors import SammiError
from sammi_jax.experiment import OPENSHAPES, MeshConfig, SegmentConfig, TrainConfig
from sammi_jax.flops import count_flops
from sammi_jax.loop import make_loss, trainable_paths
from sammi_jax.optim import make_optimizer, make_schedule
from sammi_jax.parallel import AXES, batch_sharding, check_batch_size, fsdp_sharding, replicated
from sammi_jax.params import abstract_params
from sammi_jax.state import TrainState, make_train_step
from sammi_jax.tasks.segment import SegmentRules
from sammi_jax.tasks.segment_data import is_random

# Published figures: TFLOP/s in bfloat16 and bytes of memory, a chip.
CHIPS = {
    "v4": (275e12, 32 * 2**30),
    "v5e": (197e12, 16 * 2**30),
    "v5p": (459e12, 95 * 2**30),
    "v6e": (918e12, 32 * 2**30),
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "s8": 1, "f16": 2}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step; bytes and times are a chip's.

    Attributes:
        topology: as given.
        chips: how many.
        mesh: (data, fsdp).
        batch_size: images a step, over all chips.
        memory: bytes of arguments (less what is donated), outputs and temporaries at the peak.
        hbm: bytes that a chip has.
        model_flops: of the whole step's matrix products and convolutions, as traced: recomputation
            is left out, so that it does not count as use.
        estimated_s: the compiler's estimate of the step's time; None where it gives none. Whether
            it counts each iteration of a loop is libtpu's affair and was not checked.
        collectives: see `collective_bytes`.
        compile_s: seconds.
    """

    topology: str
    chips: int
    mesh: tuple[int, int]
    batch_size: int
    memory: int
    hbm: int
    model_flops: float
    estimated_s: float | None
    collectives: dict[str, int]
    compile_s: float

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds the step."""
        return self.memory <= self.hbm

    @property
    def mfu(self) -> float | None:
        """Model FLOPs of the estimated time over the peak of all chips."""
        if not self.estimated_s:
            return None
        peak = CHIPS[self.topology.partition(":")[0]][0]
        return self.model_flops / (self.estimated_s * self.chips * peak)


def compile_step(config: TrainConfig, topology: str, mesh_shape: MeshConfig) -> Compiled:
    """Lower and compile the training step of a segmentation experiment.

    Args:
        config: the experiment; its batch size is over all chips.
        topology: as ``v5e:4x4``: a chip of `CHIPS` and the pod's shape.
        mesh_shape: ``data`` and ``fsdp``.

    Raises:
        SammiError: no segmentation experiment, no libtpu, an unknown topology, a mesh or a batch
            that does not divide.
    """
    if not isinstance(config.task, SegmentConfig):
        raise SammiError("only segmentation experiments are compiled ahead of time")
    devices = describe_topology(topology)
    mesh = _make_mesh(devices, mesh_shape)
    check_batch_size(config.batch_size, mesh)
    step, state, batch = abstract_step(config, config.task, mesh)
    plain = replace(config.task, remat=False)
    flops = count_flops(*abstract_step(config, plain, mesh))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - began
    memory = cast(Any, compiled.memory_analysis())  # every TPU compiler has one
    cost = compiled.cost_analysis() or {}
    estimated = cost.get("optimal_seconds", 0.0)
    return Compiled(
        topology,
        len(devices),
        (mesh.shape[AXES[0]], mesh.shape[AXES[1]]),
        config.batch_size,
        memory.argument_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        CHIPS[topology.partition(":")[0]][1],
        flops,
        estimated if estimated and estimated > 0 else None,
        collective_bytes(compiled.as_text() or ""),
        seconds,
    )


def describe_topology(name: str) -> list[Any]:
    """The devices of a TPU pod that need not exist.

    Raises:
        SammiError: libtpu is not installed, or it knows no such topology.
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise SammiError(
            f"{name}: not a topology; write CHIP:SHAPE, as in v5e:4x4, with a chip of "
            f"{', '.join(CHIPS)}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks Google Cloud where it runs
    bounds = {"chips_per_host_bounds": (2, 2, 1)} if chip in ("v5e", "v6e") else {}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **bounds).devices)
    except Exception as error:  # what libtpu raises differs from version to version
        raise SammiError(
            f"{name}: cannot be described ({str(error).splitlines()[0]}); install libtpu "
            "(pip install 'sammi_jax[tpu]') and give a shape that this chip has"
        ) from error


def _make_mesh(devices: list[Any], shape: MeshConfig) -> Mesh:
    count, fsdp = len(devices), shape.fsdp
    data = count // fsdp if shape.data == -1 else shape.data
    if data * fsdp != count:
        raise SammiError(f"mesh {data} x {fsdp} is not the {count} chips of the topology")
    grid = np.array(devices).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_step(config: TrainConfig, task: SegmentConfig, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The step, and shapes with shardings of its state and its batch."""
    vocabulary = _vocabulary(config, task)
    rules = SegmentRules(task, vocabulary[1], photographs=is_random(config.data))
    trainable = trainable_paths(rules)
    schedule = make_schedule(config.optim, config.steps)
    scales = {path: rules.lr_scale(path) for path in trainable}
    optimizer = make_optimizer(config.optim, schedule, scales)
    params = abstract_params(lambda: rules.make(nnx.Rngs(0)))
    chosen = {path: params[path] for path in trainable}
    frozen = {path: value for path, value in params.items() if path not in chosen}
    opt_state = jax.eval_shape(optimizer.init, chosen)
    place = lambda tree: _placed(tree, fsdp_sharding(tree, mesh))  # noqa: E731
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    state = TrainState(step, place(chosen), place(frozen), place(opt_state))
    loss = make_loss(rules, config.compute_dtype)
    train_step = make_train_step(loss, optimizer, schedule, config.seed)
    return train_step, state, _abstract_batch(config, task, vocabulary[0], mesh)


def _vocabulary(config: TrainConfig, task: SegmentConfig) -> tuple[int, int]:
    """How many classes a step asks for, and the ignore label."""
    name = config.data.name.partition("/")[0]
    if name == OPENSHAPES:
        total, ignore = len(get_view(config.data.view).only_seen().class_names), IGNORE_LABEL
    else:
        vocabulary = get_vocabulary(name)
        total, ignore = len(vocabulary.texts), vocabulary.ignore_index
    return min(total, task.num_classes or total), ignore


def _abstract_batch(
    config: TrainConfig, task: SegmentConfig, num_classes: int, mesh: Mesh
) -> Batch:
    size, length = task.model.crop_size, task.model.clip.text.context_length
    images = ((config.batch_size, size, size, 3), jnp.uint8)
    labels = ((config.batch_size, size, size), jnp.int32)
    array = lambda spec, sharding: jax.ShapeDtypeStruct(*spec, sharding=sharding)  # noqa: E731
    split = batch_sharding(mesh)
    examples = {"images": array(images, split), "labels": array(labels, split)}
    if task.sam_cache is not None and task.model.masks is not None:
        sam = task.model.masks.sam
        rows = (config.batch_size, sam.grid_size, sam.grid_size, sam.out_channels)
        examples[EMBEDDINGS] = array((rows, jnp.float16), split)
    return Batch(
        examples,
        {"token_ids": array(((num_classes, 1, length), jnp.int32), replicated(mesh))},
    )


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def collective_bytes(program: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective in an HLO program, written once each.

    A lower bound: a collective inside a loop runs more often than it is written.
    """
    total: Counter[str] = Counter()
    pattern = re.compile(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
    for result, kind in pattern.findall(program):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            elements = int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
            total[kind] += _BYTES.get(dtype, 4) * elements
    return dict(total)
