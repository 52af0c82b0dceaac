import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from recordings import CASES
from tiny_videos import TURNED, numbers_of, write_video

from spa3r.data_scripts.common import downloads, videos
from spa3r.data_scripts.common.images import UnreadableFrame
from spa3r.data_scripts.common.videos import frame_rate, index_video, read_frames, read_frames_at, spread_evenly

VSIBENCH = CASES.with_name("vsibench_cases.json")
CODECS = {
    "mp4": ("libx264", {}),
    "frames_out_of_order.mp4": ("libx264", {"bf": "3"}),
    "no_frame_count.mkv": ("libx264", {}),
    "webm": ("libvpx-vp9", {}),
    "avi": ("mpeg4", {}),
}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "room.mp4")


@pytest.mark.parametrize(
    ("num_images", "num_frames", "expected"),
    [
        *[(10, 4, [0, 3, 6, 9]), (11, 4, [0, 3, 6, 10]), (100, 3, [0, 49, 99]), (5, 1, [0])],
        *[(5, 5, [0, 1, 2, 3, 4]), (3, 4, [0, 1, 2]), (1, 4, [0]), (0, 4, [])],
    ],
)
def test_indices_are_spread_from_first_to_last_and_cut_to_integers(num_images, num_frames, expected):
    assert spread_evenly(num_images, num_frames) == expected


@pytest.mark.skipif(not VSIBENCH.is_file(), reason=f"no cases at {VSIBENCH}")
def test_indices_are_those_of_the_official_evaluation():
    for case in json.loads(VSIBENCH.read_text())["frame_indices"]:
        assert spread_evenly(case["total_frames"], case["num_frames"]) == case["spa3_vlm_plugin"]


def test_less_than_one_frame_is_refused():
    with pytest.raises(ValueError, match="`num_frames`.* 0"):
        spread_evenly(5, 0)


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_spread_over_a_file_of_any_format(name, tmp_path):
    codec, options = CODECS[name]
    path = write_video(tmp_path / f"room.{name}", codec=codec, **options)
    assert numbers_of(read_frames(path, 6)) == [0, 3, 7, 11, 15, 19]


def test_a_shorter_video_gives_all_of_its_frames_as_rgb_images_of_its_size(video):
    frames = read_frames(str(video), 100)
    assert numbers_of(frames) == list(range(20))
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (64, 48))}


def test_frames_that_are_never_shown_are_not_counted(video, tmp_path):
    # Ten frames are missing at the beginning, and with them what the next ten are decoded from.
    whole = write_video(tmp_path / "whole.mkv", g="10", keyint_min="10", sc_threshold="0")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if packet.size and index >= 5:
                packet.stream = stream
                target.mux(packet)
    assert numbers_of(read_frames(tmp_path / "cut.mkv", 4)) == [10, 13, 16, 19]


def test_a_whole_video_is_decoded_once(video, monkeypatch):
    opened, av_open = [], av.open
    monkeypatch.setattr(av, "open", lambda *names, **options: opened.append(names) or av_open(*names, **options))
    read_frames(video, 4)
    # To count its frames, and to decode them.
    assert opened == [(f"file:{video}",)] * 2


def test_a_turned_video_is_turned_upright(tmp_path):
    (frame,) = read_frames(write_video(tmp_path / "phone.mp4", num_frames=5, matrix=TURNED), 1)
    pixels = np.asarray(frame).mean(axis=-1)
    assert frame.size == (48, 64)
    # A quarter turn clockwise brings the black left half up.
    assert pixels[:24].max() < 4 < pixels[40:].min()


@contextmanager
def serve(handler) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_video_is_read_from_its_url(video):
    with serve(partial(SimpleHTTPRequestHandler, directory=str(video.parent))) as url:
        frames = read_frames(f"{url}/{video.name}", 3)
    assert numbers_of(frames) == [0, 9, 19]


def test_a_video_is_read_from_its_file_address(video, tmp_path):
    named = shutil.copy(video, tmp_path / "a walk, 100 %.mp4")
    assert numbers_of(read_frames(Path(named).as_uri(), 3)) == [0, 9, 19]


