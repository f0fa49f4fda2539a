"""SAM's embeddings of a whole training set, computed once (`sammi_jax.data.input.embeddings`)."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.model import SamConfig
from sammi_jax.data.input.embeddings import CacheInfo, CacheWriter, writing_cache
from sammi_jax.data.input.pipeline import in_order, iterate, threads_for
from sammi_jax.errors import SammiError
from sammi_jax.files import check_destination
from sammi_jax.layers.init import Keys
from sammi_jax.models.sam.image_encoder import ImageEncoder
from sammi_jax.object_store import PathLike
from sammi_jax.ops.sam_image import sam_crops
from sammi_jax.parallel.batch import check_batch_size
from sammi_jax.parallel.mesh import batch_sharding, fsdp_sharding, make_mesh
from sammi_jax.training.tasks.segment import SegmentTask
from sammi_jax.training.tasks.segment_data import ENCODER, describe_embeddings, training_set
from sammi_jax.typing import Float, NpArray, UInt8
from sammi_jax.weights.params import build

SAVE_EVERY = 50  # batches; those since the last save are lost when the command is interrupted

Encode = Callable[[UInt8[NpArray, "b s s 3"]], Float[NpArray, "b g g c"]]


def make_cache(
    config: TrainConfig, out: PathLike, dtype: Literal["float16", "float32"] = "float16"
) -> CacheInfo:
    """Encode every example of the training set; resumes where it was interrupted.

    Args:
        config: the experiment that will train; batches are of its size.
        out: the folder to make.
        dtype: of the rows.

    Raises:
        SammiError: the experiment cannot use a cache, or ``out`` exists.
    """
    if not isinstance(config.task, SegmentConfig):
        raise SammiError("only segmentation experiments use SAM's embeddings")
    task = replace(config.task, sam_cache=None)
    # These raise errors before weights are read.
    check_destination(out)
    describe_embeddings(config, task)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    params = SegmentTask(replace(config, task=task), task).initial_params(config.seed)
    info = replace(describe_embeddings(config, task, params), dtype=dtype)
    encoder = {
        path.removeprefix(ENCODER): value
        for path, value in params.items()
        if path.startswith(ENCODER)
    }
    with writing_cache(out, info) as writer:
        encode = make_encoder(info.sam, encoder, config.compute_dtype, mesh)
        _write_all(config, task, writer, encode, info.num_examples)
    return info


def make_encoder(sam: SamConfig, params: dict[str, Any], dtype: str, mesh: Mesh) -> Encode:
    """SAM's encoder of square crops (RGB 0..255), compiled for the mesh.

    Args:
        sam: the model's configuration.
        params: of the encoder, by path.
        dtype: what its products compute in.
        mesh: the devices over which batches are split.
    """

    def encode(params: dict[str, Any], images: jax.Array) -> jax.Array:
        encoder = build(lambda: ImageEncoder(sam, rngs=Keys(0)), params, dtype)
        return encoder(sam_crops(images.astype(jnp.float32), sam.image_size))

    split = batch_sharding(mesh)
    placed = jax.device_put(params, fsdp_sharding(params, mesh))
    compiled = jax.jit(encode, out_shardings=split)
    return lambda images: np.asarray(compiled(placed, jax.device_put(images, split)))


def _write_all(
    config: TrainConfig, task: SegmentConfig, writer: CacheWriter, encode: Encode, total: int
) -> None:
    dataset, transforms = training_set(config, task)
    size = config.batch_size
    batches = in_order(dataset.source, transforms, size)
    start = writer.done // size
    if start == len(batches):
        return
    threads = threads_for(dataset.source)
    with (
        closing(iterate(batches, start, config.data.workers, threads)) as made,
        tqdm(total=total, initial=start * size, unit="image", disable=None) as bar,
    ):
        for number, batch in enumerate(made, start):
            images = batch["image"]
            # The last batch is filled up, so that one program serves for all.
            rows = encode(np.resize(images, (size, *images.shape[1:])))[: len(images)]
            writer.write(rows, number * size)
            if (number + 1) % SAVE_EVERY == 0 or number + 1 == len(batches):
                writer.save(number * size + len(images))
            bar.update(len(images))
