"""The small models that the package brings along, by name (docs/openshapes.md, "Shipped models").

They are trained on OpenShapes: a model to try the commands with, and towers for `make demo`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "bundled_models"
DEFAULT = "openshapes"  # the SAM-MI; the towers are openshapes_clip and openshapes_sam


def find_model(path: str | Path) -> Path:
    """The path with its ``~`` expanded, or the folder of the bundled model of that name.

    A file or folder of the name comes before the bundled model.

    Example:
        >>> find_model("openshapes_clip").name
        'openshapes_clip'
    """
    path = Path(path).expanduser()
    bundled = FOLDER / path
    is_name = len(path.parts) == 1 and not path.is_absolute()
    return bundled if is_name and bundled.is_dir() and not path.exists() else path
