"""CLIP and SAM alone, loaded from model folders."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from sammi_jax.config.model import ClipConfig, SamConfig
from sammi_jax.typing import Array, Float, Integer, NpArray
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import load_tokenizer, read_model
from sammi_jax.weights.params import build


class _Compiled:
    """A module whose methods run under `jax.jit`."""

    def __init__(self, module: nnx.Module):
        self._graphdef, state = nnx.split(module)
        self._state = jax.device_put(state)
        self._jitted = jax.jit(self._call, static_argnums=(0,), static_argnames=("multimask",))

    def _call(self, method: str, state: nnx.State, *args, **kwargs):
        return getattr(nnx.merge(self._graphdef, state), method)(*args, **kwargs)

    def __call__(self, method: str, *args, **kwargs):
        return self._jitted(method, self._state, *args, **kwargs)


class ClipModel:
    """CLIP's towers, compiled, with the tokenizer of the model folder."""

    def __init__(self, folder: str | Path):
        self._folder = folder
        self._model = read_model(folder, ["clip"])
        self.config: ClipConfig = self._model.config
        self._run = _Compiled(build(model_maker(self.config), self._model.params))

    def encode_image(self, images: Float[Array | NpArray, "b s s 3"]) -> Float[Array, "b d"]:
        """Embeddings, not normalized, of CLIP-normalized images."""
        return self._run("encode_image", jnp.asarray(images))

    def encode_dense(
        self, images: Float[Array | NpArray, "b s s 3"]
    ) -> tuple[Float[Array, "b h w d"], tuple[Array, Array]]:
        """Dense features in the joint space, and the two middle layers that CAT-Seg uses."""
        return self._run("encode_dense", jnp.asarray(images))

    def encode_text(self, token_ids: Integer[Array | NpArray, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, not normalized."""
        return self._run("encode_text", jnp.asarray(token_ids))

    def tokenize(self, texts: Sequence[str]) -> NpArray:
        """Token ids, int32 ``[n, context_length]``, zero padded.

        Raises:
            SammiError: the folder holds no tokenizer.
        """
        length = self.config.text.context_length
        return load_tokenizer(self._folder, self._model)(list(texts), length)


class SamModel:
    """Segment Anything, compiled. Coordinates are pixels of the padded input."""

    def __init__(self, folder: str | Path):
        model = read_model(folder, ["sam"])
        self.config: SamConfig = model.config
        self._run = _Compiled(build(model_maker(self.config), model.params))

    def encode_image(self, images: Float[Array | NpArray, "b s s 3"]) -> Float[Array, "b g g c"]:
        """Image embeddings of SAM-normalized, padded images."""
        return self._run("encode_image", jnp.asarray(images))

    def decode(
        self,
        embeddings: Float[Array | NpArray, "b g g c"],
        points: Float[Array | NpArray, "b k 2"],
        labels: Integer[Array | NpArray, "b k"],
        *,
        multimask: bool = True,
    ) -> tuple[Float[Array, "b k m h w"], Float[Array, "b k m"]]:
        """Mask logits and predicted IoU, one prompt for each point (x, y).

        Labels: 1 object, 0 background, -1 padding. ``m`` is 3, or 1 with ``multimask=False``.
        """
        return self._run(
            "decode",
            embeddings,
            jnp.asarray(points, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            multimask=multimask,
        )


def load_clip(folder: str | Path) -> ClipModel:
    """Load a CLIP model folder. Raises `SammiError` as `load` does."""
    return ClipModel(folder)


def load_sam(folder: str | Path) -> SamModel:
    """Load a SAM model folder. Raises `SammiError` as `load` does."""
    return SamModel(folder)
