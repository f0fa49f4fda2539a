"""Image-text alignment, also for single patches: how the demo's tiny CLIP is trained.

The dense features of a tiny CLIP that learns from its class token alone are useless
(docs/openshapes.md). The pooled dense loss scores an image and a text by a soft maximum over
patches, so that some patch of the image must match every caption.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from sammi_jax.config.experiment import CaptionConfig, TrainConfig
from sammi_jax.data import openshapes
from sammi_jax.data.input.pipeline import drawn_stream
from sammi_jax.models.clip import Clip
from sammi_jax.object_store import AnyPath
from sammi_jax.ops.clip_image import clip_normalize
from sammi_jax.parallel.batch import Batch
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.training.tasks.stream import StreamTask, this_share
from sammi_jax.typing import Array, Bool, Float, Int, NpArray
from sammi_jax.weights.model_folder import write_model
from sammi_jax.weights.provenance import trained

MAX_LOGIT_SCALE = float(np.log(100.0))  # CLIP's own bound (arXiv 2103.00020, section 2.5)
IMAGE_WEIGHT = 0.4  # of the usual loss on the class token
DENSE_WEIGHT = 0.5  # of the pooled dense loss
DENSE_SCALE = 12.0  # inverse temperature of a patch's cosine in the pooled score


def contrastive_loss(
    scores: Float[Array, "b n"], own: Bool[Array, "b n"], true: Bool[Array, "b n"]
) -> Float[Array, ""]:
    """InfoNCE both ways; an image may have several captions, and true pairs are never negatives.

    Args:
        scores: of every image with every text, scaled.
        own: the text is this image's caption: a positive.
        true: the text is true of the image, as all its captions are: not a negative.
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
    """Class-token and dense features (unit length), which differ in the last block only.

    The dense mode adds the class token to every patch (docs/catseg.md part a). Here it is the class
    token of another image: with that of its own image, each patch would know the whole image, and
    the loss would not teach where things are.
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


class CaptionTask(StreamTask[Clip]):
    """A CLIP on OpenShapes captions (single-object images, object and ground captioned)."""

    def __init__(self, config: TrainConfig, task: CaptionConfig):
        self._config, self._model_config = config, task.model
        self._tokenizer = Tokenizer(openshapes.build_tokenizer())
        self._token_ids: dict[str, NpArray] = {}  # of the captions so far, which are few
        stream = drawn_stream(self.draw, openshapes.NUM_EXAMPLES["train"], **this_share(config))
        super().__init__(stream, config.data.workers)

    def make(self, rngs: nnx.Rngs) -> Clip:
        """A fresh CLIP."""
        return Clip(self._model_config, rngs=rngs)

    def draw(self, indices: Int[NpArray, " b"]) -> dict[str, NpArray]:
        """Images, and of their two captions each the token ids and the attributes.

        ``named`` are the attributes that a caption names, ``attributes`` all the true ones
        (`sammi_jax.data.openshapes.captions`).
        """
        config = self._config
        drawn = openshapes.caption_batch(indices, seed=config.seed, regime=config.data.regime)
        token_ids = np.stack([self._tokenize(text) for text in drawn.captions])
        return {
            "images": drawn.image,
            "token_ids": rearrange(token_ids, "(b r) l -> b r l", r=2),
            "named": drawn.named,
            "attributes": drawn.attributes,
        }

    def _tokenize(self, text: str) -> Int[NpArray, " l"]:
        if text not in self._token_ids:
            length = self._model_config.text.context_length
            self._token_ids[text] = self._tokenizer([text], length)[0]
        return self._token_ids[text]

    def loss(
        self, model: Clip, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The class token's contrastive loss and the pooled dense one, weighted."""
        del key
        examples = batch.examples
        images = clip_normalize(examples["images"].astype(jnp.float32))
        texts = unit(model.encode_text(rearrange(examples["token_ids"], "b r l -> (b r) l")))
        named = rearrange(examples["named"], "b r a -> (b r) a")
        true = jnp.asarray(openshapes.captions_true_of(examples["attributes"], named))
        own = jnp.repeat(jnp.eye(images.shape[0], dtype=bool), 2, axis=1)
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], MAX_LOGIT_SCALE))
        image, dense = both_features(model, images)
        image_loss = contrastive_loss(scale * image @ texts.T, own, true)
        pooled = pooled_scores(dense, texts, DENSE_SCALE)
        dense_loss = contrastive_loss(scale * pooled, own, true)
        loss = IMAGE_WEIGHT * image_loss + DENSE_WEIGHT * dense_loss
        return loss, {"image_loss": image_loss, "dense_loss": dense_loss, "logit_scale": scale}

    def export(self, params: dict[str, Any], folder: AnyPath, step: int) -> None:
        """A clip model folder with the tokenizer."""
        origin = trained(self._config, "clip", {}, step)
        write_model(
            folder,
            "clip",
            self._model_config,
            params,
            source=origin.source,
            licence=origin.license,
            tokenizer=self._tokenizer,
        )
