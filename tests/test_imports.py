"""Which part of the package may import which, read from the source."""

import ast
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configuration", "data_scripts", "modeling_spa3r", "trainers")
FILES = sorted(file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
MODULES = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}

# Each part may import itself and these.
COMMON, MODELS = "data_scripts.common", ("configuration", "modeling_spa3r", "data_scripts")
ALLOWED = {
    "configuration": (),
    COMMON: (),
    "data_scripts.scenes": (COMMON,),
    "data_scripts.instructions": (COMMON, "data_scripts.scenes"),
    "data_scripts.benchmarks": (COMMON,),
    "data_scripts.rooms": (COMMON, "data_scripts.scenes", "data_scripts.benchmarks"),
    "modeling_spa3r": ("configuration", COMMON),
    "trainers.runs": MODELS,
    "trainers.pretraining": (*MODELS, "trainers.runs"),
    "trainers.alignment": (*MODELS, "trainers.runs"),
    "trainers.teaching": (*MODELS, "trainers.runs"),
    "trainers.tuning": (*MODELS, "trainers.runs"),
    "trainers.benchmark": (*MODELS, "trainers.runs"),
    "trainers.world": (*MODELS, "trainers.runs", "trainers.tuning", "trainers.benchmark"),
    "trainers.integrations": (*MODELS, "trainers"),
}
# `evaluate` copies this file out of the package, so its imports are absolute.
COPIED = Path("trainers/integrations/evaluate_metric.py")
# Checkpoints carry the code of the model, which may need only these and what they bring.
CARRIED = [
    *("configuration.configuration_spa3_vlm", "modeling_spa3r.spa3_vlm.modeling_spa3_vlm"),
    *("modeling_spa3r.spa3_vlm.processing_spa3_vlm", "modeling_spa3r.spa3_vlm.image_processing_spa3_vlm"),
]
CARRIED_LIBRARIES = {"torch", "transformers", "PIL", "numpy", "huggingface_hub"}


def belongs(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def imports(module: str) -> list[tuple[str, tuple[str, ...]]]:
    """List the modules of the package that a module imports, each with the imported names."""
    file = MODULES[module]
    found = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parts[: -node.level]
            found.append((".".join([*base, *filter(None, [node.module])]), tuple(alias.name for alias in node.names)))
    return found


def reachable(starts: list[str]) -> set[str]:
    """Find all modules that importing some modules runs, without the root of the package."""
    seen, waiting = set(), list(starts)
    while waiting:
        module = waiting.pop()
        if module and module not in seen and module in MODULES:
            seen.add(module)
            waiting += [f"{target}.{name}" for target, names in imports(module) for name in names]
            waiting += [target for target, _ in imports(module)] + [module.rpartition(".")[0]]
    return seen


@pytest.mark.parametrize("part", ALLOWED)
def test_each_part_imports_only_what_it_may(part):
    arrows = [(module, target) for module in MODULES if belongs(module, part) for target, _ in imports(module)]
    wrong = [arrow for arrow in arrows if not any(belongs(arrow[1], each) for each in (part, *ALLOWED[part]))]
    assert not wrong, "; ".join(f"{module} must not import {target}" for module, target in wrong)


def test_every_module_belongs_to_a_part():
    others = {module for module in MODULES if not any(belongs(module, part) for part in ALLOWED)}
    assert others <= set(FOLDERS), f"{others} need a row in the table"


def test_benchmarks_need_no_renderer():
    starts = [module for module in MODULES if belongs(module, "trainers.benchmark")]
    needed = sorted(module for module in reachable(starts) if belongs(module, "data_scripts.rooms"))
    assert starts and not needed, f"trainers.benchmark needs {', '.join(needed)}"


@pytest.mark.parametrize("file", [*FILES, Path("__init__.py"), Path("__main__.py")], ids=str)
def test_imports_within_the_package_are_relative_and_name_a_module(file):
    wrong = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            is_absolute = node.level == 0 and node.module.partition(".")[0] == "spa3r" and file != COPIED
            is_vague = node.level > 0 and (node.module is None or node.names[0].name == "*")
            wrong += [ast.unparse(node)] * (is_absolute or is_vague)
        elif isinstance(node, ast.Import):
            wrong += [ast.unparse(node) for alias in node.names if alias.name.partition(".")[0] == "spa3r"]
    assert not wrong, f"{file}: write `from .module import name` instead of {'; '.join(wrong)}"


@pytest.mark.parametrize("module", MODULES)
def test_imported_names_are_defined_where_they_are_imported_from(module):
    for target, names in imports(module):
        assert target in MODULES, f"{module} imports {target}, which does not exist"
        names = [name for name in names if f"{target}.{name}" not in MODULES]
        missing = [name for name in names if not hasattr(import_module(f"spa3r.{target}"), name)]
        assert not missing, f"{module} imports {missing}, which {target} does not define"


def test_code_that_checkpoints_carry_needs_only_what_transformers_brings():
    modules = sorted(module for module in reachable(CARRIED) if MODULES[module].name != "__init__.py")
    foreign = set()
    for module in modules:
        functions = [node for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.FunctionDef | ast.Try)]
        optional = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree(MODULES[module])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            libraries = {name.partition(".")[0] for name in names} - CARRIED_LIBRARIES - sys.stdlib_module_names
            if id(node) in optional:
                libraries -= {"av", "pillow_heif"}
            foreign |= {f"{module} imports {library}" for library in libraries}
    assert not foreign, "; ".join(sorted(foreign))
    stems = [MODULES[module].stem for module in modules]
    assert len(stems) == len(set(stems)), f"file names occur twice: {sorted(stems)}"
