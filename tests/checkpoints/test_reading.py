"""Files of weights are read as numbers; what would run code, ask for memory, or is cut off is refused."""

import io
import os
import pickle
import resource
import struct
import sys
import time
import types
import zipfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foreign_cases import CASES, filled, vit
from prototile.checkpoints import load
from prototile.checkpoints.reading import StandIn, fields_of, read

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}


def saved(path: Path, contents: object, **options) -> Path:
    torch.save(contents, path, **options)
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_all_kinds_of_files(tmp_path, kind):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        saved(path, STATE, _use_new_zipfile_serialization=kind == "zip")
    found = read(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], x) for name, x in STATE.items())


def test_settings_become_plain_values(tmp_path):
    settings = Namespace(lr=0.1, arch="vit")
    found = read(
        saved(tmp_path / "x.pth", {"args": settings, "w": torch.ones(1), "more": defaultdict(list, {"k": [1]})})
    )
    assert isinstance(found["args"], StandIn)
    assert fields_of(found["args"]) == {"lr": 0.1, "arch": "vit"}
    assert found["more"] == {"k": [1]}
    assert fields_of({"a": 1}) == {"a": 1}
    assert fields_of(3) == {}


def test_numbers_of_numpy_and_paths_do_not_stand_in_the_way(tmp_path):
    contents = {
        "best": np.float64(0.5),
        "array": np.ones(3),
        "path": Path("x"),
        "w": torch.ones(1),
        "dtype": torch.float16,
    }
    assert torch.equal(read(saved(tmp_path / "x.pth", contents))["w"], torch.ones(1))


def test_omegaconf_settings_are_read_without_omegaconf(tmp_path, monkeypatch):
    """Lightning keeps hyper-parameters as omegaconf's objects: their values are read, their classes never loaded."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self, content):
            self._content = content

    class AnyNode:
        def __init__(self, value):
            self._val = value

    for kind in (DictConfig, AnyNode):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    contents = CASES["solo-learn swav"][0]() | {"hyper_parameters": DictConfig({"lr": AnyNode(0.3)})}
    path = saved(tmp_path / "x.ckpt", contents)
    monkeypatch.undo()
    assert load(path).settings == {"lr": 0.3}


class Bomb:
    """What a pickle may ask to be called."""

    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def hostile(target: Path) -> dict[str, object]:
    return {
        "system": Bomb(os.system, f"touch {target}"),
        "eval": Bomb(eval, f"open({str(target)!r}, 'w')"),
        "exec": Bomb(exec, f"open({str(target)!r}, 'w')"),
        "open": Bomb(open, str(target), "w"),
        "write": Bomb(Path.touch, target),
        "import": Bomb(__import__, "os"),
        "getattr": Bomb(getattr, "x", "upper"),
        "loads": Bomb(pickle.loads, pickle.dumps(Bomb(open, str(target), "w"))),
        "load": Bomb(torch.load, str(target)),
    }


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "latest protocol"])
@pytest.mark.parametrize("name", hostile(Path("x")))
def test_nothing_is_executed(tmp_path, name, kind):
    target = tmp_path / "written"
    contents = {**filled(vit()), "epoch": hostile(target)[name]}
    path = tmp_path / "hostile.pth"
    if kind == "plain":
        path.write_bytes(pickle.dumps(contents["epoch"], protocol=2))
    elif kind == "latest protocol":
        try:
            torch.save(contents, path, pickle_protocol=5)
        except Exception:  # not all can be saved
            pytest.skip("torch does not save this")
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"hostile.pth (names|is a pickle|was pickled|cannot be read)"):
        load(path)
    assert not target.exists()


def test_a_whole_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds a whole model as Python objects: save its state_dict\(\)"):
        read(saved(tmp_path / "x.pth", torch.nn.Linear(2, 3)))


def test_a_part_of_a_sharded_network_is_refused(tmp_path, monkeypatch):
    module = types.ModuleType("torch.distributed._shard.sharded_tensor.api")

    class ShardedTensor:
        pass

    ShardedTensor.__module__, ShardedTensor.__qualname__ = module.__name__, "ShardedTensor"
    module.ShardedTensor = ShardedTensor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = saved(tmp_path / "model_0.rank_0.pth", {"model": {"w": ShardedTensor()}})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"trained on several GPUs .*teacher_checkpoint.pth"):
        load(path)


def rewritten(path: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with its records changed, and checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(records):
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda records: [r for r in records if not r[0].endswith("data.pkl")], "none that torch.save wrote"),
        (lambda records: [*records, ("other/data.pkl", b".")], "none that torch.save wrote"),
        (lambda records: [*records, (records[0][0].upper(), b".")], "two with one name"),
        (
            lambda records: [*records, (records[0][0].partition("/")[0] + "/constants.pkl", b".")],
            "none that torch.save",
        ),
        (lambda records: [r for r in records if "/data/" not in r[0]], "cannot be read"),
        (lambda records: [(n, b"" if "/data/" in n else d) for n, d in records], "."),
    ],
)
def test_archives_that_torch_did_not_write(tmp_path, change, said):
    path = saved(tmp_path / "x.pth", filled(vit()))
    rewritten(path, change)
    with pytest.raises(ValueError, match=said):
        load(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = saved(tmp_path / "x.pth", {"w": torch.zeros(2**20)})
    rewritten(path, lambda records: records, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed records"):
        read(path)


def memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


GLOBAL, REDUCE = b"c", b"R"


def pickled(body: bytes) -> bytes:
    """An archive like torch's around a pickle that was written by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/data/0", bytes(64))
    return buffer.getvalue()


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], stored: int = 16) -> bytes:
    """A tensor of this shape on a storage that says it has so many numbers."""

    def whole(n: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", n)

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + whole(stored) + b"tQ"
    )
    sizes = b"(" + b"".join(map(whole, shape)) + b"t" + b"(" + b"".join(map(whole, strides)) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + b"\x89ccollections\nOrderedDict\n)RtR"


