"""The tiny model, its processor and its inputs, for the tests of Spa3-VLM."""

import pytest
from tiny_spa3_vlm import CONVERSATIONS, batch_of, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def batch(model):
    """Four rows: scenes of two, one and three views, and a text without images."""
    return batch_of(model)


@pytest.fixture(scope="module")
def scene(model):
    """One row: a scene of two views."""
    return batch_of(model, CONVERSATIONS[0])
