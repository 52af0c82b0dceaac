"""Memory of Spa3R in exact counts of bytes: linear in views, the same for any number of layers, no pairs of tokens."""

import pytest
import torch
from benchmarks.memory_tracking import MemoryTracker, peak_memory

from spa3r import Spa3RForPreTraining, Spa3RModel
from spa3r.configuration import Spa3RConfig, load_preset

# Enough views of 4 x 4 patches for the pairs of patches to outnumber all pixels.
MANY_VIEWS, SIDE, NUM_PATCHES = 96, 56, 16


def tiny_config(vggt_layers=2, encoder_layers=1, **vggt_changes):
    preset = load_preset("spa3r-tiny")
    preset["vggt_config"] |= {"num_hidden_layers": vggt_layers} | vggt_changes
    return Spa3RConfig(**preset | {"num_encoder_layers": encoder_layers})


def wide_model(**changes):
    # At the tiny width the images need more memory than the layers.
    return Spa3RModel(tiny_config(hidden_size=256, **changes)).eval()


def random_views(num_views):
    return torch.rand(1, num_views, 3, SIDE, SIDE)


@torch.no_grad()
def peak_of_latents(model, num_views):
    views = random_views(num_views)
    return peak_memory(lambda: model(views))


@torch.no_grad()
def largest_tensor_of_latents(attn_implementation):
    model = Spa3RModel._from_config(tiny_config(), attn_implementation=attn_implementation).eval()
    views = random_views(MANY_VIEWS)
    with MemoryTracker() as tracker:
        model(views)
    return tracker.largest


def test_no_tensor_of_views_times_patches_squared_is_ever_allocated():
    assert largest_tensor_of_latents("sdpa") < (MANY_VIEWS * NUM_PATCHES) ** 2


def test_eager_attention_does_allocate_a_tensor_of_views_times_patches_squared():
    assert largest_tensor_of_latents("eager") > (MANY_VIEWS * NUM_PATCHES) ** 2


def test_no_tensor_of_views_times_patches_squared_is_ever_allocated_in_a_training_step():
    model = Spa3RForPreTraining(tiny_config()).train()
    model.freeze_teachers()
    views, num_context_views = random_views(MANY_VIEWS), MANY_VIEWS // 2
    with MemoryTracker() as tracker:
        model(views, num_context_views).loss.backward()
    # Already the pairs of context tokens and all tokens would be too many.
    assert tracker.largest < num_context_views * MANY_VIEWS * NUM_PATCHES**2


def test_peak_memory_of_latents_grows_linearly_with_views():
    model = wide_model()
    peaks = [peak_of_latents(model, num_views) for num_views in (8, 16, 32)]
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.01)


def test_peak_memory_of_latents_does_not_grow_with_layers():
    shallow = wide_model(vggt_layers=2, encoder_layers=1)
    deep = wide_model(vggt_layers=6, encoder_layers=3)
    assert peak_of_latents(deep, 8) == peak_of_latents(shallow, 8)


def test_the_tracker_counts_what_is_alive_at_once():
    outside = torch.zeros(1000)

    def three_tensors_two_at_a_time():
        first = outside + 1
        second = first.view(10, 100) * 2
        del first
        return second + 1

    assert peak_memory(three_tensors_two_at_a_time) == 2 * outside.nbytes


def test_the_tracker_finds_the_largest_tensor():
    outside = torch.zeros(100)
    with MemoryTracker() as tracker:
        (outside[:, None] + outside[None]).sum()
    assert tracker.largest == 100 * 100
