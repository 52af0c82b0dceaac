"""Image tokens and the points that they are to find belong together, whatever the size of the images."""

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import torch
from refusals import refused
from tiny_scenes import write_scene
from tiny_spa3_vlm import tiny_model

from spa3r import Spa3VLMImageProcessor
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.trainers.alignment.views import AlignmentViews, collate_alignment

NUM_VIEWS = 3
FOCAL_X, FOCAL_Y = 90.0, 97.0
# Width that images are resized to, and sizes (width, height) of the images of a scene.
SIZES = {
    "whole tokens": (56, [(112, 112)] * NUM_VIEWS),
    "nine rows of patches, of which the vision tower sees eight": (168, [(168, 126)] * NUM_VIEWS),
    "five columns of patches, of which it sees four": (70, [(210, 170)] * NUM_VIEWS),
    "portrait, cropped to the middle square": (84, [(120, 200)] * NUM_VIEWS),
    "different sizes, framed on white": (84, [(168, 126), (168, 112), (150, 126)]),
}


def camera_to_world(frame):
    """A camera that turns and moves with the frame."""
    angle = 0.3 + 0.2 * frame
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.5 * frame, 0.1, -0.2 * frame]
    return pose


def position_image(width, height):
    """An image whose red says how far right a pixel is, and whose green how far down."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return PIL.Image.fromarray(np.stack([x * 255, y * 255, 0 * x], axis=-1).round().astype(np.uint8))


def center_of(sizes):
    """A principal point that is off the center of all images, but not by far."""
    return [sum(sides) / len(sizes) / 2 + 3 for sides in zip(*sizes, strict=True)]


def write_positions(root, sizes, depth_scale=1):
    """A scene of such images, with a slanted depth map at a resolution of its own."""
    scene = root / "scene"
    for part in ("color", "pose", "intrinsic", "depth"):
        (scene / part).mkdir(parents=True)
    center_x, center_y = center_of(sizes)
    np.savetxt(scene / "intrinsic/intrinsic_color.txt", [[FOCAL_X, 0, center_x], [0, FOCAL_Y, center_y], [0, 0, 1]])
    for frame, (width, height) in enumerate(sizes):
        position_image(width, height).save(scene / f"color/{frame}.png")
        np.savetxt(scene / f"pose/{frame}.txt", camera_to_world(frame))
        depth = np.add.outer(np.arange(height * depth_scale), 2 * np.arange(width * depth_scale)) + 1500
        PIL.Image.fromarray(depth.astype(np.uint16)).save(scene / f"depth/{frame}.png")
    return root


def item_of(root, width, rules=None, **options):
    processor = Spa3VLMImageProcessor(image_width=width, **(rules or {}))
    views = AlignmentViews(load_scenes("rooms", root, interval=[1, 1]), processor, **{"depth": True} | options)
    return views[0, 0, NUM_VIEWS], processor


def positions_in_vision_patches(item, processor):
    """Where in the images the vision tower's patches were, by their colors; `(num_tokens, patches_per_token, 2)`."""
    patches = item["pixel_values"].view(-1, 3, processor.temporal_patch_size, processor.patch_size**2).mean(dim=(2, 3))
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (patches * std + mean)[:, :2].unflatten(0, (-1, processor.merge_size**2))


def projected(item, sizes):
    """Where in the images the points are, by the cameras alone; in shares of the image, as the colors."""
    view = item["patch_pixels"][..., 0]
    world_from_first = torch.from_numpy(camera_to_world(0))
    camera_from_world = torch.stack([torch.from_numpy(np.linalg.inv(camera_to_world(v))) for v in range(NUM_VIEWS)])
    points = torch.cat([item["points"].double(), torch.ones(*view.shape, 1)], dim=-1)
    x, y, z, _ = torch.einsum("tpij,jk,tpk->itp", camera_from_world[view], world_from_first, points)
    pixels = torch.stack([FOCAL_X * x / z, FOCAL_Y * y / z], dim=-1) + torch.tensor(center_of(sizes))
    return (pixels / torch.tensor(sizes)[view]).float()


def test_points_project_onto_patches_of_a_size_of_their_own(tmp_path):
    limits = {"shortest_edge": 32**2, "longest_edge": 4096**2}
    rules = {"patch_size": 16, "geometry_patch_size": 14, "do_resize": True, "size": limits}
    sizes = [(168, 126), (168, 112), (150, 126)]
    item, processor = item_of(write_positions(tmp_path, sizes), 154, rules)
    assert item["image_grid_thw"].tolist() == [[1, 8, 10], [1, 6, 10], [1, 8, 10]]
    seen = positions_in_vision_patches(item, processor)
    torch.testing.assert_close(projected(item, sizes), seen, rtol=0, atol=0.5 / 112 + 0.004)


@pytest.mark.parametrize("depth_scale", [1, 2])
@pytest.mark.parametrize(("width", "sizes"), SIZES.values(), ids=SIZES)
def test_points_project_onto_the_patches_of_their_token(width, sizes, depth_scale, tmp_path):
    item, processor = item_of(write_positions(tmp_path, sizes, depth_scale), width)
    seen = positions_in_vision_patches(item, processor)
    assert item["points"].shape == (*seen.shape[:2], 3)
    # Half a pixel of the depth map, and the rounding of colors.
    torch.testing.assert_close(projected(item, sizes), seen, rtol=0, atol=0.5 / min(min(sizes)) + 0.004)


