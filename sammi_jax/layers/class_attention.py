"""Attention across classes at every location, guided by the class names' text features.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py
(``ClassTransformerLayer``, ``LinearAttention``, ``FullAttention``); docs/catseg.md part c.
CAT-Seg pads the class axis to 256 with copies of one learned token and one learned guidance vector,
which act as unmasked keys. There is no output projection, un-pooling uses ``align_corners=True``,
and the result, which holds its own residual, is added to the input once more.
Deviations: since all padding slots are equal, at every location and in every image, they enter as
one key and value counted ``num_padding`` times; slots of absent classes are left out and counted
as padding. Equal to the reference up to rounding, at the cost of the real classes only. On TPUs in
bfloat16 the layer is a kernel (`sammi_jax.kernels.class_attention`).
"""

from functools import partial
from typing import Literal, cast

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx

from sammi_jax.kernels.class_attention import (
    Shared,
    Weights,
    aggregate_classes,
    fits,
    head_blocks,
)
from sammi_jax.kernels.parts import ROWS, serves
from sammi_jax.layers.attention import MASKED, dot_product_attention
from sammi_jax.layers.basic import Mlp, layer_norm, linear
from sammi_jax.layers.guided import guided_linear
from sammi_jax.layers.pieces import in_pieces
from sammi_jax.ops.resize import resize
from sammi_jax.ops.sharding import by_device
from sammi_jax.typing import Array, Bool, Float, Int

MLP_RATIO = 4
EPS = 1e-6
LOCATION_ROWS = 1  # of the map whose cells attend at once on a CPU


def _linear_attention(query, key, value, class_mask, padding_key, padding_value, num_padding):
    """Attention with the feature map ``elu + 1``; its cost is linear in the classes.

    The reference divides the values by their number and multiplies the result by it (for float16);
    that cancels and is left out.
    """
    query, key, padding_key = (jax.nn.elu(a) + 1.0 for a in (query, key, padding_key))
    key = key * class_mask[:, :, None, None, None, None]
    count = num_padding.astype(key.dtype)
    padding_sum = jnp.einsum("b,nd,ne->bnde", count, padding_key, padding_value)
    key_value = jnp.einsum("bthwnd,bthwne->bhwnde", key, value) + padding_sum[:, None, None]
    key_sum = jnp.sum(key, axis=1) + jnp.einsum("b,nd->bnd", count, padding_key)[:, None, None]
    total = jnp.einsum("bthwnd,bhwnd->bthwn", query, key_sum)
    return jnp.einsum("bthwnd,bhwnde->bthwne", query, key_value) / (total + EPS)[..., None]


def _full_attention(query, key, value, class_mask, padding_key, padding_value, num_padding):
    """Softmax attention; one key counted n times is one key whose score is larger by log n."""
    batch, classes, height, width = query.shape[:4]
    query, key, value = (rearrange(a, "b t h w n d -> b h w n t d") for a in (query, key, value))
    append = lambda a, last: jnp.concatenate(  # noqa: E731
        [a, repeat(last, "n d -> b h w n 1 d", b=batch, h=height, w=width)], axis=-2
    )
    counts = jnp.concatenate([class_mask, num_padding[:, None]], axis=1).astype(jnp.float32)
    bias = jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1.0)), MASKED)
    heads = dot_product_attention(
        query,
        append(key, padding_key),
        append(value, padding_value),
        bias=repeat(bias, "b s -> b 1 1 1 t s", t=classes),
    )
    return rearrange(heads, "b h w n t d -> b t h w n d")


ATTENTION = {"linear": _linear_attention, "full": _full_attention}


class GuidedAttention(nnx.Module):
    """Attention across classes with queries and keys guided by text; no output projection."""

    def __init__(
        self,
        dim: int,
        text_dim: int,
        num_heads: int,
        attention: Literal["linear", "full"],
        *,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.kind = attention
        self.query = linear(dim + text_dim, dim, rngs=rngs)
        self.key = linear(dim + text_dim, dim, rngs=rngs)
        self.value = linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        text: Float[Array, "#b t d"],
        class_mask: Bool[Array, "b t"],
        padding_token: Float[Array, " c"],
        padding_guidance: Float[Array, " d"],
        num_padding: Int[Array, " b"],
    ) -> Float[Array, "b t h w c"]:
        """Attend over ``t`` at each location; ``padding_token`` is normed like ``x``."""
        split = lambda a: rearrange(a, "... (n d) -> ... n d", n=self.num_heads)  # noqa: E731
        guidance = text[:, :, None, None]
        heads = ATTENTION[self.kind](
            split(guided_linear(self.query, x, guidance)),
            split(guided_linear(self.key, x, guidance)),
            split(self.value(x)),
            class_mask,
            split(guided_linear(self.key, padding_token, padding_guidance)),
            split(self.value(padding_token)),
            num_padding,
        )
        return rearrange(heads, "... n d -> ... (n d)")


