"""What training draws: scenes and numbers of views for each batch, frames of a scene, and which of them are context.

Every draw is a function of the seed, the number of the pass over the scenes and the scene's index alone. Neither the
number of workers and processes nor an interruption changes the data of a run.
"""

import functools
import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

# Consecutive batches share their number of views, so that up to 8 processes, with one batch each, have equal work.
BATCHES_PER_VIEW_COUNT = 8


def seeded_generator(*key: int | str) -> random.Random:
    """A random generator that depends on `key` alone; unlike `hash`, it is equal in every process."""
    return random.Random("/".join(map(str, key)))


def sample_frames(num_images: int, num_frames: int, interval: int | Sequence[int], rng: random.Random) -> list[int]:
    """Draw frames of a scene: a walk of random steps if the scene is long enough, else a sorted random choice.

    Draws the same frames as the official code from the same generator state. The official code also narrows the
    caller's `interval` in place, and fails for a single frame; this function does neither.

    Args:
        num_images (`int`): Frames of the scene.
        num_frames (`int`): Frames to draw. They repeat only if the scene has fewer.
        interval (`int` or `Sequence[int]`): Smallest and largest step between frames; one number for both.
        rng (`random.Random`): Source of the draws.

    Returns:
        `list[int]`: Indices in ascending order.
    """
    low, high = (interval, interval) if isinstance(interval, int) else interval
    if num_images < 1 or num_frames < 1 or not 1 <= low <= high:
        raise ValueError(
            "`num_images` and `num_frames` must be at least 1, and `interval` must be [low, high] with "
            f"1 <= low <= high; got num_images={num_images}, num_frames={num_frames}, interval={interval}."
        )
    steps = num_frames - 1
    if num_images > steps * low:
        if steps:
            high = min((num_images - 1) // steps, high)
        frames = [rng.randint(0, num_images - steps * high - 1)]
        for _ in range(steps):
            frames.append(frames[-1] + rng.randint(low, high))
        return frames
    if num_images < num_frames:
        return sorted(rng.choices(range(num_images), k=num_frames))
    return sorted(rng.sample(range(num_images), num_frames))


def partition_views(num_views: int, context_ratio: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Split the views of a scene at random into context views, which the encoder sees, and target views.

    Draws the same partition as the official code from the same generator state (its `mask_ratio` is
    `1 - context_ratio`). The first view is always context.

    Args:
        num_views (`int`): Views of the scene.
        context_ratio (`float`):
            Share of context views, 1 - the paper's mask ratio (Tab. 6); rounded down, but at least one view.
        generator (`torch.Generator`): Source of the draws, on the CPU.

    Returns:
        `tuple[torch.Tensor, int]`: Indices of shape `(num_views,)` that put the context views before the target views,
        each in their original order; and the number of context views.
    """
    num_context_views = max(1, int(num_views * context_ratio))
    ranks = torch.rand(num_views - 1, generator=generator).argsort().argsort()
    is_target = torch.cat([torch.tensor([False]), ranks >= num_context_views - 1])
    return is_target.long().argsort(stable=True), num_context_views


class ViewBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Plans batches of requests `(pass, scene_index, num_views)` for `SceneViews`.

    The plan is one endless sequence of batches, cut into epochs of equal length. Each pass visits all scenes in an
    order of its own. Passes follow each other without a gap, so a batch may end one and begin the next. Processes take
    turns: with `accelerate`, process `r` of `n` gets the batches `r, r + n, ...`. Every 8 batches the number of views
    changes; each number occurs once per round, in random order.

    A scene occurs twice in a batch only if there are fewer scenes than the batch holds.

    Args:
        num_scenes (`int`): Scenes to draw from.
        min_views (`int`, *optional*, defaults to 4): Smallest number of views of a scene.
        max_views (`int`, *optional*, defaults to 12): Largest number of views of a scene.
        images_per_batch (`int`, *optional*, defaults to 24):
            Views in a batch: as many scenes as fit, but at least one.
        seed (`int`, *optional*, defaults to 0): Seed of the plan.
        batches_per_epoch_multiple (`int`, *optional*, defaults to 1):
            The length of an epoch, about one pass, is rounded up to a multiple of this number. Set it to the number of
            processes times gradient accumulation steps; otherwise `accelerate` repeats batches to fill the last step.
    """

    def __init__(
        self,
        num_scenes: int,
        min_views: int = 4,
        max_views: int = 12,
        images_per_batch: int = 24,
        seed: int = 0,
        batches_per_epoch_multiple: int = 1,
    ):
        if num_scenes < 1:
            raise ValueError(f"`num_scenes` must be at least 1, got {num_scenes}; give more scenes.")
        if not 2 <= min_views <= max_views:
            raise ValueError(
                "A scene needs at least 2 views, one as context and one to predict: set 2 <= `min_views` <= "
                f"`max_views`, got {min_views} and {max_views}."
            )
        self.num_scenes = num_scenes
        self.view_counts = list(range(min_views, max_views + 1))
        self.images_per_batch = images_per_batch
        self.seed = seed
        self.epoch = 0
        self._round_size = BATCHES_PER_VIEW_COUNT * sum(map(self._batch_size, self.view_counts))
        mean_batch_size = self._round_size / BATCHES_PER_VIEW_COUNT / len(self.view_counts)
        multiple = batches_per_epoch_multiple
        self._num_batches = math.ceil(math.ceil(num_scenes / mean_batch_size) / multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        first = self.epoch * len(self)
        for batch in range(first, first + len(self)):
            num_views, start = self._locate(batch)
            yield [
                (*self._scene_at(position), num_views)
                for position in range(start, start + self._batch_size(num_views))
            ]

    def _batch_size(self, num_views: int) -> int:
        return max(1, self.images_per_batch // num_views)

    def _locate(self, batch: int) -> tuple[int, int]:
        """Number of views in a batch, and number of requests before it.

        Each round holds each number of views equally often, so all rounds hold the same number of requests.
        """
        group, batch_in_group = divmod(batch, BATCHES_PER_VIEW_COUNT)
        round_index, group_in_round = divmod(group, len(self.view_counts))
        counts = self.view_counts.copy()
        seeded_generator(self.seed, "views", round_index).shuffle(counts)
        sizes = [self._batch_size(count) for count in counts]
        before = BATCHES_PER_VIEW_COUNT * sum(sizes[:group_in_round]) + batch_in_group * sizes[group_in_round]
        return counts[group_in_round], round_index * self._round_size + before

    def _scene_at(self, position: int) -> tuple[int, int]:
        """Pass and scene at a position of the endless sequence of passes."""
        pass_index, place = divmod(position, self.num_scenes)
        max_batch_size = self._batch_size(self.view_counts[0])
        return pass_index, _scene_order(self.num_scenes, max_batch_size, self.seed, pass_index)[place]


@functools.lru_cache(maxsize=4)
def _scene_order(num_scenes: int, max_batch_size: int, seed: int, pass_index: int) -> list[int]:
    """Scenes in the order in which a pass visits them.

    The last scenes of the previous pass may share a batch with the first of this one, so they are kept from the first
    places. If there are too few scenes for that, all passes keep one order, in which a scene returns only after all
    others.
    """
    near = max_batch_size - 1
    if num_scenes < 3 * near:
        return _shuffled(num_scenes, seed, 0)
    order = _shuffled(num_scenes, seed, pass_index)
    if pass_index == 0:
        return order
    just_seen = set(_shuffled(num_scenes, seed, pass_index - 1)[num_scenes - near :])
    first = [scene for scene in order if scene not in just_seen][:near]
    return list(dict.fromkeys(first + order))


def _shuffled(num_scenes: int, seed: int, pass_index: int) -> list[int]:
    order = list(range(num_scenes))
    seeded_generator(seed, "scenes", pass_index).shuffle(order)
    return order
