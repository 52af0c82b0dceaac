"""Parsers of the `spa3r` verbs, whose help shows each option on a line of its own."""

import argparse


class OneLineHelp(argparse.RawDescriptionHelpFormatter):
    """Show an option by its first name, without placeholders, on one line with its help and its choices."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        """Name the choices of an option whose help does not."""
        text = action.help or ""
        choices = [str(choice) for choice in action.choices or ()] if action.option_strings else []
        return text if all(choice in text for choice in choices) else f"{text}; one of {', '.join(choices)}"


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
    # Taken from the command line before it is parsed; here for --help.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    return parser
