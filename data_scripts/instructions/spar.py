"""Make an instruction set of SPAR-7M or SPAR-234K in the form in which VG-LLM distributes them.

    spa3r convert-data spar --input spar_234k.json --media-root media --output data/spar

A record has `id`, `conversations` with `<image>` for each image, `images` such as
spar/scannet/images/<scene>/image_color/<frame>.jpg, and `spar_info`, a string of JSON with the type of the question
and the markers it speaks of. Markers are drawn on copies of the images. Where one `<video>` stands for a sequence of
images, up to 8 of them are taken, evenly.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..common.records import BadRecord
from .convert import RawSample, read_common, run_command_line

PLACE = re.compile(r"spar/(?P<source>[^/]+)/images/(?P<scene>[^/]+)/")


def read_record(record: dict[str, Any]) -> RawSample:
    """A record of SPAR in common terms."""
    spar_info = _read_spar_info(record.get("spar_info"))
    sample = read_common(record, question_type=spar_info["type"], spar_info=spar_info)
    place = PLACE.match(str(sample.images[0])) if sample.images else None
    if place is None:
        return sample
    return replace(sample, scene_id=place["scene"], data_source=sample.data_source or place["source"])


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
