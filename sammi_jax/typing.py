"""Array annotations: jaxtyping where it is installed, plain no-ops where it is not.

Shapes are written as ``Float[Array, "b h w c"]``; ``docs/shapes.md`` lists the letters.
jaxtyping is a development dependency, so that a user's installation needs none of it.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
else:
    try:
        from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
    except ImportError:
        Array = jax.Array

        class _Annotation:
            def __getitem__(self, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Integer = UInt8 = _Annotation()

# A field of a dataclass that is a pytree: an array, or what a transformation puts in its place,
# such as a shape, a sharding or an array of numpy's.
if TYPE_CHECKING:
    Leaf = Array
else:
    Leaf = Any

NpArray = np.ndarray

__all__ = ["Array", "Bool", "Float", "Int", "Integer", "Leaf", "NpArray", "UInt8"]
