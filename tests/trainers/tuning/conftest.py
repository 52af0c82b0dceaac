"""A tiny Spa3-VLM and its records, which tests of tuning share."""

from pathlib import Path

import pytest
from tiny_instructions import write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def instructions(tmp_path_factory) -> Path:
    return write_instructions(tmp_path_factory.mktemp("instructions") / "set")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder
