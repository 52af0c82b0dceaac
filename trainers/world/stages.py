"""All stages of the nano world, from nothing to a table of scores: what each runs, needs, and how long it takes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

CommandWriter = Callable[..., tuple[str, ...]]

# What the commands of all stages share. Pictures have 8 x 6 patches; rooms to learn from and rooms to be asked about
# have different seeds; objects of less than 1.5 % of a picture, less than a patch, are not asked about.
PARTS = {
    "pictures": "--views 12 --every 2 --size 112x84",
    "clear": "--min-visible-share 0.015",
    "asked": "--benchmark rooms --data {at}/questions-held-out --media {at}/held-out-rooms",
    "kept": "--scene_latents {at}/scenes",
    # Those of the benchmark, and such as ask for a step of their answers.
    "families": "benchmark direction nearest_of seen_first pair_distance first_view nearest_object camera_distance",
}


@dataclass(frozen=True)
class Stage:
    """
    One command of the world.

    name (`str`): Also that of its log.
    what (`str`): What it does, in a few words.
    minutes (`float`): How long it takes on one CPU core, as measured; 0 if unknown.
    command (`tuple[str, ...]`): Arguments of `python -m`.
    needs (`tuple[str, ...]`): Names of the stages whose results it uses; they stand earlier in the list.
    table (`str`, *optional*): A result to show at the end, relative to the folder of the world.
    result (`str`, *optional*):
        A folder that appears when it is complete. Its command refuses to write it a second time, so a stage that was
        stopped right after that is done.
    """

    name: str
    what: str
    minutes: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    table: str | None = None
    result: str | None = None


@dataclass(frozen=True)
class Sizes:
    """
    What differs between the whole world, on a CPU or a GPU, and a smoke test.

    rooms, held_out_rooms (`int`): Rooms to learn from, and to be asked about.
    flat, places, benchmark (`int`): Most questions about a room: single images, all views, held-out rooms.
    teach, classify, pretrain, base, encode, align, tune (`tuple[str, ...]`):
        Options over the recipes of VGGT, of the two vision transformers, of Spa3R, of the base VLM, of the encoding of
        rooms, of alignment, and of tuning.
    jobs (`int`): Most stages at a time, if there are as many cores.
    """

    rooms: int = 4000
    held_out_rooms: int = 240
    flat: int = 28
    places: int = 48
    benchmark: int = 30
    teach: tuple[str, ...] = ()
    classify: tuple[str, ...] = ()
    pretrain: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    encode: tuple[str, ...] = ()
    align: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    jobs: int = 2


def options(**values: object) -> tuple[str, ...]:
    """Options of a command line; all but texts are written as JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return tuple(part for name, text in texts.items() for part in (f"--{name}", text))


# Two steps of everything. Schedules whose decay is longer than the training are refused.
_SHORT = {"max_steps": 2, "save_steps": 2, "warmup_steps": 0, "dataloader_num_workers": 0, "report_to": "none"}
_DECAY = {"lr_scheduler_kwargs": {"num_decay_steps": 1, "min_lr_ratio": 0.1}}
_VIEWS = {"held_out_scenes": 2, "images_per_device": 24}
SMOKE = Sizes(
    rooms=6,
    held_out_rooms=2,
    flat=14,
    places=48,
    benchmark=20,
    teach=options(**_SHORT, **_DECAY, **_VIEWS, eval_strategy="no"),
    classify=options(**_SHORT, **_DECAY, **_VIEWS, eval_strategy="no"),
    pretrain=options(**_SHORT, **_DECAY, **_VIEWS),
    align=options(**_SHORT, **_DECAY, **_VIEWS),
    base=options(**_SHORT, **_DECAY, per_device_train_batch_size=4),
    tune=options(**_SHORT, **_DECAY, per_device_train_batch_size=2),
)


def decaying(max_steps: int, num_decay_steps: int, min_lr_ratio: float = 0.02) -> dict[str, object]:
    """Steps of a training, and those at its end in which the learning rate falls."""
    schedule = {"num_decay_steps": num_decay_steps, "min_lr_ratio": min_lr_ratio}
    return {"max_steps": max_steps, "lr_scheduler_kwargs": schedule}


