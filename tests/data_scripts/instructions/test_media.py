"""Which frames are taken, which media are refused, and where frames and marked images are written."""

import os

import numpy as np
import pytest
from instruction_records import fingerprint, recorded, write_frames, write_image
from PIL import Image
from tiny_videos import numbers_of, write_video

from spa3r.data_scripts.common.records import BadRecord
from spa3r.data_scripts.instructions.media import (
    MediaFolders,
    mark_images,
    require_images,
    video_frames,
    video_indices,
)

OUTSIDE = "outside the media root"
POINT = {"type": "depth_prediction_oc", "red_point": [[500, 500]]}


@pytest.fixture
def folders(tmp_path):
    folders = MediaFolders(*(str(tmp_path / name) for name in ("media", "output", "scratch")))
    for folder in vars(folders).values():
        os.mkdir(folder)
    return folders


@pytest.fixture
def media(folders, tmp_path):
    return tmp_path / "media"


@pytest.mark.parametrize("case", recorded("sft_video_indices"))
def test_indices_of_frames_are_the_official_ones(case):
    limits = (case["min_frames"], case["max_frames"], case["base_interval"])
    assert video_indices(case["total_frames"], case["fps"], *limits) == case["indices"]


def test_frames_of_a_video_are_named_by_their_index_and_show_it(folders, media):
    write_video(media / "scannet/scene0000_00.mp4")
    frames = video_frames(folders, "scannet/scene0000_00.mp4")
    # 20 frames at 10 a second are 2 seconds, for which the least number of frames is taken.
    assert [os.path.relpath(frame, folders.output) for frame in frames] == [
        f"frames/scannet/scene0000_00.mp4/{index}.jpg" for index in (0, 6, 12, 19)
    ]
    assert numbers_of(Image.open(frame) for frame in frames) == [0, 6, 12, 19]
    assert os.listdir(folders.scratch) == []


def test_videos_that_differ_in_their_suffix_alone_keep_frames_of_their_own(folders, media):
    write_video(media / "room.mp4", 20)
    write_video(media / "room.mkv", 10)
    assert len(video_frames(folders, "room.mp4") + video_frames(folders, "room.mkv")) == 8
    assert video_frames(folders, "room.mp4") != video_frames(folders, "room.mkv")


def test_frames_that_are_there_are_not_made_again(folders, media):
    write_video(media / "room.mp4")
    first = video_frames(folders, "room.mp4")
    before = {frame: os.stat(frame).st_mtime_ns for frame in first}
    again = video_frames(MediaFolders(folders.root, folders.output, folders.scratch + "/missing"), "room.mp4")
    assert again == first and {frame: os.stat(frame).st_mtime_ns for frame in again} == before


def test_a_folder_of_frames_counts_as_one_frame_a_second_in_natural_order(folders, media):
    write_frames(media / "clip", 12)
    for name in ("notes.txt", ".hidden.jpg"):  # These do not count.
        (media / "clip" / name).write_text("x")
    frames = video_frames(folders, "clip")
    # 12 seconds give 6 frames; read as text, frame_10 would come before frame_2.
    assert [os.path.basename(frame) for frame in frames] == [f"frame_{index}.jpg" for index in (0, 2, 4, 6, 8, 11)]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def write_empty(path, mode="RGB", size=(64, 48)):
    Image.new(mode, size).save(path)


def write_broken_clip(media):
    write_frames(media / "clip", 4)
    (media / "clip/frame_1.jpg").write_bytes(b"x")


def write_clip_with_link(media):
    write_frames(media / "clip", 3)
    (media / "clip/frame_3.jpg").symlink_to(write_image(media.parent / "secret.jpg"))


def write_secrets(media):
    """An image outside of the media folder, and links to it and to its folder."""
    secret = write_image(media.parent / "secret.jpg")
    (media / "a").mkdir()
    (media / "link.jpg").symlink_to(secret)
    (media / "folder").symlink_to(media.parent)


def require_one(folders, path):
    return require_images(folders, [path])


