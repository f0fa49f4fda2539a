"""The real training step compiled for a TPU pod that need not exist: memory, work, estimated time.

libtpu compiles for any topology on any machine. Parameters and batches are shapes only: nothing is
allocated, no checkpoint and no data set is needed.
"""

import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from sammi_jax.config.experiment import OPENSHAPES, SegmentConfig, TrainConfig
from sammi_jax.data.input.embeddings import EMBEDDINGS
from sammi_jax.data.openshapes import IGNORE_LABEL, get_view
from sammi_jax.data.vocabulary import get_vocabulary
from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.parallel.batch import Batch, check_batch_size
from sammi_jax.parallel.mesh import AXES, batch_sharding, make_mesh, replicated
from sammi_jax.pods.bundles import Bundles
from sammi_jax.pods.hlo import Cost, program_cost
from sammi_jax.training.flops import PEAK_FLOPS, count_flops, count_flops_by_part
from sammi_jax.training.optim import make_optimizer
from sammi_jax.training.state import (
    abstract_state,
    held_params,
    make_loss,
    make_train_step,
    trainable_paths,
)
from sammi_jax.training.tasks.segment import SegmentRules
from sammi_jax.training.tasks.segment_data import is_random
from sammi_jax.weights.params import abstract_params


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm).

    Attributes:
        peak: FLOP/s in bfloat16.
        hbm: bytes of memory.
        bandwidth: bytes/s of that memory.
        clock: Hz; the rate at which the multiply-adds a cycle that libtpu's estimates assume (4, 8
            and 16 units of 128 x 128) make up the peak.
        link: bytes/s that it sends over all its links together: half of the bandwidth published
            for both directions.
        dcn: bytes/s of the data center network, as published for a chip or, divided, for a pod.
    """

    peak: float
    hbm: int
    bandwidth: float
    clock: float
    link: float
    dcn: float


CHIPS = {
    "v5e": Chip(PEAK_FLOPS["TPU v5 lite"], 16 * 2**30, 819e9, 1.50e9, 200e9, 3.125e9),
    "v5p": Chip(PEAK_FLOPS["TPU v5"], 95 * 2**30, 2765e9, 1.75e9, 600e9, 6.25e9),
    "v6e": Chip(PEAK_FLOPS["TPU v6 lite"], 32 * 2**30, 1640e9, 1.75e9, 400e9, 12.5e9),
}
# Names that the models and the step give with jax.named_scope.
PARTS = (
    "clip_image",
    "clip_text",
    "tspp",
    "sam_encoder",
    "sam_decoder",
    "smagg",
    "dmi",
    "aggregator",
    "loss",
    "optimizer",
)


@dataclass(frozen=True)
class Compiled:
    """What the compiler reports of one step; bytes and times are those of one chip.

    Attributes:
        topology: of a slice, as given to `compile_step`.
        slices: their number.
        chips: of all slices.
        mesh: (data, fsdp).
        batch_size: images a step, over all chips.
        trainable: number of parameters that train.
        frozen: number of those that do not.
        optimizer: bytes of the optimizer's state.
        memory: bytes of arguments (less what is donated), outputs, temporaries and code; where they
            do not fit, what the compiler says that it would need.
        model_flops: of the whole step's matrix products and convolutions, as traced, without
            recomputed activations.
        part_flops: the same by part of `PARTS`, with recomputed activations.
        cost: see `sammi_jax.pods.hlo`; None where the step does not fit.
        compile_s: seconds.
    """

    topology: str
    slices: int
    chips: int
    mesh: tuple[int, int]
    batch_size: int
    trainable: int
    frozen: int
    optimizer: int
    memory: int
    model_flops: float
    part_flops: dict[str, float]
    cost: Cost | None
    compile_s: float

    @property
    def chip(self) -> Chip:
        """Its published figures."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds the step."""
        return self.cost is not None and self.memory <= self.chip.hbm

    @property
    def parts_s(self) -> dict[str, float]:
        """Estimated seconds of each part's arithmetic, custom calls included, the longest first."""
        cycles = self.cost.cycles + self.cost.kernels if self.cost else Counter[str]()
        return {part: count / self.chip.clock for part, count in cycles.most_common()}

    @property
    def kernels_s(self) -> dict[str, float]:
        """Estimated seconds of each part's custom calls."""
        cycles = self.cost.kernels if self.cost else Counter[str]()
        return {part: count / self.chip.clock for part, count in cycles.items()}

    @property
    def matrix_share(self) -> dict[str, float]:
        """Of each part's time the share for which its products would fill the matrix units."""
        peak = self.chips * self.chip.peak
        return {
            part: self.part_flops.get(part, 0.0) / (seconds * peak)
            for part, seconds in self.parts_s.items()
            if seconds
        }

    @property
    def compute_s(self) -> float:
        """Estimated seconds of arithmetic: cycles over the clock."""
        return sum(self.parts_s.values())

    @property
    def ici_s(self) -> float:
        """Seconds of collectives in a slice, if all links of a chip were used all the time."""
        return self.cost.sent.total() / self.chip.link if self.cost else 0.0

    @property
    def dcn_s(self) -> float:
        """Seconds of collectives between slices, if a chip's share of the network were used."""
        return self.cost.sent_dcn.total() / self.chip.dcn if self.cost else 0.0

    @property
    def link_s(self) -> float:
        """Seconds of all collectives, one after the other."""
        return self.ici_s + self.dcn_s

    @property
    def estimated_s(self) -> float | None:
        """Seconds a step: arithmetic and collectives one after the other; None if it doesn't fit.

        XLA overlaps some of the collectives, so their sum is an upper estimate.
        """
        return self.compute_s + self.link_s if self.cost else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs of the estimated time over the peak of all chips."""
        seconds = self.estimated_s
        return self.model_flops / (seconds * self.chips * self.chip.peak) if seconds else None


def compile_step(config: TrainConfig, topology: str) -> Compiled:
    """Lower and compile the training step of a segmentation experiment.

    Args:
        config: the experiment; its mesh and its batch size are those of all chips.
        topology: such as ``v5e:4x4``: a chip of `CHIPS` and the shape of a slice, of which there
            are ``config.mesh.slices``.

    Raises:
        SammiError: it is no segmentation experiment, libtpu is missing, the topology is unknown, or
            the chips do not divide into the mesh or the batch over them.
    """
    if not isinstance(config.task, SegmentConfig):
        raise SammiError("only segmentation experiments can be compiled for a pod")
    slices = config.mesh.slices
    bundles = Bundles()
    devices = describe_topology(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    step, state, batch = abstract_step(config, config.task, mesh)
    plain = replace(config.task, remat="none")
    flops = count_flops(*abstract_step(config, plain, mesh))
    part_flops = count_flops_by_part(step, state, batch, scopes=PARTS)
    chip = CHIPS[topology.partition(":")[0]]
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
        memory, cost = _compile(lowered, chip, bundles)
    return Compiled(
        topology,
        slices,
        len(devices),
        (mesh.shape[AXES[0]], mesh.shape[AXES[1]]),
        config.batch_size,
        _count(state.trainable),
        _count(state.frozen),
        _chip_bytes(state.opt_state),
        memory,
        flops,
        part_flops,
        cost,
        time.perf_counter() - began,
    )


def _compile(lowered: Any, chip: Chip, bundles: Bundles) -> tuple[int, Cost | None]:
    """Bytes a chip, and the cost; None for the cost where the bytes do not fit."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
        if not needed:
            raise
        return int(float(needed[1]) * 1024 ** (1 + "KMGT".index(needed[2]))), None
    memory = cast(Any, compiled.memory_analysis())  # every TPU compiler has one
    needed = (
        memory.argument_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    per_cycle = chip.bandwidth / chip.clock
    return needed, program_cost(compiled.as_text() or "", PARTS, bundles.cycles, per_cycle)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _chip_bytes(tree: Any) -> int:
    """Bytes that one chip holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe_topology(name: str, slices: int = 1) -> list[Any]:
    """The devices of one or several equal slices of TPUs, which need not exist.

    Raises:
        SammiError: libtpu is not installed, or does not know this topology.
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise SammiError(
            f"{name}: not a topology; write CHIP:SHAPE, such as v5e:4x4, with a chip of "
            f"{', '.join(CHIPS)}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks Google Cloud where it runs
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken, so none is locked
    options: dict[str, Any] = {} if chip == "v5p" else {"chips_per_host_bounds": (2, 2, 1)}
    if slices > 1:
        options["num_slices"] = slices
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except Exception as error:  # its type differs between versions of libtpu
        raise SammiError(
            f"{name}: cannot be described ({str(error).splitlines()[0]}); install libtpu "
            "(pip install 'sammi_jax[tpu]') and give a shape that this chip has"
        ) from error


def abstract_step(config: TrainConfig, task: SegmentConfig, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The step, and shapes with shardings of its state and its batch."""
    num_classes, ignore_label = _vocabulary(config)
    rules = SegmentRules(task, ignore_label, photographs=is_random(config.data))
    scales = {path: rules.lr_scale(path) for path in trainable_paths(rules)}
    optimizer = make_optimizer(config.optim, config.steps, scales)
    params = jax.eval_shape(
        lambda params: held_params(rules, params, config.compute_dtype),
        abstract_params(lambda: rules.make(Keys(0))),
    )
    step = make_train_step(make_loss(rules, config.compute_dtype), optimizer, config)
    state = abstract_state(params, scales, optimizer, mesh)
    return step, state, _abstract_batch(config, task, num_classes, mesh)


def _vocabulary(config: TrainConfig) -> tuple[int, int]:
    """How many classes the training set has, and its ignore label."""
    name = config.data.name.partition("/")[0]
    if name == OPENSHAPES:
        return len(get_view(config.data.view).only_seen().class_names), IGNORE_LABEL
    vocabulary = get_vocabulary(name)
    return len(vocabulary.texts), vocabulary.ignore_index


def _abstract_batch(
    config: TrainConfig, task: SegmentConfig, num_classes: int, mesh: Mesh
) -> Batch:
    model, size = task.model, task.model.crop_size
    # A run cuts its prompts to the longest one (`text.tokenizer.class_tokens`), which is not known
    # here: the texts' part of the step is an upper bound.
    tokens = (num_classes, len(model.templates), model.clip.text.context_length)
    images = ((config.batch_size, size, size, 3), jnp.uint8)
    labels = ((config.batch_size, size, size), jnp.int32)
    array = lambda spec, sharding: jax.ShapeDtypeStruct(*spec, sharding=sharding)  # noqa: E731
    split = batch_sharding(mesh)
    examples = {"images": array(images, split), "labels": array(labels, split)}
    if task.sam_cache is not None and model.masks is not None:
        sam = model.masks.sam
        rows = (config.batch_size, sam.grid_size, sam.grid_size, sam.out_channels)
        examples[EMBEDDINGS] = array((rows, jnp.float16), split)
    return Batch(
        examples,
        {"token_ids": array((tokens, jnp.int32), replicated(mesh))},
    )
