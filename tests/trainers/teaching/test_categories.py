"""Categories of patches: their shares, their losses, and the patches of Qwen's vision tower."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.trainers.teaching.categories import category_shares, qwen_patches, standardize_tokens


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


def tokens_of(tower, images):
    """Tokens of some images, computed in one call."""
    patches, grids = qwen_patches(images, tower.config)
    with torch.no_grad():
        return tower(patches, grid_thw=grids).pooler_output


def nano_tower():
    torch.manual_seed(0)
    config = Spa3VLMConfig(**load_preset("spa3-vlm-nano")).vlm_config.vision_config
    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def test_standardized_tokens_have_mean_0_and_deviation_1():
    tower, images = nano_tower(), torch.rand(12, 3, 84, 112)
    standardize_tokens(tower, images.split(5))
    tokens = tokens_of(tower, images)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(tokens.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens.std(0), torch.ones(tokens.shape[1]), atol=1e-2, rtol=0)


def test_standardized_tokens_tell_what_they_told_before():
    tower, images = nano_tower(), torch.rand(4, 3, 84, 112)
    before = tokens_of(tower, images)
    standardize_tokens(tower, [torch.rand(8, 3, 84, 112)])
    after = tokens_of(tower, images)
    for channel in range(before.shape[1]):
        line = np.polyfit(before[:, channel].double(), after[:, channel].double(), 1)
        np.testing.assert_allclose(np.polyval(line, before[:, channel].double()), after[:, channel], atol=1e-3)


def test_tokens_without_images_are_not_standardized():
    with refused("batch"):
        standardize_tokens(nano_tower(), [])
