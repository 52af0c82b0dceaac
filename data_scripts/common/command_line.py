"""Parsers of the `spa3r` verbs, whose help shows each option on a line of its own."""

import argparse
import shutil
from collections.abc import Sequence

# Options of every verb.
DEBUG, VERBOSE = "--debug", "--verbose"
# Columns of a help, so that most options with their default fit a line.
MIN_WIDTH = 100


class OneLineHelp(argparse.RawDescriptionHelpFormatter):
    """Show an option by its first name, without placeholders, on one line with its help and its choices."""

    def __init__(self, prog: str):
        width = max(shutil.get_terminal_size().columns, MIN_WIDTH) - 2
        super().__init__(prog, max_help_position=34, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        """Name the choices and the default of an option whose help does not."""
        text = action.help or ""
        choices = [str(choice) for choice in action.choices or ()] if action.option_strings else []
        if not all(choice in text for choice in choices):
            text = f"{text}; one of {', '.join(choices)}"
        return text if "default" in text else f"{text}{_show_default(action)}"


def _show_default(action: argparse.Action) -> str:
    """The default of an option that has one; a flag without a value is off."""
    default = action.default
    if action.nargs == 0 or default is None or default is argparse.SUPPRESS or default == []:
        return ""
    if isinstance(default, bool):
        default = str(default).lower()  # as in recipes
    elif isinstance(default, list):
        default = " ".join(map(str, default))
    text = str(getattr(default, "value", default)).replace("%", "%%")  # argparse formats it
    return f" (default: {text})"


def is_asked_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for the help of its command."""
    return not {"--help", "-h"}.isdisjoint(arguments)


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser for `spa3r VERB`.

    Args:
        verb (`str`): The verb, such as `ask`.
        description (`str`): The docstring of the module: a summary, examples, and what else a user must know.
    """
    prog = f"spa3r {verb}"
    parser = argparse.ArgumentParser(
        prog=prog, usage=f"{prog} [--OPTION VALUE ...]", description=description, formatter_class=OneLineHelp
    )
    add_options_of_all(parser)
    return parser


def add_options_of_all(parser: argparse.ArgumentParser):
    """Show the options that every verb has; they are taken from the command line before it is parsed."""
    for name, text in ((DEBUG, "show the traceback of an error"), (VERBOSE, "show what the libraries log")):
        parser.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=text)