class ClassAggregation(nnx.Module):
    """Pooling, attention across classes, MLP, un-pooling; the class part of one layer."""

    def __init__(
        self,
        dim: int,
        text_dim: int,
        num_heads: int,
        attention: Literal["linear", "full"],
        *,
        rngs: nnx.Rngs,
    ):
        self.padding_token = nnx.Param(jnp.zeros(dim))
        self.padding_guidance = nnx.Param(jnp.zeros(text_dim))
        self.norm1 = layer_norm(dim, eps=1e-5, rngs=rngs)
        self.attention = GuidedAttention(dim, text_dim, num_heads, attention, rngs=rngs)
        self.norm2 = layer_norm(dim, eps=1e-5, rngs=rngs)
        self.mlp = Mlp(dim, MLP_RATIO * dim, activation="relu", rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        text: Float[Array, "#b t d"],
        class_mask: Bool[Array, "b t"],
        num_padding: Int[Array, " b"],
        pooling_size: int,
    ) -> Float[Array, "b t h w c"]:
        """Aggregate over classes.

        Args:
            x: one map a class.
            text: projected text guidance, of all images (b = 1) or of each one's classes.
            class_mask: False where a slot holds no class; what comes out there is meaningless.
            num_padding: how many padding slots CAT-Seg would attend to.
            pooling_size: side of the average pooling (rows and columns left over are dropped).
        """
        height, width = x.shape[2:4]
        p = pooling_size
        pooled = x[:, :, : height // p * p, : width // p * p]
        pooled = reduce(pooled, "b t (h p) (w q) c -> b t h w c", "mean", p=p, q=p)
        inputs = (pooled, text, class_mask, num_padding)
        if serves(pooled) and self.attention.kind == "linear" and fits(x.shape[-1]):
            pooled = jax.lax.platform_dependent(
                *inputs, tpu=self.run_kernel, default=self.run_plainly
            )
        else:
            pooled = self.run_plainly(*inputs)
        # The residual inside `pooled` comes on top of this one: the reference adds it twice.
        return x + resize(pooled, (height, width), "bilinear", align_corners=True)

    def run_plainly(
        self,
        pooled: Float[Array, "b t h w c"],
        text: Float[Array, "#b t d"],
        class_mask: Bool[Array, "b t"],
        num_padding: Int[Array, " b"],
    ) -> Float[Array, "b t h w c"]:
        """Attention and MLP with their residuals, for any device."""

        def attend(pooled: Array, class_mask: Array, num_padding: Array) -> Array:
            return self._attend(pooled, text, class_mask, num_padding)

        fixed = [class_mask, num_padding]
        return in_pieces(attend, [pooled], axes=[2], most=LOCATION_ROWS, fixed=fixed)

    def _attend(
        self,
        pooled: Float[Array, "b t h w c"],
        text: Float[Array, "#b t d"],
        class_mask: Bool[Array, "b t"],
        num_padding: Int[Array, " b"],
    ) -> Float[Array, "b t h w c"]:
        """Attention and MLP, which treat each location apart."""
        pooled = pooled + self.attention(
            self.norm1(pooled),
            text,
            class_mask,
            self.norm1(self.padding_token[...]),
            self.padding_guidance[...],
            num_padding,
        )
        return pooled + self.mlp(self.norm2(pooled))

    def run_kernel(
        self,
        pooled: Float[Array, "b t h w c"],
        text: Float[Array, "#b t d"],
        class_mask: Bool[Array, "b t"],
        num_padding: Int[Array, " b"],
        *,
        interpret: bool = False,
    ) -> Float[Array, "b t h w c"]:
        """`run_plainly` by the kernel for TPUs; for linear attention."""
        attention, mlp = self.attention, self.mlp
        batch, classes, height, _, dim = pooled.shape
        row = lambda param: cast(nnx.Param, param)[...][None]  # noqa: E731

        def filled(x: Array) -> Array:
            """Whole tiles of classes, for each image."""
            x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
            return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, -classes % ROWS), (0, 0)))

        def guide(layer: nnx.Linear) -> Array:
            guided = jnp.matmul(text, layer.kernel[...][dim:])
            return filled(guided + jnp.broadcast_to(row(layer.bias), guided.shape))

        token = self.norm1(self.padding_token[...])
        key = guided_linear(attention.key, token, self.padding_guidance[...])
        key = (jax.nn.elu(key) + 1.0).astype(jnp.float32)[None, :, None]
        key = key * num_padding.astype(jnp.float32)[:, None, None]
        blocks = jnp.asarray(head_blocks(dim, attention.num_heads))[None]
        mask = jnp.broadcast_to(class_mask[..., None], (batch, classes, dim))
        shared = Shared(
            guide(attention.query),
            guide(attention.key),
            filled(mask.astype(pooled.dtype)),
            key * attention.value(token)[None, None] * blocks,
            key * blocks,
        )
        own = [layer.kernel[...][:dim] for layer in (attention.query, attention.key)]
        weights = Weights(
            row(self.norm1.scale),
            row(self.norm1.bias),
            jnp.concatenate([*own, attention.value.kernel[...]], axis=1),
            row(attention.value.bias),
            row(self.norm2.scale),
            row(self.norm2.bias),
            mlp.fc1.kernel[...],
            row(mlp.fc1.bias),
            mlp.fc2.kernel[...],
            row(mlp.fc2.bias),
        )
        layer = partial(_aggregate, num_heads=attention.num_heads, interpret=interpret)
        x = filled(rearrange(pooled, "b t h w c -> b (h w) t c"))
        x = by_device(layer, (x, shared), weights)
        return rearrange(x[:, :, :classes], "b (h w) t c -> b t h w c", h=height)


def _aggregate(x: Array, shared: Shared, weights: Weights, num_heads: int, interpret: bool):
    return aggregate_classes(x, shared, weights, num_heads, interpret)
