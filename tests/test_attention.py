"""Attention by cuDNN: when it is chosen, and what it is lowered to. No GPU is needed."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from sammi_jax.layers import MultiHeadAttention


@pytest.fixture
def gpu(monkeypatch):
    """A process with an A100 and cuDNN 9.10, as far as a trace can see."""
    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
    device = SimpleNamespace(compute_capability="8.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    return device


def calls(length, dtype=jnp.bfloat16, platform="cuda", *, masked=False):
    """The custom calls of attention and its gradient."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MultiHeadAttention(32, 2, rngs=nnx.Rngs(0))))
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)  # noqa: E731
    mask = jnp.tril(jnp.ones((length, length), bool)) if masked else None

    def loss(state, x):
        out = nnx.merge(graphdef, state)(x, x, x, mask)
        assert out.shape == x.shape
        return jnp.sum(out.astype(jnp.float32))

    x = jax.ShapeDtypeStruct((3, length, 32), dtype)
    traced = jax.jit(jax.grad(loss)).trace(jax.tree.map(shape, state), x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return sorted(set(re.findall(r"custom_call @__cudnn\$(\w+)", text)))


@pytest.mark.parametrize("length", [576, 577])
def test_long_sequences_go_to_cudnn(gpu, length):
    found = calls(length)
    assert len(found) == 2
    assert found[0].startswith("fmhaSoftmax")
    assert found[1] == f"{found[0]}Backward"


def test_all_else_stays_plain(gpu):
    assert calls(576, platform="cpu") == []
    assert calls(16) == []
    assert calls(576, jnp.float32) == []
    assert calls(576, masked=True) == []
    for other in ("7.5", "gfx90a"):
        gpu.compute_capability = other
        assert calls(576) == []
