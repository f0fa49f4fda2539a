"""Where a model's weights come from: ``source`` and ``licence`` of a model folder's config.json.

A converted checkpoint's ``source`` names its ``file``, or ``hub`` and ``commit`` of the Hugging
Face Hub, and as ``published`` what it is, if it is known (`weights.published`). A model that was
made of others holds theirs under ``from``; a trained one says what it was trained on as well:

    {"trained_on": "openshapes os48", "steps": 900, "seed": 0, "config_sha256": "...",
     "from": {"clip": {"kind": "clip", "licence": "MIT", "source": {...}}}}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sammi_jax.config.experiment import OPENSHAPES, SegmentConfig, TaskConfig, TrainConfig
from sammi_jax.config.files import config_digest
from sammi_jax.weights.model_folder import read_meta

OUR_LICENSE = "Apache-2.0"
UNKNOWN = "unknown"

_FOLDERS = ("clip", "sam", "segmenter")  # fields of a task that name model folders


@dataclass(frozen=True)
class Origin:
    """What a model folder records of one model's weights.

    Attributes:
        kind: of model.
        source: see the module's docstring.
        license: of the weights, in the form of `combine_licenses`.
    """

    kind: str
    source: Mapping[str, Any]
    license: str

    def record(self) -> dict[str, Any]:
        """As JSON's types, for the ``from`` of a model that is made of this one."""
        return {"kind": self.kind, "licence": self.license, "source": dict(self.source)}


def read_origin(meta: Mapping[str, Any]) -> Origin:
    """From a model folder's config.json, or from a part's `Origin.record`."""
    return Origin(meta["kind"], meta.get("source") or {}, meta.get("licence") or UNKNOWN)


def read_origins(task: TaskConfig) -> dict[str, Origin]:
    """Of the model folders that a run starts from, by the task's field; empty: from scratch.

    Raises:
        SammiError: one is not a model folder.
    """
    folders = {name: getattr(task, name, None) for name in _FOLDERS}
    return {name: read_origin(read_meta(folder)) for name, folder in folders.items() if folder}


def made_of(kind: str, parts: Mapping[str, Origin]) -> Origin:
    """The origin of a model that consists of others."""
    source = {"from": {name: part.record() for name, part in parts.items()}}
    return Origin(kind, source, combine_licenses(parts))


def trained(config: TrainConfig, kind: str, parts: Mapping[str, Origin], steps: int) -> Origin:
    """The origin of a model that a run has trained.

    Args:
        config: of the run; its digest is recorded.
        kind: of model.
        parts: what the run started from (`read_origins`). From scratch the weights have this
            project's license if they have seen nothing but OpenShapes, else none that we know.
        steps: training steps that the weights have seen.
    """
    data = _data_name(config)
    own = {
        "trained_on": data,
        "steps": steps,
        "seed": config.seed,
        "config_sha256": config_digest(config),
    }
    if parts:
        whole = made_of(kind, parts)
        return Origin(kind, {**own, **whole.source}, whole.license)
    is_ours = data.partition(" ")[0] == OPENSHAPES
    return Origin(kind, own, OUR_LICENSE if is_ours else UNKNOWN)


def _data_name(config: TrainConfig) -> str:
    if not isinstance(config.task, SegmentConfig):
        return OPENSHAPES  # the only data of the other tasks
    data = config.data
    return f"{OPENSHAPES} {data.view}" if data.name == OPENSHAPES else data.name


def checkpoints(origin: Origin) -> Iterator[Origin]:
    """The converted checkpoints that a model goes back to."""
    for part in origin.source.get("from", {}).values():
        yield from checkpoints(read_origin(part))
    if "file" in origin.source or "hub" in origin.source:
        yield origin


def combine_licenses(parts: Mapping[str, Origin]) -> str:
    """The license of all parts if it is one, else each with its parts: ``"A (sam), B (clip)"``."""
    named: dict[str, list[str]] = {}
    for name, part in parts.items():
        for place, license in _licenses(name, part).items():
            named.setdefault(license, []).append(place)
    if len(named) == 1:
        return next(iter(named))
    return ", ".join(f"{license} ({', '.join(named[license])})" for license in sorted(named))


def _licenses(name: str, origin: Origin) -> dict[str, str]:
    """The license of a part, or those of its own parts where it is a list of theirs."""
    parts = {n: read_origin(part) for n, part in origin.source.get("from", {}).items()}
    inner: dict[str, str] = {}
    for part_name, part in parts.items():
        inner |= _licenses(f"{name}.{part_name}", part)
    # What someone wrote into the folder by hand is no such list, and stands.
    is_list = len(set(inner.values())) > 1 and origin.license == combine_licenses(parts)
    return inner if is_list else {name: origin.license}
