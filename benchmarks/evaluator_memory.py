"""Memory of the evaluator's two programs at the real sizes, as reported by XLA's compiler.

SAM-MI of CLIP ViT-B/16 and SAM ViT-B (or ViT-L/14@336 and ViT-H), canvas 640 with windows of 384,
labels up to 1024 x 1024, batches of 8 images on one device. The programs are compiled, without
weights, and do not run. With ``JAX_COMPILATION_CACHE_DIR=DIR``, the seconds of a second call are
those that reading the cache takes.

Command:   python benchmarks/evaluator_memory.py [--batch 8] [--size vitl14_336] [--classes 150]
Hardware:  two CPU cores (CPU backend), 3 minutes
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.experiment import EvalConfig, MeshConfig
from sammi_jax.config.model import (
    SAM_SIZES,
    SEGMENTER_SIZES,
    MaskConfig,
    SegmenterConfig,
    SlidingConfig,
)
from sammi_jax.evaluation.evaluator import make_variants
from sammi_jax.evaluation.program import Readout, make_network, make_readout, make_target
from sammi_jax.inference.forward import ViewScores, blend_logits, forward_input
from sammi_jax.inference.inputs import SegmenterInput, segmenter_input
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.ops.views import ViewLayout
from sammi_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from sammi_jax.weights.kinds import model_maker

SLIDING = SlidingConfig()
SAM = {"vitb16": "vitb", "vitl14_336": "vith"}
LABEL_SHAPE = (1024, 1024)
TEXTS_PADDED_TO = 8  # as `Segmenter.encode_classes`
RUNS = ((150, 32), (847, 16), (847, 32), (847, 128))  # (T, class_chunk)


class AbstractSegmenter:
    """A `Segmenter` whose parameters are shapes; satisfies `program.Predictor`."""

    def __init__(self, config: SegmenterConfig):
        self.config = config
        self._graphdef, self.state = nnx.split(nnx.eval_shape(model_maker(self.config)))

    def encode_classes(self, class_names: Sequence[str]) -> ClassTexts:
        """Shapes of the embeddings and of the class mask."""
        total = -(-len(class_names) // TEXTS_PADDED_TO) * TEXTS_PADDED_TO
        shape = (total, 1, self.config.clip.embed_dim)
        return jax.eval_shape(lambda: ClassTexts(jnp.zeros(shape), jnp.ones(total, bool)))

    def prepare(
        self,
        image: Any,
        config: SegmenterConfig | None = None,
        masks: Any = None,
        num_slots: int = 0,
        mask_quality: Any = None,
    ) -> SegmenterInput:
        """One image's inputs; no masks are given here."""
        assert masks is None
        return segmenter_input(image, config or self.config)

    def views(self, state: Any, inputs: Any, text: ClassTexts, layout: ViewLayout) -> ViewScores:
        """Logits and masks of every view."""
        model: Any = nnx.merge(self._graphdef, state)
        output = forward_input(model, inputs, text, layout)
        return ViewScores(output.logits, output.proposals, output.regions)

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Any:
        """Probabilities on the canvas."""
        return blend_logits(scores, self.config, layout)


def abstract(tree: Any, sharding: Any) -> Any:
    """The tree's shapes, placed."""
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, tree)


class Programs:
    """Lowers the two programs for one number of classes."""

    def __init__(self, size: str, num_classes: int, batch_size: int):
        masks = MaskConfig(sam=SAM_SIZES[SAM[size]])
        config = dataclasses.replace(SEGMENTER_SIZES[size], masks=masks, sliding=SLIDING)
        self._mesh = make_mesh(MeshConfig())
        self._predictor, self._num_classes = AbstractSegmenter(config), num_classes
        self._variants = make_variants(config, EvalConfig())
        split, whole = batch_sharding(self._mesh), replicated(self._mesh)
        image = np.zeros((*LABEL_SHAPE, 3), np.uint8)
        inputs = self._predictor.prepare(image)
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), inputs
        )
        self._text = abstract(self._predictor.encode_classes([""] * num_classes), whole)
        self._state = abstract(self._predictor.state, whole)
        self._inputs = [abstract(stacked, split)]
        label = np.zeros(LABEL_SHAPE, np.int32)
        sides = [SLIDING.output_size for _ in self._variants]
        sizes = [LABEL_SHAPE] * batch_size
        target = make_target([label] * batch_size, sizes, sides, 65535, LABEL_SHAPE, batch_size)
        self._target = abstract(target, split)
        self._scores: Any = None

    def network(self) -> Any:
        """The network, lowered."""
        program = make_network(self._predictor, self._variants, self._mesh)
        arguments = (self._state, self._inputs, self._text)
        self._scores = abstract(jax.eval_shape(program, *arguments), batch_sharding(self._mesh))
        return program.lower(*arguments)

    def readout(self, class_chunk: int) -> Any:
        """The read-out, lowered; after `network`."""
        merge = tuple(range(self._num_classes))
        how = Readout(merge, self._num_classes, class_chunk, None, None, True)
        program = make_readout(self._predictor, self._variants, how, self._mesh)
        return program.lower(self._scores, self._text.mask, self._target)


def report(what: str, lowered: Any) -> None:
    """Compile and print one row."""
    began = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - began
    sizes = (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,  # without what is donated
        memory.temp_size_in_bytes,
    )
    cells = [f"{size / 2**20:,.0f}" for size in (*sizes, sum(sizes))]
    print(f"| {what} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--size", choices=SAM, default="vitb16", help="of CLIP")
    parser.add_argument("--classes", type=int, help="only so many (default 150 and 847)")
    options = parser.parse_args()
    batch_size = options.batch
    print(f"{jax.default_backend()}, one device, {batch_size} images a step, MiB\n")
    print("| program | arguments | outputs | temporaries | sum | compile s |")
    print("|---|---|---|---|---|---|")
    programs: dict[int, Programs] = {}
    for num_classes, class_chunk in RUNS:
        if options.classes not in (None, num_classes):
            continue
        if num_classes not in programs:
            programs[num_classes] = Programs(options.size, num_classes, batch_size)
            report(f"network, T = {num_classes}", programs[num_classes].network())
        name = f"read-out, T = {num_classes}, class_chunk = {class_chunk}"
        report(name, programs[num_classes].readout(class_chunk))


if __name__ == "__main__":
    main()
