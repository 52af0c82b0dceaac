"""`spa3r grpo`: rewards, the questions that it asks, exact resuming, what trains, and refusals."""

import json

import PIL.Image
import pytest
import torch
from datasets import Dataset, Image, List
from refusals import refused
from tiny_instructions import message
from tiny_spa3_vlm import photo, tiny_model, tiny_processor
from two_processes import REPOSITORY, needs_deepspeed

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.data_scripts.benchmarks.vsi_bench import OFFICIAL, write_prompt
from spa3r.trainers.tuning.grpo import build_trainer, check_run, parse_arguments, run
from spa3r.trainers.tuning.grpo_command import QuestionArguments
from spa3r.trainers.tuning.instruction_data import load_instructions
from spa3r.trainers.tuning.questions import load_questions
from spa3r.trainers.tuning.rewards import make_rewards
from spa3r.trainers.tuning.scene_cache import encode_scenes

OPTIONS = ["A. chair", "B. table"]
# Question type, question, options, and the right answer.
TURNS = [
    ("object_counting", "How many chairs are there?", None, "3"),
    ("object_rel_distance", "Which is closest to the door?", OPTIONS, "B"),
    ("room_size_estimation", "How large is the room?", None, "12.5"),
    ("seen_first", "Which is seen first, the chair or the table?", None, "chair"),
]
SCORED = [kind for kind, *_ in TURNS[:3]]


def in_words(kind, question, options):
    if kind not in SCORED:
        return question
    return write_prompt({"question_type": kind, "question": question, "options": options})


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Six conversations about scenes of one or two views, three of their four questions in VSI-Bench's words."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "data").mkdir()
    records = []
    for index in range(6):
        paths = [folder / f"{index}_{view}.png" for view in range(1 + index % 2)]
        for view, path in enumerate(paths):
            photo(10 * index + view, 64, 48).save(path)
        messages = []
        for kind, question, options, answer in TURNS:
            messages.append(message("user", in_words(kind, question, options), 0 if messages else len(paths)))
            messages.append(message("assistant", answer))
        kinds = ",".join(kind for kind, *_ in TURNS)
        records.append({"images": [str(path) for path in paths], "messages": messages, "question_type": kinds})
    dataset = Dataset.from_list(records).cast_column("images", List(Image()))
    dataset.to_parquet(folder / "data" / "00000.parquet")
    return folder


def options_of(vlm, questions, output, **options):
    defaults = {
        "model_name_or_path": vlm,
        "instructions": questions,
        "question_types": SCORED,
        "output_dir": output,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "learning_rate": "1e-3",
        "entropy_coef": 0.1,  # trains even where all answers are wrong
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
    }
    arguments = []
    for name, value in (defaults | options).items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def grpo_trainer(*paths, **options):
    parsed = parse_arguments(options_of(*paths, **options))
    trainer = build_trainer(*parsed)
    check_run(trainer, parsed[0], parsed[2])
    return trainer


@pytest.fixture(scope="module")
def trained(vlm, questions, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    trainer = grpo_trainer(vlm, questions, output)
    run(trainer, [str(questions)])
    return trainer, output


def test_adapter_and_language_model_train_and_both_encoders_stay(trained, vlm):
    before = Spa3VLMForConditionalGeneration.from_pretrained(vlm).state_dict()
    after = Spa3VLMForConditionalGeneration.from_pretrained(trained[1] / "model").state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert not any(name.startswith(("model.spatial_encoder.", "model.vlm.visual.")) for name in changed)
    assert any(name.startswith("model.fusion.") for name in changed)
    assert any(name.startswith("model.vlm.language_model.") for name in changed)


def test_scores_are_logged_for_each_question_type(trained):
    logged = {name for entry in trained[0].state.log_history for name in entry}
    assert {f"scores/{kind}" for kind in SCORED} <= logged
    assert {"rewards/accuracy/mean", "rewards/mean_relative_accuracy/mean", "rewards/answer_format/mean"} <= logged


def test_the_final_model_carries_its_code_and_a_card_of_its_training(trained):
    folder = trained[1] / "model"
    card = (folder / "README.md").read_text()
    assert "rewards of its own answers (GRPO), 2 to each question" in card and "supervised" not in card
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == "Spa3VLMProcessor"


def test_a_run_continues_to_the_same_bits(trained, vlm, questions, tmp_path):
    whole, output = trained
    resumed = grpo_trainer(vlm, questions, tmp_path)
    resumed.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(expected, found) for expected, found in pairs)


def test_lora_layers_train_from_stored_latents_alone(vlm, questions, tmp_path, monkeypatch):
    model, processor = tiny_model(), tiny_processor()
    encode_scenes(model, processor, load_instructions([str(questions)], seed=0), tmp_path / "latents")
    monkeypatch.setattr(Spa3VLMForConditionalGeneration, "encode_scene", None)
    lora = {"use_peft": "true", "lora_target_modules": "q_proj"}
    trainer = grpo_trainer(
        vlm, questions, tmp_path / "run", scene_latents=tmp_path / "latents", max_steps=1, beta=0.1, **lora
    )
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert any(weight.any() for name, weight in trained.items() if "lora_B" in name)  # zero before


