"""SAM-MI assembled from published checkpoints: a CLIP or a CAT-Seg, and a SAM.

No checkpoint has TSPP and DMI; a CLIP has no aggregator and no up-sampling either. These parts are
initialized from a fixed seed. DMI ends in zero layers, so that a SAM-MI assembled from CAT-Seg's
weights still computes CAT-Seg (docs/method.md section 5).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from sammi_jax.config.model import ClipConfig, MaskConfig, SamConfig, SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.weights.kinds import expected_params, model_maker
from sammi_jax.weights.params import flat_params

Params = Mapping[str, np.ndarray]

_SEED = 0


def segmenter_config(
    base: ClipConfig | SegmenterConfig, sam: SamConfig, templates: Sequence[str] | None = None
) -> SegmenterConfig:
    """SAM-MI's configuration over a CAT-Seg's, or CAT-Seg's published one fitted to a CLIP.

    CAT-Seg gives CLIP an input of 24 x 24 patches and reads it at one and two thirds of its depth.

    Args:
        base: of the CLIP or CAT-Seg.
        sam: of the SAM.
        templates: prompt templates for a CLIP; None: CAT-Seg's single one.
    """
    if isinstance(base, ClipConfig):
        layers, default = base.vision.num_layers, SegmenterConfig()
        templates = tuple(templates or default.templates)
        base = replace(
            default,
            clip=base,
            aggregator=replace(default.aggregator, num_templates=len(templates)),
            templates=templates,
            clip_size=default.aggregator.grid_size * base.vision.patch_size,
            taps=(layers // 3 - 1, 2 * layers // 3 - 1),
        )
    return replace(base, masks=MaskConfig(sam=sam))


def assemble(
    base: ClipConfig | SegmenterConfig,
    base_params: Params,
    sam: SamConfig,
    sam_params: Params,
    templates: Sequence[str] | None = None,
) -> tuple[SegmenterConfig, dict[str, np.ndarray], list[str]]:
    """Join the towers and initialize the rest; ``templates`` as for `segmenter_config`.

    Returns:
        The configuration, every parameter of `models.sammi.Sammi` by path, and the parts that were
        in no checkpoint.

    Raises:
        SammiError: the sizes do not fit together.
    """
    config = segmenter_config(base, sam, templates)
    prefix = "clip/" if isinstance(base, ClipConfig) else ""
    given = {f"{prefix}{path}": value for path, value in base_params.items()}
    given |= {f"sam/{path}": value for path, value in sam_params.items()}
    expected = expected_params(config)
    unknown = sorted(set(given) - set(expected))
    if unknown:
        raise SammiError(f"SAM-MI has no parameters {', '.join(unknown[:8])}")
    fresh = [path for path in expected if path not in given]
    made = flat_params(model_maker(_with_shallow_towers(config), _SEED)())
    given |= {path: np.asarray(made[path]) for path in fresh}
    return config, {path: given[path] for path in expected}, _parts(fresh, expected)


def _with_shallow_towers(config: SegmenterConfig) -> SegmenterConfig:
    """The same heads over towers of one or two layers, which are quick to initialize.

    No head's size depends on a tower's depth (`write_model` checks every shape).
    """
    clip, masks = config.clip, cast(MaskConfig, config.masks)
    clip = replace(
        clip,
        vision=replace(clip.vision, num_layers=2),
        text=replace(clip.text, num_layers=1, vocab_size=1),
    )
    sam = replace(masks.sam, num_layers=1, num_stages=1, decoder_layers=1)
    return replace(config, clip=clip, taps=(0, 1), masks=replace(masks, sam=sam))


def _parts(paths: list[str], expected: Iterable[str]) -> list[str]:
    """The paths; a module whose parameters are all among them is named once."""
    names: list[str] = []
    for top in dict.fromkeys(path.split("/")[0] for path in paths):
        inside = [path for path in expected if path.split("/")[0] == top]
        names += [top] if set(inside) <= set(paths) else [p for p in paths if p in inside]
    return names
