"""Imports point one way: from use to models to arrays."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "sammi_jax"
LAYERS = [
    {"typing", "errors", "files", "distributed", "watchdog", "curves"},
    {"config"},
    {"ops"},
    {"layers"},
    {"params", "flops", "hlo"},
    {"models", "text", "losses"},
    {"functional", "kinds", "images", "segmentation"},
    {"folder", "inference", "data", "experiment"},
    {"convert", "optim", "parallel", "state", "tasks", "checkpoint", "pipeline", "watch"},
    {"evaluation"},
    {"validation"},
    {"loop", "caching"},
    {"trained"},
    {"aot"},
    {"cli", "demo"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sammi_jax."):
            yield node.module.split(".")[1:]


FILES = [path for path in ROOT.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    for module in _imports(path):
        assert LEVEL[module[0]] <= LEVEL[own[0]], f"{'.'.join(own)} imports {'.'.join(module)}"
        if own[0] == "models" and module[0] == "models" and own[-1] != "sammi":
            assert module[:2] == list(own[:2]), f"{own[-1]} imports its sibling {module[-1]}"
