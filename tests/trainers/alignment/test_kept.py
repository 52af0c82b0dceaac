"""Encodings that are kept: the same bits as new ones, from the same batches, in a new order each time."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_alignment import align, build, save
from tiny_spa3_vlm import tiny_model
from transformers import TrainerCallback

from spa3r.data_scripts.scenes.sampling import ViewBatchSampler
from spa3r.trainers.alignment.kept import RepeatedPasses

NUM_SCENES, SEED = 40, 3


def batches_of(epoch, num_epochs=None):
    plan = ViewBatchSampler(NUM_SCENES, min_views=2, max_views=4, images_per_batch=8, seed=SEED)
    sampler = plan if num_epochs is None else RepeatedPasses(plan, num_epochs, SEED)
    sampler.set_epoch(epoch)
    return list(map(tuple, sampler))


def test_the_first_passes_are_those_of_the_plan():
    assert [batches_of(epoch, num_epochs=2) for epoch in (0, 1)] == [batches_of(epoch) for epoch in (0, 1)]


@pytest.mark.parametrize("epoch", [2, 3, 4, 7])
def test_later_passes_have_the_same_batches_in_another_order(epoch):
    repeated, first = batches_of(epoch, num_epochs=2), batches_of(epoch % 2)
    assert sorted(repeated) == sorted(first)
    assert [repeated, *(batches_of(other, num_epochs=2) for other in (epoch - 2, epoch + 2))].count(repeated) == 1


def test_a_kept_batch_is_the_encoded_one(vlm, rooms, tmp_path):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", distinct_passes=1, bf16="true")
    batch = next(iter(trainer.get_train_dataloader()))
    with trainer.accelerator.autocast():
        encoded = trainer.encode(batch)
    assert len(list((tmp_path / "run").glob("encodings/*/*.safetensors"))) == 1
    kept = trainer.encode(next(iter(trainer.get_train_dataloader())))
    assert torch.equal(encoded.points, kept.points)
    for name in ("image_tokens", "latents"):
        for before, after in zip(getattr(encoded, name), getattr(kept, name), strict=True):
            assert torch.equal(before, after) and after.dtype == torch.bfloat16


def test_encoders_run_once_for_each_batch_of_the_distinct_passes(vlm, rooms, tmp_path):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", distinct_passes=2, max_steps=12, held_out_scenes=0)
    calls, encoders = [], trainer.encoders
    trainer.encoders = lambda inputs: calls.append(1) or encoders(inputs)
    trainer.train()
    assert len(calls) == 2 * len(trainer.batch_sampler) < 12


class LoseEncodings(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        for file in Path(args.output_dir).glob("encodings/*/*.safetensors"):
            file.unlink()


def test_kept_encodings_change_no_bit_of_a_run(vlm, rooms, tmp_path):
    weights = []
    for name, callbacks in (("kept", []), ("lost", [LoseEncodings()])):
        trainer, _, _ = build(vlm, rooms, tmp_path / name, distinct_passes=1, max_steps=10)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[1][key], tensor) for key, tensor in weights[0].items())


def test_a_run_goes_on_where_encodings_cannot_be_kept(vlm, rooms, tmp_path, caplog):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", distinct_passes=1, held_out_scenes=0)
    shutil.rmtree(tmp_path / "run" / "encodings")
    trainer.train()
    assert trainer.state.global_step == 4 and str(tmp_path / "run" / "encodings") in caplog.text


def test_a_finished_run_leaves_no_encodings(vlm, rooms, tmp_path):
    align(vlm, rooms, tmp_path / "run", distinct_passes=1)
    assert (tmp_path / "run" / "model").is_dir() and not (tmp_path / "run" / "encodings").exists()


def test_encodings_of_another_model_are_not_used(vlm, rooms, tmp_path):
    start = shutil.copytree(vlm, tmp_path / "vlm")
    trainer, _, _ = build(start, rooms, tmp_path / "run", distinct_passes=1)
    trainer.encode(next(iter(trainer.get_train_dataloader())))
    save(tiny_model(seed=1), start)
    trainer, _, _ = build(start, rooms, tmp_path / "run", distinct_passes=1)
    assert "file" in next(iter(trainer.get_train_dataloader()))
