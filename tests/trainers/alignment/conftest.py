"""A tiny Spa3-VLM to align, and a VGGT that estimates points."""

import pytest
import torch
from tiny_alignment import save
from tiny_spa3_vlm import tiny_config, tiny_model

from spa3r import VGGTForGeometry


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A model whose adapter is fresh: its last layer is zero."""
    model = tiny_model()
    torch.nn.init.zeros_(model.model.fusion.adapter.fc2.weight)
    return save(model, tmp_path_factory.mktemp("start") / "vlm")


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geometry") / "vggt"
    torch.manual_seed(2)
    VGGTForGeometry(tiny_config().spatial_config.vggt_config).save_pretrained(folder)
    return folder
