"""Recipes: complete runs as YAML files, read by the option `--config` of the commands that train."""

import argparse
import difflib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from ...data_scripts.common.command_line import OneLineHelp, add_options_of_all
from .extras import require_packages, without_missing_flash_attention

RECIPES = Path(__file__).resolve().parents[2] / "configuration" / "recipes"
# How the names of a command's recipes start; those of `grpo` end with its name, and all others are of pre-training.
PREFIXES = {"align": "spa3-vlm-align", "sft": "spa3-vlm-", "teach": "teach-"}
# How messages call the types of options.
NAMES = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a text"},
    **{list: "a list", dict: "a mapping", NoneType: "null"},
}
SCALARS = (bool, int, float)
MAX_WHOLE = 1 << 63
# Lowest values that training does not refuse when it has begun.
LOWEST = dict.fromkeys(
    ("learning_rate", "muon_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"), 0
) | {
    "dataloader_num_workers": 0,
    **dict.fromkeys(("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"), 1),
}
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")
# Options of transformers.TrainingArguments that --help lists, with their defaults; its documentation has all others.
COMMON = {
    "output_dir": ("folder of the run", None),
    "gradient_accumulation_steps": ("batches of each step", 1),
    "warmup_steps": ("steps, or share of all steps, of warm-up", 0),
    "bf16": ("train in bfloat16", False),
    "logging_steps": ("steps between two logs", 500),
    "eval_strategy": ("when to evaluate: no, steps or epoch", "no"),
    "eval_steps": ("steps between two evaluations", None),
    "save_steps": ("steps between two checkpoints", 500),
    "seed": ("decides weights, order and views", 42),
    "dataloader_num_workers": ("processes that read data", 0),
    "report_to": ("trackers, such as tensorboard", "none"),
    "use_cpu": ("train on the CPU", False),
    "push_to_hub": ("upload the final model", False),
    "hub_model_id": ("repository to upload to", None),
    "resume_from_checkpoint": ("resume from it, not from the last one", None),
}


def show_help(
    verb: str, dataclasses: Sequence[type], common: Mapping[str, tuple[str, Any]], description: str
) -> NoReturn:
    """Print the help of a command that trains, and end the process.

    The libraries whose trainer it uses, which take seconds to import, are not needed: the help lists our own options
    and `common`.

    Args:
        verb (`str`): The command, such as `pretrain`.
        dataclasses (`Sequence[type]`): Our options.
        common (`Mapping[str, tuple[str, Any]]`): Help and default of options of the libraries.
        description (`str`): Shown above the options.
    """
    parser = HfArgumentParser(
        dataclasses,
        prog=f"spa3r {verb}",
        usage=f"spa3r {verb} [--config RECIPE] [--OPTION VALUE ...]",
        description=description,
        epilog="All other options of the library's trainer work, too; its documentation describes them.",
        formatter_class=OneLineHelp,
        allow_abbrev=False,
    )
    for name, (text, default) in common.items():
        parser.add_argument(f"--{name}", help=text, default=default)
    parser.add_argument("--config", help="YAML file, or name in configuration/recipes")
    add_options_of_all(parser)
    parser.print_help()
    sys.exit(0)


