"""Image-text alignment that also holds patch by patch: how the tiny CLIP of the demo is trained.

A CLIP that learns from its class token alone has useless dense features when it is tiny
(docs/openshapes.md). The pooled dense loss scores an image and a text by a soft maximum over
patches, so that every caption must be found somewhere in the image.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from sammi_jax.config.experiment import CaptionConfig, TrainConfig
from sammi_jax.config.model import ClipConfig
from sammi_jax.data import openshapes
from sammi_jax.data.input.loader import batch_indices
from sammi_jax.models.clip import Clip
from sammi_jax.ops.clip_image import clip_normalize
from sammi_jax.parallel.batch import Batch, local_share
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.training.task import Task
from sammi_jax.typing import Array, Bool, Float
from sammi_jax.weights.model_folder import read_model, write_model

MAX_LOGIT_SCALE = float(np.log(100.0))  # CLIP's own bound (arXiv 2103.00020, section 2.5)


def contrastive_loss(
    scores: Float[Array, "b n"], own: Bool[Array, "b n"], true: Bool[Array, "b n"]
) -> Float[Array, ""]:
    """InfoNCE both ways; an image may own several texts, and true pairs are never negatives.

    Args:
        scores: of every image with every text, scaled.
        own: the text is this image's caption: a positive.
        true: the text is true of the image (all owned ones are): not a negative.
    """
    negatives = jnp.where(true, -jnp.inf, scores)
    losses = 0.0
    for axis in (1, 0):  # image -> text, text -> image
        others = jax.nn.logsumexp(negatives, axis=axis, keepdims=True)
        # -log(e^s / (e^s + sum of negatives)) for every positive
        losses += jnp.where(own, jax.nn.softplus(others - scores), 0.0).sum() / own.sum()
    return losses / 2


def both_features(
    model: Clip, images: Float[Array, "b s s 3"]
) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
    """Class-token and dense features (unit length) in one pass: the towers differ in one block.

    The dense mode adds the class token to every patch (docs/catseg.md part a). Here it is another
    image's: with its own, each patch would know the whole image, and nothing would be located.
    """
    tower = model.vision
    tokens, _ = tower.embed(images)
    tokens, _ = tower.transformer(tokens, num_layers=tower.config.num_layers - 1)
    last = tower.transformer.layer(-1)
    normed, image = last.norm1(tokens), tokens[:, :1]
    image = image + last.attention(normed[:, :1], normed, normed)
    image = image + last.mlp(last.norm2(image))
    others = jnp.concatenate([jnp.roll(tokens[:, :1], 1, axis=0), tokens[:, 1:]], axis=1)
    dense = last.value_only(others)[:, 1:]
    features = tower.projection(tower.norm_post(jnp.concatenate([image, dense], axis=1)))
    features = unit(features)
    return features[:, 0], features[:, 1:]


def unit(features: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Unit length along the last axis."""
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)


def pooled_scores(
    dense: Float[Array, "b n d"], texts: Float[Array, "t d"], scale: float
) -> Float[Array, "b t"]:
    """Soft maximum over patches of their cosines with each text: log-mean-exp at ``scale``."""
    cosine = jnp.einsum("bnd,td->bnt", dense, texts)
    return (jax.nn.logsumexp(scale * cosine, axis=1) - jnp.log(dense.shape[1])) / scale


class CaptionTask(Task[Clip]):
    """A CLIP on OpenShapes captions (single-object images, object and ground captioned)."""

    def __init__(self, config: TrainConfig, task: CaptionConfig):
        self._config, self._task = config, task
        self._tokenizer = Tokenizer(openshapes.build_tokenizer())
        self._tokens = lru_cache(maxsize=None)(self._tokenize)

    def _tokenize(self, text: str) -> np.ndarray:
        return self._tokenizer([text], self._model_config.text.context_length)[0]

    @property
    def _model_config(self) -> ClipConfig:
        return self._task.model

    def make(self, rngs: nnx.Rngs) -> Clip:
        """A fresh CLIP."""
        return Clip(self._model_config, rngs=rngs)

    def initial_params(self, seed: int) -> dict[str, Any]:
        """Fresh, or those of the folder ``task.init``."""
        if self._task.init is None:
            return super().initial_params(seed)
        return read_model(self._task.init, ["clip"]).params

    def batch(self, step: int) -> Batch:
        """Images, the token ids of their captions, and which captions are true of which image."""
        config = self._config
        indices = batch_indices(
            step, config.batch_size, openshapes.NUM_EXAMPLES["train"], config.seed
        )
        drawn = openshapes.caption_batch(indices, seed=config.seed, regime=config.data.regime)
        named = rearrange(drawn.named, "b r a -> (b r) a")
        true = openshapes.captions_true_of(drawn.attributes, named)
        ids = self._token_rows(drawn.captions)
        whole = Batch(
            {
                "images": drawn.image,
                "token_ids": rearrange(ids, "(b r) l -> b r l", r=2),
                "true": rearrange(true, "b (c r) -> b c r", r=2),
            }
        )
        return local_share(whole)

    def _token_rows(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._tokens(text) for text in texts])

    def loss(
        self, model: Clip, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The class token's contrastive loss and the pooled dense one, weighted."""
        del key
        examples, task = batch.examples, self._task
        images = clip_normalize(examples["images"].astype(jnp.float32))
        texts = unit(model.encode_text(rearrange(examples["token_ids"], "b r l -> (b r) l")))
        true = rearrange(examples["true"], "b c r -> b (c r)")
        own = jnp.repeat(jnp.eye(images.shape[0], dtype=bool), 2, axis=1)
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], MAX_LOGIT_SCALE))
        image, dense = both_features(model, images)
        image_loss = contrastive_loss(scale * image @ texts.T, own, true)
        pooled = pooled_scores(dense, texts, task.dense_scale)
        dense_loss = contrastive_loss(scale * pooled, own, true)
        loss = task.image_weight * image_loss + task.dense_weight * dense_loss
        return loss, {"image_loss": image_loss, "dense_loss": dense_loss, "logit_scale": scale}

    def export(self, params: dict[str, Any], folder: Path) -> None:
        """A clip model folder with the tokenizer."""
        source = {"trained_on": "openshapes", "steps": self._config.steps}
        write_model(
            folder,
            "clip",
            self._model_config,
            params,
            source=source,
            licence="Apache-2.0",
            tokenizer=self._tokenizer,
        )
