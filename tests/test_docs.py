"""The documentation: what it names exists, and what the code cites of it exists, too."""

import ast
import contextlib
import io
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from sammi_jax.cli.main import main
from sammi_jax.config.fields import override
from sammi_jax.config.files import config_names, load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
)
CODE = sorted(
    path
    for part in (
        "sammi_jax",
        "configs",
        "tests",
        "examples",
        "benchmarks",
        "launch",
        "train.py",
        "eval.py",
    )
    for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
    if path != Path(__file__).resolve()
)
# Modules that the recipes of docs/extending.md make.
RECIPES = {
    "sammi_jax/data/vocabularies/toy_roads.json",
    "sammi_jax/cli/tokens.py",
    "sammi_jax/models/conv_tower.py",
}
SCRIPTS = {"train.py": "train", "eval.py": "eval"}
MAX_COLUMNS = 120


def text_of(page):
    return (ROOT / page).read_text()


FENCE = re.compile(r"^( *)```(\w*)( [^\n]*)?\n(.*?)^ *```$", re.M | re.S)


def without_code_blocks(text):
    return FENCE.sub("", text)


def code_blocks(text, language):
    found = [match.groups() for match in FENCE.finditer(text)]
    return [
        re.sub(rf"^{indent}", "", body, flags=re.M)
        for indent, lang, _, body in found
        if lang == language
    ]


# --- what the code cites of the documentation ---


@cache
def parts_of(page):
    """The numbered steps in each lettered or numbered part: ``{"f": {"1", ...}, ...}``."""
    parts, steps = {}, set()
    for line in text_of(page).splitlines():
        if heading := re.match(r"## (?:Part )?(\w)\. ", line):
            steps = parts.setdefault(heading[1], set())
        elif step := re.match(r"(\d+)\. ", line):
            steps.add(step[1])
    return parts


CITATION = re.compile(
    r"(?:docs/)?(?P<page>[a-z]+)\.md"
    r"(?:,? (?:(?:parts?|sections?) (?P<name>\w)\b|(?P<number>\d\b|[a-h](?=\))))"
    r"(?: to (?P<last>\d)\b)?)?"
    r"(?:, step (?P<step>\d+))?"
)


def cited_in(code):
    """(page, part, step) of every mention of a page of ``docs/``."""
    for found in CITATION.finditer(re.sub(r"\s*\n\s*(?:# )?", " ", code)):
        page, first = found["page"], found["name"] or found["number"]
        if found[0].startswith("docs/") or (first and (ROOT / "docs" / f"{page}.md").is_file()):
            yield page, first, found["step"]
            if found["last"]:
                yield page, found["last"], None


def citations():
    for path in CODE:
        for citation in cited_in(path.read_text()):
            yield path.relative_to(ROOT).as_posix(), *citation


CITATIONS = sorted(set(citations()), key=str)


@pytest.mark.parametrize(("path", "page", "part", "step"), CITATIONS)
def test_what_the_code_cites_exists(path, page, part, step):
    assert (ROOT / "docs" / f"{page}.md").is_file(), f"{path} cites docs/{page}.md"
    if part is not None:
        assert part in parts_of(f"docs/{page}.md"), f"{path} cites part {part} of docs/{page}.md"
    if step is not None:
        assert step in parts_of(f"docs/{page}.md")[part], f"{path} cites step {step} of part {part}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("docs/training.md says", [("training", None, None)]),
        ("(docs/method.md section 5)", [("method", "5", None)]),
        ("docs/method.md, 7): the", [("method", "7", None)]),
        ("(method.md section 3)", [("method", "3", None)]),
        ("(docs/method.md, 2 to 4)", [("method", "2", None), ("method", "4", None)]),
        ("(docs/catseg.md c)", [("catseg", "c", None)]),
        ("docs/catseg.md part f, step 6", [("catseg", "f", "6")]),
        ("# docs/catseg.md\n    # part e", [("catseg", "e", None)]),
        ("results.md and README.md", []),
    ],
)
def test_citations_are_found_in_every_form(code, expected):
    assert list(cited_in(code)) == expected
    assert len(CITATIONS) > 40


# --- links ---


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(text_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / file if file else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(linked.resolve().relative_to(ROOT)), f"{page}: {target}"


# --- files, modules and functions ---


def expanded(path):
    """``a/{b,c}.py`` as two paths."""
    found = re.search(r"\{([^{}]*)\}", path)
    if not found:
        return [path]
    names = [path[: found.start()] + name + path[found.end() :] for name in found[1].split(",")]
    return [each for name in names for each in expanded(name)]


@pytest.mark.parametrize("page", sorted({*PAGES, "NOTICE"} - {"CHANGELOG.md"}))
def test_files_that_are_named_exist(page):
    pattern = r"(?<![\w/.])(?:sammi_jax|tests|configs|examples|benchmarks|docs)/[\w./{},-]+"
    for mention in re.findall(pattern, text_of(page)):
        for path in expanded(mention.rstrip(".,-")):
            assert (ROOT / path).exists() or path in RECIPES, f"{page} names {path}"


@cache
def names_in(path):
    """Everything that a module defines: functions, classes, methods, constants."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def resolves(dotted):
    """Whether a dotted name is a module of the package, or a name defined in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if file.is_file():
            rest = parts[length:]
            lazy = (
                re.findall(r'"(\w+)"', file.read_text())
                if file.parent == ROOT / "sammi_jax"
                else []
            )
            return not rest or rest[0] in names_in(file.relative_to(ROOT)) | set(lazy)
    return False


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"CHANGELOG.md"}))
def test_dotted_names_exist(page):
    for dotted in re.findall(r"`(sammi_jax(?:\.\w+)+)(?:\([^`]*\))?`", text_of(page)):
        assert dotted == "sammi_jax.configs" or resolves(dotted), f"{page} names {dotted}"