# Steps of small models wait for the host, not for the GPU: batches are large, and four stages share it. Workers are as
# many as 16 cores feed.
CUDA = Sizes(
    teach=options(images_per_device=384, dataloader_num_workers=7),
    classify=options(images_per_device=128, dataloader_num_workers=3),
    pretrain=options(images_per_device=384, dataloader_num_workers=7, **decaying(1500, 700)),
    base=options(dataloader_num_workers=6),
    encode=("--scenes-per-batch", "32", "--workers", "8"),
    align=options(dataloader_num_workers=6),
    tune=options(per_device_train_batch_size=64, dataloader_num_workers=4, **decaying(1000, 450, 0.03)),
    jobs=4,
)


def sizes_of(device: str = "cpu", smoke: bool = False) -> Sizes:
    """The sizes of a world; see `list_stages`."""
    return SMOKE if smoke else CUDA if device == "cuda" else Sizes()


def list_stages(folder: Path, device: str = "cpu", smoke: bool = False) -> list[Stage]:
    """List all stages in an order in which each follows what it needs.

    Args:
        folder (`Path`): Where the world is made.
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"` or `"cuda"`.
        smoke (`bool`, *optional*, defaults to `False`): Whether to make a tiny world that only shows that all works.
    """
    sizes = sizes_of(device, smoke)
    run, train = command_writers(folder, device, sizes)
    stages = [
        *_rooms_and_questions(run, sizes),
        *_spatial_encoder(run, train, sizes),
        *_language_model(run, train, sizes),
        *_spa3_vlm_and_controls(run, train, sizes),
        *_scores(run),
    ]
    return with_known_minutes(stages, sizes)


def command_writers(folder: Path, device: str, sizes: Sizes) -> tuple[CommandWriter, CommandWriter]:
    """Two functions that make a command from its words, and from arguments that follow as they are.

    In the words, `{at}` is the folder of the world; names of `PARTS` and of numbers in `sizes` stand for these. The
    second function adds where a training runs.
    """
    on_device = ("--use_cpu", "true" if device == "cpu" else "false")

    def run(text: str, *more: str) -> tuple[str, ...]:
        words = text.format_map(_Kept(PARTS)).split()
        return (*(word.format(at=folder, **vars(sizes)) for word in words), *more)

    def train(text: str, *more: str) -> tuple[str, ...]:
        return run(text, *more, *on_device)

    return run, train


def with_known_minutes(stages: list[Stage], sizes: Sizes) -> list[Stage]:
    """Stages without their minutes, if these were not measured at such sizes."""
    return stages if sizes == Sizes() else [replace(stage, minutes=0) for stage in stages]


class _Kept(dict):
    """For `str.format_map`: names that are not in the dict stay as they are."""

    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


def _rooms_and_questions(run, sizes: Sizes) -> list[Stage]:
    asked = "spa3r room-questions {clear} --questions-per-room"
    return [
        Stage(
            *("rooms", f"draw {sizes.rooms:,} rooms to learn from", 17),
            run("spa3r rooms {pictures} --seed 100 --scenes {rooms} --output {at}/rooms"),
        ),
        Stage(
            *("held-out-rooms", f"draw {sizes.held_out_rooms:,} rooms to be asked about", 1),
            run("spa3r rooms {pictures} --seed 200 --scenes {held_out_rooms} --output {at}/held-out-rooms"),
        ),
        Stage(
            *("questions-2d", "ask about single images", 7),
            run(f"{asked} {{flat}} --rooms {{at}}/rooms --output {{at}}/questions-2d --families 2d --turns 6"),
            ("rooms",),
        ),
        Stage(
            *("questions", "ask about places", 15),
            run(
                f"{asked} {{places}} --rooms {{at}}/rooms --output {{at}}/questions --families {{families}} --turns 4 "
                "--views-per-question 12"
            ),
            ("rooms",),
        ),
        Stage(
            *("questions-held-out", "ask what the models will be asked", 1),
            run(
                f"{asked} {{benchmark}} --rooms {{at}}/held-out-rooms --output {{at}}/questions-held-out "
                "--format benchmark --train {at}/questions"
            ),
            ("held-out-rooms", "questions"),
        ),
    ]