# Function, what is in the media folder, path, and reason.
REFUSED = [
    (video_frames, lambda media: (media / "clip").mkdir(), "clip", "unreadable video"),
    (video_frames, lambda media: (media / "a.mp4").write_bytes(b"x" * 1000), "a.mp4", "unreadable video"),
    (video_frames, write_broken_clip, "clip", "unreadable image"),
    (video_frames, write_clip_with_link, "clip", OUTSIDE),
    (video_frames, lambda media: (media / "a.pkl").write_text("x"), "a.pkl", "unknown extension"),
    (video_frames, lambda media: None, "a/b.mp4", "missing media"),
    (video_frames, lambda media: write_frames(media, 4), "", "malformed record"),
    (video_frames, lambda media: write_frames(media, 4), ".", "malformed record"),
    (video_frames, lambda media: write_frames(media / "clip", 4), "clip/..", "malformed record"),
    (require_one, lambda media: cut_off(write_image(media / "a.jpg")), "a.jpg", "unreadable image"),
    (require_one, lambda media: write_empty(media / "a.png", "I;16"), "a.png", "unusable image"),
    (require_one, lambda media: write_empty(media / "a.png", size=(2000, 90)), "a.png", "unusable image"),
    (require_one, lambda media: write_empty(media / "a.png", "L", (9, 200)), "a.png", "unusable image"),
    (require_one, lambda media: (media / "a.pkl").write_text("x"), "a.pkl", "unknown extension"),
    (require_one, lambda media: None, "a/b.jpg", "missing media"),
    (require_one, lambda media: os.mkfifo(media / "a.jpg"), "a.jpg", "missing media"),
    (require_one, lambda media: None, "a\0.jpg", "malformed record"),
    (require_one, lambda media: write_image(media / "a.jpg"), None, OUTSIDE),  # absolute, but in the folder
    (require_one, write_secrets, "../secret.jpg", OUTSIDE),
    (require_one, write_secrets, "a/../../secret.jpg", OUTSIDE),
    (require_one, write_secrets, "link.jpg", OUTSIDE),
    (require_one, write_secrets, "folder/secret.jpg", OUTSIDE),
    (require_one, lambda media: write_image(media.parent / "media2/a.jpg"), "../media2/a.jpg", OUTSIDE),
]


@pytest.mark.parametrize(("find", "write", "path", "reason"), REFUSED)
def test_media_that_cannot_be_used_are_refused_with_a_reason(folders, media, find, write, path, reason):
    written = write(media)
    path = str(written) if path is None else path
    for _ in range(2):  # The second refusal comes from the cache.
        with pytest.raises(BadRecord) as caught:
            find(folders, path)
        assert caught.value.reason == reason


def test_the_media_root_itself_may_be_a_link(folders, media, tmp_path):
    write_image(media / "a.jpg")
    (tmp_path / "link").symlink_to(media)
    linked = MediaFolders(str(tmp_path / "link"), folders.output, folders.scratch)
    assert require_images(linked, ["a.jpg"]) == [str(tmp_path / "link/a.jpg")]


def test_markers_are_drawn_on_a_copy_and_the_original_keeps_its_bytes(folders, media):
    write_image(media / "spar/a.jpg", "white", (200, 100))
    before = fingerprint(media)
    (marked,) = mark_images(folders, ["spar/a.jpg"], POINT)
    assert os.path.dirname(marked) == os.path.join(folders.output, "marked/spar/a.jpg")
    pixels = np.asarray(Image.open(marked)).astype(int)
    assert np.abs(pixels[50, 100] - [255, 0, 0]).max() < 8 and np.abs(pixels[90, 10] - 255).max() < 8
    assert fingerprint(media) == before and os.listdir(folders.scratch) == []


def test_each_set_of_markers_on_an_image_is_drawn_once(folders, media):
    write_image(media / "a.jpg")
    first = mark_images(folders, ["a.jpg"], POINT)
    before = os.stat(first[0]).st_mtime_ns
    assert mark_images(folders, ["a.jpg"], POINT) == first and os.stat(first[0]).st_mtime_ns == before
    assert mark_images(folders, ["a.jpg"], POINT | {"red_point": [[9, 9]]}) != first


def test_images_without_markers_are_not_copied(folders, media):
    for name in ("a.jpg", "b.jpg"):
        write_image(media / name)
    spar_info = {"type": "position_matching", "red_bbox": [[100, 100, 500, 500]]}
    assert mark_images(folders, ["a.jpg", "b.jpg"], spar_info)[1] == str(media / "b.jpg")


def test_markers_follow_the_upright_image(folders, media):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 100)).save(media / "a.jpg", exif=turned)
    (marked,) = mark_images(folders, ["a.jpg"], POINT)
    assert Image.open(marked).size == (100, 200)