@pytest.mark.parametrize("page", PAGES)
def test_examples_in_python_parse_and_import_what_exists(page):
    for block in code_blocks(text_of(page), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sammi_jax"):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert resolves(name), f"{page} imports {name}"


def test_flows_name_functions_of_the_files_beside_them():
    rows = re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", text_of("docs/architecture.md"), re.M)
    steps = [
        (re.findall(r"`(\w+)`", functions), re.findall(r"`(sammi_jax/[\w/]+\.py)`", files))
        for _, functions, files in rows
    ]
    steps = [(functions, files) for functions, files in steps if files]
    assert len(steps) > 30
    for functions, files in steps:
        for function in functions:
            assert any(function in names_in(file) for file in files), (function, files)
        for file in files:
            assert any(function in names_in(file) for function in functions), (functions, file)


def test_every_part_of_the_package_has_its_line():
    table = text_of("docs/architecture.md").split("## Flow 1")[0]
    for path in (ROOT / "sammi_jax").iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert f"| `{path.name}/` |" in table, path.name
        elif path.suffix == ".py" and not path.stem.startswith("__"):
            assert f"| `{path.name}` |" in table, path.name


# --- commands ---


def commands(page):
    """Commands of ``sammi``, ``train.py`` and ``eval.py`` as lists of words, from code."""
    text = text_of(page)
    lines = []
    for block in code_blocks(text, "sh"):
        lines += re.sub(r"\\\n\s*", "", block).splitlines()
    lines += [
        " ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code_blocks(text))
    ]
    for line in lines:
        start = re.match(r"(?:python )?(sammi|train\.py|eval\.py) (?=\S)", line.strip())
        if start and not line.strip()[start.end() :].split()[0].endswith(":"):  # a message
            words = shlex.split(line.strip()[start.end() :], comments=True)
            yield [SCRIPTS[start[1]], *words] if start[1] in SCRIPTS else words


@cache
def help_of(*command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return out.getvalue()


COMMANDS = [(page, tuple(words)) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_commands_and_options_exist(page, words):
    if words[0].startswith("--") or words[0] == "COMMAND":
        command = ()
    else:
        command = words[:2] if words[0] == "datasets" and len(words) > 1 else words[:1]
        listed = help_of(*command[:-1])
        assert re.search(rf"^    {command[-1]} ", listed, re.M), f"{page}: sammi {words}"
    for option in re.findall(r"--[a-z][a-z-]*", " ".join(words)):
        assert re.search(rf"{option}\b(?!-)", help_of(*command)), f"{page}: {option} of {command}"


def test_many_commands_are_checked():
    assert {words[0] for _, words in COMMANDS} >= {
        "convert",
        "datasets",
        "segment",
        "train",
        "eval",
        "cache",
        "compile",
        "inspect",
    }


def settings(words):
    """What follows each ``--set``, but for placeholders."""
    return [
        value for flag, value in pairwise(words) if flag == "--set" and not value.startswith("a.b=")
    ]


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, words in COMMANDS if "--config" in words]
)
def test_configurations_and_settings_exist(page, words):
    name = words[words.index("--config") + 1]
    if name.isupper() or name == "NAME_OR_FILE":  # a placeholder
        name = "sammi_vitb16"
    assert name in config_names() or (ROOT / name).is_file(), f"{page}: {name}"
    values = [v for v in settings(words) if not v.rpartition("=")[2].isupper()]
    load_config(name if name in config_names() else ROOT / name, values)


@pytest.mark.parametrize("page", PAGES)
def test_settings_outside_of_commands_exist(page):
    config = load_config("sammi_vitb16")
    for quoted, plain in re.findall(r'--set (?:"([^"`]+)"|([\w.]+=[^\s`]+))', text_of(page)):
        value = quoted or shlex.split(plain)[0]
        placeholder = value.rpartition("=")[2]
        if not value.startswith("a.b=") and not placeholder.isupper() and "/" not in placeholder:
            override(config, value)


# --- messages ---


@cache
def texts_in_code():
    """The fixed parts of every text in the package's code; a value is an empty line."""
    parts = []
    for path in (ROOT / "sammi_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        parts += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n\n".join(part for part in parts if isinstance(part, str))


MESSAGES = [
    message
    for row in re.findall(r"^\| (`.*?) \| ", text_of("docs/troubleshooting.md"), re.M)
    for message in re.findall(r"`([^`]+)`", row)
    if " " in message and "RESOURCE_EXHAUSTED" not in message
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message):
    """Their longest part without values (capitals, dots, names, numbers) is in the code."""
    parts = re.split(r"\.\.\.|\b[A-Z]{1,}\b|\b[\w.]+=\S+|\b\d+\b|^[\w./]+: |optim\.\w+", message)
    longest = max(parts, key=len).strip(" ;:,(")
    assert len(longest) > 8
    assert longest in texts_in_code(), f"no error says {longest!r}"


# --- form ---


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_wrapped(page):
    for line in without_code_blocks(text_of(page)).splitlines():
        one_link = re.fullmatch(r"(?:[-*] )?\S*\]\(\S+\)\S*", line.strip())
        free = line.lstrip().startswith("|") or one_link
        assert len(line) <= MAX_COLUMNS or free, f"{page}: {line}"


@pytest.mark.parametrize("page", [*PAGES, "NOTICE", "CITATION.cff"])
def test_the_license_is_spelled_the_american_way(page):
    """But for the field ``licence`` of model folders and vocabularies, which is quoted."""
    assert not re.findall(r'(?<![`"])\blicence', text_of(page), re.I)
