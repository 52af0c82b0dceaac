"""Make an instruction set of SPAR-7M or SPAR-234K in the form in which VG-LLM distributes them.

    python -m spa3r.data_scripts.convert_spar --input spar_234k.json --media-root media --output data/spar

A record has `id`, `conversations` with `<image>` for each image, `images` such as
spar/scannet/images/<scene>/image_color/<frame>.jpg, and `spar_info`, a string of JSON with the type of the question
and the markers it speaks of. Markers are drawn on copies of the images. Where one `<video>` stands for a sequence of
images, up to 8 of them are taken, evenly.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from .instruction_sets import RawSample, read_paths, run_command_line
from .record_stream import BadRecord

SCENE = re.compile(r"spar/[^/]+/images/([^/]+)/")


def read_record(record: dict[str, Any]) -> RawSample:
    """A record of SPAR in common terms."""
    spar_info = _read_spar_info(record.get("spar_info"))
    images = read_paths(record.get("images") or record.get("image"))
    scene = SCENE.match(images[0]) if images and isinstance(images[0], str) else None
    return RawSample(
        record.get("conversations"),
        spar_info.get("type"),
        images=images,
        id=record.get("id"),
        scene_id=scene[1] if scene else None,
        spar_info=spar_info,
    )


def _read_spar_info(text: Any) -> dict[str, Any]:
    """`spar_info` as an object; a record without it would lose markers that its question may speak of."""
    try:
        spar_info = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord("malformed markers", f"`spar_info` is a string of JSON, got {text!r:.200}") from error
    if not isinstance(spar_info, dict) or not isinstance(spar_info.get("type"), str):
        raise BadRecord("malformed markers", f"`spar_info` is an object with a `type`, got {text!r:.200}")
    return spar_info


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the converter."""
    run_command_line(read_record, "spar", __doc__, arguments)


if __name__ == "__main__":
    main()
