"""The command `spa3r`: its verbs and their helps."""

import argparse
import logging
import subprocess
import sys

import pytest
from terminal import verb
from transformers import HfArgumentParser
from transformers.utils import logging as library_logging
from two_processes import REPOSITORY

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.trainers.integrations.cli import VERBS, main

SCREEN = 60


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_fits_a_screen(name, capsys):
    try:
        verb(name)(["--help"])
    except SystemExit as ended:
        assert not ended.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: spa3r {name} ") and len(lines) <= SCREEN


def test_the_help_of_an_option_names_its_choices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        verb("benchmark")(["--help"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --benchmark ")]
    assert all(name in line for name in BENCHMARKS)


def test_the_help_lists_every_verb(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in VERBS)


def test_an_unknown_verb_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match="`fly`") as ended:
        main(["fly"])
    assert all(name in str(ended.value) for name in VERBS)


HEAVY = {"torch", "datasets", "accelerate", "trl", "matplotlib", "transformers.modeling_utils"}
# What follows a help that ends the process.
TELL_IMPORTED = f"""
import atexit, os, sys
atexit.register(lambda: os._exit(bool({HEAVY} & sys.modules.keys())))
"""


def test_a_help_waits_for_no_library_of_models():
    # In one process for all verbs, as of `python -m spa3r VERB --help`.
    program = f"""
{TELL_IMPORTED}
import contextlib
sys.argv, sys.orig_argv = ["spa3r", "--help"], ["spa3r", "--help"]
from spa3r.trainers.integrations.cli import VERBS, main
for verb in VERBS:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("launcher", sorted(path.name for path in REPOSITORY.glob("*.py") if path.name[0] != "_"))
def test_the_help_of_a_launcher_waits_for_no_library_of_models(launcher):
    program = f"""
{TELL_IMPORTED}
import runpy
sys.argv, sys.orig_argv = [{launcher!r}, "--help"], ["python", {launcher!r}, "--help"]
runpy.run_path({launcher!r}, run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.startswith("usage: spa3r ") and result.returncode == 0


def test_the_package_registers_its_models_beside_another_program_that_is_asked_for_help():
    program = "import sys; sys.argv = ['mine.py', '--help']; import spa3r; print(spa3r.Spa3RModel.__name__)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "Spa3RModel\n"


def shown_defaults(monkeypatch, name: str) -> dict[str, argparse.Action]:
    """The options that the help of a verb lists, by their names."""
    shown = {}
    monkeypatch.setattr(
        HfArgumentParser, "print_help", lambda parser: shown.update({each.dest: each for each in parser._actions})
    )
    with pytest.raises(SystemExit):
        verb(name)(["--help"])
    return {dest: action for dest, action in shown.items() if dest not in ("help", "config", "debug", "verbose")}


@pytest.mark.parametrize("name", ["pretrain", "align", "teach", "sft", "grpo"])
def test_the_help_of_a_trainer_shows_the_defaults_of_its_options(name, monkeypatch):
    shown, parsers = shown_defaults(monkeypatch, name), []

    def capture(parser, *args, **kwargs):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(HfArgumentParser, "parse_known_args", capture)
    with pytest.raises(SystemExit):
        verb(name)([])
    # `None` stands for a default that the help puts in words.
    defaults = {action.dest: action.default for action in parsers[0]._actions}
    assert {dest: defaults[dest] for dest, action in shown.items() if action.default is not None} == {
        dest: action.default for dest, action in shown.items() if action.default is not None
    }


def test_an_option_shows_its_default(capsys):
    with pytest.raises(SystemExit):
        verb("rooms")(["--help"])
    assert "number of rooms (default: 20)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        verb("pretrain")(["--help"])
    text = capsys.readouterr().out
    assert "scenes kept for evaluation (default: 8)" in text and "estimates (default: false)" in text


@pytest.mark.parametrize("options, level", [([], logging.WARNING), (["--verbose"], logging.INFO)])
def test_the_libraries_are_quiet_unless_asked(options, level, tmp_path, monkeypatch):
    monkeypatch.setattr(library_logging.get_logger(), "level", logging.WARNING)
    (tmp_path / "list.txt").write_text("scene0000_00")
    verb("benchmark-scenes", *options)(["--files", tmp_path / "list.txt", "--output", tmp_path / "scenes.txt"])
    assert library_logging.get_verbosity() == level
