"""Commands as in a terminal, run in this process."""

from collections.abc import Callable, Sequence

import pytest

from spa3r.trainers.integrations.cli import main


def verb(*words: str) -> Callable[[Sequence], None]:
    """The command `spa3r WORDS`, which takes the rest of its arguments and fails by `SystemExit`."""
    return lambda arguments: main([*words, *map(str, arguments)])


def refusal(capsys, *arguments) -> str:
    """The one line with which `spa3r ARGUMENTS` ends on wrong input."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    message = str(ended.value) if ended.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"spa3r {arguments[0]}: ") and "\n" not in message
    return message
