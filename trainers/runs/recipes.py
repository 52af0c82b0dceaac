"""Recipes: complete runs as YAML files, read by the option `--config` of the commands that train."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "RECIPES",
    "check_keys",
    "find_recipe",
    "hide_rare_options",
    "read_recipe",
    "refuse_unknown_options",
    "set_recipe",
    "split_config",
]

RECIPES = Path(__file__).resolve().parents[2] / "configuration" / "recipes"
# What recipes of instruction tuning begin with; the others are of pre-training.
TUNING = "spa3-vlm-"
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


def split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `--config` names, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    named, others = parser.parse_known_args(arguments)
    return named.config, others


def find_recipe(name: str, of_tuning: bool) -> Path:
    """The file of a recipe: a YAML file, or the name of one in configuration/recipes.

    Raises:
        ValueError: If there is none; names those of pre-training, or of instruction tuning.
    """
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(TUNING) == of_tuning)
    raise ValueError(f"There is no recipe `{name}`: give a YAML file or one of {', '.join(known)}.")


def read_recipe(file: Path) -> dict[str, Any]:
    """The options of a recipe; raises a `ValueError` if it is none."""
    try:
        recipe = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {file} is not YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {file} must be a mapping of options to values.")
    # YAML reads a bare `no` as false.
    return recipe | {key: "no" for key in STRATEGIES if recipe.get(key) is False}


def check_keys(recipe: Iterable[str], parser: argparse.ArgumentParser, name: str):
    """Refuse a recipe with a key that no option has, by a `ValueError`."""
    options = {action.dest for action in parser._actions}
    for key in recipe:
        if key not in options:
            raise ValueError(f"Unknown key `{key}` in the recipe `{name}`; {_hint(key, options)}")


def refuse_unknown_options(unknown: Sequence[str], parser: argparse.ArgumentParser):
    """Refuse what a parser has left of a command line, by a `ValueError`."""
    if unknown:
        hint = _hint(unknown[0], [option for action in parser._actions for option in action.option_strings])
        raise ValueError(f"Unknown option `{unknown[0]}`; {hint}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close.pop()}`?" if close else "--help lists the known ones."


def set_recipe(recipe: dict[str, Any], parser: argparse.ArgumentParser, name: str):
    """Make a recipe's options the defaults of a parser; one value in the place of a list is a list of it.

    Raises:
        ValueError: For a key that no option has.
    """
    check_keys(recipe, parser, name)
    lists = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    parser.set_defaults(
        **{key: [value] if key in lists and isinstance(value, str) else value for key, value in recipe.items()}
    )


def hide_rare_options(parser: argparse.ArgumentParser, common: Iterable[str]):
    """Leave all other options out of --help; the documentation of the libraries describes them."""
    common = {*common, "config", "help"}
    for action in parser._actions:
        if action.dest not in common:
            action.help = argparse.SUPPRESS
