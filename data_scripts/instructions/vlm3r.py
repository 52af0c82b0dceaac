"""VLM-3R's questions: `vsibench_train/merged_qa_*_train.json` of Journey9ni/VLM-3R-DATA.

    spa3r convert-data vlm3r --input merged_qa_scannet_train.json --media-root media --output data/vlm3r-scannet

A record has `id`, `scene_name`, `question_type`, `conversations` and `video`. Its placeholder `<image>` stands for the
video. The videos are not published: make them from the recordings of ScanNet and ScanNet++.
"""

from typing import Any

from .rows import RawSample


def read_record(record: dict[str, Any]) -> RawSample:
    return RawSample.from_record(record, scene_id=record.get("scene_name"))
