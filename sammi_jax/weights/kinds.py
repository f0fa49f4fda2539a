"""The kinds of model: each one's configuration class and constructor."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, cast

from flax import nnx

from sammi_jax.config.model import ClipConfig, SamConfig, SegmenterConfig, check_sizes
from sammi_jax.errors import SammiError, one_line
from sammi_jax.layers import Buffer
from sammi_jax.layers.init import Keys
from sammi_jax.models.clip import Clip
from sammi_jax.models.sam.sam import Sam
from sammi_jax.models.sammi import Sammi
from sammi_jax.weights.params import abstract_params, variable_paths

Kind = Literal["clip", "sam", "catseg", "sammi"]
ModelConfig = ClipConfig | SamConfig | SegmenterConfig

CONFIGS: dict[str, type[ModelConfig]] = {
    "clip": ClipConfig,
    "sam": SamConfig,
    "catseg": SegmenterConfig,
    "sammi": SegmenterConfig,
}
KINDS = tuple(CONFIGS)


@lru_cache(maxsize=8)  # one function, so that `params` traces a model once
def model_maker(config: ModelConfig, seed: int = 0) -> Callable[[], nnx.Module]:
    """The constructor of a configuration's model, with keys that are cheap to trace.

    For `params.abstract_params` and `params.build`, and for initialization under `jax.jit`. Equal
    arguments give the same function.
    """
    module = cast(Any, {ClipConfig: Clip, SamConfig: Sam, SegmenterConfig: Sammi}[type(config)])
    return lambda: module(config, rngs=Keys(seed))


def buffer_paths(config: ModelConfig) -> set[str]:
    """Paths of the model's buffers: constants that are stored with the weights and never train."""
    return variable_paths(model_maker(config), Buffer)


def expected_params(config: ModelConfig) -> dict[str, Any]:
    """Shape and dtype of every parameter of the configuration's model, by path.

    Raises:
        SammiError: no model can be made with its sizes.
    """
    check_sizes(config)
    try:
        return abstract_params(model_maker(config))
    except SammiError:
        raise
    except Exception as error:  # sizes that do not fit together fail anywhere in a constructor
        raise SammiError(
            f"the configuration makes no model ({type(error).__name__}: {one_line(error)})"
        ) from error
