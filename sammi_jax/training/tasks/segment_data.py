"""What a segmenter trains on: the labeled set, and where they are cached SAM's embeddings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sammi_jax.config.experiment import OPENSHAPES, DataConfig, SegmentConfig, TrainConfig
from sammi_jax.data import openshapes
from sammi_jax.data.catalogue import Dataset, open_dataset
from sammi_jax.data.input.augment import TrainCrop, WholeImage
from sammi_jax.data.input.embeddings import FORMAT, CacheInfo, SamCache, check_same, pixels_digest
from sammi_jax.data.input.pipeline import in_order
from sammi_jax.errors import SammiError
from sammi_jax.training.checkpoint import digest

ENCODER = "sam/image_encoder/"  # of the paths of its parameters
_MEND = "make one for this one: sammi cache --config FILE --out DIR"


def is_random(data: DataConfig) -> bool:
    """Whether an example looks different from epoch to epoch: crop, mirror, colors."""
    return data.name != OPENSHAPES and data.augment == "random"


def training_set(config: TrainConfig, task: SegmentConfig) -> tuple[Dataset, list[Any]]:
    """The labeled set, and what is done to its examples: nothing to scenes that are drawn."""
    data, size = config.data, task.model.crop_size
    if data.num_examples is not None and data.num_examples < 1:
        raise SammiError(f"data.num_examples={data.num_examples}: train on one example at least")
    if data.name == OPENSHAPES:
        view = openshapes.get_view(data.view).only_seen()
        source = openshapes.OpenShapes(
            "train", view, seed=config.seed, size=size, num_examples=data.num_examples
        )
        merge = tuple(range(len(view.class_names)))
        return Dataset(data.name, source, view.class_names, merge, openshapes.IGNORE_LABEL), []
    folder = None if data.data_dir is None else Path(data.data_dir)
    dataset = open_dataset(data.name, data.num_examples, data_dir=folder)
    if dataset.merge != tuple(range(len(dataset.class_names))):
        raise SammiError(f"{data.name}: several texts share a class, so it is for evaluation only")
    crop = TrainCrop(size, dataset.ignore_label) if is_random(data) else WholeImage(size)
    return dataset, [crop]


def describe_embeddings(
    config: TrainConfig, task: SegmentConfig, params: Mapping[str, Any] | None = None
) -> CacheInfo:
    """Whose embeddings training needs; without ``params`` the SAM's weights are left open.

    Raises:
        SammiError: the model has no SAM, or the embeddings would not be the same in every epoch.
    """
    if task.model.masks is None:
        raise SammiError("this model has no SAM (task.model.masks), so it has nothing to cache")
    if is_random(config.data):
        raise SammiError(
            f"{config.data.name} is trained with random crops and colors, so SAM's embeddings "
            "differ from epoch to epoch; set data.augment=none to train on whole pictures"
        )
    dataset, transforms = training_set(config, task)
    pictures = in_order(dataset.source, transforms, batch_size=1)
    picture = lambda index: cast(dict[str, Any], pictures[index])["image"][0]  # noqa: E731
    drawn = config.data.name == OPENSHAPES
    return CacheInfo(
        format=FORMAT,
        sam=task.model.masks.sam,
        compute_dtype=config.compute_dtype,
        data=f"{OPENSHAPES}/train of seed {config.seed}" if drawn else config.data.name,
        preprocessing="none" if drawn else "whole picture squashed to a square (Pillow, bilinear)",
        image_size=task.model.crop_size,
        num_examples=len(dataset.source),
        sam_sha256="" if params is None else encoder_digest(params),
        pixels_sha256=pixels_digest(picture, len(dataset.source)),
        dtype="float16",
    )


def encoder_digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of the parameters of SAM's image encoder, among a model's."""
    return digest({path: value for path, value in params.items() if path.startswith(ENCODER)})


def open_cache(config: TrainConfig, task: SegmentConfig, folder: str) -> SamCache:
    """The cache that the task names, for these pictures and this architecture.

    Raises:
        SammiError: it is another's, damaged or not there.
    """
    wanted = describe_embeddings(config, task)
    cache = SamCache(folder)
    check_same(cache.folder, cache.info, replace(wanted, sam_sha256=cache.info.sam_sha256), _MEND)
    return cache


def check_weights(cache: SamCache, params: Mapping[str, Any]) -> None:
    """Refuse a cache of other weights than the model's.

    Raises:
        SammiError: they are others.
    """
    wanted = replace(cache.info, sam_sha256=encoder_digest(params))
    check_same(cache.folder, cache.info, wanted, _MEND)