def _spatial_encoder(run, train, sizes: Sizes) -> list[Stage]:
    taught = "spa3r teach --scenes rooms:{at}/rooms --config"
    return [
        Stage(
            *("geometry", "teach a VGGT cameras, depth and points", 45),
            train(f"{taught} teach-geometry-rooms --output_dir {{at}}/geometry", *sizes.teach),
            ("rooms",),
        ),
        Stage(
            *("semantic", "teach a DINOv3 the categories of patches", 8),
            train(f"{taught} teach-semantic-rooms --output_dir {{at}}/semantic", *sizes.classify),
            ("rooms",),
        ),
        Stage(
            *("vision", "teach the vision tower of the language model the same", 8),
            train(f"{taught} teach-vision-rooms --output_dir {{at}}/vision", *sizes.classify),
            ("rooms",),
        ),
        Stage(
            *("spa3r", "pre-train Spa3R", 22),
            train(
                "spa3r pretrain --config spa3r-rooms --scenes rooms:{at}/rooms --output_dir {at}/spa3r --overrides "
                "vggt_checkpoint={at}/geometry/model teachers.semantic.checkpoint={at}/semantic/model",
                *sizes.pretrain,
            ),
            ("geometry", "semantic"),
        ),
        Stage(
            *("spa3r-report", "measure what Spa3R predicts about unseen views", 2),
            run(
                "spa3r inspect --model {at}/spa3r/model --scenes rooms:{at}/held-out-rooms --cameras --num-views 12 "
                "--num-scenes {held_out_rooms} --num-figures 2 --image-width 112 --output {at}/spa3r-report"
            ),
            ("spa3r", "held-out-rooms"),
            "spa3r-report/report.md",
        ),
    ]


def _language_model(run, train, sizes: Sizes) -> list[Stage]:
    return [
        Stage(
            *("qwen", "make tokens of words, and an untrained Qwen2.5-VL", 0.5),
            run(
                "spa3r.trainers.world.base_vlm --preset spa3-vlm-nano --vision {at}/vision/model "
                "--instructions {at}/questions-2d {at}/questions --output {at}/qwen"
            ),
            ("vision", "questions-2d", "questions"),
            result="qwen",
        ),
        Stage(
            *("base-start", "make it ready for training", 0.2),
            run("spa3r convert assemble {at}/base-start --vlm {at}/qwen --fusion none --image-width 112"),
            ("qwen",),
            result="base-start",
        ),
        Stage(
            *("base", "train the language model on single images", 15),
            train(
                "spa3r sft --config spa3-vlm-nano-base --model_name_or_path {at}/base-start "
                "--instructions {at}/questions-2d --output_dir {at}/base",
                *sizes.base,
            ),
            ("base-start",),
        ),
        Stage(
            *("spa3-vlm", "join it with Spa3R by a new adapter", 0.2),
            run(
                "spa3r convert assemble {at}/spa3-vlm --vlm {at}/base/model --spa3r {at}/spa3r/model --image-width 112"
            ),
            ("base", "spa3r"),
            result="spa3-vlm",
        ),
        Stage(
            *("scenes", "encode each room once", 9),
            run(
                "spa3r encode-scenes --model {at}/spa3-vlm --instructions {at}/questions --output {at}/scenes "
                "--vision-features",
                *sizes.encode,
            ),
            ("spa3-vlm", "questions"),
        ),
    ]


def deeper(run, name: str, model: str, seed: int = 0) -> Stage:
    """A stage that gives more layers to the language model of `model`, a path in the folder of the world."""
    return Stage(
        *(name, f"give the language model of {model} more layers", 0.2),
        run(f"spa3r.trainers.world.deeper {{at}}/{model} {{at}}/{name} --layers 7 --seed {seed}"),
        (model.partition("/")[0],),
        result=name,
    )


