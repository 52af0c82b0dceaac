"""The ways into the package times odd images and videos: what each way sees of each.

    python tests/support/media_matrix.py

prints the table. A cell is `same`, if a way sees of an odd file what it sees of plain PNG files that hold what an
independent decoder finds in it; `refused`, if it ends with a sentence that names the file; and else what went wrong.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Image, List, load_dataset
from instruction_records import convert_set, question, read_rejected
from odd_media import IMAGES, PICTURE, RECORDED, VIDEOS, Odd, as_pillow_sees, as_stored, moving_stream
from tiny_instructions import message
from tiny_spa3_vlm import conversation, prepare, tiny_config, views_of

from spa3r import SceneSession, Spa3RImageProcessor, Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.data_scripts.benchmarks.reader import read_benchmark
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.views import SceneViews
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.trainers.alignment.views import AlignmentViews
from spa3r.trainers.pretraining.inspect import read_photos, read_video
from spa3r.trainers.tuning.instruction_data import InstructionCollator, load_instructions, without_decoding
from spa3r.trainers.tuning.streaming import RecordReader, UnusableRecord

# `spa3r convert-data` keeps frames of videos as JPEG files.
TOLERANCE, JPEG_TOLERANCE = 1e-6, 0.05
NUM_FRAMES = 4
# Wide enough for a panorama to be a view on its own.
WIDTH = 140


class Encoded(Exception):
    """The views that a session would encode."""


def _no_model():
    """What a session needs of a model up to the spatial encoder."""

    def encode_scene(**inputs):
        raise Encoded(views_of(inputs))

    return SimpleNamespace(config=tiny_config(), device="cpu", encode_scene=encode_scene)


def _views_of_session(**scene) -> list[torch.Tensor]:
    try:
        SceneSession(_no_model(), _processor(), **scene)
    except Encoded as encoded:
        return encoded.args[0]


def _processor(**options) -> Spa3VLMProcessor:
    return Spa3VLMProcessor(Spa3VLMImageProcessor(image_width=WIDTH), byte_tokenizer(), **options)


def ask(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    return _views_of_session(images=[str(file) for file in files])


def ask_about_video(file: Path, folder: Path) -> list[torch.Tensor]:
    return _views_of_session(video=str(file), num_frames=NUM_FRAMES)


def processor(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    return views_of(prepare(_processor(), [conversation([str(file) for file in files], "?")]))


def processor_of_video(file: Path, folder: Path) -> list[torch.Tensor]:
    turn = {"role": "user", "content": [{"type": "video", "path": str(file)}, {"type": "text", "text": "?"}]}
    return views_of(prepare(_processor(num_frames=NUM_FRAMES), [[turn]]))


def spa3r_processor(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    views = Spa3RImageProcessor(image_width=WIDTH)([str(file) for file in files], return_tensors="pt")
    return list(views["pixel_values"][0])


def _write_records(files: Sequence[Path], folder: Path) -> Dataset:
    (folder / "data").mkdir(parents=True)
    dataset = Dataset.from_list([_record(list(map(str, files)))]).cast_column("images", List(Image()))
    dataset.to_parquet(folder / "data" / "0.parquet")
    return dataset


def _record(images: list) -> dict:
    return {"images": images, "messages": [message("user", "?", len(images)), message("assistant", "3")]}


def _collate(dataset: Dataset) -> list[torch.Tensor]:
    return views_of(InstructionCollator(_processor())([dataset[0]]))


def sft_collator(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    return _collate(without_decoding(_write_records(files, folder / "set")))


def sft_check(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    _write_records(files, folder / "set")
    return _collate(load_instructions([str(folder / "set")], seed=0))


def sft_stream(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    """Shards hold their images inside."""
    shard = folder / "shard.parquet"
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    Dataset.from_list([_record(images)]).to_parquet(shard)
    record = RecordReader(skip_batches=0, batch_size=1)(str(shard), 0, 0, position=0)
    return views_of(InstructionCollator(_processor())([record]))


def _convert(folder: Path, **media) -> list[torch.Tensor]:
    try:
        convert_set(folder, [question("<image>" * len(media.get("image", "1")), **media)])
    except ValueError as error:
        raise ValueError(read_rejected(folder / "set")[0]["detail"]) from error
    return _collate(without_decoding(load_dataset("parquet", data_dir=str(folder / "set" / "data"), split="train")))


def converter(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    (folder / "media").symlink_to(files[0].parent)
    return _convert(folder, image=[file.name for file in files])


def converter_of_video(file: Path, folder: Path) -> list[torch.Tensor]:
    (folder / "media").symlink_to(file.parent)
    return _convert(folder, video=file.name)


def _views_of_scene(scenes: Dataset, make=SceneViews, **options) -> dict:
    """The item of the first scene, unless a frame of it was replaced."""
    views = make(scenes, **options)
    item = views[0, 0, NUM_FRAMES]
    if item["replaced_frames"]:
        raise ValueError(item["replaced_frames"][0])
    return item


def _in_order(item: dict) -> list[torch.Tensor]:
    order = np.argsort(item["frame_indices"])
    return [item["pixel_values"][index].float() / 255 for index in order]


def _as_folder(files: Sequence[Path], folder: Path) -> Path:
    """The images under names that sort in their order."""
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        (folder / f"{number}_{file.name}").symlink_to(file)
    return folder


def folders(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    _as_folder(files, folder / "scenes" / "room")
    return _in_order(_views_of_scene(load_scenes("folders", folder / "scenes", interval=[1, 1]), image_width=WIDTH))


def rooms(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    _as_folder(files, folder / "scenes" / "room" / "color")
    return _in_order(_views_of_scene(load_scenes("rooms", folder / "scenes", interval=[1, 1]), image_width=WIDTH))


def align(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    _as_folder(files, folder / "scenes" / "room" / "color")
    scenes = load_scenes("rooms", folder / "scenes", interval=[1, 1])
    views = {"image_processor": _processor().image_processor, "depth": False}
    return views_of(_views_of_scene(scenes, AlignmentViews, **views))


def videos(file: Path, folder: Path) -> list[torch.Tensor]:
    with _warnings() as warnings:
        try:
            scenes = load_scenes("videos", file.parent, interval=[1, 1])
        except FileNotFoundError as error:
            raise ValueError(warnings[0]) from error
    item = _views_of_scene(scenes, image_width=WIDTH)
    return Seen(_in_order(item), sorted(item["frame_indices"]))


def benchmark(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    record = {"question_type": "?", "question": "?", "choices": "A. 1", "answer": "A. 1"}
    record["image_path"] = [file.name for file in files]
    (folder / "ViewSpatial-Bench.json").write_text(json.dumps([record]))
    data = read_benchmark("viewspatial-bench", folder, files[0].parent)
    return _views_of_session(images=data.load_images(data.questions[0].media, NUM_FRAMES))


def benchmark_of_video(file: Path, folder: Path) -> list[torch.Tensor]:
    (folder / "arkitscenes").mkdir()
    (folder / "arkitscenes" / f"{file.name}.mp4").symlink_to(file)
    record = {"id": 0, "dataset": "arkitscenes", "scene_name": file.name, "question_type": "object_counting"}
    record |= {"question": "?", "ground_truth": "3", "options": None}
    (folder / "test.jsonl").write_text(json.dumps(record))
    data = read_benchmark("vsi-bench", folder)
    return _views_of_session(images=data.load_images(data.questions[0].media, NUM_FRAMES))


def inspect(files: Sequence[Path], folder: Path) -> list[torch.Tensor]:
    item = read_photos(SimpleNamespace(images=list(files), context_ratio=0.5, image_width=WIDTH)).item
    return _in_order(item)


def inspect_video(file: Path, folder: Path) -> list[torch.Tensor]:
    options = {"num_views": NUM_FRAMES, "context_ratio": 0.5, "image_width": WIDTH}
    return _in_order(read_video(SimpleNamespace(video=file, **options)).item)


class Seen(list):
    """Views of these frames of a video."""

    def __init__(self, views, frames):
        super().__init__(views)
        self.frames = frames


@contextmanager
def _warnings():
    """Warnings about scenes."""
    messages, logger = [], logging.getLogger("spa3r.data_scripts.scenes.index")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


# By heading: a way for images, and one for a video.
WAYS: dict[str, tuple[Callable | None, Callable | None]] = {
    "ask": (ask, ask_about_video),
    "processor": (processor, processor_of_video),
    "Spa3R's processor": (spa3r_processor, None),
    "SFT collator": (sft_collator, None),
    "SFT check": (sft_check, None),
    "SFT stream": (sft_stream, None),
    "converters": (converter, converter_of_video),
    "`folders:`": (folders, None),
    "`rooms:`": (rooms, None),
    "`videos:`": (None, videos),
    "align": (align, None),
    "inspect": (inspect, inspect_video),
    "benchmark": (benchmark, benchmark_of_video),
}


def recorded(kind: str) -> dict[str, Odd]:
    """The files of the shared cases, if there are any."""
    if kind == "image":
        known = {"bad_exif.png": as_stored, "gray16.png": None, "rgba.png": as_pillow_sees}
    else:
        known = {"cover.mp4": moving_stream, "latin1_title.mp4": moving_stream, "truncated_faststart.mp4": None}
    return {
        name: Odd(name, lambda path, name=name: path.write_bytes((RECORDED / name).read_bytes()), read)
        for name, read in known.items()
        if (RECORDED / name).is_file()
    }


def cell(odd: Odd, ways: tuple[Callable | None, Callable | None], folder: Path, is_video: bool) -> str:
    """What a way makes of an odd file."""
    media = folder / "media files"
    media.mkdir(parents=True)
    file = media / odd.name
    odd.write(file)
    way = ways[is_video]
    work = folder / "odd"
    work.mkdir()
    try:
        seen = way(file, work) if is_video else way([file, *_companions(media)], work)
    except (ValueError, UnusableRecord) as error:
        return "refused" if odd.name in str(error) else f"refused without a name: {error}"
    except Exception as error:
        return f"fails with {error!r}"
    if odd.read is None:
        return "accepted"
    expected = _expected(odd.read(file), seen, ways, folder, is_video)
    if [tuple(view.shape) for view in seen] != [tuple(view.shape) for view in expected]:
        return f"shapes {[tuple(view.shape) for view in seen]}"
    lossy = is_video and way is converter_of_video
    difference = max(float((a - b).abs().max()) for a, b in zip(seen, expected, strict=True))
    return "same" if difference <= (JPEG_TOLERANCE if lossy else TOLERANCE) else f"differs by {difference:.3f}"


def _companions(media: Path) -> list[Path]:
    files = [media / f"companion_{number}.png" for number in range(NUM_FRAMES - 1)]
    for number, file in enumerate(files):
        PICTURE.rotate(10 * (number + 1)).save(file)
    return files


def _expected(decoded: Sequence[PIL.Image.Image], seen, ways, folder: Path, is_video: bool) -> list[torch.Tensor]:
    """What the way sees of plain PNG files of the same pixels."""
    plain, work = folder / "plain files", folder / "plain"
    plain.mkdir()
    work.mkdir()
    if not is_video:
        decoded[0].save(plain / "0.png")
        return ways[0]([plain / "0.png", *_companions(plain)], work)
    frames = getattr(seen, "frames", np.linspace(0, len(decoded) - 1, len(seen)).astype(int))
    files = [plain / f"{frame}.png" for frame in frames]
    for frame, file in zip(frames, files, strict=True):
        decoded[frame].save(file)
    return (ways[0] or folders)(files, work)


def row(odd: Odd, folder: Path, is_video: bool) -> dict[str, str]:
    """What each way makes of an odd file, by its heading."""
    return {
        heading: cell(odd, ways, folder / str(number), is_video)
        for number, (heading, ways) in enumerate(WAYS.items())
        if ways[is_video]
    }


def main():
    """Print the matrix as a table in Markdown."""
    for is_video, kinds in ((False, IMAGES | recorded("image")), (True, VIDEOS | recorded("video"))):
        headings = [heading for heading, ways in WAYS.items() if ways[is_video]]
        print(f"\n| {'video' if is_video else 'image'} | {' | '.join(headings)} |\n|---|{'---|' * len(headings)}")
        for name, odd in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                outcomes = row(odd, Path(folder), is_video)
            print(f"| {name} | {' | '.join(outcomes.values())} |", flush=True)


if __name__ == "__main__":
    main()
