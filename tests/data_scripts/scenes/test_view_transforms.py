import numpy as np
import pytest
import torch
from PIL import Image

from spa3r.data_scripts.common.view_pixels import pretrain_image_size
from spa3r.data_scripts.scenes.view_transforms import crop_to_common, fit_depth, fit_intrinsics, load_frame


def test_too_elongated_images_are_refused():
    with pytest.raises(ValueError, match="5000 x 50"):
        pretrain_image_size((5000, 50))


def test_a_frame_is_resized_as_pillow_resizes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 140, 3), dtype=np.uint8))
    pixels, size = load_frame(image, width=70)
    expected = np.array(image.resize((70, 48), Image.BILINEAR))[3:45]
    assert size == ((97, 140), (48, 70), (42, 70))
    assert (pixels.permute(1, 2, 0).int() - torch.from_numpy(expected).int()).abs().max() <= 1


def test_grayscale_and_rotated_photos_become_upright_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored with its top at the right
    Image.fromarray(np.tile(np.arange(56, dtype=np.uint8), (28, 1))).save(tmp_path / "photo.png", exif=exif)
    pixels, size = load_frame(tmp_path / "photo.png", width=28)
    assert size.original == (56, 28)
    assert torch.equal(pixels, torch.arange(56, dtype=torch.uint8)[None, :, None].expand(3, 56, 28))


def test_intrinsics_follow_the_picture():
    # A white square, one point of a plane, is seen where the view's intrinsics project that point to.
    intrinsics = torch.tensor([[300.0, 0, 161.5], [0, 290, 127.25], [0, 0, 1]], dtype=torch.float64)
    point = torch.tensor([0.25, -0.15, 1.0], dtype=torch.float64)
    column, row = (intrinsics @ point)[:2].tolist()
    rows, columns = np.mgrid[:257, :320] + 0.5
    square = (abs(rows - row) <= 12) & (abs(columns - column) <= 12)
    image = np.repeat(square[..., None], 3, axis=-1).astype(np.uint8) * 255

    pixels, size = load_frame(image, width=112)
    weight = pixels[0].double()
    seen = torch.stack([
        (weight.sum(0) * (torch.arange(weight.shape[1]) + 0.5)).sum() / weight.sum(),
        (weight.sum(1) * (torch.arange(weight.shape[0]) + 0.5)).sum() / weight.sum(),
    ])  # fmt: skip

    assert size.resized != size.cropped
    # The square's own edges are rounded to whole pixels of the image, half a pixel at most.
    torch.testing.assert_close((fit_intrinsics(intrinsics, size) @ point)[:2], seen, atol=0.2, rtol=0)


def test_depth_at_another_resolution_lines_up_with_the_image():
    depth = torch.arange(12.0).reshape(3, 4)
    image = depth.numpy().repeat(20, 0).repeat(20, 1)[..., None].repeat(3, -1).astype(np.uint8)
    pixels, size = load_frame(image, width=80)
    assert torch.equal(fit_depth(depth, size), pixels[0].float())


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (2, 4)])
def test_depth_of_another_aspect_ratio_is_refused(shape):
    size = load_frame(np.zeros((60, 80, 3), dtype=np.uint8), width=80)[1]
    with pytest.raises(ValueError, match=f"{shape[1]} x {shape[0]}.*80 x 60"):
        fit_depth(torch.zeros(shape), size)


def test_crop_starts_tell_where_pixels_went():
    tensors = [torch.arange(54.0).reshape(6, 9), torch.arange(28.0).reshape(4, 7)]
    stack, starts = crop_to_common(tensors)
    for tensor, cropped, (top, left) in zip(tensors, stack, starts.tolist(), strict=True):
        assert torch.equal(cropped, tensor[top : top + 4, left : left + 7])