@pytest.mark.parametrize(
    "body",
    [
        b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R",
        b"ctorch\nTensor\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R",
        b"ctorch.storage\nUntypedStorage\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R",
        b"}X\x0b\x00\x00\x00norm.weight" + tensor((10**6, 10**6), (0, 0)) + b"s",
        b"}X\x0b\x00\x00\x00norm.weight" + tensor((10**6, 10**6), (10**6, 1)) + b"s",
        b"}X\x0b\x00\x00\x00norm.weight" + tensor((4,), (1,), stored=10**13) + b"s",
        b"}X\x0b\x00\x00\x00norm.weight" + tensor((2**31, 2**31), (1, 1)) + b"s",
        b"X\xff\xff\xff\xffabc",
        b"]" * 6_000_000,
    ],
    ids=["bytearray", "tensor", "storage", "strides of zero", "huge", "huge storage", "overflow", "text", "objects"],
)
def test_bombs_are_refused_in_bounded_memory(tmp_path, body):
    path = tmp_path / "bomb.pth"
    path.write_bytes(pickled(body))
    before, began = memory(), time.monotonic()
    with pytest.raises(ValueError, match=r"bomb.pth"):
        load(path)
    assert memory() - before < 600 * 2**20
    assert time.monotonic() - began < 60


def test_a_tensor_written_by_hand_can_be_read(tmp_path):
    """Else the bombs above would be refused for another reason."""
    path = tmp_path / "x.pth"
    path.write_bytes(pickled(b"}X\x01\x00\x00\x00w" + tensor((2, 3), (3, 1)) + b"s"))
    assert torch.equal(read(path)["w"], torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\x00" * 100, "is no file of weights"),
        (b"<html>not found</html>", "is no file of weights"),
        (b"PK\x03\x04 and nothing more", "cannot be read"),
        (struct.pack("<Q", 2**62) + b"{" + bytes(50), "its header would have"),
        (struct.pack("<Q", 10) + b"{" + bytes(50), "cannot be read"),
        (struct.pack("<Q", 49 * 2**20) + b"{" + bytes(50), "its header would have"),
        (pickle.dumps({"a": 1}), "is a pickle of Python objects"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path, data, said):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said):
        load(path)


def test_folders_and_pipes(tmp_path):
    with pytest.raises(ValueError, match="is no folder of a run"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no ordinary file"):
        load(tmp_path / "pipe")


def test_a_large_file_is_not_held(tmp_path):
    """Weights stay in the file: what is read of it is shown by the system as its own, not as the process's."""
    path = saved(tmp_path / "x.pth", {"w": torch.ones(2**25)})  # 128 MiB

    def private() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    before = private()
    found = read(path)["w"]
    assert float(found.sum()) == 2**25
    assert private() - before < 2**25


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    """One file of safetensors in 32, for headers are padded to 8 bytes."""
    path = tmp_path / "a.safetensors"
    for padding in range(256):
        save_file(STATE, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    found = read(path)
    assert all(torch.equal(found[name], x) for name, x in STATE.items())
