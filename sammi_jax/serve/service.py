"""What the page and the API ask for: segmenting an image, and SAM's masks."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sammi_jax.data.openshapes import TEMPLATE, VIEWS, scene
from sammi_jax.data.openshapes.vocabulary import ANY_SHAPE, COLORS, PATTERNS, SHAPES, TEXTURES
from sammi_jax.inference.classes import make_class_list
from sammi_jax.inference.prompting import SamImage, SamMasks
from sammi_jax.inference.result import Segmentation
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.inference.towers import SamModel
from sammi_jax.object_store import AnyPath
from sammi_jax.serve.limits import Limits, RequestError, check_prompts, read_classes, read_image
from sammi_jax.serve.metrics import Metrics
from sammi_jax.serve.worker import Worker

T = TypeVar("T")

WORDS = (*TEXTURES, *COLORS, ANY_SHAPE, *SHAPES, *PATTERNS)  # all that the bundled model knows
_KEPT_EMBEDDINGS = 4  # images that SAM can be asked about again without encoding them


class Service:
    """A model, its worker, its limits and its metrics.

    Args:
        model: a CAT-Seg or SAM-MI.
        name: of the model, to be shown: the last part of its path, not the path itself.
        limits: of requests.
        bundled: whether the model is the small one that knows generated scenes only.
    """

    def __init__(self, model: Segmenter, name: str, limits: Limits, bundled: bool = False):
        self.model = model
        self.name = name
        self.limits = limits
        self.bundled = bundled
        self.worker = Worker(limits.queue)
        self.metrics = Metrics(self.worker)
        self._embeddings: OrderedDict[bytes, SamImage] = OrderedDict()

    def warm_up(self) -> None:
        """Compile the programs of a short class list and of one point, before anybody waits."""
        pixels = scene("test_seen", 0).image
        classes = make_class_list(VIEWS["os48"].class_names[:2])
        self.worker.run(lambda: self.model.segment_batch([pixels], classes, 1))
        sam = self.model.sam
        if sam is not None:
            self.worker.run(lambda: sam.segment(pixels, [[1.0, 1.0]]))

    def segment(
        self,
        file: bytes,
        class_names: Any,
        background: str | None,
        threshold: float | None,
        answer: Callable[[Segmentation], T],
    ) -> T:
        """Segment an image file.

        Args:
            file: the bytes of an image file.
            class_names: as for `Segmenter.segment`.
            background: as there.
            threshold: as there.
            answer: makes the answer; it runs in the worker, too, so that large results are not
                kept while others are computed.

        Raises:
            SammiError: `limits.read_image`, `limits.read_classes`, `Worker.run`.
        """
        classes = read_classes(class_names, background, threshold, self.limits)
        if self.bundled:
            _check_words(classes.texts)

        def job() -> T:
            pixels = read_image(file, self.limits)
            return answer(self.model.segment_batch([pixels], classes, 1)[0])

        return self.worker.run(job, self.limits.seconds)

    def masks(self, file: bytes, answer: Callable[[SamImage, SamMasks], T], **prompts: Any) -> T:
        """Ask SAM about an image file.

        Args:
            file: the bytes of an image file.
            answer: makes the answer, in the worker.
            **prompts: as for `SamModel.segment`.

        Raises:
            RequestError: 404, the model has no SAM; `limits.check_prompts`.
            SammiError: `limits.read_image`, `SamModel.segment`, `Worker.run`.
        """
        sam = self.model.sam
        if sam is None:
            raise RequestError(404, f"{self.name} is a CAT-Seg, which has no SAM; serve a SAM-MI")
        check_prompts(prompts, self.limits)

        def job() -> T:
            image = self._embed(sam, file)
            return answer(image, sam.segment(image, **prompts))

        return self.worker.run(job, self.limits.seconds)

    def _embed(self, sam: SamModel, file: bytes) -> SamImage:
        """Encoded by SAM, or found among the last ones. Only the worker calls this."""
        key = hashlib.sha256(file).digest()
        if key not in self._embeddings:
            self._embeddings[key] = sam.embed(read_image(file, self.limits))
            if len(self._embeddings) > _KEPT_EMBEDDINGS:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        return self._embeddings[key]


def _check_words(texts: Sequence[str]) -> None:
    """What most people type first, such as "cat", the bundled model has never heard of."""
    known = {*TEMPLATE.lower().split(), *WORDS}
    for word in (word for text in texts for word in text.lower().split()):
        if word not in known:
            raise RequestError(
                422,
                f"{word}: the bundled model knows only the words {', '.join(WORDS)}; for others "
                "start sammi serve --model DIR with another model",
            )


def model_name(folder: AnyPath) -> str:
    """What a model folder is called on the page: no other part of its path is shown."""
    return folder.expanduser().absolute().name if isinstance(folder, Path) else folder.name
