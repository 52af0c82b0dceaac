"""Launch topologies of configuration/accelerate."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from spa3r.trainers.runs.recipes import RECIPES

CONFIGURATION = RECIPES.parent
TOPOLOGIES = {
    "cpu": ("NO", 1),
    "ddp": ("MULTI_GPU", 8),
    "fsdp2": ("FSDP", 8),
    "gpu": ("NO", 1),
    "zero2": ("DEEPSPEED", 8),
    "zero3": ("DEEPSPEED", 8),
}


@pytest.mark.parametrize("file", sorted((CONFIGURATION / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_launch_topology_is_understood(file):
    config = load_config_from_file(str(file))
    assert (config.distributed_type.value, config.num_processes) == TOPOLOGIES[file.stem]
    if config.distributed_type == "DEEPSPEED":
        assert (CONFIGURATION.parent / config.deepspeed_config["deepspeed_config_file"]).is_file()
