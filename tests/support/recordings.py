"""Recordings of the official code, which parity tests compare ours with.

A recording is a JSON file, which tells sizes, beside a safetensors file of inputs, outputs and weights under official
names. `SPA3R_GOLDEN_DIR` names their directory. Draws, image sizes and conversations are in JSON alone, in the
recordings data_sampling and in `SPA3R_CASES_DIR`; `SPA3R_MANIFESTS_DIR` holds names and shapes of the full-size
checkpoints. By default all three lie beside the checkout.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = Path(os.environ.get("SPA3R_GOLDEN_DIR") or SHARED / "golden")
CASES = Path(os.environ.get("SPA3R_CASES_DIR") or SHARED / "cases") / "train_data_cases.json"
MANIFESTS = Path(os.environ.get("SPA3R_MANIFESTS_DIR") or SHARED / "manifests")
FEATURE_TOLERANCE = 1e-4

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no recordings at {GOLDEN}")
needs_cases = pytest.mark.skipif(not CASES.is_file(), reason=f"no cases at {CASES}")
needs_manifests = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"no manifests at {MANIFESTS}")


@dataclass
class Recording:
    """What was recorded of one piece of the official code; names have lost `inputs.`, `outputs.` or `weights.`."""

    info: dict
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    weights: dict[str, Tensor]

    @property
    def images(self) -> Tensor:
        return self.inputs["images_u8"].float() / 255


def starting_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start so, without that start."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def golden(name: str) -> Recording:
    """Load a recording by its name."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return Recording(
        json.loads((GOLDEN / f"{name}.json").read_text()),
        *(starting_with(f"{kind}.", tensors) for kind in ("inputs", "outputs", "weights")),
    )


def recordings(kind: str) -> list[str]:
    """Names of the recordings of a kind, or with an empty one of all, also where one of their two files is missing."""
    return sorted({path.stem for path in GOLDEN.glob(f"{kind}*") if path.suffix in (".json", ".safetensors")})


def recorded_cases(name: str) -> dict:
    """The contents of a data_sampling file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def training_cases(key: str) -> list:
    """What the official data code makes of some inputs."""
    return json.loads(CASES.read_text())[key]


def manifest(name: str) -> dict:
    """Names and shapes of the tensors of a full-size public checkpoint, and what else is known of it."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def full_size_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of such a checkpoint, on the meta device."""
    return {key: torch.empty(shape, device="meta") for key, shape in manifest(name)["tensors"].items()}


def untold_vggt_sizes(sizes: dict) -> dict:
    """Fields of `VGGTConfig` that the shapes of the weights do not tell, by the `vggt` of a recorded configuration."""
    return {
        "patch_embedding_heads": sizes["vit_heads"],
        "camera_heads": sizes["cam_heads"],
        "camera_iterations": sizes["cam_iters"],
        "dense_layers": sizes["dpt_layers"],
    }


def capture(module: torch.nn.Module, calls: list):
    """Keep the inputs and the output of each call of a module."""
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))


def assert_every_output_matches(recording: Recording, computed: dict[str, Tensor]):
    """Compare all outputs of a recording, neither more nor less, within 1e-4 (or, of large values, 1e-5 relative)."""
    assert computed.keys() == recording.outputs.keys()
    for name, expected in recording.outputs.items():
        torch.testing.assert_close(
            computed[name], expected, atol=FEATURE_TOLERANCE, rtol=1e-5, msg=lambda message, n=name: f"{n}: {message}"
        )
