"""A tiny SAM learns the three masks of a point: the whole object, its part, its subpart.

SAM itself learns from one annotated mask for each prompt, with the loss of the best of its three
outputs (arXiv 2304.02643, section 3). In OpenShapes all three masks are known, so each output has a
target of its own. The loss is SAM's (appendix A): focal : dice = 20 : 1, and the IoU head's squared
error.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx

from sammi_jax.config.experiment import PromptConfig, TrainConfig
from sammi_jax.data import openshapes
from sammi_jax.data.input.pipeline import drawn_stream
from sammi_jax.models.sam.sam import Sam
from sammi_jax.object_store import AnyPath
from sammi_jax.ops.sam_image import preprocess
from sammi_jax.parallel.batch import Batch
from sammi_jax.training.tasks.stream import StreamTask, this_share
from sammi_jax.typing import Array, Float, Int, NpArray
from sammi_jax.weights.model_folder import write_model
from sammi_jax.weights.provenance import trained

FOCAL_GAMMA = 2.0


def focal_loss(logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]) -> Array:
    """Focal cross-entropy (arXiv 1708.02002, gamma 2, no class weight): mean over pixels."""
    entropy = jax.nn.softplus(logits) - logits * target
    distance = jnp.abs(target - jax.nn.sigmoid(logits))
    return (distance**FOCAL_GAMMA * entropy).mean(axis=(-2, -1))


def dice_loss(logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]) -> Array:
    """``1 - 2 |p t| / (|p| + |t|)`` of every mask, with one pixel added to both."""
    p = jax.nn.sigmoid(logits)
    overlap = (p * target).sum(axis=(-2, -1))
    total = p.sum(axis=(-2, -1)) + target.sum(axis=(-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def mask_iou(logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]) -> Array:
    """Intersection over union of the binary masks; an empty union counts as 0."""
    found, wanted = logits > 0.0, target >= 0.5
    both = (found & wanted).sum(axis=(-2, -1))
    either = (found | wanted).sum(axis=(-2, -1))
    return both / jnp.maximum(either, 1)


class PromptTask(StreamTask[Sam]):
    """A SAM on OpenShapes scenes and point prompts."""

    def __init__(self, config: TrainConfig, task: PromptConfig):
        self._config, self._task = config, task
        stream = drawn_stream(self.draw, openshapes.NUM_EXAMPLES["train"], **this_share(config))
        super().__init__(stream, config.data.workers)

    def make(self, rngs: nnx.Rngs) -> Sam:
        """A fresh SAM."""
        return Sam(self._task.model, rngs=rngs)

    def draw(self, indices: Int[NpArray, " b"]) -> dict[str, NpArray]:
        """Scenes, points (x, y) in pixels, and targets: how much of each cell a mask covers."""
        seed, task = self._config.seed, self._task
        side = task.model.image_size
        scenes = [openshapes.scene("train", int(i), seed=seed, size=side) for i in indices]
        prompts = [
            openshapes.point_targets(scene, task.points_per_image, index=int(i), seed=seed)
            for scene, i in zip(scenes, indices, strict=True)
        ]
        cell = side // task.model.mask_size
        targets = np.stack([masks for _, masks in prompts]).astype(np.float32)
        return {
            "images": np.stack([scene.image for scene in scenes]),
            "points": np.stack([points for points, _ in prompts]).astype(np.float32),
            "targets": reduce(targets, "b k m (h i) (w j) -> b k m h w", "mean", i=cell, j=cell),
        }

    def loss(
        self, model: Sam, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal, dice and IoU regression: mean over points, weighted mean of the outputs."""
        del key
        examples, task = batch.examples, self._task
        images = preprocess(examples["images"].astype(jnp.float32), task.model.image_size)
        points = examples["points"]  # pixel indices: the prompt encoder adds the half to the center
        labels = jnp.ones(points.shape[:2], jnp.int32)
        logits, estimate = model.decode(model.encode_image(images), points, labels)
        target = examples["targets"]
        iou = jax.lax.stop_gradient(mask_iou(logits, target))
        shares = jnp.asarray(task.output_weights) / sum(task.output_weights)
        focal = (focal_loss(logits, target) @ shares).mean()
        dice = (dice_loss(logits, target) @ shares).mean()
        regression = (jnp.square(estimate - iou) @ shares).mean()
        loss = task.focal_weight * focal + dice + regression
        whole, part, subpart = iou.mean(axis=(0, 1))
        metrics = {"focal": focal, "dice": dice, "iou_error": regression}
        return loss, metrics | {"iou_whole": whole, "iou_part": part, "iou_subpart": subpart}

    def export(self, params: dict[str, Any], folder: AnyPath, step: int) -> None:
        """A sam model folder."""
        origin = trained(self._config, "sam", {}, step)
        write_model(
            folder,
            "sam",
            self._task.model,
            params,
            source=origin.source,
            licence=origin.license,
        )
