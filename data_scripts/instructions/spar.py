"""SPAR-7M or SPAR-234K, in the form that VG-LLM distributes.

    spa3r convert-data spar --input spar_234k.json --media-root media --output data/spar

A record has `id`, `conversations` with `<image>` for each image, `images` such as
spar/scannet/images/<scene>/image_color/<frame>.jpg, and `spar_info`: a JSON string with the question's type and the
markers that it mentions. Markers are drawn on copies of the images. Where one `<video>` stands for a sequence of
images, at most 8 of them are taken, evenly spaced.
"""

import json
import re
from dataclasses import replace
from typing import Any

from ..common.records import BadRecord
from .rows import RawSample

IMAGE_PATH = re.compile(r"spar/(?P<source>[^/]+)/images/(?P<scene>[^/]+)/")


def read_record(record: dict[str, Any]) -> RawSample:
    spar_info = _parse_spar_info(record.get("spar_info"))
    sample = RawSample.from_record(record, question_type=spar_info["type"], spar_info=spar_info)
    place = IMAGE_PATH.match(str(sample.images[0])) if sample.images else None
    if place is None:
        return sample
    return replace(sample, scene_id=place["scene"], data_source=sample.data_source or place["source"])


def _parse_spar_info(text: Any) -> dict[str, Any]:
    """Parse `spar_info`. It is required: without it, a question may mention markers that nobody has drawn."""
    try:
        spar_info = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord("malformed markers", f"`spar_info` is a string of JSON, got {text!r:.200}") from error
    if not isinstance(spar_info, dict) or not isinstance(spar_info.get("type"), str):
        raise BadRecord("malformed markers", f"`spar_info` is an object with a `type`, got {text!r:.200}")
    return spar_info
