"""The tree is the architecture: a package imports only lower layers, and its own files without a cycle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import normfuse

ROOT = Path(normfuse.__file__).parent

LAYERS = {
    "errors": 0, "memory": 0, "packages": 0, "spec": 0,
    "affine": 1, "reference": 1,
    "graph": 2,
    "emit": 3, "io": 3, "recognise": 3, "report": 3,
    "ledger": 4, "passes": 4, "runtime": 4,
    "export": 5, "fusion": 5, "validate": 5,
    "pipeline": 6,
    "cli": 7,
    "__init__": 8, "__main__": 8,
}  # fmt: skip


def modules() -> list[Path]:
    """Return every Python file of the package."""
    return sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file: normfuse.graph.site."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def package(name: str) -> str:
    """Return the part of a dotted name that has a layer."""
    return name.split(".")[1] if "." in name else "__init__"


def imports(path: Path) -> set[str]:
    """Return the modules of normfuse that a file imports, anywhere in it."""
    known = {module_name(entry) for entry in modules()}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return {name for name in found if name == "normfuse" or name.startswith("normfuse.")}


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = package(module_name(path))
    for name in imports(path):
        other = package(name)
        if other == own or (name == "normfuse" and own in ("cli", "__main__")):
            continue
        assert LAYERS[other] < LAYERS[own], f"{module_name(path)} imports {name}"


def test_every_package_has_a_layer() -> None:
    assert {package(module_name(path)) for path in modules()} <= set(LAYERS)


def test_no_cycles_within_a_package() -> None:
    """Imports at the top of a file; those inside functions run later and may look back."""
    graph: dict[str, set[str]] = {}
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        graph[module_name(path)] = {name for name in top if name.startswith("normfuse.")} - {module_name(path)}
    list(TopologicalSorter(graph).static_order())
