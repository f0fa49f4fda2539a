"""Imports point one way, from use to arrays; within a level, never in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "sammi_jax"
LEVELS = """
    errors typing object_store < files locks images text ops figures < config kernels
    < layers data parallel < models < weights functional < inference convert < evaluation export
    < training doctor < pods bench < serve < cli
"""
LEVEL = {name: level for level, names in enumerate(LEVELS.split("<")) for name in names.split()}
FILES = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in LEVEL]


def _room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sammi_jax."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    for room in _imported_rooms(path):
        assert LEVEL[room] <= LEVEL[_room(path)], f"{_room(path)} imports {room}"


def test_rooms_of_one_level_import_each_other_one_way():
    arrows = {(_room(path), room) for path in FILES for room in _imported_rooms(path)}
    both_ways = {(a, b) for a, b in arrows if a < b and (b, a) in arrows}
    assert both_ways == set()
