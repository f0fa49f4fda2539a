"""Class names and prompt templates: reading lists of them, synonyms, prompts."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sammi_jax.errors import SammiError, listed, printable
from sammi_jax.files import parse_json
from sammi_jax.object_store import as_path, is_bucket, read_bytes

_PATH_LIKE = re.compile(r"[^,]*\.[A-Za-z]{2,5}|[~.]{0,2}[/\\][^,]*|[A-Za-z]:\\[^,]*")
# What stands in files of class names that are not one name a line, and what to do about it.
_WRONG_LINES = (
    (re.compile(r"#.*"), "a comment"),
    (re.compile(r"\d+\s*[:=,;\t].*"), "a number before the name"),
    (re.compile(r".*[,;]"), "a name that ends with a separator"),
    (re.compile(r'["\'].*["\'],?'), "a name in quotes"),
)


def parse_class_list(text: str) -> list[str]:
    """Class names from ``"cat, dog"``, or from a file (`read_class_file`), whatever its suffix.

    Commas separate names in the first form, and synonyms of a name in a file (`first_synonym`).

    Raises:
        SammiError: there is no name, a name occurs twice, or the text is a path but no file that
            can be read.
    """
    text = text.strip()
    if _is_file(text):
        return read_class_file(text)
    if _PATH_LIKE.fullmatch(text):
        raise SammiError(
            f"{text}: no such file of class names; give a path that exists, or names such as "
            '"cat, dog"'
        )
    return check_class_names(text.split(","))


def _is_file(text: str) -> bool:
    try:
        return is_bucket(text) or Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def read_class_file(path: str | Path) -> list[str]:
    """Class names from a UTF-8 file: one name a line, synonyms after ``", "``; or a JSON list.

    Raises:
        SammiError: there is no name, a name occurs twice, the file cannot be read, or a line is
            no name; the message shows the line.
    """
    try:
        text = read_bytes(as_path(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SammiError(f"{path}: cannot be read as a list of class names ({error})") from error
    try:
        if Path(path).suffix.lower() == ".json" or text.lstrip().startswith(("[", "{")):
            return check_class_names(_json_names(text))
        return check_class_names(_line_names(text))
    except SammiError as error:
        raise SammiError(f"{path}: {error}") from error


def _json_names(text: str) -> list[Any]:
    try:
        names = parse_json(text)
    except ValueError as error:
        raise SammiError(f"is not valid JSON ({error}); give a list of names") from error
    if isinstance(names, dict) and list(names) == [str(index) for index in range(len(names))]:
        names = list(names.values())
    if not isinstance(names, list):
        raise SammiError('give a JSON list of names, such as ["wall", "sky"]')
    if any(isinstance(name, str) and not name.strip() for name in names):
        raise SammiError("one of its names is empty; a label counts names, so none may be left out")
    return names


def _line_names(text: str) -> list[str]:
    """The lines; a label is a line number, so that none may be left out but those at the end."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, 1):
        wrong = "no name" if not line else next(
            (what for pattern, what in _WRONG_LINES if pattern.fullmatch(line)), None
        )  # fmt: skip
        if wrong:
            raise SammiError(f"line {number}, {line!r}, is {wrong}; write one name a line")
    if len(lines) == 1 and "," in lines[0]:
        raise SammiError(
            f"its only line, {lines[0]!r}, is one class with synonyms; write one name a line"
        )
    return lines


def check_class_names(names: Iterable[Any]) -> list[str]:
    """The names without surrounding space; blank ones are left out.

    Names that differ only in case or spacing count as equal, because the tokenizer ignores both.
    Names whose prompts are equal, such as "crane, bird" and "crane, machine", give a warning: the
    model cannot tell them apart.

    Args:
        names: one a class, or one text with commas between them.

    Raises:
        SammiError: there is no name, a name occurs twice, or one is not a string, has control
            characters, or begins with its second synonym.
    """
    given = list(names.split(",") if isinstance(names, str) else names)
    other = [name for name in given if not isinstance(name, str)]
    if other:
        raise SammiError(f"class names must be strings; {other[0]!r} is none")
    kept = [name.strip() for name in given if name.strip()]
    odd = next((name for name in kept if printable(name) != name or not first_synonym(name)), None)
    if odd is not None:
        raise SammiError(f"{odd!r} is no class name: it has control characters, or no text")
    if not kept:
        raise SammiError('the class list is empty: name at least one class, as in "cat, dog"')
    twice = _repeated(kept, lambda name: name)
    if twice:
        raise SammiError(f"the class list names {', '.join(twice)} more than once: name each once")
    same = _repeated(kept, first_synonym)
    if same:
        warnings.warn(
            f"classes whose first synonym is that of another: {listed(same)}; only the first "
            "synonym is asked for, so the model cannot tell them apart",
            stacklevel=2,
        )
    return kept


def _repeated(names: Sequence[str], part: Callable[[str], str]) -> list[str]:
    """Names of which that part occurs before, as the tokenizer sees it."""
    seen: set[str] = set()
    twice: list[str] = []
    for name in names:
        key = " ".join(part(name).casefold().split())
        if key in seen and name not in twice:
            twice.append(name)
        seen.add(key)
    return twice


def first_synonym(name: str) -> str:
    """``"building, edifice"`` -> ``"building"``: the only synonym that CAT-Seg's prompts use."""
    return name.split(", ")[0].strip()


def split_synonyms(class_names: Sequence[str]) -> tuple[list[str], list[str], list[int]]:
    """Names with synonyms, ``"sofa; couch"``, each of which is a text of its own.

    Returns:
        The first synonym of each class, all texts, and the class of each text.

    Raises:
        SammiError: a text occurs twice.

    Example:
        >>> split_synonyms(["sofa; couch", "cat"])
        (['sofa', 'cat'], ['sofa', 'couch', 'cat'], [0, 0, 1])
    """
    groups = [[text.strip() for text in name.split(";") if text.strip()] for name in class_names]
    if not all(groups):
        raise SammiError(f"{class_names[groups.index([])]!r} is no class name: it is empty")
    texts = [text for group in groups for text in group]
    if any(len(group) > 1 for group in groups):
        check_class_names(texts)
    merge = [index for index, group in enumerate(groups) for _ in group]
    return [group[0] for group in groups], texts, merge


def prompts(class_names: Sequence[str], template: str) -> list[str]:
    """``template`` with the first synonym of each name in place of its ``{}``.

    Raises:
        SammiError: the template has not exactly one ``{}``.
    """
    check_templates([template])
    return [template.replace("{}", first_synonym(name)) for name in class_names]


def check_templates(templates: Sequence[str]) -> None:
    """Check prompt templates such as ``"A photo of a {} in the scene"``.

    Raises:
        SammiError: there is none, or one has not exactly one ``{}``.
    """
    if not templates:
        raise SammiError('no prompt template: give at least one, as "a photo of a {}"')
    for template in templates:
        if template.count("{}") != 1:
            raise SammiError(
                f"the prompt template {template!r} must hold one {{}} for the class name"
            )


def read_template_file(path: str | Path) -> tuple[str, ...]:
    """Prompt templates from a UTF-8 file with one a line; blank lines are left out.

    Raises:
        SammiError: the file cannot be read, has no template, or one without exactly one ``{}``.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SammiError(f"{path}: cannot be read as a list of templates ({error})") from error
    templates = tuple(line.strip() for line in lines if line.strip())
    try:
        check_templates(templates)
    except SammiError as error:
        raise SammiError(f"{path}: {error}") from error
    return templates