def _spa3_vlm_and_controls(run, train, sizes: Sizes) -> list[Stage]:
    # On the same questions, whatever the model sees; its recipe trains the text-only twin for fewer steps.
    tuned = "spa3r sft --instructions {at}/questions --config"
    return [
        Stage(
            *("aligned", "let the adapter find points in space, and names their objects", 18),
            train(
                "spa3r align --config spa3-vlm-align-rooms --model_name_or_path {at}/spa3-vlm "
                "--scenes rooms:{at}/rooms --output_dir {at}/aligned",
                *sizes.align,
            ),
            ("spa3-vlm",),
            "aligned/report.md",
        ),
        Stage(
            *("aligned-2d", "ground names in images alone, for a control", 18),
            train(
                "spa3r align --config spa3-vlm-align-rooms --model_name_or_path {at}/base/model "
                "--scenes rooms:{at}/rooms --output_dir {at}/aligned-2d",
                *sizes.align,
            ),
            ("base",),
            "aligned-2d/report.md",
        ),
        deeper(run, "deeper", "aligned/model"),
        deeper(run, "deeper-2d", "aligned-2d/model"),
        deeper(run, "deeper-text", "base/model"),
        Stage(
            *("tuned", "tune Spa3-VLM on questions about places", 140),
            train(
                f"{tuned} spa3-vlm-nano {{kept}} --model_name_or_path {{at}}/deeper --output_dir {{at}}/tuned",
                *sizes.tune,
            ),
            ("deeper", "scenes"),
        ),
        Stage(
            *("tuned-text", "tune the base on the text of the questions alone", 38),
            train(
                f"{tuned} spa3-vlm-nano-text --model_name_or_path {{at}}/deeper-text --output_dir {{at}}/tuned-text",
                *sizes.tune,
            ),
            ("deeper-text",),
        ),
        Stage(
            *("tuned-2d", "tune the base on questions and images, without a scene", 135),
            train(
                f"{tuned} spa3-vlm-nano {{kept}} --model_name_or_path {{at}}/deeper-2d --output_dir {{at}}/tuned-2d",
                *sizes.tune,
            ),
            ("deeper-2d", "scenes"),
        ),
    ]


def _scores(run) -> list[Stage]:
    beside = ("score-tuned-text", "score-tuned-2d")
    return [
        Stage(
            *("score-tuned-text", "ask the control that sees the text alone", 4),
            run(
                "spa3r benchmark {asked} --model {at}/tuned-text/model --without-images "
                "--output {at}/score-tuned-text",
                *("--label", "text only"),
            ),
            ("tuned-text", "questions-held-out"),
        ),
        Stage(
            *("score-tuned-2d", "ask the control that sees no scene", 6),
            run(
                "spa3r benchmark {asked} --model {at}/tuned-2d/model --output {at}/score-tuned-2d",
                *("--label", "2-D only"),
            ),
            ("tuned-2d", "questions-held-out"),
        ),
        Stage(
            *("score-tuned", "ask Spa3-VLM", 7),
            run(
                "spa3r benchmark {asked} --model {at}/tuned/model --output {at}/score-tuned "
                "--beside {at}/score-tuned-text {at}/score-tuned-2d",
                *("--label", "Spa3-VLM nano"),
            ),
            ("tuned", "questions-held-out", *beside),
            "score-tuned/report.md",
        ),
        *(
            Stage(
                *(f"compare-{name}", f"compare Spa3-VLM with {name}", 0.3),
                run(f"spa3r benchmark --compare {{at}}/{name} {{at}}/score-tuned --output {{at}}/compare-{name}"),
                ("score-tuned",),
                f"compare-{name}/comparison.md",
            )
            for name in beside
        ),
        Stage(
            *("shipped-spa3r", "write the Spa3R that ships", 0.2),
            run("spa3r.trainers.world.shipping {at}/spa3r/model {at}/nano/spa3r-nano"),
            ("spa3r",),
            result="nano/spa3r-nano",
        ),
        Stage(
            *("shipped-spa3-vlm", "write the Spa3-VLM that ships", 0.2),
            run(
                "spa3r.trainers.world.shipping {at}/tuned/model {at}/nano/spa3-vlm-nano "
                "--reports {at}/score-tuned {at}/score-tuned-text {at}/score-tuned-2d"
            ),
            ("score-tuned",),
            result="nano/spa3-vlm-nano",
        ),
    ]
