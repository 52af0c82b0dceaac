"""Categories of patches: their shares, their losses, and the patches of Qwen's vision tower."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from spa3r.trainers.teaching.categories import category_shares, qwen_patches


def test_shares_are_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=(2, 6, 8))
    shares = category_shares(torch.from_numpy(labels), (2, 2), num_categories=3)
    for image in range(2):
        for row in range(2):
            for column in range(2):
                pixels = labels[image, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
                known = pixels[pixels > 0]
                expected = [np.mean(known == category) for category in (1, 2, 3)]
                assert shares[image, row, column].tolist() == pytest.approx(expected)


def test_patches_without_known_pixels_have_no_share():
    assert category_shares(torch.zeros(1, 4, 4, dtype=torch.uint8), (2, 2), num_categories=3).sum() == 0


def test_an_unknown_category_is_refused():
    labels = torch.full((1, 4, 4), 9)
    with refused("9", "3"):
        category_shares(labels, (2, 2), num_categories=3)


def test_patches_are_those_of_qwens_image_processor():
    pixels = np.random.default_rng(0).integers(0, 256, size=(84, 112, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, do_resize=False)
    expected = processor([Image.fromarray(pixels)], return_tensors="pt")
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    patches, grids = qwen_patches(images, Qwen2_5_VLVisionConfig(patch_size=14, spatial_merge_size=2))
    assert torch.equal(grids, expected["image_grid_thw"])
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=0)
