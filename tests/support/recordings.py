"""Recordings of the official code, with which parity tests compare ours.

A recording is a JSON file with sizes, beside a safetensors file of inputs, outputs and weights under official names.
`SPA3R_GOLDEN_DIR` names their folder. Draws, image sizes and conversations are plain JSON, in the recordings
`data_sampling` and in `SPA3R_CASES_DIR`. `SPA3R_MANIFESTS_DIR` holds names and shapes of the full-size checkpoints. By
default all three folders are in `shared`, beside the checkout.

The tests assume nothing about what a recording holds: they read its sizes, and compare what was recorded.
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
    """A recording of one part of the official code; names are without `inputs.`, `outputs.` or `weights.`."""

    info: dict
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    weights: dict[str, Tensor]

    @property
    def images(self) -> Tensor:
        return self.inputs["images_u8"].float() / 255


def starting_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def golden(name: str) -> Recording:
    """Load a recording by its name."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return Recording(
        json.loads((GOLDEN / f"{name}.json").read_text()),
        *(starting_with(f"{kind}.", tensors) for kind in ("inputs", "outputs", "weights")),
    )


def recordings(kind: str) -> list[str]:
    """Names of the recordings of a kind, or of all recordings for `""`, even if one of their two files is missing."""
    return sorted({path.stem for path in GOLDEN.glob(f"{kind}*") if path.suffix in (".json", ".safetensors")})


def recorded_cases(name: str, key: str):
    """Cases of a `data_sampling` recording; skips the test if it has none of them."""
    return _cases(GOLDEN / f"{name}.json", key)


def training_cases(key: str):
    """Inputs and results of the official data code; skips the test if there are none of them."""
    return _cases(CASES, key)


def _cases(file: Path, key: str):
    cases = json.loads(file.read_text())
    if key not in cases:
        pytest.skip(f"{file} has no {key}")
    return cases[key]


def manifest(name: str) -> dict:
    """Names and shapes of the tensors of a full-size public checkpoint, and other facts about it."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def full_size_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a full-size public checkpoint, on the meta device."""
    return {key: torch.empty(shape, device="meta") for key, shape in manifest(name)["tensors"].items()}


def untold_vggt_sizes(sizes: dict) -> dict:
    """Fields of `VGGTConfig` that cannot be read off the weights, from the `vggt` of a recorded configuration."""
    return {
        "patch_embedding_heads": sizes["vit_heads"],
        "camera_heads": sizes["cam_heads"],
        "camera_iterations": sizes["cam_iters"],
        "dense_layers": sizes["dpt_layers"],
    }


def capture(module: torch.nn.Module, calls: list):
    """Append the inputs and the output of each call of a module to a list."""
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))


def assert_every_output_matches(recording: Recording, computed: dict[str, Tensor]):
    """Compare all outputs of a recording within 1e-4 (large values: 1e-5 relative)."""
    assert recording.outputs.keys() <= computed.keys()
    for name, expected in recording.outputs.items():
        torch.testing.assert_close(
            computed[name], expected, atol=FEATURE_TOLERANCE, rtol=1e-5, msg=lambda message, n=name: f"{n}: {message}"
        )