def test_training_from_kept_features_has_the_losses_of_live_training_and_runs_no_encoder(
    trained, vlm, questions, tmp_path, monkeypatch
):
    model, processor = tiny_model(), tiny_processor()
    encode_scenes(model, processor, load_instructions([str(questions)], seed=0), tmp_path / "kept", True)
    cached = grpo_trainer(vlm, questions, tmp_path / "run", scene_latents=tmp_path / "kept")
    calls = []
    for encoder in (cached.model.model.spatial_encoder, cached.model.model.vlm.visual):
        encoder.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(PIL.Image, "open", None)
    cached.train()
    losses, live = ([entry["loss"] for entry in each.state.log_history[:-1]] for each in (cached, trained[0]))
    assert losses == pytest.approx(live, rel=1e-4) and not calls


def test_each_question_is_asked_alone_with_its_answer_and_options(questions):
    rows = load_questions([str(questions)], SCORED, seed=0, with_keys=False)
    expected = [
        (kind, in_words(kind, question, options), options or [], answer) for kind, question, options, answer in TURNS
    ]
    names = ("question_type", "question", "options", "ground_truth")
    assert list(zip(*(rows[name] for name in names), strict=True)) == expected[:3] * 6
    assert [len(images) for images in rows["images"]] == [1] * 3 + [2] * 3 + [1] * 3 + [2] * 3 + [1] * 3 + [2] * 3


# Question type, its options, the right answer and the answer given; accuracy, mean relative accuracy, and form.
ANSWERS = [
    ("object_rel_distance", OPTIONS, "B", "B", 1.0, None, 1.0),
    ("object_rel_distance", OPTIONS, "B", "A", 0.0, None, 1.0),
    ("object_rel_distance", OPTIONS, "B", "b. table", 1.0, None, 0.0),
    ("object_rel_distance", OPTIONS, "B", "the table", 0.0, None, 0.0),
    ("object_counting", [], "10", "10", None, 1.0, 1.0),
    ("object_counting", [], "10", "12.2", None, 0.6, 1.0),
    ("object_counting", [], "10", "40", None, 0.0, 1.0),
    ("object_counting", [], "10", "9 chairs", None, 0.9, 0.0),
    ("object_counting", [], "10", "many", None, 0.0, 0.0),
]


def rewards_of(weights):
    """What each reward function says of `ANSWERS`, and what it logs."""
    kinds, options, truths, given, *_ = zip(*ANSWERS, strict=True)
    logged = []
    columns = {
        "completions": [[{"role": "assistant", "content": text}] for text in given],
        "question_type": kinds,
        "options": options,
        "ground_truth": truths,
        "scored_as": kinds,
        "log_metric": lambda name, value: logged.append((name, value)),
    }
    return [reward(**columns) for reward in make_rewards(OFFICIAL, weights)], logged


def test_rewards_are_the_scores_of_the_benchmark_and_the_form_that_was_asked_for():
    rewards, logged = rewards_of({})
    assert [list(column) for column in rewards] == [[row[index] for row in ANSWERS] for index in (4, 5, 6)]
    expected = [(f"scores/{row[0]}", row[4] if row[5] is None else row[5]) for row in ANSWERS]
    assert logged == expected


def test_the_weight_of_a_question_type_scales_its_rewards_and_not_its_logged_score():
    rewards, logged = rewards_of({"object_counting": 0.5})
    assert rewards[1][4:7] == [0.5, 0.3, 0.0] and rewards[2][4] == 0.5 and rewards[0][0] == rewards[2][0] == 1
    assert ("scores/object_counting", 1.0) in logged


REFUSED = {
    "a type without a scorer": ({"question_types": ["seen_first"]}, ["`seen_first`", "no scorer"]),
    "an unknown type": ({"question_types": ["colors"]}, ["colors", "object_counting"]),
    "a weight of 0": ({"question_types": ["object_counting@0"]}, ["object_counting@0"]),
    "weights that a group divides out": ({"question_types": ["object_counting@2"]}, ["`scale_rewards`"]),
    "an unknown protocol": ({"protocol": "mine"}, ["`mine`"]),
    "answers without the scene": ({"use_vllm": "true"}, ["`use_vllm`"]),
    "checkpoints within shared answers": ({"num_iterations": 4}, ["`save_steps` 2"]),
    "a reference that TRL cannot load": ({"beta": 0.1}, ["`beta` is 0.1"]),
    "too few questions": (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 16, "num_generations": 2},
        ["18 questions", "32"],
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_wrong_input_is_refused_in_one_line(wrong, vlm, questions, tmp_path):
    options, named = REFUSED[wrong]
    with refused(*named):
        grpo_trainer(vlm, questions, tmp_path, **options)


def test_all_question_types_are_asked_for_by_default_and_one_without_a_scorer_is_named(questions):
    with refused("`seen_first`", "`--question_types`"):
        load_questions([str(questions)], [], seed=0, with_keys=False)


def test_a_negative_weight_of_the_format_is_refused():
    with pytest.raises(ValueError, match="`format_weight`.*-1"):
        QuestionArguments(format_weight=-1)


# What `accelerate launch` sets for a topology that shards weights.
SHARDED = {
    "FSDP": {"ACCELERATE_USE_FSDP": "true"},
    "ZeRO-3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(REPOSITORY / "configuration/accelerate/zero3.json"),
    },
}


@pytest.mark.parametrize("topology", ["FSDP", pytest.param("ZeRO-3", marks=needs_deepspeed)])
def test_sharded_weights_are_refused_before_a_model_is_loaded(topology, questions, tmp_path, monkeypatch):
    for name, value in SHARDED[topology].items():
        monkeypatch.setenv(name, value)
    with refused(topology, "plain data parallelism or ZeRO-2"):
        build_trainer(*parse_arguments(options_of("nowhere", questions, tmp_path)))
