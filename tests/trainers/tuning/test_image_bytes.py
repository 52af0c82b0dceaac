"""Images that travel as bytes reach the model as the image processor makes them, bit for bit."""

import pytest
import torch
from tiny_instructions import NUM_RECORDS, trainer_of
from tiny_spa3_vlm import photo, tiny_processor

from spa3r import Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.trainers.tuning.image_bytes import level_tables, pixels_from_bytes, with_image_bytes
from spa3r.trainers.tuning.instruction_data import InstructionCollator

# One scene of one size, and one of two sizes with a portrait image.
SCENES = [[photo(0), photo(1)], [photo(2, 64, 40), photo(3, 40, 64)]]
SMALL = {"shortest_edge": 28**2, "longest_edge": 84**2}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_fit": "pad"},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "temporal_patch_size": 1},
        {"do_normalize": False},
        {"do_rescale": False},
        {"patch_size": 16, "geometry_patch_size": 14, "do_resize": True, "size": SMALL},
    ],
    ids=str,
)
def test_bytes_become_the_numbers_of_the_processor(settings):
    plain = Spa3VLMImageProcessor(**({"image_width": 56} | settings))
    carrier = with_image_bytes(Spa3VLMProcessor(plain, byte_tokenizer())).image_processor
    expected = plain(SCENES, return_tensors="pt")

    carried, tables = carrier(SCENES, return_tensors="pt"), level_tables(plain)

    assert carried["pixel_values"].dtype == carried["pixel_values_geometry"].dtype == torch.uint8
    repeats = {"pixel_values": plain.temporal_patch_size, "pixel_values_geometry": 1}
    restored = {name: pixels_from_bytes(carried[name], table, repeats[name]) for name, table in tables.items()}
    assert all(torch.equal((carried | restored)[name], expected[name]) for name in expected)
    assert all(restored[name].dtype == torch.float32 for name in restored)


def test_a_step_of_training_gets_the_batch_of_the_processor_from_bytes(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path)
    records = [trainer.train_dataset[index] for index in range(NUM_RECORDS)]
    expected = InstructionCollator(tiny_processor(), assistant_only_loss=True)(records)

    carried = trainer.data_collator(records)

    assert sum(each.numel() for each in carried.values() if each.dtype == torch.uint8) > 0
    assert not any(each.is_floating_point() for each in carried.values())
    given = trainer._prepare_inputs(carried)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)