@pytest.mark.parametrize(
    ("width", "sizes"),
    [*SIZES.values(), (84, [(168, 126), (168, 90), (120, 200)])],
    ids=[*SIZES, "portrait among others"],
)
def test_pixels_of_the_spatial_encoder_show_what_the_patches_of_the_vision_tower_show(width, sizes, tmp_path):
    item, processor = item_of(write_positions(tmp_path, sizes), width, depth=False)
    images, start = [], 0
    for rows, columns in item["geometry_sizes"].tolist():
        images.append(item["pixel_values_geometry"][start : start + rows * columns].view(rows, columns, 3))
        start += rows * columns
    colors = torch.stack(images)[item["patch_pixels"].unbind(-1)][..., :2]
    # The pixel at a center spans half a pixel to its right, of at least four rows of patches.
    torch.testing.assert_close(colors, positions_in_vision_patches(item, processor), rtol=0, atol=0.5 / 42 + 0.004)


def test_an_image_token_stands_for_the_patches_that_the_processor_puts_together():
    model = tiny_model().model
    with torch.no_grad():
        for block in model.vlm.visual.blocks:
            block.attn.proj.weight.zero_()  # no patch sees another
    processor = Spa3VLMImageProcessor(image_width=112)
    inputs = processor([position_image(112, 84)], return_tensors="pt")
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    before = model.encode_images(pixels, grid)
    for patch in range(len(pixels)):
        changed = pixels.clone()
        changed[patch] += 1
        is_changed = (model.encode_images(changed, grid) != before).any(-1)
        assert is_changed.nonzero().flatten().tolist() == [patch // processor.merge_size**2]


def test_the_first_frame_is_the_reference(tmp_path):
    item, _ = item_of(write_positions(tmp_path, [(112, 112)] * NUM_VIEWS), 56)
    is_first = item["patch_pixels"][..., 0] == 0
    # Seen from its own camera, a point's depth is what the map says at its pixel: 1500 mm + row + 2 columns.
    x, y, z = item["points"][is_first].unbind(-1)
    columns, rows = FOCAL_X * x / z + 59 - 0.5, FOCAL_Y * y / z + 59 - 0.5
    torch.testing.assert_close(z, (1500 + rows + 2 * columns) / 1000, rtol=0, atol=1e-4)


def test_points_of_unknown_depth_are_unknown(tmp_path):
    root = write_positions(tmp_path, [(112, 112)] * NUM_VIEWS)
    depth = np.array(PIL.Image.open(root / "scene/depth/1.png"))
    depth[:, :56] = 0
    PIL.Image.fromarray(depth).save(root / "scene/depth/1.png")
    item, processor = item_of(root, 56)
    is_left = positions_in_vision_patches(item, processor)[..., 0] < 0.5
    expected = is_left & (item["patch_pixels"][..., 0] == 1)
    assert torch.equal(item["points"].isnan().any(-1), expected) and expected.any()


def test_frames_without_a_camera_are_replaced(tmp_path):
    write_scene(tmp_path, "scene", num_frames=5, size=(56, 42))
    (tmp_path / "scene/pose/2.txt").write_text("-inf")
    views = AlignmentViews(load_scenes("rooms", tmp_path), Spa3VLMImageProcessor(image_width=56), depth=True)
    item = views[0, 0, 5]
    assert len(item["image_grid_thw"]) == 5 and "2.txt" in item["replaced_frames"][0]


def test_a_batch_holds_its_scenes_one_after_the_other(tmp_path):
    roots = [write_positions(tmp_path / str(index), SIZES[name][1]) for index, name in enumerate(list(SIZES)[:2])]
    items = [item_of(root, 84)[0] for root in roots]
    batch = collate_alignment(items)
    assert batch["num_views"].tolist() == [NUM_VIEWS, NUM_VIEWS]
    for name in ("points", "patch_pixels"):
        for item, part in zip(items, batch[name].split(batch["num_tokens"].tolist()), strict=True):
            assert torch.equal(item[name], part), name


@pytest.mark.parametrize(
    ("removed", "named"),
    [("depth", "depth/*.png"), ("pose", "pose/*.txt"), ("intrinsic/intrinsic_color.txt", "intrinsic_color.txt")],
)
def test_scenes_without_depth_or_cameras_are_refused(removed, named, tmp_path):
    write_scene(tmp_path, "bare", size=(56, 42))
    (tmp_path / "bare" / removed).rename(tmp_path / "bare" / "hidden")
    with refused("`targets`", "bare", named, "--targets vggt"):
        AlignmentViews(load_scenes("rooms", tmp_path), Spa3VLMImageProcessor(), depth=True)


def test_images_that_are_fitted_whole_are_refused(tmp_path):
    write_scene(tmp_path, "room")
    with refused("`image_fit`", "`pad`"):
        AlignmentViews(load_scenes("rooms", tmp_path), Spa3VLMImageProcessor(image_width=56, image_fit="pad"), False)


def test_photos_with_known_depth_stay_as_they_are_stored(tmp_path):
    root = write_positions(tmp_path, [(112, 112)] * NUM_VIEWS)
    expected, _ = item_of(root, 56)
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    for photo in (root / "scene/color").iterdir():
        PIL.Image.open(photo).save(photo, exif=exif)
    item, _ = item_of(root, 56)
    for name, tensor in expected.items():
        if torch.is_tensor(tensor):
            assert torch.equal(item[name], tensor), name


def test_frames_whose_depth_is_of_another_picture_are_replaced(tmp_path):
    root = write_positions(tmp_path, [(112, 112)] * NUM_VIEWS)
    PIL.Image.new("I;16", (112, 84), 1000).save(root / "scene/depth/1.png")
    item, _ = item_of(root, 56)
    assert "1.png" in item["replaced_frames"][0] and "112 x 84" in item["replaced_frames"][0]
