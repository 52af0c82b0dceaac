"""Expects wrong input to be refused, without pinning the words of the message."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(*named: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Expect an error whose message is one line and contains each of these arguments, values or names."""
    with pytest.raises(error) as raised:
        yield
    message = str(raised.value)
    assert "\n" not in message
    assert [token for token in named if token not in message] == [], message
