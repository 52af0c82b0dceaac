"""Commands as in a terminal, run in this process."""

from collections.abc import Callable, Sequence

from spa3r.trainers.integrations.cli import main


def verb(*words: str) -> Callable[[Sequence], None]:
    """The command `spa3r WORDS`, which takes the rest of its arguments and fails by `SystemExit`."""
    return lambda arguments: main([*words, *map(str, arguments)])
