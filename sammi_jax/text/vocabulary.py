"""Class names and prompt templates: reading lists of them, synonyms, prompts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sammi_jax.errors import SammiError


def parse_class_list(text: str) -> list[str]:
    """Class names from ``"cat, dog"``, or from a text file with one name a line (``names.txt``).

    Commas separate names in the first form, and synonyms of a name in a file (`first_synonym`).

    Raises:
        SammiError: there is no name, a name occurs twice, or the file cannot be read.
    """
    if text.strip().endswith(".txt"):
        return read_class_file(text.strip())
    return check_class_names(text.split(","))


def read_class_file(path: str | Path) -> list[str]:
    """Class names from a UTF-8 file with one name a line, synonyms after ``", "``.

    Raises:
        SammiError: there is no name, a name occurs twice, or the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SammiError(f"{path}: cannot be read as a list of class names ({error})") from error
    return check_class_names(text.splitlines())


def check_class_names(names: Iterable[str]) -> list[str]:
    """The names without surrounding space; blank ones are left out.

    Names that differ only in case or spacing count as equal, because the tokenizer ignores both.

    Raises:
        SammiError: there is no name, or a name occurs twice.
    """
    stripped = [name.strip() for name in names]
    kept = [name for name in stripped if name]
    if not kept:
        raise SammiError('the class list is empty: name at least one class, as in "cat, dog"')
    seen: set[str] = set()
    twice: list[str] = []
    for name in kept:
        key = " ".join(name.casefold().split())
        if key in seen and name not in twice:
            twice.append(name)
        seen.add(key)
    if twice:
        raise SammiError(f"the class list names {', '.join(twice)} more than once: name each once")
    return kept


def first_synonym(name: str) -> str:
    """``"building, edifice"`` -> ``"building"``: the only synonym that CAT-Seg's prompts use."""
    return name.split(", ")[0].strip()


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
