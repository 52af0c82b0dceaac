"""Tuning with grounding: names are found in the text, tell their places, and leave no trace in the model."""

import pickle

import pytest
import torch
from datasets import Dataset
from refusals import refused
from safetensors.torch import load_file
from tiny_spa3_vlm import tiny_model, tiny_processor
from transformers import TrainerCallback

from spa3r.data_scripts.rooms.question_options import QuestionOptions
from spa3r.data_scripts.rooms.write_questions import write_questions
from spa3r.trainers.tuning.grounding import GroundedCollator, check_objects, find_names
from spa3r.trainers.tuning.sft import build_trainer, check_run, parse_arguments, run

NAMES = {"coffee table": [5, 6], "table": [6], "bed": [7]}
OPTIONS = {
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "activation_checkpointing": "false",
    "bf16": "false",
    "use_cpu": "true",
    "dtype": "float32",
    "report_to": "none",
    "logging_steps": 1,
    "grounding_weight": 1.0,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, rooms):
    """A model, and questions about rooms."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model().save_pretrained(folder / "vlm")
    tiny_processor().save_pretrained(folder / "vlm")
    options = QuestionOptions(families=("grounding", "seen_first"), questions_per_room=4, views_per_question=3)
    write_questions(rooms, folder / "set", options)
    return folder


def build(inputs, output, **options):
    options = {"model_name_or_path": inputs / "vlm", "instructions": inputs / "set", "output_dir": output} | (
        OPTIONS | options
    )
    parsed = parse_arguments([str(part) for name, value in options.items() for part in (f"--{name}", value)])
    return build_trainer(*parsed), parsed


def tune(inputs, output, *callbacks, **options):
    trainer, (data_args, args, model_args) = build(inputs, output, **options)
    check_run(trainer, data_args, model_args)
    for callback in callbacks:
        trainer.add_callback(callback)
    run(trainer, data_args.instructions)
    return trainer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ([1, 7, 2, 6], {("bed", 0, 1), ("table", 0, 3)}),
        ([5, 6, 9, 9], {("coffee table", 0, 1)}),
        ([5, 6, 6, 9], {("coffee table", 0, 1), ("table", 0, 2)}),
        ([5, 1, 2, 3], set()),
    ],
)
def test_names_are_found_where_they_end_and_longer_ones_first(text, found):
    assert set(find_names(torch.tensor([text]), NAMES)) == found


def test_a_batch_tells_where_the_named_objects_of_its_own_record_are():
    tokenizer = tiny_processor().tokenizer
    objects = [
        {"name": "bed", "place": [1.0, 2.0, 3.0], "first_view": 0.5},
        {"name": "sofa", "place": None, "first_view": 0},
    ]
    records = [{"text": " the bed and a sofa", "objects": objects}, {"text": " a bed", "objects": objects[1:]}]

    def collator(examples):
        texts = [each["text"] for each in examples]
        ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")["input_ids"]
        return {"input_ids": ids, "labels": torch.full_like(ids, -100)}

    batch = GroundedCollator(collator, tokenizer, Dataset.from_list(records))(records)
    found = batch["objects"]["name"]
    named = {
        tokenizer.decode(batch["input_ids"][row, : column + 1])[-4:]: (row, place.tolist())
        for row, column, place in zip(*(found[name] for name in ("rows", "columns", "places")), strict=True)
    }
    assert named[" bed"] == (0, [1.0, 2.0, 3.0])
    assert named["sofa"][0] == 0 and torch.tensor(named["sofa"][1]).isnan().all()
    assert len(found["rows"]) == 2


def collate(records, training_records):
    """A batch of texts of the same length."""
    tokenizer = tiny_processor().tokenizer

    def collator(examples):
        ids = tokenizer([each["text"] for each in examples], return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "labels": torch.full_like(ids, -100)}

    return GroundedCollator(collator, tokenizer, Dataset.from_list(training_records))(records)["objects"]["name"]


def test_a_name_that_no_view_shows_has_no_first_view():
    unseen = [{"text": " a bed", "objects": [{"name": "bed", "place": None, "first_view": None}]}]
    assert collate(unseen, unseen)["first_views"].isnan().tolist() == [True]


@pytest.mark.parametrize("unknown", [{"objects": None}, {"objects": []}, {}], ids=["null", "empty", "no column"])
def test_a_record_whose_objects_nobody_knows_teaches_none(unknown):
    known = {"text": " a bed", "objects": [{"name": "bed", "place": None, "first_view": 0.0}]}
    assert collate([{"text": " a bed"} | unknown, known], [known, known | {"objects": None}])["rows"].tolist() == [1]


@pytest.mark.parametrize(
    "wrong",
    [{"name": None}, {"name": " "}, {"place": [1.0, 2.0]}, {"place": [1.0, None, 2.0]}, {"first_view": 2.0}],
    ids=repr,
)
def test_an_object_that_is_described_wrongly_is_refused_before_training(wrong):
    right = {"name": "bed", "place": [1.0, 2.0, 3.0], "first_view": 0.5}
    with refused("Record 1", "grounding_weight"):
        check_objects(Dataset.from_list([{"objects": [right]}, {"objects": [right, right | wrong]}]))


@pytest.mark.parametrize("name", [None, "sofa"])
def test_a_set_that_names_no_object_is_refused(name):
    objects = name and [{"name": name, "place": None, "first_view": 0.5}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Where is the bed?"}]}]
    with refused("names an object", "grounding_weight"):
        check_objects(Dataset.from_list([{"messages": messages, "objects": objects}]))


def test_a_set_without_objects_is_refused(inputs, instructions, tmp_path):
    with refused("objects", str(instructions), "grounding_weight"):
        build(inputs, tmp_path / "run", instructions=instructions)


def test_sets_without_objects_give_the_evaluation_loss(inputs, instructions, tmp_path):
    options = {"eval_instructions": instructions, "eval_strategy": "steps", "eval_steps": 1}
    trainer = tune(inputs, tmp_path / "run", max_steps=1, **options)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_a_model_in_bfloat16_is_grounded(inputs, tmp_path):
    trainer = tune(inputs, tmp_path / "run", max_steps=1, dtype="bfloat16")
    assert any("loss_place" in entry for entry in trainer.state.log_history)


def test_the_losses_of_named_objects_fall_and_no_head_is_saved(inputs, tmp_path):
    trainer = tune(inputs, tmp_path / "run", max_steps=40, save_steps=40)
    losses = [entry["loss_place"] for entry in trainer.state.log_history if "loss_place" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert (
        load_file(tmp_path / "run/model/model.safetensors").keys()
        == load_file(inputs / "vlm/model.safetensors").keys()
    )


@pytest.fixture(scope="module", params=[True, False], ids=["names alone", "all steps"])
def only_names(request, inputs, tmp_path_factory):
    """Whether names alone taught, what was logged, and the card of the model."""
    output = tmp_path_factory.mktemp("taught") / "run"
    options = {"grounding_only_names": str(request.param), "grounding_weight": 0.5, "muon_learning_rate": 0.01}
    trainer = tune(inputs, output, max_steps=1, **options)
    return request.param, set().union(*trainer.state.log_history), (output / "model/README.md").read_text()


def test_what_follows_from_names_is_taught_unless_only_names_are_asked_for(only_names):
    is_alone, logged, _ = only_names
    assert {"loss_place", "loss_first_view", "loss_presence"} <= logged
    assert bool({"loss_relation", "loss_option", "loss_before_answer"} & logged) is not is_alone


def test_the_card_says_what_was_taught_besides_answers(only_names):
    is_alone, _, card = only_names
    assert "with weight 0.5" in card and "0.01 for matrices" in card and "answers alone" not in card
    assert ("steps from them to the answers" in card) is not is_alone


class StopHalfway(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(inputs, tmp_path):
    stopped, (data_args, _, model_args) = build(inputs, tmp_path / "stopped")
    check_run(stopped, data_args, model_args)
    stopped.add_callback(StopHalfway())
    stopped.train()
    tune(inputs, tmp_path / "stopped")
    tune(inputs, tmp_path / "whole")
    whole, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_workers_that_load_batches_make_the_same_ones(inputs, tmp_path):
    trainer, _ = build(inputs, tmp_path / "run")
    records = [trainer.train_dataset[row] for row in range(2)]
    batch, by_worker = (collator(records) for collator in (trainer.data_collator, sent(trainer.data_collator)))
    for kind, marks in batch["objects"].items():
        for name, tensor in marks.items():
            assert torch.equal(tensor.nan_to_num(), by_worker["objects"][kind][name].nan_to_num())


def sent(value):
    """What a worker gets."""
    return pickle.loads(pickle.dumps(value))


def test_without_weight_the_names_teach_nothing(inputs, tmp_path):
    trainer = tune(inputs, tmp_path / "run", grounding_weight=0.0)
    assert not any("loss_place" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": "true"},
        {"use_peft": "true"},
        {"without_images": "true"},
        {"grounding_weight": -1.0},
        {"grounding_only_names": "true", "grounding_weight": 0.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_grounding_cannot_do_is_refused(options, inputs, tmp_path):
    with refused("`grounding_weight`"):
        build(inputs, tmp_path / "run", **options)
