import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spa3r.modeling_spa3r.checkpoints.tensors import read_tensors

STATE = {"encoder.weight": torch.arange(100.0), "decoder.weight": torch.ones(2, 3)}


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code-has-run",))


def write_shards(folder: Path) -> Path:
    for number, name in enumerate(STATE):
        save_file({name: STATE[name]}, folder / f"model-{number}.safetensors")
    return folder


def write_with_torch(file: Path, content) -> Path:
    torch.save(content, file)
    return file


def write_damaged(file: Path) -> Path:
    torch.save(STATE, file)
    file.write_bytes(file.read_bytes()[:300])
    return file


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda folder: save_file(STATE, folder / "a.safetensors") or folder / "a.safetensors", id="file"),
        pytest.param(write_shards, id="shards"),
        pytest.param(lambda folder: write_with_torch(folder / "a.pt", STATE), id="torch"),
        pytest.param(lambda folder: write_with_torch(folder / "a.ckpt", {"state_dict": STATE, "epoch": 3}), id="ckpt"),
    ],
)
def test_every_format_gives_the_same_tensors(tmp_path, write):
    tensors = read_tensors(write(tmp_path))
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize(
    ("write", "error"),
    [
        pytest.param(lambda folder: folder / "nowhere.ckpt", FileNotFoundError, id="no file"),
        pytest.param(lambda folder: folder, FileNotFoundError, id="empty folder"),
        pytest.param(lambda folder: write_with_torch(folder / "a.pt", {"epoch": 3}), ValueError, id="no tensors"),
        pytest.param(lambda folder: write_damaged(folder / "a.pt"), ValueError, id="damaged .pt"),
        pytest.param(lambda folder: write_damaged(folder / "a.ckpt"), ValueError, id="damaged .ckpt"),
        pytest.param(lambda folder: write_damaged(folder / "a.safetensors"), ValueError, id="damaged .safetensors"),
        pytest.param(
            lambda folder: write_with_torch(folder / "a.ckpt", {"state_dict": STATE, "callback": RunsCode()}),
            ValueError,
            id="pickle that runs code",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_its_path(tmp_path, monkeypatch, write, error):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    with pytest.raises(error) as refusal:
        read_tensors(path)
    assert f"`{path}`" in str(refusal.value)
    assert not Path("code-has-run").exists()