class StallingHandler(BaseHTTPRequestHandler):
    """Sends the beginning of a video, and then nothing for as long as the test lasts."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"\0" * 1000)
        self.wfile.flush()
        self.server.stop.wait()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stalling_url():
    with ThreadingHTTPServer(("127.0.0.1", 0), StallingHandler) as server:
        server.stop, server.daemon_threads = threading.Event(), True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/room.mp4"
        server.stop.set()
        server.shutdown()


def test_a_source_that_sends_nothing_is_given_up(stalling_url, monkeypatch):
    monkeypatch.setattr(downloads, "STALL_TIMEOUT", 0.2)
    with pytest.raises(UnreadableFrame, match=f"`{stalling_url}`.*nothing"):
        read_frames(stalling_url, 3)


def test_a_source_that_sends_nothing_ends_on_ctrl_c(stalling_url):
    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from spa3r.data_scripts.common import downloads, videos; downloads.STALL_TIMEOUT = 1e6; "
    program += f"print(flush=True); videos.read_frames({stalling_url!r}, 3)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate()[1]  # without Ctrl-C it would never end


@pytest.mark.parametrize("limit", ["MAX_DOWNLOAD_BYTES", "MAX_DOWNLOAD_SECONDS"])
def test_a_download_beyond_a_limit_is_refused(video, monkeypatch, limit):
    # A server that sends byte after byte never stalls.
    monkeypatch.setattr(videos, limit, 1 if limit.endswith("BYTES") else 1e-9)
    with serve(partial(SimpleHTTPRequestHandler, directory=str(video.parent))) as url:
        with pytest.raises(UnreadableFrame, match=f"`{url}/room.mp4`"):
            read_frames(f"{url}/{video.name}", 3)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (index_video, frame_rate, lambda path: read_frames(path, 3)):
        with pytest.raises(UnreadableFrame, match="pipe.mp4`.*regular"):
            read(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["12:30:05.mp4", "file:room.mp4", "http:room.mp4", "%03d|concat:x.mp4"])
def test_the_name_of_a_file_may_hold_colons(video, tmp_path, monkeypatch, name):
    shutil.copy(video, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert numbers_of(read_frames(name, 3)) == [0, 9, 19]
    assert len(index_video(name)[0]) == 20


def test_a_title_that_is_not_utf_8_does_not_matter(tmp_path):
    path = tmp_path / "room.mp4"
    with av.open(str(path), "w") as target, av.open(str(write_video(tmp_path / "plain.mp4"))) as source:
        target.metadata["title"] = "Kueche Zuerich"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert b"Kueche" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"Kueche Zuerich", b"K\xfcche  Z\xfcrich "))
    assert numbers_of(read_frames(path, 3)) == [0, 9, 19]
    assert len(index_video(path)[0]) == 20


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("is_default", [True, False])
def test_the_moving_stream_is_read_and_no_cover_before_it(tmp_path, is_marked, is_default):
    path = tmp_path / "room.mp4"
    with av.open(str(write_video(tmp_path / "plain.mp4"))) as source, av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = Disposition.attached_pic if is_marked else Disposition.default
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.disposition = Disposition.default if is_default else Disposition(0)
        picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        target.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(cover.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    timestamps, key_frames = index_video(path)
    assert numbers_of(read_frames(path, 3)) == [0, 9, 19] and frame_rate(path) == 10
    assert numbers_of(dict(read_frames_at(path, timestamps, key_frames)).values()) == list(range(20))


def write_sound(path: Path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


UNREADABLE = {
    "missing.mp4": (lambda path: None, "No such file"),
    "folder.mp4": (Path.mkdir, "directory"),
    "empty.mp4": (Path.touch, "Invalid data"),
    "text.mp4": (lambda path: path.write_text("no video " * 99), "Invalid data"),
    # The index of an MP4 file lies at its end.
    "half.mp4": (lambda path: path.write_bytes(write_video(path).read_bytes()[:500]), "Invalid data"),
    "sound.wav": (write_sound, "stream"),
}


@pytest.mark.parametrize("read", [partial(read_frames, num_frames=4), index_video, frame_rate])
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_video_is_named_with_the_reason(name, read, tmp_path):
    write, reason = UNREADABLE[name]
    write(tmp_path / name)
    with pytest.raises(UnreadableFrame, match=f"{name}`.*{reason}"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [partial(read_frames, num_frames=4), index_video])
def test_a_video_cut_behind_its_index_is_refused(tmp_path, read):
    content = write_video(tmp_path / "whole.mp4", layout={"movflags": "faststart"}).read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: (content.index(b"mdat") + len(content)) // 2])
    with pytest.raises(UnreadableFrame, match=r"half\.mp4`.* \d+ of 20"):
        read(tmp_path / "half.mp4")


@pytest.mark.parametrize("share", [0.6, 0.8])
@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi", "mov"])
def test_a_video_of_any_format_that_was_cut_short_is_refused_by_every_reader(tmp_path, suffix, share):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    layout = {"movflags": "faststart"} if suffix == "mov" else None
    path = write_video(tmp_path / f"cut.{suffix}", codec=codec, layout=layout, g="5")
    assert len(read_frames(path, 99)) == len(index_video(path)[0]) == 20
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (lambda path: read_frames(path, 4), index_video):
        with pytest.raises(UnreadableFrame, match=rf"cut\.{suffix}`"):
            read(path)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "mp4"), ("mpeg4", "avi")]
)
def test_single_frames_equal_those_decoded_in_sequence(tmp_path, codec, suffix):
    path = write_video(tmp_path / f"room.{suffix}", codec=codec, g="6", bf="2")
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    timestamps, key_frames = index_video(path)
    assert len(timestamps) == 20 and len(key_frames) > 2
    for wanted in ([0, 1, 2], [5, 12, 13], [2, 3, 8, 18], *([frame] for frame in range(20))):
        images = dict(read_frames_at(path, [timestamps[frame] for frame in wanted], key_frames))
        assert list(images) == [timestamps[frame] for frame in wanted]
        for frame, image in zip(wanted, images.values(), strict=True):
            np.testing.assert_array_equal(image, expected[frame], err_msg=f"{frame} of {wanted}")


def test_key_frames_are_listed(tmp_path):
    path = write_video(tmp_path / "room.mp4", g="6", bf="2", sc_threshold="0")
    timestamps, key_frames = index_video(path)
    assert key_frames == [timestamps[frame] for frame in (0, 6, 12, 18)]


def test_single_frames_of_a_turned_video_are_turned_upright(tmp_path):
    path = write_video(tmp_path / "phone.mp4", num_frames=5, matrix=TURNED)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    timestamps, key_frames = index_video(path)
    ((_, image),) = read_frames_at(path, timestamps[3:4], key_frames)
    np.testing.assert_array_equal(image, np.rot90(stored[3], -1))


def test_the_frame_rate_is_the_streams(video):
    assert frame_rate(video) == 10


def test_a_video_without_pyav_is_refused_with_what_to_install(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        read_frames(video, 4)
