"""`spa3r grpo`: rewards, the questions that it asks, exact resuming, what trains, and refusals."""

import pytest
import torch
from datasets import Dataset, Image, List
from tiny_instructions import message
from tiny_spa3_vlm import photo

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.data_scripts.benchmarks.vsi_bench import write_prompt
from spa3r.trainers.tuning.grpo import build_trainer, check_run, parse_arguments, run

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


def test_a_run_continues_to_the_same_bits(trained, vlm, questions, tmp_path):
    whole, output = trained
    resumed = grpo_trainer(vlm, questions, tmp_path)
    resumed.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(expected, found) for expected, found in pairs)
