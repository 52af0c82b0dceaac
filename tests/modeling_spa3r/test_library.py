"""Internals of transformers are imported in one file."""

import ast
from pathlib import Path

import spa3r

MODELS = Path(spa3r.__file__).parent / "modeling_spa3r"
DOCUMENTED = {"transformers", "transformers.utils.logging", "transformers.modeling_outputs"}


def imported_modules(file: Path) -> set[str]:
    """Modules that a file imports names from; `from transformers.utils import logging` imports a module."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in DOCUMENTED else node.module for name in names}
    return modules


def test_only_the_library_module_imports_internals_of_transformers():
    internals = {
        (file.name, module)
        for file in MODELS.rglob("*.py")
        for module in imported_modules(file)
        if module.split(".")[0] == "transformers" and module not in DOCUMENTED
    }
    assert internals and {name for name, _ in internals} == {"library.py"}
