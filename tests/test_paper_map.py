"""Every place that docs/paper-map.md names exists, and its figures are the paper's."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import spa3r
from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.vsi_bench import ABLATIONS
from spa3r.trainers.runs.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper-map.md"
TEXT = PAGE.read_text(encoding="utf-8")
# [`name`](../file), recipe `name`, `Class(field="value")`, `Class.field = value` and `recipe: option = value`.
DEFINITIONS = sorted(set(re.findall(r"\[`([^`]+)`\]\(\.\./([^)]+)\)", TEXT)))
RECIPES = sorted(set(re.findall(r"recipe\s`([\w-]+)`", TEXT)))
VARIANTS = sorted(set(re.findall(r'`(\w+)\((\w+)="(\w+)"\)`', TEXT)))
DEFAULTS = re.findall(r"`(\w+)\.(\w+) = ([^`]+)`", TEXT)
OPTIONS = re.findall(r"`([\w-]+): (\w+) = ([^`]+)`", TEXT)


@cache
def names_in(file: Path) -> set[str]:
    """Functions and classes of a module, and methods as `Class.method`."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    definitions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    classes = [node for node in definitions if isinstance(node, ast.ClassDef)]
    methods = {f"{cls.name}.{node.name}" for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}
    return {node.name for node in definitions} | methods


def numbers_in_first_column(heading: str) -> set[int]:
    """Numbers of the rows of all tables below a heading of the page."""
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE)
    return {int(number) for cell in cells for number in cell.split(",")}


@pytest.mark.parametrize(("name", "file"), DEFINITIONS)
def test_every_named_definition_is_in_its_file(name, file):
    path = ROOT / file
    assert path.is_file(), f"{PAGE.name} names the file `{file}`, which does not exist."
    assert name == path.name or name in names_in(path), f"{PAGE.name} names `{name}`, which `{file}` does not define."


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_exists(name):
    assert (ROOT / "configuration" / "recipes" / f"{name}.yaml").is_file()


def test_every_recipe_of_the_paper_is_on_the_page():
    recipes = {file.stem for file in (ROOT / "configuration" / "recipes").glob("*.yaml")}
    assert {name for name in recipes if name.startswith("ablation-")} <= set(RECIPES)


@pytest.mark.parametrize(("config", "field", "value"), VARIANTS)
def test_every_named_variant_can_be_configured(config, field, value):
    assert getattr(getattr(spa3r, config)(**{field: value}), field) == value


@pytest.mark.parametrize(("config", "field", "value"), DEFAULTS)
def test_stated_defaults_are_those_of_the_configuration(config, field, value):
    default = getattr(getattr(spa3r, config)(), field)
    assert (list(default) if isinstance(default, tuple) else default) == json.loads(value)


@pytest.mark.parametrize(("recipe", "option", "value"), OPTIONS)
def test_stated_options_are_those_of_the_recipe(recipe, option, value):
    resolved = read_recipe(recipe, "sft" if recipe.startswith("spa3-vlm") else "pretrain")
    stated, given = json.loads(value), resolved[option]
    assert float(given) == stated if isinstance(stated, float) else given == stated


@pytest.mark.parametrize(
    ("heading", "numbers"), [("Equations", range(2, 16)), ("Tables", range(1, 8)), ("Figures", [2])]
)
def test_every_number_of_the_paper_has_a_row(heading, numbers):
    assert set(numbers) <= numbers_in_first_column(heading)


def figures_of_table(number: int) -> list[list[float]]:
    """Figures of each row of one of the paper's tables, in the order of the page."""
    rows = re.findall(rf"^\| {number} \|.*?((?: [\d.–]+ \|){{3}})$", TEXT, re.MULTILINE)
    return [[float(cell) for cell in row.split("|") if cell.strip() not in ("", "–")] for row in rows]


@pytest.mark.parametrize("name", ABLATIONS)
def test_figures_of_ablations_are_the_papers(name):
    number = int(re.search(r"\d", name)[0])
    assert figures_of_table(number) == [list(row) for row in ABLATIONS[name].values()]


@pytest.mark.parametrize(
    ("number", "names"), [(1, ["vsi-bench"]), (2, ["cv-bench", "spar-bench", "viewspatial-bench"])]
)
def test_figures_of_benchmarks_are_the_papers(number, names):
    published = {row.columns.get("overall") for name in names for row in BENCHMARKS[name].published}
    figures = [row[0] for row in figures_of_table(number)]
    assert len(figures) >= len(names) and set(figures) <= published
