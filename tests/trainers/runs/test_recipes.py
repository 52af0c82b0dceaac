"""Recipes: what they extend, what they set, and what is wrong with them."""

import os
import re
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from refusals import refused
from transformers import TrainingArguments

from spa3r.trainers.pretraining.arguments import parse_arguments
from spa3r.trainers.runs import extras
from spa3r.trainers.runs.recipes import RECIPES, parse_options, read_recipe
from spa3r.trainers.runs.settings import flatten

# What each recipe changes in the one that it extends, besides `output_dir`; None: it leaves the option out.
PAPER, TUNING = "spa3r-paper", "spa3-vlm-vsi590k"
DINO = "overrides.teachers.semantic.checkpoint"
LORA = {
    "learning_rate": 1e-4,
    "use_peft": True,
    "lora_r": 32,
    "lora_alpha": 64,
    "lora_target_modules": [
        r"model\.vlm\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    ],
    "lora_modules_to_save": ["fusion"],
}
VARIANTS = {
    "ablation-context-25": (PAPER, {"context_ratio": 0.25}),
    "ablation-context-75": (PAPER, {"context_ratio": 0.75}),
    "ablation-plucker": (PAPER, {"overrides.camera_embedding": "plucker"}),
    "ablation-separate-aggregation": (PAPER, {"overrides.view_aggregation": "separate"}),
    "ablation-targets-clip": (PAPER, {"preset": "spa3r-base-clip", DINO: "openai/clip-vit-large-patch14"}),
    "ablation-targets-geometry": (PAPER, {"preset": "spa3r-base-geometry", DINO: None}),
    "ablation-targets-semantic": (PAPER, {"overrides.targets": ["semantic"]}),
    "ablation-targets-siglip": (PAPER, {"preset": "spa3r-base-siglip", DINO: "google/siglip-large-patch16-256"}),
    "spa3r-official-code": (
        PAPER,
        {
            "overrides.vggt_config.global_qk_norm": "rms_norm",
            "overrides.regression_loss": "smooth_l1",
            "overrides.predict_context_views": True,
            "overrides.view_aggregation": "separate",
            "learning_rate": "2e-3",
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs.min_lr_rate": 0.1,
        },
    ),
    "spa3-vlm-image-mix": (TUNING, {"instructions": ["data/llava-hound@0.25", "data/spar-7m@0.03"]}),
    "spa3-vlm-lora": (TUNING, LORA),
    "spa3-vlm-qwen3": (TUNING, {"model_name_or_path": "checkpoints/spa3-vlm-qwen3-4b"}),
    "spa3-vlm-qlora": (TUNING, LORA | {"load_in_4bit": True, "use_bnb_nested_quant": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_its_base_in_what_it_names_alone(name):
    base, expected = VARIANTS[name]
    before, after = (flatten(read_recipe(each, "sft" if base == TUNING else "pretrain")) for each in (base, name))
    changes = {key: after.get(key) for key in before | after if before.get(key) != after.get(key)}
    assert changes == expected | {"output_dir": f"runs/{name}"}


def test_every_recipe_of_the_paper_that_extends_another_is_among_the_variants():
    extended = {path.stem for path in RECIPES.glob("*.yaml") if "extends:" in path.read_text()}
    assert {name for name in extended if not name.startswith(("teach-", "spa3-vlm-nano"))} == VARIANTS.keys()


def read(folder, **recipes):
    """Write recipes by their names, and read the first."""
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return read_recipe(str(folder / f"{next(iter(recipes))}.yaml"), "pretrain")


def test_recipes_extend_one_another_in_a_chain(tmp_path):
    first, second = "extends: b\nseed: 1", "extends: c\nseed: 2\nmax_steps: 3"
    assert read(tmp_path, a=first, b=second, c="max_steps: 4\nbf16: true") == {"seed": 1, "max_steps": 3, "bf16": True}


def test_mappings_are_merged_and_lists_are_replaced(tmp_path):
    first = "extends: b\noverrides: [x.y=1]\nscenes: [c]"
    recipe = read(tmp_path, a=first, b="overrides: {x: {y: 0, z: 2}}\nscenes: [a, b]")
    assert recipe == {"overrides": {"x": {"y": 1, "z": 2}}, "scenes": ["c"]}


def test_null_sets_an_option_and_an_empty_mapping_clears_one(tmp_path):
    first, second = "extends: b\nseed: null\noverrides: {x: {}}", "seed: 1\noverrides: {x: {y: 0}, z: 1}"
    assert read(tmp_path, a=first, b=second) == {"seed": None, "overrides": {"x": {}, "z": 1}}


@pytest.mark.parametrize(
    ("recipes", "named"),
    [
        pytest.param({"a": "extends: a"}, "a -> a", id="itself"),
        pytest.param({"a": "extends: b", "b": "extends: a"}, "a -> b -> a", id="cycle"),
        pytest.param({"a": "extends: nowhere"}, "`nowhere`", id="missing"),
        pytest.param({"a": "scenes: [rooms"}, "a.yaml", id="not YAML"),
        pytest.param({"a": "scenes"}, "`scenes`", id="no mapping"),
        pytest.param({"a": ""}, "`None`", id="empty"),
        pytest.param({"a": "overrides: num_latents=8"}, "`num_latents=8`", id="overrides as text"),
        pytest.param({"a": "overrides: [num_latents]"}, "`num_latents`", id="override without value"),
        pytest.param({"a": "overrides: ['targets=[geometry']"}, "`targets=[geometry`", id="override not YAML"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(recipes, named, tmp_path):
    with pytest.raises(ValueError, match=re.escape(named)):
        read(tmp_path, **recipes)


@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_a_missing_recipe_is_refused_with_the_names_of_its_kind(verb):
    with pytest.raises(ValueError, match="`nowhere`") as refusal:
        read_recipe("nowhere", verb)
    prefix = {"sft": "spa3-vlm-", "pretrain": "spa3r-"}[verb]
    known = {path.stem for path in RECIPES.glob(f"{prefix}*.yaml") if not re.search("-align|-grpo", path.stem)}
    assert all(name in str(refusal.value) for name in known)


@dataclass
class Options:
    learning_rate: float = 0.0
    names: list[str] = field(default_factory=list)
    eval_strategy: str = "steps"


def parse(folder, text, *arguments):
    (folder / "recipe.yaml").write_text(text)
    config = ["--config", str(folder / "recipe.yaml")]
    return parse_options("pretrain", [*config, *arguments], (Options,))[0][0]


def test_the_command_line_wins_over_the_recipe(tmp_path):
    assert parse(tmp_path, "learning_rate: 1", "--learning_rate", "2").learning_rate == 2


def test_a_single_value_stands_for_a_list_of_it(tmp_path):
    assert parse(tmp_path, "names: one").names == ["one"]


def test_a_bare_no_is_a_strategy(tmp_path):
    assert parse(tmp_path, "eval_strategy: no").eval_strategy == "no"


def test_a_recipe_sets_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SPA3R_OF_A_RECIPE", "0")
    parse(tmp_path, "env: {SPA3R_OF_A_RECIPE: 1}")
    assert os.environ["SPA3R_OF_A_RECIPE"] == "1"


@pytest.mark.parametrize(
    ("text", "arguments", "named"),
    [
        pytest.param("learning_rat: 1", (), "`learning_rate`", id="key"),
        pytest.param("{}", ("--learning_rat", "1"), "`--learning_rate`", id="option"),
        pytest.param("env: fast", (), "`fast`", id="environment"),
    ],
)
def test_unknown_names_are_refused_with_the_one_that_was_meant(text, arguments, named, tmp_path):
    with pytest.raises(ValueError, match=re.escape(named)):
        parse(tmp_path, text, *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--bf16", "true"], "`--bf16 false`", id="bf16"),
        pytest.param(["--bf16", "true", "--output", "runs/a"], "`--output_dir`", id="unknown option before bf16"),
    ],
)
def test_bfloat16_without_a_gpu_is_refused_with_the_remedy(arguments, named, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=re.escape(named)):
        parse_options("pretrain", arguments, (TrainingArguments,))


WRONG_TYPES = [
    ("max_steps", [1], "a whole number"),
    ("max_steps", {"a": 1}, "a whole number"),
    ("max_steps", True, "a whole number"),
    ("learning_rate", [1e-3], "a number"),
    ("learning_rate", None, "a number"),
    ("bf16", 3, "true or false"),
    ("lr_scheduler_kwargs", 3, "a mapping"),
    ("report_to", {"a": 1}, "a list"),
    ("scenes", [{}], "a list"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), WRONG_TYPES, ids=lambda value: str(value))
def test_a_value_of_a_wrong_type_is_refused_with_the_recipe_and_the_right_type(key, value, wanted, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({key: value}))
    with refused(f"`{key}`", str(file), wanted, repr(value)):
        parse_arguments(["--config", str(file), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "-1"])
def test_a_number_that_cannot_be_meant_is_refused(value, tmp_path):
    with refused("`learning_rate`"):
        parse_arguments(["--learning_rate", value, "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dataloader_num_workers", "-1"),
        ("gradient_accumulation_steps", "0"),
        ("per_device_train_batch_size", "0"),
        ("per_device_eval_batch_size", "-2"),
        ("lr_scheduler_kwargs", "min_lr=1"),
        ("lr_scheduler_kwargs", '{"min_lr": 1'),
        ("gradient_checkpointing_kwargs", "[1]"),
        ("optim_args", "a"),
    ],
)
def test_a_value_that_would_stop_training_is_refused_before_it(option, value, tmp_path):
    with refused(f"`{option}`", value):
        parse_arguments([f"--{option}", value, "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("option", ["save_steps", "eval_steps", "logging_steps", "warmup_steps"])
def test_a_number_of_steps_that_is_infinite_is_refused(option, tmp_path):
    with refused(f"`{option}`"):
        parse_arguments([f"--{option}", "inf", "--output_dir", str(tmp_path)])


def test_a_whole_number_may_be_written_as_a_float(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("max_steps: 1.0e+3")
    *_, training = parse_arguments(["--config", str(file), "--output_dir", str(tmp_path)])
    assert training.max_steps == 1000 and isinstance(training.max_steps, int)


def test_a_text_that_yaml_reads_as_another_value_stays_a_text(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("run_name: 3\nscenes: [1, 2]\n")
    _, data, training = parse_arguments(["--config", str(file), "--output_dir", str(tmp_path)])
    assert (training.run_name, data.scenes) == ("3", ["1", "2"])


@pytest.mark.parametrize(("installed", "taken"), [(True, "flash_attention_2"), (False, "sdpa")])
def test_a_recipe_gets_flash_attention_only_where_it_is_installed(installed, taken, monkeypatch):
    monkeypatch.setattr(extras, "is_flash_attn_2_available", lambda: installed)
    assert extras.without_missing_flash_attention({"attn_implementation": "flash_attention_2"}) == {
        "attn_implementation": taken
    }
