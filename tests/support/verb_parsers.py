"""The parsers of the verbs, without running them."""

import argparse

import pytest

from spa3r.trainers.integrations.cli import main


class Parser(BaseException):
    """Carries a verb's own parser out of its `main`, with the arguments that it was to parse."""


def parser_of(*arguments: str) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that `spa3r VERB ...` uses, and what it parses."""

    def capture(parser, args=None, namespace=None):
        if not parser.prog.startswith("spa3r "):
            return parse(parser, args, namespace)
        raise Parser(parser, args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parser) as caught:
        parse = argparse.ArgumentParser.parse_known_args
        patch.setattr(argparse.ArgumentParser, "parse_known_args", capture)
        main(arguments)
    return caught.value.args
