"""Where a model is: a path, one of the small bundled models, or one on the Hugging Face Hub.

The bundled ones are trained on OpenShapes (docs/openshapes.md, "Shipped models"): a model to try
the commands with, and towers for `make demo`.
"""

from pathlib import Path

from sammi_jax.weights.hub import fetch_model, hub_model

FOLDER = Path(__file__).parent / "bundled_models"
DEFAULT = "openshapes"  # the SAM-MI; the towers are openshapes_clip and openshapes_sam


def find_model(path: str | Path) -> Path:
    """The folder or file that a user's name of a model means.

    Args:
        path: a path, whose ``~`` is expanded; the name of a bundled model; or ``ORG/NAME`` or
            ``ORG/NAME@REVISION`` of the Hugging Face Hub, which is downloaded into its cache. What
            exists on this machine comes first.

    Raises:
        SammiError: the Hub does not give the model (`weights.hub.fetch_model`).

    Example:
        >>> find_model("openshapes_clip").name
        'openshapes_clip'
    """
    path = Path(path).expanduser()
    bundled = FOLDER / path
    is_name = len(path.parts) == 1 and not path.is_absolute()
    if is_name and bundled.is_dir() and not path.exists():
        return bundled
    model = hub_model(path)
    return path if model is None else fetch_model(model)
