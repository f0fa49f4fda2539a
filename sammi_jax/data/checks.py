"""Checks of an example that training and evaluation share: a wrong label must stop both."""

from sammi_jax.errors import SammiError
from sammi_jax.typing import Integer, NpArray, UInt8


def check_label(
    label: Integer[NpArray, "h w"],
    image: UInt8[NpArray, "h2 w2 3"],
    num_classes: int,
    ignore_label: int,
    name: str,
) -> None:
    """Check that a label belongs to its image and holds nothing but known classes.

    Args:
        label: class indices.
        image: whose label it is.
        num_classes: labels are below this, or ``ignore_label``.
        ignore_label: label of pixels that do not count.
        name: of the example, for the error.

    Raises:
        SammiError: another size than the image, or a value that is no class and not ignored.
    """
    if label.shape != image.shape[:2]:
        raise SammiError(
            f"{name}: the image is {image.shape[:2]} and its label {label.shape} (height, width); "
            "they must have the same size (an EXIF orientation turns the image, not the label)"
        )
    wrong = label[((label < 0) | (label >= num_classes)) & (label != ignore_label)]
    if wrong.size:
        raise SammiError(
            f"{name}: label {wrong[0]} is neither a class (0 to {num_classes - 1}) nor the ignore "
            f"label {ignore_label}; map the labels to class indices (sammi datasets show NAME "
            "lists all values of a set)"
        )
