"""What the page computes: scenes from rooms and uploads, answers piece by piece, and views from elsewhere."""

import functools
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from PIL import Image
from torch import Tensor
from transformers import TextIteratorStreamer

from ....data_scripts.common.images import open_image, to_rgb, turn_upright
from ....data_scripts.common.videos import VIDEO_SUFFIXES, describe_video, read_frames
from ....modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ....modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ....modeling_spa3r.spa3_vlm.scene_session import SceneSession, prepare_scene
from ....modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..scene_files import write_glb
from .attention import AnswerAttention, attend, on_photos, record_adapter
from .drawing import Heat
from .limits import Limits
from .looking import SceneField, View, make_field, predict, see
from .rooms import RenderedRoom

STREAM_TIMEOUT = 120


@dataclass(frozen=True)
class Scene:
    """
    A scene that was encoded once.

    session (`SceneSession`): Answers questions from its cache.
    photos (`list[np.ndarray]`): The views as the model sees them, RGB bytes.
    seen (`list[tuple[int, tuple[int, int]]]`):
        What the vision tower sees of each view: the first row, below the white where photos have several heights, and
        height and width in pixels.
    adapter (`torch.Tensor` of shape `(num_image_tokens, num_latents)`, *optional*): See `record_adapter`.
    field (`SceneField`, *optional*): Where a Spa3R with a decoder is at hand.
    room (`RenderedRoom`, *optional*): Where the scene is a rendered room.
    """

    session: SceneSession
    photos: list[np.ndarray]
    seen: list[tuple[int, tuple[int, int]]]
    adapter: Tensor | None
    field: SceneField | None
    room: RenderedRoom | None

    @functools.cached_property
    def glb(self) -> tuple[str, float]:
        """Path of a GLB file of points and cameras, which goes with the scene, and the spread of the points."""
        folder = tempfile.mkdtemp(prefix="spa3r-demo-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path, cloud = Path(folder, "scene.glb"), self.field.geometry.point_cloud()
        write_glb(path, self.field.geometry, cloud)
        low, high = np.quantile(cloud.positions, [0.02, 0.98], axis=0)
        return str(path), float(np.linalg.norm(high - low))


class Answer(NamedTuple):
    """
    text (`str`): What was said so far.
    tokens (`list[int]`): Its tokens without special ones, once it is complete; none before.
    """

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Studio:
    """The models of the page, which one request at a time may use.

    model (`Spa3VLMForConditionalGeneration`), processor (`Spa3VLMProcessor`): Answer questions.
    spa3r (`Spa3RForPreTraining`, *optional*): The Spa3R inside the model, with its decoder.
    """

    model: Spa3VLMForConditionalGeneration
    processor: Spa3VLMProcessor
    spa3r: Spa3RForPreTraining | None
    limits: Limits = field(default_factory=Limits)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def encode(self, photos: Sequence[Image.Image], room: RenderedRoom | None = None) -> Scene:
        """Encode photos of one place."""
        with self.lock, record_adapter(self.model) as adapter:
            prepared = prepare_scene(self.processor, list(photos))
            height, width = prepared.inputs["geometry_sizes"][0].tolist()
            pixels = prepared.inputs["pixel_values_geometry"].view(1, -1, height, width, 3)
            session = SceneSession(self.model, self.processor, prepared)
            scene_field = None
            if self.spa3r is not None and session.spatial_latents is not None:
                scene_field = make_field(self.spa3r, pixels.permute(0, 1, 4, 2, 3), session.spatial_latents, room)
        shown = (pixels[0] * 255).round().byte().numpy()
        image_processor, seen = self.processor.image_processor, []
        for photo in photos:
            rows, columns = image_processor.resized_size(photo.height, photo.width)
            rows = min(rows, columns)  # portraits become squares
            seen.append(((height - rows) // 2, image_processor.vision_sizes(rows, columns)[0]))
        return Scene(session, list(shown), seen, adapter[0] if adapter else None, scene_field, room)

    def answer(self, scene: Scene, prompt: str) -> Iterator[Answer]:
        """Yield the growing answer, then the complete one."""
        tokenizer = self.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=STREAM_TIMEOUT)
        outcome: list = []

        def generate():
            try:
                with self.lock:
                    outcome.append(
                        scene.session.generate([prompt], max_new_tokens=self.limits.new_tokens, streamer=streamer)
                    )
            except Exception as error:
                outcome.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        text = ""
        for piece in streamer:
            text += piece
            yield Answer(text.strip(), [])
        thread.join()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        special = set(tokenizer.all_special_ids)
        yield Answer(text.strip(), [token for token in outcome[0][0].tolist() if token not in special])

    def attention(self, scene: Scene, prompt: str, answer: list[int]) -> AnswerAttention:
        """See `attend`."""
        with self.lock:
            return attend(scene.session, prompt, answer, scene.adapter)

    def heat(self, scene: Scene, values: Tensor) -> list[Heat]:
        """Values of image tokens on the photos, as shares of the greatest."""
        merge_size = self.processor.image_processor.merge_size
        grids = on_photos(values / values.max(), scene.session.image_grid_thw, merge_size)
        return [Heat(grid, top, size) for grid, (top, size) in zip(grids, scene.seen, strict=True)]

    def look(self, scene: Scene, move: np.ndarray) -> tuple[View, np.ndarray | None, View | None]:
        """The predicted view, and in a room the true picture and what the teachers find in it."""
        with self.lock:
            predicted = predict(self.spa3r, scene.field, move)
            if scene.room is None or not scene.room.is_inside(move):
                return predicted, None, None
            picture, depth = scene.room.look(move)
            return predicted, picture, see(self.spa3r, scene.field, picture, depth)


def read_upload(paths: Sequence[str], limits: Limits, num_frames: int) -> list[Image.Image]:
    """Read photos of a place, or a video.

    Args:
        paths (`Sequence[str]`): Files of photos, or a single video.
        limits (`Limits`): What is refused.
        num_frames (`int`): Frames to take from a video.

    Raises:
        ValueError: If there is no file, too much of anything, or a file cannot be read.
    """
    if not paths:
        raise ValueError("There is no photo yet: drop some photos of one place, or one video.")
    videos = [path for path in paths if Path(path).suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(paths) > 1:
        raise ValueError(f"There are {len(paths)} files with a video among them: give one video, or photos alone.")
    if videos:
        return _read_video(videos[0], limits, num_frames)
    if len(paths) > limits.photos:
        raise ValueError(f"There are {len(paths)} photos, but at most {limits.photos} fit: leave some out.")
    photos = []
    for path in paths:
        name = Path(path).name
        _require_pixels(name, _image_size(path), limits)
        photos.append(to_rgb(turn_upright(open_image(path, name)), f"`{name}`"))
    return photos


def _read_video(path: str, limits: Limits, num_frames: int) -> list[Image.Image]:
    seconds, size = describe_video(path)
    if seconds > limits.seconds:
        raise ValueError(
            f"The video lasts {seconds:.3g} s, but at most {limits.seconds:.3g} s are read: cut it, or give photos."
        )
    _require_pixels(Path(path).name, size, limits)
    return read_frames(path, min(num_frames, limits.photos))


def _image_size(path: str) -> tuple[int, int]:
    """Width and height of an image, read without decoding it; what is no image is refused later."""
    try:
        with PIL.Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0
    except PIL.Image.DecompressionBombError:
        return 1 << 20, 1 << 20


def _require_pixels(name: str, size: tuple[int, int], limits: Limits):
    megapixels = size[0] * size[1] / 1e6
    if megapixels > limits.megapixels:
        raise ValueError(
            f"`{name}` has {megapixels:.3g} megapixels, but at most {limits.megapixels:.3g} are read: make it smaller."
        )


def require_same_encoder(model: Spa3VLMForConditionalGeneration, spa3r: Spa3RForPreTraining, names: tuple[str, str]):
    """Refuse a Spa3R that is not the one inside a Spa3-VLM: its decoder could not read the latents.

    Raises:
        ValueError: If a weight of the encoder differs by more than rounding, or the model has no encoder.
    """
    if model.model.spatial_encoder is None:
        raise ValueError(f"`{names[0]}` encodes no scene (`fusion` is none): leave out `{names[1]}`.")
    inside, given = model.model.spatial_encoder.state_dict(), spa3r.model.state_dict()
    different = [
        name
        for name, weight in inside.items()
        if name not in given
        or weight.shape != given[name].shape
        or not torch.allclose(weight.float(), given[name].float().to(weight.device), rtol=1e-2, atol=1e-4)
    ]
    if different:
        raise ValueError(
            f"The Spa3R in `{names[1]}` is not the one inside `{names[0]}` ({different[0]} differs), so it cannot "
            "read its latents: give the one that the Spa3-VLM was assembled from."
        )
