"""What a JSON file beside a checkpoint says, checked before anything is computed from it."""

from collections.abc import Mapping
from typing import Any

from sammi_jax.errors import SammiError

_MOST = 2**20  # of any whole number
# Types of our fields; all others are whole numbers.
_TYPES = {"activation": str, "attention": str, "eps": float}


def check_described(known: Mapping[str, Any]) -> dict[str, Any]:
    """The values themselves, by the names of our fields, without those that are None.

    Raises:
        SammiError: one has another type than its field, or is absurdly large.
    """
    found = {name: value for name, value in known.items() if value is not None}
    for name, value in found.items():
        kind = _TYPES.get(name, int)
        if kind is float:
            fits = isinstance(value, int | float) and 0 <= value < 1
        elif kind is int:
            fits = type(value) is int and 0 <= value <= _MOST
        else:
            fits = isinstance(value, kind)
        if not fits:
            raise SammiError(f"the JSON file beside it gives {value!r} for {name}; correct it")
    return found
