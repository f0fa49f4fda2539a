"""The data of a segmenter's training: the labeled set, and cached embeddings of SAM."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from sammi_jax.config.experiment import OPENSHAPES, DataConfig, SegmentConfig, TrainConfig
from sammi_jax.data import openshapes
from sammi_jax.data.catalogue import Dataset, open_dataset
from sammi_jax.data.input.augment import CheckLabel, TrainCrop, WholeImage
from sammi_jax.data.input.embeddings import FORMAT, CacheInfo, SamCache, check_same, pixels_digest
from sammi_jax.data.input.pipeline import in_order
from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path
from sammi_jax.training.checkpoint import digest

ENCODER = "sam/image_encoder/"  # of the paths of its parameters
_MEND = "make one for this experiment: sammi cache --config FILE --out DIR"


def is_random(data: DataConfig) -> bool:
    """Whether an example differs from epoch to epoch: crop, mirror, colors."""
    return data.name != OPENSHAPES and data.augment == "random"


def training_set(config: TrainConfig, task: SegmentConfig) -> tuple[Dataset, list[Any]]:
    """The labeled set, and the transforms of its examples (OpenShapes has none).

    Raises:
        SammiError: it cannot be opened, or not be trained on.
    """
    data, size = config.data, task.model.crop_size
    if data.num_examples is not None and data.num_examples < 1:
        raise SammiError(f"data.num_examples={data.num_examples}: give at least 1")
    if data.name == OPENSHAPES:
        view = openshapes.get_view(data.view).only_seen()
        source = openshapes.OpenShapes(
            "train", view, seed=config.seed, size=size, num_examples=data.num_examples
        )
        merge = tuple(range(len(view.class_names)))
        return Dataset(data.name, source, view.class_names, merge, openshapes.IGNORE_LABEL), []
    folder = None if data.data_dir is None else as_path(data.data_dir)
    dataset = open_dataset(data.name, data.num_examples, folder, record_by_record=True)
    if dataset.merge != tuple(range(len(dataset.class_names))):
        raise SammiError(
            f"{data.name}: several texts share a class, so it can only be evaluated on"
        )
    crop = TrainCrop(size, dataset.ignore_label) if is_random(data) else WholeImage(size)
    return dataset, [CheckLabel(data.name, dataset.num_classes, dataset.ignore_label), crop]


def describe_embeddings(
    config: TrainConfig, task: SegmentConfig, params: Mapping[str, Any] | None = None
) -> CacheInfo:
    """What the embeddings of this training belong to; without ``params`` the digest is left out.

    Raises:
        SammiError: the model has no SAM, or the embeddings would not be the same in every epoch.
    """
    if task.model.masks is None:
        raise SammiError("this model has no SAM (task.model.masks), so there is nothing to cache")
    if is_random(config.data):
        raise SammiError(
            f"{config.data.name} is trained with random crops and colors, so SAM's embeddings "
            "differ from epoch to epoch; set data.augment=none to train on whole images"
        )
    dataset, transforms = training_set(config, task)
    images = in_order(dataset.source, transforms, batch_size=1)
    image = lambda index: cast(dict[str, Any], images[index])["image"][0]  # noqa: E731
    drawn = config.data.name == OPENSHAPES
    return CacheInfo(
        format=FORMAT,
        sam=task.model.masks.sam,
        compute_dtype=config.compute_dtype,
        data=f"{OPENSHAPES}/train of seed {config.seed}" if drawn else config.data.name,
        preprocessing="none" if drawn else "whole image squashed to a square (Pillow, bilinear)",
        image_size=task.model.crop_size,
        num_examples=len(dataset.source),
        sam_sha256="" if params is None else encoder_digest(params),
        pixels_sha256=pixels_digest(image, len(dataset.source)),
        dtype="float16",
    )


def encoder_digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of the parameters of SAM's image encoder, among a model's."""
    return digest({path: value for path, value in params.items() if path.startswith(ENCODER)})


def open_cache(config: TrainConfig, task: SegmentConfig, folder: str) -> SamCache:
    """The cache in this folder.

    Raises:
        SammiError: it is missing, damaged, or of other images or another architecture.
    """
    wanted = describe_embeddings(config, task)
    cache = SamCache(folder)
    check_same(cache.folder, cache.info, replace(wanted, sam_sha256=cache.info.sam_sha256), _MEND)
    return cache


def check_weights(cache: SamCache, params: Mapping[str, Any]) -> None:
    """Check that a cache belongs to the model's weights.

    Raises:
        SammiError: it belongs to others.
    """
    wanted = replace(cache.info, sam_sha256=encoder_digest(params))
    check_same(cache.folder, cache.info, wanted, _MEND)
