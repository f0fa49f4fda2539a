"""Text to CLIP's token rows.

The byte-pair encoding is transformers' ``CLIPTokenizer``; a model folder's ``tokenizer.json`` is
read by the ``tokenizers`` library, which transformers uses as well. Deviation from openai/CLIP
clip/simple_tokenizer.py: no ftfy and no HTML unescaping, which class names do not need.
"""

import gzip
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from einops import rearrange

from sammi_jax.errors import SammiError, is_failure, one_line, reading
from sammi_jax.files import read_json
from sammi_jax.text.vocabulary import check_templates, prompts
from sammi_jax.typing import Int, NpArray

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"

LENGTH_STEP = 8  # prompts are padded to a multiple of so many tokens, so that few shapes occur

_MOST_IDS = 2**24
_MOST_TEXT = 2**24  # characters of OpenAI's file when it is unpacked; it has a fifth of them
# Steps of a tokenizer that work on the text, before its words are looked up. A few that lengthen
# it, one after another, would fill any memory.
_MOST_STEPS = 8
_MOST_INSERTED = 1  # characters for each that is replaced
_NUM_MERGES = 49152 - 256 - 2  # of the 262,144 in OpenAI's file, the first are used


class Tokenizer:
    """Turns texts into zero-padded rows of token ids between a start and an end token.

    The vocabulary must have ``<|startoftext|>`` and, with the largest id, ``<|endoftext|>``: CLIP
    reads a text's feature at the largest id.

    Raises:
        SammiError: one of these tokens is missing, or another token has the largest id.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = TOKENIZER_FILE):
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise SammiError(f"{name}: not a CLIP tokenizer, it has no {START} or no {END}")
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if end != largest:
            raise SammiError(
                f"{name}: {END} has id {end} and another token {largest}, but CLIP reads a text's "
                "feature at the largest id"
            )
        if largest > _MOST_IDS:
            raise SammiError(f"{name}: has a token of id {largest}; no model has as many rows")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._start, self._end = tokenizer, start, end

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json``, else ``vocab.json`` and ``merges.txt``, else OpenAI's file.

        Raises:
            SammiError: the folder has none of them, or the file is damaged.
        """
        folder = Path(path)
        if (folder / TOKENIZER_FILE).is_file():
            return _read(folder / TOKENIZER_FILE, _from_json)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _read(folder / "vocab.json", _from_vocabulary)
        if (folder / BPE_FILE).is_file():
            return _read(folder / BPE_FILE, _from_openai)
        raise SammiError(
            f"{folder}: no tokenizer; put {TOKENIZER_FILE}, or vocab.json and merges.txt, or "
            f"{BPE_FILE} into it"
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a ``tokenizer.json`` of any name, or OpenAI's vocabulary (``.gz``).

        Raises:
            SammiError: the file cannot be read, or is not a CLIP tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise SammiError(f"{path}: no such file")
        return _read(path, _from_openai if path.suffix == ".gz" else _from_json)

    @property
    def vocab_size(self) -> int:
        """Number of rows that the text tower's token table needs."""
        return self._end + 1

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        self._tokenizer.save(str(Path(folder) / TOKENIZER_FILE))

    def __call__(
        self, texts: str | Sequence[str], context_length: int = 77
    ) -> Int[NpArray, "n {context_length}"]:
        """Token ids (int32): the start token, the text's tokens, the end token, zeros.

        Texts that are too long are cut before the end token; one warning names all of them.

        Raises:
            SammiError: a text has a word that the vocabulary cannot express.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = np.zeros((len(texts), context_length), np.int32)
        cut = []
        for row, text in zip(rows, texts, strict=True):
            ids = self._encode(text)
            if len(ids) > context_length - 2:
                ids = ids[: context_length - 2]
                cut.append(text)
            row[: len(ids) + 2] = [self._start, *ids, self._end]
        if cut:
            warnings.warn(
                f"cut because longer than {context_length} tokens: {'; '.join(cut)}",
                stacklevel=2,
            )
        return rows

    def _encode(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # the library raises nothing narrower, and panics
            if not is_failure(error):
                raise
            raise SammiError(
                f"{text!r}: the tokenizer has no tokens for it ({one_line(error)})"
            ) from error


def class_tokens(
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
    context_length: int = 77,
) -> Int[NpArray, "t p l"]:
    """Token ids (int32) of every class in every prompt template, as long as the longest prompt.

    The length is a multiple of 8, or ``context_length``. No feature changes: the text tower is
    causal, so nothing after a prompt's last token reaches it. Class names are short (CLIP reads 77
    tokens, ADE20K's longest prompt has 14), and the tower's time goes with the length.

    Raises:
        SammiError: there is no template, one has not exactly one ``{}``, or a prompt has a word
            that the vocabulary cannot express.
    """
    check_templates(templates)
    texts = [text for template in templates for text in prompts(class_names, template)]
    rows = tokenizer(texts, context_length)
    rows = without_padding(rows)
    return rearrange(rows, "(p t) l -> t p l", p=len(templates))


def without_padding(rows: Int[NpArray, "n l"]) -> Int[NpArray, "n m"]:
    """Token rows as long as the longest text among them, or up to 7 more: a multiple of 8."""
    longest = int(rows.argmax(axis=1).max()) + 1  # the end token has the largest id
    return rows[:, : -(-longest // LENGTH_STEP) * LENGTH_STEP]


def _read(path: Path, read) -> Tokenizer:
    mend = "give a tokenizer.json as transformers writes it, or OpenAI's vocabulary"
    with reading(path, mend, "cannot be read as a tokenizer"):
        return Tokenizer(read(path), str(path))


def _from_json(path: Path) -> tokenizers.Tokenizer:
    content = read_json(path)
    for part in ("normalizer", "pre_tokenizer"):
        _check_steps(list(_steps(content.get(part))), part)
    return tokenizers.Tokenizer.from_file(str(path))


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """The objects with a type in a part of a tokenizer."""
    if isinstance(value, dict):
        if "type" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _steps(item)


def _check_steps(steps: Sequence[dict[str, Any]], part: str) -> None:
    if len(steps) > _MOST_STEPS:
        raise ValueError(f"its {part} has {len(steps)} steps; CLIP's has fewer than {_MOST_STEPS}")
    for step in steps:
        inserted = step.get("content") or step.get("prepend") or step.get("replacement") or ""
        if len(inserted) > _MOST_INSERTED or step["type"] == "Precompiled":
            raise ValueError(f"its {part} has a step {step['type']} that lengthens texts")


def _from_vocabulary(path: Path) -> tokenizers.Tokenizer:
    # transformers would give special tokens that are missing new ids, for which no model has rows.
    if not {START, END} <= set(read_json(path)):
        raise ValueError(f"it has no {START} or no {END}")
    merges = path.with_name("merges.txt")
    return _byte_pair(*tokenizers.models.BPE.read_file(str(path), str(merges)))


def _from_openai(path: Path) -> tokenizers.Tokenizer:
    """The file holds merges; the vocabulary is bytes, bytes ending a word, merges, specials."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        merges = file.read(_MOST_TEXT).splitlines()[1 : 1 + _NUM_MERGES]
    if len(merges) < _NUM_MERGES:
        raise SammiError(
            f"{path}: holds {len(merges)} merges, not {_NUM_MERGES}: it is cut short; download it "
            "again"
        )
    # OpenAI's order of the bytes' letters is that of code points.
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    return _byte_pair(vocabulary, [tuple(merge.split(" ")) for merge in merges])


def _byte_pair(vocabulary: dict[str, int], merges: list[Any]) -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoding from a vocabulary and merges."""
    # transformers warns where PyTorch is not installed, which tokenizers do not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # takes a second, and only conversion needs it

    return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
