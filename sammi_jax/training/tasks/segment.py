"""CAT-Seg and SAM-MI learn from label maps of the seen classes.

Rules of training: CAT-Seg's (docs/catseg.md part e). CLIP's query and value kernels train at a
hundredth of the learning rate, all else of CLIP and SAM is frozen, everything new trains.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.data import openshapes
from sammi_jax.data.catalogue import fingerprint
from sammi_jax.data.input.embeddings import EMBEDDINGS, WithEmbeddings
from sammi_jax.data.input.pipeline import batch_stream, threads_for
from sammi_jax.errors import SammiError
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.models.sammi import Sammi
from sammi_jax.models.smoothing import smooth_logits
from sammi_jax.models.tspp import tspp_loss
from sammi_jax.object_store import AnyPath
from sammi_jax.ops.class_sampling import relabel, sample_classes
from sammi_jax.ops.color import jitter_colors
from sammi_jax.ops.mask_noise import add_noise
from sammi_jax.parallel.batch import Batch
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.training.forward import forward_crops
from sammi_jax.training.losses import segmentation_loss
from sammi_jax.training.task import Rules
from sammi_jax.training.tasks.segment_data import check_weights, is_random, open_cache, training_set
from sammi_jax.training.tasks.stream import StreamTask, this_share
from sammi_jax.typing import Int, NpArray
from sammi_jax.weights.bundled import find_model
from sammi_jax.weights.model_folder import read_model, write_model
from sammi_jax.weights.provenance import read_origins, trained

_CLIP_TRAINS = ("query/kernel", "value/kernel")


class SegmentRules(Rules[Sammi]):
    """Model, trainable part and loss: what a step is made of, without data or files.

    Args:
        task: the model and what is asked of it.
        ignore_label: label of pixels without a class.
        photographs: whether colors are jittered.

    Raises:
        SammiError: mask noise for a model without masks, or no class a step.
    """

    def __init__(self, task: SegmentConfig, ignore_label: int, photographs: bool):
        if task.mask_noise is not None and task.model.masks is None:
            raise SammiError("task.mask_noise: this model has no SAM masks (task.model.masks)")
        if task.num_classes is not None and task.num_classes < 1:
            raise SammiError(
                f"task.num_classes={task.num_classes}: give at least 1, or None for all"
            )
        self._task, self._ignore_label, self._photographs = task, ignore_label, photographs

    def make(self, rngs: nnx.Rngs) -> Sammi:
        """A fresh segmenter."""
        return Sammi(self._task.model, rngs=rngs)

    def is_trainable(self, path: str) -> bool:
        """Of CLIP the query and value kernels, nothing of SAM, all the rest."""
        if path.startswith("clip/"):
            return path.endswith(_CLIP_TRAINS)
        return not path.startswith("sam/")

    def lr_scale(self, path: str) -> float:
        """CLIP's kernels learn slower, the injection's faster."""
        scales = {"clip": self._task.clip_lr_scale, "dmi": self._task.dmi_lr_scale}
        return scales.get(path.partition("/")[0], 1.0)

    def without_remat(self) -> Rules[Sammi]:
        """The same model and loss, keeping inner values."""
        return SegmentRules(
            replace(self._task, remat="none"), self._ignore_label, self._photographs
        )

    def loss(
        self, model: Sammi, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """CAT-Seg's cross-entropy, and for SAM-MI the prompter's auxiliary loss."""
        examples, masks = batch.examples, self._task.model.masks
        color_key, noise_key, class_key = jax.random.split(key, 3)
        token_ids, labels = self._sample(batch, class_key)
        class_mask = jnp.ones(token_ids.shape[0], bool)
        pooling = self._task.model.aggregator.pooling_size
        images = examples["images"].astype(jnp.float32)
        if self._photographs:
            images = jitter_colors(images, color_key)
        noise, perturb = self._task.mask_noise, None
        if noise is not None:
            perturb = partial(add_noise, key=noise_key, **asdict(noise))
        output = forward_crops(
            model,
            images,
            token_ids,
            class_mask,
            pooling,
            remat=self._task.remat,
            perturb=perturb,
            sam_embeddings=examples.get(EMBEDDINGS),
        )
        logits = output.logits[:, 0]
        if output.regions is not None:
            logits = smooth_logits(logits, output.regions)
        loss = segmentation_loss(
            logits,
            labels,
            class_mask,
            self._ignore_label,
            self._task.ignored_as_negative,
        )
        metrics = {"segmentation_loss": loss}
        if output.proposals is not None:
            count = lambda valid: valid.sum(axis=-1).astype(jnp.float32).mean()  # noqa: E731
            metrics["points"] = count(output.proposals.point_valid)
            metrics["masks"] = count(output.proposals.valid)
        if masks is not None and masks.tspp is not None and output.tspp_logits is not None:
            logits = output.tspp_logits[:, 0]
            metrics["tspp_loss"] = tspp_loss(logits, labels, class_mask, self._ignore_label)
            loss = loss + masks.tspp.loss_weight * metrics["tspp_loss"]
        return loss, metrics

    def _sample(
        self, batch: Batch, key: jax.Array
    ) -> tuple[Int[jax.Array, "t p l"], Int[jax.Array, "b h w"]]:
        """Tokens of the classes that the step asks for, and labels among these."""
        token_ids = jnp.asarray(batch.shared["token_ids"])
        labels = jnp.asarray(batch.examples["labels"])
        total, wanted = token_ids.shape[0], self._task.num_classes
        if wanted is None or wanted >= total:
            return token_ids, labels
        classes = sample_classes(key, labels, total, wanted)
        return token_ids[classes], relabel(labels, classes, total, self._ignore_label)


class SegmentTask(SegmentRules, StreamTask[Sammi]):
    """A segmenter on label maps: OpenShapes' seen classes, or a prepared set."""

    def __init__(self, config: TrainConfig, task: SegmentConfig):
        dataset, transforms = training_set(config, task)
        SegmentRules.__init__(self, task, dataset.ignore_label, is_random(config.data))
        self._config, self._dataset, self._cache = config, dataset, None
        self._origins = read_origins(task)
        source = dataset.source
        if task.sam_cache is not None:
            self._cache = open_cache(config, task, task.sam_cache)
            source = WithEmbeddings(source, self._cache)
        stream = batch_stream(source, transforms, **this_share(config))
        threads = threads_for(dataset.source)
        StreamTask.__init__(self, stream, config.data.workers, threads)
        self._tokenizer = self._find_tokenizer()
        length = task.model.clip.text.context_length
        self._token_ids = class_tokens(
            self._tokenizer, dataset.class_names, task.model.templates, length
        )

    def _find_tokenizer(self) -> Tokenizer:
        """That of the model folder which the text tower comes from."""
        folder = self._task.segmenter or self._task.clip
        if folder is None:
            return Tokenizer(openshapes.build_tokenizer())
        return Tokenizer.from_folder(find_model(folder))

    def initial_params(self, seed: int) -> dict[str, Any]:
        """Fresh, then overlaid with the model folders that the configuration names."""
        params = super().initial_params(seed)
        if self._task.clip is not None:
            folder = read_model(self._task.clip, ["clip"])
            _overlay(params, folder.params, "clip/", self._task.clip)
        if self._task.segmenter is not None:
            folder = read_model(self._task.segmenter, ["catseg", "sammi"])
            _overlay(params, folder.params, "", self._task.segmenter)
        if self._task.sam is not None:
            folder = read_model(self._task.sam, ["sam"])
            _overlay(params, folder.params, "sam/", self._task.sam)
        if self._cache is not None:
            check_weights(self._cache, params)
        return params

    def data_fingerprint(self) -> str:
        """Of the labeled set."""
        return fingerprint(self._dataset)

    def to_batch(self, arrays: dict[str, NpArray]) -> Batch:
        """Images, labels, and the tokens of all classes."""
        examples = {"images": arrays["image"], "labels": arrays["label"].astype(np.int32)}
        if self._cache is not None:
            examples[EMBEDDINGS] = arrays[EMBEDDINGS]
        return Batch(examples, {"token_ids": self._token_ids})

    def predictor(self, params: Mapping[str, Any]) -> Segmenter:
        """The segmenter."""
        how = self._config.eval
        model = self._task.model
        return Segmenter(
            model, params, lambda: self._tokenizer, how.compute_dtype, how.keep_classes
        )

    def export(self, params: dict[str, Any], folder: AnyPath, step: int) -> None:
        """A catseg or sammi model folder with the tokenizer."""
        kind = "catseg" if self._task.model.masks is None else "sammi"
        origin = trained(self._config, kind, self._origins, step)
        write_model(
            folder,
            kind,
            self._task.model,
            params,
            source=origin.source,
            licence=origin.license,
            tokenizer=self._tokenizer,
        )


def _overlay(params: dict[str, Any], source: dict[str, Any], prefix: str, folder: str) -> None:
    """Put a model folder's parameters in the place of fresh ones."""
    for name, value in source.items():
        path = prefix + name
        if path not in params or params[path].shape != value.shape:
            found = f"of shape {params[path].shape}" if path in params else "no such parameter"
            raise SammiError(
                f"{folder}: its {name} {value.shape} does not fit the configured model "
                f"({path}: {found})"
            )
        params[path] = value
