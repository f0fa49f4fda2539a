"""Pictures of what the masks did: CAT-Seg and SAM-MI on the same scenes of OpenShapes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import sammi_jax
from sammi_jax.data.openshapes import OpenShapes
from sammi_jax.figures import class_colors, draw_panel, draw_proposals
from sammi_jax.files import atomic_folder
from sammi_jax.typing import Integer, NpArray, UInt8

_RIGHT, _WRONG, _SAME = (60, 170, 75), (215, 60, 60), (235, 235, 235)


def main() -> None:
    """Write ``scene3.png`` and so on."""
    parser = argparse.ArgumentParser(description="Compare CAT-Seg and SAM-MI on OpenShapes.")
    parser.add_argument("--catseg", required=True, help="a CAT-Seg model folder")
    parser.add_argument("--sammi", required=True, help="a SAM-MI model folder")
    parser.add_argument("--split", default="val_unseen", help="of OpenShapes")
    parser.add_argument("--scenes", type=int, nargs="+", required=True, help="their indices")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    options = parser.parse_args()
    compare(options.catseg, options.sammi, options.split, options.scenes, options.out)


def compare(catseg: str, sammi: str, split: str, scenes: Sequence[int], out: Path) -> None:
    """Write a panel for each scene: image, truth, both answers, what changed, masks and points."""
    source = OpenShapes(split, "os48")
    names = source.view.class_names
    colors = class_colors(len(names), None)
    models = [sammi_jax.load(folder) for folder in (catseg, sammi)]
    with atomic_folder(out, f"scene{scenes[-1]}.png") as folder:
        for index in scenes:
            image, truth = (np.asarray(source[index][key]) for key in ("image", "label"))
            without, given = (model.segment(image, names) for model in models)
            panel = draw_panel(
                [
                    ("image", image),
                    ("truth", _painted(truth, colors)),
                    ("CAT-Seg", _painted(without.labels, colors)),
                    ("SAM-MI", _painted(given.labels, colors)),
                    ("green: now right, red: now wrong",
                     _changes(truth, without.labels, given.labels)),
                    ("masks and points", draw_proposals(image, given.masks, given.points)),
                ],
                _legend((truth, without.labels, given.labels), names, colors),
            )  # fmt: skip
            panel.save(folder / f"scene{index}.png")


def _painted(labels: Integer[NpArray, "h w"], colors: UInt8[NpArray, "n 3"]) -> NpArray:
    """The classes' colors; ignored pixels are white."""
    white = np.full((1, 3), 255, np.uint8)
    return np.concatenate([colors, white])[np.minimum(labels, len(colors))]


def _changes(
    truth: Integer[NpArray, "h w"], before: Integer[NpArray, "h w"], after: Integer[NpArray, "h w"]
) -> UInt8[NpArray, "h w 3"]:
    """Where the second answer is right and the first was not, and the other way round."""
    shown = np.full((*truth.shape, 3), _SAME, np.uint8)
    shown[(after == truth) & (before != truth)] = _RIGHT
    shown[(after != truth) & (before == truth)] = _WRONG
    return shown


def _legend(
    maps: Sequence[NpArray], names: Sequence[str], colors: UInt8[NpArray, "n 3"]
) -> list[tuple[str, tuple[int, ...]]]:
    """The classes of all maps, the most frequent first."""
    count = sum(np.bincount(labels.ravel(), minlength=256)[: len(names)] for labels in maps)
    order = np.argsort(-np.asarray(count), kind="stable")
    shown = [int(c) for c in order if np.asarray(count)[c]]
    return [(str(names[c]), tuple(colors[c].tolist())) for c in shown]


if __name__ == "__main__":
    main()
