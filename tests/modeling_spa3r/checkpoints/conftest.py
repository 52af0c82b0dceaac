"""Small official checkpoints with random weights, from the recordings of the official code."""

import pytest
from recordings import GOLDEN, Recording, golden, recordings, starting_with, untold_vggt_sizes
from torch import Tensor


def first_recording(kind: str) -> Recording:
    if not GOLDEN.is_dir() or not (names := recordings(kind)):
        pytest.skip(f"no recording {kind} in {GOLDEN}")
    return golden(names[0])


@pytest.fixture(scope="session")
def spa3r_recording() -> Recording:
    """An official Spa3R, an input, and the latents that the official code made of it."""
    return first_recording("spa3r_predict")


@pytest.fixture
def spa3r_state(spa3r_recording) -> dict[str, Tensor]:
    """Its weights, as in the `state_dict` of the official `.ckpt`."""
    return {f"model.{name}": tensor for name, tensor in spa3r_recording.weights.items()}


@pytest.fixture
def vggt_state(spa3r_recording) -> dict[str, Tensor]:
    """Its VGGT, as in the file of facebook/VGGT-1B."""
    modules = ("aggregator.", "camera_head.", "depth_head.", "point_head.")
    return {name: tensor for name, tensor in spa3r_recording.weights.items() if name.startswith(modules)}


@pytest.fixture
def dinov3_state(spa3r_recording) -> dict[str, Tensor]:
    """Its DINOv3, as Meta publishes it."""
    return starting_with("dino.", spa3r_recording.weights)


@pytest.fixture
def vggt_sizes(spa3r_recording) -> dict:
    """Sizes of its VGGT that the shapes of weights do not determine."""
    return untold_vggt_sizes(spa3r_recording.info["config"]["vggt"])


@pytest.fixture(scope="session")
def vlm_recording() -> Recording:
    """An official Spa3-VLM, an input, and what the official code made of it."""
    return first_recording("vlm_end_to_end")


@pytest.fixture
def vlm_state(vlm_recording) -> dict[str, Tensor]:
    return dict(vlm_recording.weights)


@pytest.fixture
def vlm_config(vlm_recording) -> dict:
    """Its `config.json`."""
    return dict(vlm_recording.info["saved_config_json"])


@pytest.fixture
def spatial_config(vlm_recording) -> dict:
    """Sizes of its VGGT that the shapes of weights do not determine."""
    return {"vggt_config": untold_vggt_sizes(vlm_recording.info["spa3r_config"]["vggt"])}
