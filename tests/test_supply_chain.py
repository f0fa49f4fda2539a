"""What users install: requirements, locked versions, licenses, the wheel, a release."""

import importlib.util
import re
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from build import ProjectBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pyproject_hooks import quiet_subprocess_runner

import sammi_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name):
    """A script of .ci as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


licenses, set_version = script("licenses"), script("set_version")


def locked_versions():
    """name -> the versions that constraints.txt has for it, one a platform or Python."""
    locked: dict[str, list[Version]] = {}
    for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        locked.setdefault(canonicalize_name(requirement.name), []).append(Version(pin.version))
    return locked


REQUIREMENTS = licenses.runtime_requirements()
DEV = PROJECT["optional-dependencies"]["dev"]


@pytest.mark.parametrize("line", [*REQUIREMENTS, *DEV])
def test_each_requirement_has_a_lowest_version_and_a_locked_one_within_its_bounds(line):
    requirement = Requirement(line)
    assert {">=", "=="} & {part.operator for part in requirement.specifier}, "no lowest version"
    versions = locked_versions()[canonicalize_name(requirement.name)]
    assert all(version in requirement.specifier for version in versions)


def test_versions_that_break_are_excluded():
    """flax 0.12 does not run on jax 0.11.1 and newer; the others make breaking changes in these."""
    bounds = {Requirement(line).name: Requirement(line).specifier for line in REQUIREMENTS}
    breaking = {"jax": "0.11.1", "flax": "0.13", "transformers": "6", "orbax-checkpoint": "1"}
    for name, version in breaking.items():
        assert version not in bounds[name]


def test_the_table_of_licenses_names_what_an_installation_brings_along():
    locked = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    if f"transformers=={distribution('transformers').version}" not in locked:
        pytest.skip("the table is of the locked versions; others bring other packages along")
    table = (ROOT / "docs" / "licenses.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| (.+) \|$", table, re.MULTILINE))
    rows.pop("package")
    needed = licenses.installed_requirements(REQUIREMENTS)
    assert needed <= set(rows), "run `make licenses`"
    copyleft = re.compile(r"\b(A?GPL|Affero|GNU General)", re.IGNORECASE)
    assert not [name for name, text in rows.items() if copyleft.search(text)]


def test_a_missing_package_is_named():
    with pytest.raises(PackageNotFoundError, match="no-such-package"):
        licenses.installed_requirements(["no-such-package>=1"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ["sammi_jax", "configs"]:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = source / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(path)
    for name in [
        "pyproject.toml",
        "setup.py",
        "requirements.txt",
        "README.md",
        "LICENSE",
        "NOTICE",
    ]:
        (source / name).write_bytes((ROOT / name).read_bytes())
    builder = ProjectBuilder(source, runner=quiet_subprocess_runner)
    return Path(builder.build("wheel", tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    info = f"sammi_jax-{sammi_jax.__version__}.dist-info/"
    code = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sammi_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"sammi_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in files if not name.startswith(info)} == code | configs
    assert {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= files
    assert wheel.stat().st_size < 8e6


def test_the_wheel_requires_what_requirements_txt_says(wheel):
    metadata = zipfile.ZipFile(wheel).read(f"sammi_jax-{sammi_jax.__version__}.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata.decode(), re.MULTILINE)
    assert {str(Requirement(line)) for line in required} == {
        str(Requirement(line)) for line in REQUIREMENTS
    }


def test_the_version_is_the_same_everywhere():
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert sammi_jax.__version__ == PROJECT["version"] == citation[1]
    assert distribution("sammi_jax").version == sammi_jax.__version__


CHANGELOG = "# Changelog\n\nForm. There has been no release yet.\n\n## [Unreleased]\n\n- New.\n"


def test_a_release_moves_what_is_unreleased_under_its_number():
    text = set_version.released_changelog(CHANGELOG, "1.2.0", "2026-12-01")
    assert text == (
        "# Changelog\n\nForm.\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n- New.\n"
    )
    with pytest.raises(ValueError, match="nothing under"):
        set_version.released_changelog(text, "1.3.0", "2026-12-02")
    again = text.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n")
    with pytest.raises(ValueError, match=r"has 1\.2\.0 already"):
        set_version.released_changelog(again, "1.2.0", "2026-12-02")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("pyproject.toml", 'version = "'),
        ("CITATION.cff", "version: "),
        ("sammi_jax/__init__.py", '__version__ = "'),
    ],
)
def test_a_release_writes_its_number(name, pattern):
    before = (ROOT / name).read_text()
    after = set_version.with_version(before, pattern, "98.7.6")
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == 1
    assert "98.7.6" in changed[0][1]
    with pytest.raises(ValueError, match="0 times"):
        set_version.with_version(before, "no such line ", "98.7.6")