def parse_options(
    verb: str, arguments: Sequence[str], dataclasses: Sequence[type]
) -> tuple[list[Any], dict[str, Any]]:
    """Read a command line, over the recipe that it names, over the defaults.

    A recipe may set environment variables under the key `env`.

    Args:
        verb (`str`): The command, such as `pretrain`.
        arguments (`list[str]`): The command line after the verb.
        dataclasses (`Sequence[type]`): The options.

    Returns:
        `tuple[list, dict]`: An instance of each dataclass, and the recipe, which is empty if there is none.

    Raises:
        ValueError: If there is no such recipe, a key or an option is unknown, or no device here supports `bf16`.
    """
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    named, arguments = config.parse_known_args(arguments)
    parser = HfArgumentParser(dataclasses, prog=f"spa3r {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    recipe = {} if named.config is None else read_recipe(named.config, verb)
    environment = recipe.pop("env", {})
    if not isinstance(environment, dict):
        raise ValueError(f"`env` in the recipe `{named.config}` must map names to values, got `{environment}`.")
    os.environ.update({key: str(value) for key, value in environment.items()})
    recipe = without_missing_flash_attention(_check_types(recipe, dataclasses, named.config))
    _set_defaults(parser, recipe, named.config)
    # Unknown options first: the dataclasses would otherwise complain about the rest of the command line.
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = _hint(unknown[0], [option for action in parser._actions for option in action.option_strings])
        raise ValueError(f"Unknown option `{unknown[0]}`; {hint}")
    check_numbers(vars(options))  # before the library calculates with them
    _check_pairs(vars(options))
    require_packages(options)
    try:
        *parsed, _ = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        if "bf16" not in str(error) or not options.bf16:  # what our own options say of it is kept
            raise
        raise ValueError(
            "`bf16` is true, but no GPU here computes in bfloat16: add `--bf16 false`, or `--use_cpu true` to use "
            "bfloat16 on the CPU."
        ) from error
    return parsed, recipe


def _check_types(recipe: dict[str, Any], dataclasses: Sequence[type], name: str | None) -> dict[str, Any]:
    """Refuse values of a type that their option does not take; argparse itself checks only those that are texts.

    Returns:
        `dict[str, Any]`: The recipe, with texts where YAML reads one, such as `true`, as another value.

    Raises:
        ValueError: Names the key, the value, and the types that are possible.
    """
    hints = {key: hint for each in dataclasses for key, hint in get_type_hints(each).items()}
    checked = dict(recipe)
    for key, value in recipe.items():
        if key not in hints or key == "overrides" or isinstance(value, str):
            continue
        possible = _types(hints[key])
        items = value if isinstance(value, list) and list in possible else [value]
        if not all(_fits(item, possible) for item in items):
            named = ", ".join(sorted(NAMES.get(each, each.__name__) for each in possible))
            raise ValueError(f"`{key}` in the recipe `{name}` must be {named}; got {value!r:.200}.")
        if isinstance(value, float) and float not in possible and int in possible:
            checked[key] = int(value)
        elif value is not None and str in possible:
            texts = [item if type(item) in possible else str(item) for item in items]
            checked[key] = texts if items is value else texts[0]
    return checked


def _types(hint: Any) -> set[type]:
    """The types that a hint allows, without those of items; the choices of a literal or an enumeration are texts."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_types, get_args(hint)))
    kind = get_origin(hint) or hint
    if kind is list:
        return {list}.union(*map(_types, get_args(hint)))
    return {kind if kind in NAMES else str}


def _fits(value: Any, possible: set[type]) -> bool:
    if isinstance(value, float) and value.is_integer() and int in possible and abs(value) < MAX_WHOLE:
        return True
    # In Python, but not for users, truth values are whole numbers.
    kind = type(value)
    is_text = kind in SCALARS and str in possible and dict not in possible  # a text for a mapping is JSON
    return kind in possible - {list} or (kind is int and float in possible) or is_text


def check_numbers(options: Mapping[str, Any]):
    """Refuse numbers that no option means: they only fail later, or never.

    Args:
        options (`Mapping[str, Any]`): Values by the names of options; those that are no numbers are passed over.

    Raises:
        ValueError: If a number is not finite, too large, or below the `LOWEST` of its option.
    """
    for name, value in options.items():
        if not isinstance(value, int | float):
            continue
        if abs(value) >= MAX_WHOLE if isinstance(value, int) else not math.isfinite(value):
            raise ValueError(f"`{name}` must be a number that can be counted with, got {value}; correct it.")
        if value < LOWEST.get(name, value):
            raise ValueError(f"`{name}` must be at least {LOWEST[name]}, got {value}; correct it.")


def _check_pairs(options: Mapping[str, Any]):
    """Refuse texts that stand for named values and hold none: the library reads them when training begins."""
    for name, value in options.items():
        if isinstance(value, str) and name.endswith("_kwargs"):
            try:
                is_object = isinstance(json.loads(value), dict)
            except ValueError:
                is_object = False
            if not is_object:
                raise ValueError(f'`{name}` must be a JSON object, got `{value}`; write it as {{"NAME": VALUE}}.')
    pairs = (options.get("optim_args") or "").split(",")
    if odd := [pair for pair in pairs if pair and "=" not in pair]:
        raise ValueError(f"`optim_args` must be NAME=VALUE, NAME=VALUE, ..., got `{odd[0]}`; correct it.")


def _set_defaults(parser: argparse.ArgumentParser, recipe: dict[str, Any], name: str | None):
    """Make a recipe's options the defaults of a parser; a single value stands for a list of it."""
    actions = {action.dest: action for action in parser._actions}
    for key, value in recipe.items():
        if key not in actions:
            raise ValueError(f"Unknown key `{key}` in the recipe `{name}`; {_hint(key, actions)}")
        is_list = actions[key].nargs in ("+", "*")
        parser.set_defaults(**{key: [value] if is_list and isinstance(value, str) else value})


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close.pop()}`?" if close else "--help lists the known ones."


def read_recipe(name: str, verb: str) -> dict[str, Any]:
    """Read the options of a recipe, merged over those of the recipe that its key `extends` names.

    Mappings are merged key by key; an empty one leaves out all of the other recipe's.

    Args:
        name (`str`): A YAML file, or the name of a recipe in configuration/recipes.
        verb (`str`): The command, whose recipes are listed if there is no `name`.

    Raises:
        ValueError: If a recipe is missing, cannot be read, or extends itself.
    """
    files = [_find_recipe(name, verb)]
    recipe = _read_file(files[0])
    while (base := recipe.pop("extends", None)) is not None:
        try:
            files.append(_find_recipe(base, verb, beside=files[-1].parent))
        except ValueError as error:
            raise ValueError(f"`extends` in the recipe {files[-1]} is wrong: {error}") from None
        if files[-1] in files[:-1]:
            chain = " -> ".join(file.stem for file in files)
            raise ValueError(f"A recipe must not extend itself, got {chain}; remove one `extends`.")
        recipe = merge(_read_file(files[-1]), recipe)
    return recipe


def _find_recipe(name: str, verb: str, beside: Path = Path()) -> Path:
    for file in (beside / name, beside / f"{name}.yaml", RECIPES / f"{name}.yaml"):
        if file.is_file():
            return file.resolve()
    names = (path.stem for path in RECIPES.glob("*.yaml"))
    known = sorted(each for each in names if _command_of(each) == verb)
    raise ValueError(f"There is no recipe `{name}`: give a YAML file or one of {', '.join(known)}.")


def _command_of(recipe: str) -> str:
    if recipe.endswith("-grpo"):
        return "grpo"
    return next((verb for verb, prefix in PREFIXES.items() if recipe.startswith(prefix)), "pretrain")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"The recipe {file} is not YAML, correct it: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(
            f"The recipe {file} must map options to values, got `{recipe}`; write lines of `option: value`."
        )
    if "overrides" in recipe:
        recipe["overrides"] = parse_overrides(recipe["overrides"])
    # YAML reads a bare `no` as false.
    return recipe | {key: "no" for key in STRATEGIES if recipe.get(key) is False}


def parse_overrides(overrides: list[str] | dict[str, Any]) -> dict[str, Any]:
    """Turn `a.b=value` into `{"a": {"b": value}}`, with values read as YAML; a mapping stays as it is."""
    if isinstance(overrides, dict):
        return overrides
    if not isinstance(overrides, list):
        raise ValueError(f"`overrides` must be a mapping or a list of KEY=VALUE, got `{overrides}`.")
    nested: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if not equals:
            raise ValueError(f"An item of `overrides` must read KEY=VALUE, got `{override}`.")
        try:
            change = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"The value in the item `{override}` of `overrides` is not YAML; quote it.") from None
        for part in reversed(key.split(".")):
            change = {part: change}
        nested = merge(nested, change)
    return nested


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes over a mapping: nested ones key by key; an empty one or any other value replaces the old value."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(merged.get(key), dict) and isinstance(value, dict) and value:
            value = merge(merged[key], value)
        merged[key] = value
    return merged
