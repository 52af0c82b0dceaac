"""Small rendered rooms that tests of training, evaluation and data share."""

import os
import signal
import sys
from pathlib import Path

import pytest

# Before torch is imported: more threads than this only slow tiny tensors down, and bits depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure():
    """Keep pytest from importing the package twice.

    The root of the checkout is the package `spa3r`, but pytest imports its `__init__.py` under the folder's name. That
    copy would register its own classes with the Auto classes.
    """
    import spa3r

    sys.modules.setdefault(Path(__file__).resolve().parents[1].name, spa3r)


@pytest.fixture(autouse=True)
def _heeds_interrupts():
    """Heed Ctrl-C again after a test of a command that was interrupted, which heeds no second one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _keeps_the_number_of_threads():
    """Fail a test that leaves another number of threads to those after it, whose bits would differ."""
    import torch

    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Six rooms of eight views, 56 x 42 pixels."""
    from spa3r.data_scripts.rooms.generate import render_rooms

    root = tmp_path_factory.mktemp("rooms")
    render_rooms(root / "rooms", num_scenes=6, num_views=8, size=(56, 42), seed=0, workers=1)
    return root / "rooms"
