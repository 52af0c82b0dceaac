"""What is left of a process group when a run has ended; several processes are in the tests of the trainers."""

import sys

import pytest
import torch

from spa3r.trainers.runs.distributed import GLOO_THREAD, leave_process_group, states_of_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are seen in /proc")


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    torch.distributed.all_reduce(torch.ones(2))
    yield
    leave_process_group()


def test_threads_of_gloo_end_with_their_group(group):
    before = states_of_threads(GLOO_THREAD)
    leave_process_group()
    assert len(before) > 0 and states_of_threads(GLOO_THREAD) == []
    leave_process_group()  # as of a run of one process


def test_threads_of_a_group_that_something_keeps_do_nothing(group):
    kept = torch.distributed.group.WORLD
    leave_process_group()
    assert set(states_of_threads(GLOO_THREAD)) == {"S"}
    del kept
    assert states_of_threads(GLOO_THREAD) == []
