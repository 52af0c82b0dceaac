"""Sampling and image sizes against the official code's recorded draws."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

from spa3r.data_scripts.frames import crop_to_common, load_frame, pretrain_image_size, sample_frames
from spa3r.data_scripts.view_batches import ViewBatchSampler, partition_views

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(os.environ.get("SPA3R_GOLDEN_DIR", SHARED / "golden")) / "data_sampling.json"
CASES = Path(os.environ.get("SPA3R_CASES_DIR", SHARED / "cases")) / "train_data_cases.json"


def read(file: Path, name: str) -> list | dict:
    if not file.exists():
        pytest.skip(f"{file.name} of the official code is not here")
    return json.loads(file.read_text())[name]


@pytest.mark.parametrize(
    ("file", "name", "interval"),
    [(CASES, "pretrain_frame_sampling", "interval"), (GOLDEN, "frame_sampling", "sampling_interval")],
    ids=["cases", "golden"],
)
def test_frames_are_drawn_as_officially(file, name, interval):
    for case in read(file, name):
        drawn = sample_frames(case["num_images"], case["num_frames"], case[interval], random.Random(case["seed"]))
        assert drawn == case["indices"], case


def test_images_are_sized_as_officially():
    for case in read(CASES, "pretrain_image_sizes"):
        resized, cropped = pretrain_image_size(tuple(case["input_wh"]))
        assert [list(resized), list(cropped)] == [case["resized_hw"], case["cropped_hw"]], case


def test_loaded_frames_have_the_official_size():
    for case in read(CASES, "pretrain_image_sizes"):
        width, height = case["input_wh"]
        pixels, _ = load_frame(torch.zeros(height, width, 3, dtype=torch.uint8).numpy())
        assert list(pixels.shape) == [3, *case["cropped_hw"]], case


def test_views_are_partitioned_as_officially():
    for case in read(GOLDEN, "random_masking"):
        generator = torch.Generator().manual_seed(case["torch_seed"])
        for mask in case["mask"]:
            order, num_context_views = partition_views(len(mask), 1 - case["mask_ratio"], generator)
            assert num_context_views == case["n_context"], case
            context = [view for view, masked in enumerate(mask) if not masked]
            target = [view for view, masked in enumerate(mask) if masked]
            assert order.tolist() == context + target, case


def test_images_of_a_batch_are_cropped_as_officially():
    case = read(GOLDEN, "align_collate")
    tensors = [torch.arange(float(torch.Size(shape).numel())).reshape(shape) for shape in case["shapes"]]
    stack, _ = crop_to_common(tensors)
    assert torch.equal(stack, torch.tensor(case["out"]).reshape(case["out_shape"]))


def test_real_sized_batches_are_cropped_as_officially():
    for case in read(CASES, "align_collate"):
        tensors = [torch.arange(float(torch.Size(shape).numel())).reshape(shape) for shape in case["shapes"]]
        stack, _ = crop_to_common(tensors)
        assert list(stack.shape) == case["out"], case
        assert [image.flatten()[0].item() for image in stack] == case["first_values"], case


def test_batches_hold_as_many_scenes_as_officially():
    official = {
        num_views: len(batch)
        for case in read(CASES, "dynamic_batches")
        # The official last batch may be cut short by the end of a pass.
        for batch in case["batches"][:-1]
        for num_views in {views for _, views in batch}
    }
    ours = {batch[0][2]: len(batch) for batch in ViewBatchSampler(1000)}
    assert ours == official
