import random
from itertools import chain, islice

import pytest
import torch

from spa3r.data_scripts.scenes.sampling import ViewBatchSampler, partition_views, sample_frames


@pytest.mark.parametrize("num_images, interval", [(100, [2, 6]), (150, [20, 60])])
def test_steps_between_drawn_frames_lie_in_the_interval_which_stays_as_it_is(num_images, interval):
    low, high = interval
    for seed in range(50):
        frames = sample_frames(num_images, 8, interval, random.Random(seed))
        steps = {b - a for a, b in zip(frames, frames[1:], strict=False)}
        assert steps <= set(range(low, high + 1)) and 0 <= frames[0] and frames[-1] < num_images
    assert interval == [low, high]


def test_a_single_frame_can_be_drawn_from_anywhere_in_the_scene():
    drawn = {tuple(sample_frames(5, 1, [2, 6], random.Random(seed))) for seed in range(100)}
    assert drawn == {(0,), (1,), (2,), (3,), (4,)}


def test_a_scene_shorter_than_the_steps_gives_distinct_frames():
    frames = sample_frames(10, 8, [2, 6], random.Random(0))
    assert len(set(frames)) == 8 and frames == sorted(frames)


def test_the_first_view_is_context_and_both_parts_keep_their_order():
    for seed in range(30):
        order, num_context_views = partition_views(9, 0.5, torch.Generator().manual_seed(seed))
        assert num_context_views == 4 and order[0] == 0 and sorted(order.tolist()) == list(range(9))
        assert all(part.diff().gt(0).all() for part in (order[:4], order[4:]))


def test_partitions_differ_between_draws():
    generator = torch.Generator().manual_seed(0)
    assert len({tuple(partition_views(9, 0.5, generator)[0].tolist()) for _ in range(30)}) > 20


def plan(sampler, num_epochs):
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        yield from sampler


@pytest.mark.parametrize("num_scenes", [1, 2, 7, 16, 100])
def test_every_pass_visits_each_scene_once(num_scenes):
    visited = [request[:2] for batch in plan(ViewBatchSampler(num_scenes), 20) for request in batch]
    for pass_index in range(len(visited) // num_scenes):
        visit = visited[pass_index * num_scenes : (pass_index + 1) * num_scenes]
        assert sorted(visit) == [(pass_index, scene) for scene in range(num_scenes)]


@pytest.mark.parametrize("num_scenes", [6, 7, 14, 15, 16, 40])
def test_a_batch_never_holds_a_scene_twice(num_scenes):
    for batch in plan(ViewBatchSampler(num_scenes), 200):
        assert len({scene for _, scene, _ in batch}) == len(batch)


def test_passes_differ_in_order():
    requests = list(chain.from_iterable(plan(ViewBatchSampler(100), 3)))
    first, second = ([scene for number, scene, _ in requests if number == wanted] for wanted in (0, 1))
    assert first != second and first != list(range(100))


def test_epochs_have_one_length_that_is_a_multiple_of_what_is_asked_for():
    sampler = ViewBatchSampler(100, batches_per_epoch_multiple=16)
    assert len(list(plan(sampler, 5))) == 5 * len(sampler) and len(sampler) % 16 == 0


def test_an_epoch_is_about_one_pass():
    sampler = ViewBatchSampler(1000)
    assert sum(len(batch) for batch in plan(sampler, 9)) / 9 == pytest.approx(1000, rel=0.02)


def test_batches_are_filled_with_images_up_to_the_limit():
    for batch in plan(ViewBatchSampler(100, min_views=2, max_views=9, images_per_batch=8), 10):
        (num_views,) = {views for _, _, views in batch}
        assert len(batch) == max(1, 8 // num_views)


def test_all_view_counts_occur_equally_often():
    counts = [batch[0][2] for batch in islice(plan(ViewBatchSampler(1000), 10), 9 * 8 * 5)]
    assert {count: counts.count(count) for count in counts} == dict.fromkeys(range(4, 13), 40)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_the_number_of_views_at_each_step(world_size):
    sampler = ViewBatchSampler(50, batches_per_epoch_multiple=world_size)
    counts = [batch[0][2] for batch in plan(sampler, 20)]
    for step in range(0, len(counts), world_size):
        assert len(set(counts[step : step + world_size])) == 1


def test_the_plan_depends_on_the_seed():
    assert list(ViewBatchSampler(50, seed=0)) == list(ViewBatchSampler(50, seed=0))
    assert list(ViewBatchSampler(50, seed=0)) != list(ViewBatchSampler(50, seed=1))


@pytest.mark.parametrize(
    "draw, named",
    [
        (lambda: sample_frames(0, 4, 1, random.Random(0)), "num_images=0"),
        (lambda: sample_frames(9, 0, 1, random.Random(0)), "num_frames=0"),
        (lambda: sample_frames(9, 4, [0, 2], random.Random(0)), r"interval=\[0, 2\]"),
        (lambda: sample_frames(9, 4, [3, 2], random.Random(0)), r"interval=\[3, 2\]"),
        (lambda: ViewBatchSampler(0), "`num_scenes`.* 0"),
        (lambda: ViewBatchSampler(50, min_views=1), "`min_views`.* 1 "),
        (lambda: ViewBatchSampler(50, min_views=5, max_views=4), "`max_views`.* 5 and 4"),
    ],
)
def test_impossible_draws_are_refused(draw, named):
    with pytest.raises(ValueError, match=named):
        draw()
