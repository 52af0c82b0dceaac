"""The ablations of the paper's Tables 3 to 7 in the nano world: its variants, and the stages that make and ask each.

A variant is made as the world's own Spa3-VLM, by as many steps on the same rooms and questions, but for what it names.
Its stages are repeated with several seeds. Those of the world itself, which has seed 0, are not: its Spa3-VLM is the
default variant, and its control without a scene is the variant without a representation. A Spa3R is made once for all
variants that use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .stages import Sizes, Stage, command_writers, deeper, sizes_of, with_known_minutes

# Spa3R by its name, with what changes in its pre-training. The line follows the options of the architecture.
SPA3R = {
    "default": "",
    "geometry": "targets=[geometry] teachers={}",
    "semantic": "targets=[semantic]",
    "masked-25": "--context_ratio 0.75",
    "masked-75": "--context_ratio 0.25",
    "plucker": "camera_embedding=plucker",
}
# Features of VGGT instead of a Spa3R.
VGGT = "vggt"


@dataclass(frozen=True)
class Variant:
    """
    What a model sees of a scene, and how.

    representation (`str`): `VGGT`, or one of `SPA3R`.
    fusion (`str`): As in `Spa3VLMConfig`; with `none` the model sees images alone.
    is_aligned (`bool`): Whether it is aligned before tuning; `append` cannot be.
    """

    representation: str = "default"
    fusion: str = "cross_attention"
    is_aligned: bool = True


VARIANTS = {
    "default": Variant(),
    "none": Variant(fusion="none"),
    "vggt": Variant(VGGT),
    "append": Variant(fusion="append", is_aligned=False),
    "unaligned": Variant(is_aligned=False),
    **{name: Variant(name) for name in SPA3R if name != "default"},
}


def score_of(name: str, seed: int) -> str:
    """The stage that asks a variant, which is also the folder of its report in the world."""
    own = {"default": "score-tuned", "none": "score-tuned-2d"}
    return own[name] if seed == 0 and name in own else f"score-{name}-{seed}"


def list_ablations(folder: Path, seeds: Sequence[int], device: str = "cpu", smoke: bool = False) -> list[Stage]:
    """List the stages of all ablations, which follow those of `list_stages`.

    Args:
        folder (`Path`): Where the world is made.
        seeds (`Sequence[int]`): Each variant is made with each of them.
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"` or `"cuda"`.
        smoke (`bool`, *optional*, defaults to `False`): As for `list_stages`.
    """
    sizes = sizes_of(device, smoke)
    run, train = command_writers(folder, device, sizes)
    stages = _vggt(run, sizes)
    for seed in seeds:
        for name in SPA3R:
            if (name, seed) != ("default", 0):
                stages += _spa3r(run, train, sizes, name, seed)
        for name in VARIANTS:
            if score_of(name, seed) == f"score-{name}-{seed}":
                stages += _variant(run, train, sizes, name, seed)
    return with_known_minutes([*stages, _table(run, seeds)], sizes)


def _made_of(representation: str, seed: int) -> str:
    """What follows `spa3r`, `spa3-vlm` and `scenes` in the names of the stages of a representation."""
    # Features of the frozen VGGT have no seed.
    if representation == VGGT:
        return "-vggt"
    return "" if (representation, seed) == ("default", 0) else f"-{representation}-{seed}"


def _vggt(run, sizes: Sizes) -> list[Stage]:
    return _joined_and_encoded(run, sizes, "-vggt", "spa3r", "--spatial-representation vggt")


def _spa3r(run, train, sizes: Sizes, name: str, seed: int) -> list[Stage]:
    suffix = _made_of(name, seed)
    spa3r = f"spa3r{suffix}"
    return [
        Stage(
            *(spa3r, f"pre-train Spa3R: {name}, seed {seed}", 22),
            train(
                f"spa3r pretrain --config spa3r-rooms --scenes rooms:{{at}}/rooms --output_dir {{at}}/{spa3r} "
                f"--seed {seed} --overrides vggt_checkpoint={{at}}/geometry/model "
                "teachers.semantic.checkpoint={at}/semantic/model",
                *SPA3R[name].split(),
                *sizes.pretrain,
            ),
            ("geometry", "semantic"),
        ),
        *_joined_and_encoded(run, sizes, suffix, spa3r, f"--seed {seed}"),
    ]


def _joined_and_encoded(run, sizes: Sizes, suffix: str, spa3r: str, options: str) -> list[Stage]:
    """The stages that join the base VLM with a spatial encoder, and encode all rooms by the result."""
    vlm, scenes = f"spa3-vlm{suffix}", f"scenes{suffix}"
    return [
        _joined(run, vlm, spa3r, options),
        Stage(
            *(scenes, f"encode each room once by {vlm}", 9),
            run(
                f"spa3r encode-scenes --model {{at}}/{vlm} --instructions {{at}}/questions --output {{at}}/{scenes} "
                "--vision-features",
                *sizes.encode,
            ),
            (vlm, "questions"),
        ),
    ]


def _joined(run, vlm: str, spa3r: str, options: str) -> Stage:
    command = f"spa3r convert assemble {{at}}/{vlm} --vlm {{at}}/base/model --spa3r {{at}}/{spa3r}/model"
    return Stage(
        *(vlm, f"join the base VLM with {spa3r} ({options})", 0.2),
        run(f"{command} --image-width 112 {options}"),
        ("base", spa3r),
        result=vlm,
    )


def _variant(run, train, sizes: Sizes, name: str, seed: int) -> list[Stage]:
    """The stages that make a variant, given its spatial encoder, and ask it."""
    variant, made = VARIANTS[name], f"{name}-{seed}"
    suffix = _made_of(variant.representation, seed)
    # Without a scene only the kept features of the vision tower are read, which are the same for all.
    model, scenes = ("base/model", "scenes") if variant.fusion == "none" else (f"spa3-vlm{suffix}", f"scenes{suffix}")
    stages = []
    if variant.fusion == "append":
        model = f"spa3-vlm-{made}"
        stages.append(_joined(run, model, f"spa3r{suffix}", f"--fusion append --seed {seed}"))
    if variant.is_aligned:
        stages.append(
            Stage(
                *(f"aligned-{made}", f"let the adapter find points, and names objects: {name}, seed {seed}", 18),
                train(
                    f"spa3r align --config spa3-vlm-align-rooms --model_name_or_path {{at}}/{model} "
                    f"--scenes rooms:{{at}}/rooms --output_dir {{at}}/aligned-{made} --seed {seed}",
                    *sizes.align,
                ),
                (model.partition("/")[0],),
            )
        )
        model = f"aligned-{made}/model"
    stages.append(deeper(run, f"deeper-{made}", model, seed))
    return [
        *stages,
        Stage(
            *(f"tuned-{made}", f"tune on questions about places: {name}, seed {seed}", 140),
            train(
                f"spa3r sft --config spa3-vlm-nano --instructions {{at}}/questions --scene_latents {{at}}/{scenes} "
                f"--model_name_or_path {{at}}/deeper-{made} --output_dir {{at}}/tuned-{made} --seed {seed}",
                *sizes.tune,
            ),
            (f"deeper-{made}", scenes),
        ),
        Stage(
            *(f"score-{made}", f"ask: {name}, seed {seed}", 7),
            run(
                f"spa3r benchmark {{asked}} --model {{at}}/tuned-{made}/model --output {{at}}/score-{made}",
                *("--label", f"{name}, seed {seed}"),
            ),
            (f"tuned-{made}", "questions-held-out"),
        ),
    ]


def _table(run, seeds: Sequence[int]) -> Stage:
    name = f"ablations-{'-'.join(map(str, seeds))}"
    return Stage(
        *(name, "put the scores of all variants beside the paper's", 0.3),
        run(
            f"spa3r.trainers.world.ablation_table --world {{at}} --output {{at}}/{name}.md --seeds",
            *map(str, seeds),
        ),
        tuple(score_of(variant, seed) for seed in seeds for variant in VARIANTS),
        f"{name}.md",
    )
