"""Where a model is: a path, one of the small bundled models, or one on the Hugging Face Hub.

The bundled ones are trained on OpenShapes (docs/openshapes.md, "Shipped models"): a model to try
the commands with, and towers for `make demo`.
"""

from pathlib import Path

from sammi_jax.files import local_copy
from sammi_jax.object_store import PathLike, as_path
from sammi_jax.weights.hub import fetch_model, hub_model

FOLDER = Path(__file__).parent / "bundled_models"
DEFAULT = "openshapes"  # the SAM-MI; the towers are openshapes_clip and openshapes_sam


def find_model(path: PathLike) -> Path:
    """The folder or file that a user's name of a model means.

    Args:
        path: a path, whose ``~`` is expanded; the name of a bundled model; or ``ORG/NAME`` or
            ``ORG/NAME@REVISION`` of the Hugging Face Hub, which is downloaded into its cache. What
            exists on this machine comes first. Of a bucket, ``gs://...`` or ``s3://...``, the files
            of the folder are downloaded into a cache.

    Raises:
        SammiError: the Hub does not give the model (`weights.hub.fetch_model`), or the bucket.

    Example:
        >>> find_model("openshapes_clip").name
        'openshapes_clip'
    """
    place = as_path(path)
    if not isinstance(place, Path):
        return local_copy(place, depth=1)
    path = place.expanduser()
    bundled = FOLDER / path
    is_name = len(path.parts) == 1 and not path.is_absolute()
    if is_name and bundled.is_dir() and not path.exists():
        return bundled
    model = hub_model(path)
    return path if model is None else fetch_model(model)
