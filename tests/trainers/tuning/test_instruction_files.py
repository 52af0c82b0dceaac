"""Files of instruction sets: damage is named, and paths are no patterns."""

import shutil

import pytest
from datasets import Dataset
from refusals import refused

from spa3r.trainers.tuning.instruction_data import load_instructions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["[0-9]", "set *?", "{a,b}", "a**b"])
def test_the_name_of_a_folder_is_no_pattern(instructions, tmp_path, name):
    folder = shutil.copytree(instructions, tmp_path / name)
    shutil.copytree(instructions, tmp_path / "0")  # what [0-9] would match
    assert len(load_instructions([str(folder)], seed=0)) == len(load_instructions([str(instructions)], seed=0))


@pytest.mark.parametrize("messages", [["text"], [3.0], [[]], [[{"role": "user"}]]])
def test_messages_of_another_shape_are_refused_by_the_folder(instructions, tmp_path, messages):
    (tmp_path / "set" / "data").mkdir(parents=True)
    Dataset.from_dict({"images": [[]], "messages": messages}).to_parquet(tmp_path / "set" / "data" / "0.parquet")
    with refused(str(tmp_path / "set")):
        load_instructions([str(tmp_path / "set")], seed=0)


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "another beginning": lambda content: b"\xff\xfe" + content,
    "another footer": lambda content: content[:-60] + b"\xff" * 52 + content[-8:],
    "other bytes within": lambda content: content[:8] + bytes(byte ^ 0x55 for byte in content[8:200]) + content[200:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_by_its_folder(instructions, tmp_path, damage):
    folder = shutil.copytree(instructions, tmp_path / "damaged")
    (file,) = (folder / "data").glob("*.parquet")
    file.write_bytes(damage(file.read_bytes()))
    with refused(str(folder)):
        load_instructions([str(folder)], seed=0)
