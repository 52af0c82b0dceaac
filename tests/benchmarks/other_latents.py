"""A benchmark whose images are right and whose latents are wrong: what the answers owe to the latents of the scene.

    python tests/benchmarks/other_latents.py --benchmark rooms --data runs/world/benchmark \
        --media runs/world/held_out_rooms --model modeling_spa3r/nano/spa3-vlm-nano --output runs/other_latents

All options are those of `spa3r benchmark`. Each scene gets the latents of the scene that was encoded before it, and
the first its own. A model that never reads latents answers as it does with the right ones.
"""

import sys

from torch import Tensor

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.trainers.integrations.cli import main


def with_latents_of_the_scene_before(encode):
    """`encode_scene`, one scene late."""
    earlier: list[Tensor] = []

    def encode_scene(self, *args, **kwargs) -> Tensor:
        earlier.append(encode(self, *args, **kwargs))
        return earlier.pop(0) if len(earlier) > 1 else earlier[0]

    return encode_scene


if __name__ == "__main__":
    encode = Spa3VLMForConditionalGeneration.encode_scene
    Spa3VLMForConditionalGeneration.encode_scene = with_latents_of_the_scene_before(encode)
    main(["benchmark", *sys.argv[1:]])
