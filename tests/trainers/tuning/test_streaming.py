"""Instruction tuning from a stream of records that need not fit on a disk."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from tiny_instructions import losses, trainer_of, write_instructions
from transformers import TrainerCallback, TrainingArguments

from spa3r.trainers.runs.resume import last_complete_checkpoint
from spa3r.trainers.tuning import streaming
from spa3r.trainers.tuning.sft import build_trainer, check_run, parse_arguments, run
from spa3r.trainers.tuning.streaming import UnusableRecord, stream_instructions

NUM_RECORDS, ROWS = 26, 2
OPTIONS = {"streaming": "true", "max_steps": 6, "gradient_accumulation_steps": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """An instruction set of two shards, with images inside, in row groups of two records."""
    folder = tmp_path_factory.mktemp("shards")
    written = write_instructions(folder / "files", NUM_RECORDS)
    dataset = load_dataset("parquet", data_files=str(written / "data" / "00000.parquet"), split="train")
    (folder / "set" / "data").mkdir(parents=True)
    for index in range(2):
        shard = dataset.shard(2, index)
        shard.to_parquet(folder / "set" / "data" / f"{index:05d}.parquet", batch_size=ROWS)
    return folder / "set"


def arguments(workers=0, processes=1, batch_size=3, **options):
    args = TrainingArguments(
        "unused", use_cpu=True, dataloader_num_workers=workers, per_device_train_batch_size=batch_size, **options
    )
    args.__class__ = type("Arguments", (TrainingArguments,), {"world_size": processes})
    return args


def names(records):
    """The questions of records, each of which occurs once in the set."""
    return [record["messages"] and record["messages"][0]["content"][-1]["text"] for record in records]


def take(stream, number):
    return [record for record, _ in zip(stream, range(number), strict=False)]


def test_a_pass_has_each_record_once_in_another_order(shards):
    records = names(take(stream_instructions([str(shards)], arguments()), NUM_RECORDS))
    assert sorted(records) == sorted(f"How many, {index}?" for index in range(NUM_RECORDS))
    first_shard = [f"How many, {index}?" for index in range(0, NUM_RECORDS, 2)]
    assert set(records[: len(first_shard)]) != set(first_shard)


def test_records_are_those_of_the_set_with_their_images(shards):
    records = take(stream_instructions([str(shards)], arguments()), NUM_RECORDS)
    expected = load_dataset("parquet", data_files=str(shards / "data" / "*.parquet"), split="train")
    sizes = {record["messages"][0]["content"][-1]["text"]: len(record["images"]) for record in expected}
    assert {name: len(record["images"]) for name, record in zip(names(records), records, strict=True)} == sizes
    assert all(image["path"] for record in records for image in record["images"])


def test_processes_share_the_records_of_a_pass(shards):
    stream = stream_instructions([str(shards)], arguments(processes=2))
    shares = [stream.shard(2, index) for index in range(2)]
    # A share begins again after its last record.
    shares = [names(take(share, NUM_RECORDS)) for share in shares]
    passes = [share[: share.index(share[0], 1)] for share in shares]
    assert sorted(passes[0] + passes[1]) == sorted(f"How many, {index}?" for index in range(NUM_RECORDS))


def loaded(stream, workers, number, monkeypatch):
    """The first batches of three records that a loader gives: its workers have copies of the stream and take turns."""
    # As `datasets` does in workers; processes of a fork could deadlock beside other tests, those of a server are slow.
    copies = [pickle.loads(pickle.dumps(stream)).shard(workers, worker, contiguous=False) for worker in range(workers)]
    iterators, batches = list(map(iter, copies)), []
    for batch in range(number):
        worker = SimpleNamespace(id=batch % workers, num_workers=workers)
        monkeypatch.setattr(streaming, "get_worker_info", lambda worker=worker: worker)
        batches.append(names([next(iterators[worker.id]) for _ in range(3)]))
    return batches


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_goes_on_after_the_batches_of_earlier_steps_and_reads_none_of_them(shards, workers, monkeypatch):
    args = arguments(workers, gradient_accumulation_steps=3)
    whole, resumed = (
        loaded(stream_instructions([str(shards)], args, skip_steps), workers, 10, monkeypatch) for skip_steps in (0, 1)
    )
    assert resumed[:3] == [[None] * 3] * 3
    assert resumed[3:] == whole[3:] and None not in sum(whole, [])


def weights(output):
    return load_file(output / "model" / "model.safetensors")


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_stopped_run_ends_with_the_bits_of_an_uninterrupted_one(shards, vlm, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(trainer_of(vlm, shards, whole, **OPTIONS), [str(shards)])
    run(trainer_of(vlm, shards, stopped, StopAfter(3), **OPTIONS), [str(shards)])
    assert not all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(whole).items())
    assert last_complete_checkpoint(stopped).name == "checkpoint-2"
    run(trainer_of(vlm, shards, stopped, **OPTIONS), [str(shards)])
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(whole).items())
    assert losses(stopped) == losses(whole)


def test_epochs_become_steps(shards, vlm, tmp_path):
    trainer = trainer_of(vlm, shards, tmp_path, **OPTIONS | {"max_steps": None, "num_train_epochs": 2})
    assert trainer.args.max_steps == 2 * NUM_RECORDS / 4


def test_a_record_that_cannot_be_trained_is_named_when_it_is_read(shards, tmp_path):
    dataset = load_dataset("parquet", data_files=str(shards / "data" / "00000.parquet"), split="train")
    broken = dataset.map(lambda record, index: record | ({"messages": []} if index == 3 else {}), with_indices=True)
    (tmp_path / "data").mkdir()
    broken.to_parquet(tmp_path / "data" / "00000.parquet", batch_size=ROWS)
    stream = stream_instructions([str(tmp_path)], arguments())
    with pytest.raises(UnusableRecord, match="Record 1 of row group 1 of .*00000.parquet"):
        take(stream, len(dataset))


def test_the_sentence_of_a_worker_is_the_same():
    assert (
        str(UnusableRecord("Caught in worker 0.\n  raise\nspa3r.UnusableRecord: Record 1 is bad.\n"))
        == "Record 1 is bad."
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"without_images": "true"}, "`without_images`"),
        ({"scene_latents": "latents"}, "`scene_latents`"),
        ({"max_length": 100}, "`max_length`"),
        ({"dataloader_num_workers": 20}, "14 row groups for 20 readers"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(options, named, shards, vlm, tmp_path):
    with pytest.raises(ValueError, match=named):
        trainer_of(vlm, shards, tmp_path, **OPTIONS | options)


def test_another_number_of_workers_is_another_run(shards, vlm, tmp_path):
    def check(**options):
        command = {"model_name_or_path": vlm, "instructions": shards, "output_dir": tmp_path, "use_cpu": "true"}
        command |= OPTIONS | {"bf16": "false", "report_to": "none"} | options
        parsed = parse_arguments([str(part) for name, value in command.items() for part in (f"--{name}", value)])
        check_run(build_trainer(*parsed), parsed[0], parsed[2])

    check()
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "complete.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="`streaming_workers` was 0, is 1"):
        check(dataloader_num_workers=1)
