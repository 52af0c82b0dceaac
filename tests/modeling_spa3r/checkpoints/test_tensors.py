import os
from io import BytesIO
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from spa3r.modeling_spa3r.checkpoints.tensors import read_tensors

STATE = {"encoder.weight": torch.arange(100.0), "decoder.weight": torch.ones(2, 3)}


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code-has-run",))


SHARDS = [{name: tensor} for name, tensor in STATE.items()]


def write(path: Path, content):
    """Write tensors as safetensors, several dicts as shards in a folder, bytes as they are, all else with torch."""
    if isinstance(content, list):
        path.mkdir()
        for number, shard in enumerate(content):
            save_file(shard, path / f"model-{number}.safetensors")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    elif content is not None:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.safetensors", STATE), ("shards", SHARDS), ("a.pt", STATE), ("a.ckpt", {"state_dict": STATE, "epoch": 3})],
)
def test_every_format_gives_the_same_tensors(tmp_path, name, content):
    write(tmp_path / name, content)
    tensors = read_tensors(tmp_path / name)
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in STATE.items())


def half_written() -> bytes:
    file = BytesIO()
    torch.save(STATE, file)
    return file.getvalue()[:300]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        pytest.param("nowhere.ckpt", None, FileNotFoundError, id="no file"),
        pytest.param("folder", [], FileNotFoundError, id="empty folder"),
        pytest.param("a.pt", {"epoch": 3}, ValueError, id="no tensors"),
        *(
            pytest.param(f"a.{suffix}", half_written(), ValueError, id=f"damaged .{suffix}")
            for suffix in ("pt", "ckpt", "safetensors")
        ),
        pytest.param("a.ckpt", b"hello\n", ValueError, id="text"),
        pytest.param("b.ckpt", b"", ValueError, id="empty file"),
        pytest.param("a.ckpt", {"state_dict": STATE, "callback": RunsCode()}, ValueError, id="pickle that runs code"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_its_path(tmp_path, monkeypatch, name, content, error):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, content)
    with refused(f"`{tmp_path / name}`", error=error):
        read_tensors(tmp_path / name)
    assert not Path("code-has-run").exists()
