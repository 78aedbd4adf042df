"""Files of weights as tensors and plain values, whoever wrote them; nothing in a file is ever executed.

    kind of file             how it is read
    torch, zip               every record checked against its checksum, then mapped into memory: nothing is held twice
    torch, before 1.6        one pickle and its tensors, into memory
    safetensors              mapped into memory

Pickles are read by torch's own reader for weights (`weights_only`), after a look at all classes that they name. What
tensors are made of is let through; some classes that training scripts leave beside their weights (argparse's namespace,
omegaconf's settings) become a `StandIn`, whatever they are; any other refuses the file.
"""

import _compat_pickle
import contextlib
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's files began before 1.6
_RECORDS, _STEPS = 100_000, 5_000_000  # of an archive, and of a pickle: far more than any network needs
_HEADER = 50 * 2**20  # bytes of names and shapes of safetensors
_CHUNK = 2**22

_OURS = {  # what torch's own reader builds tensors from; of what it knows only this, as some of it asks for memory
    "_codecs.encode",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
    "torch.nn.parameter.Parameter",
} | {f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
_STORAGES = {
    f"torch.{kind}Storage"
    for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
}
_SHARDS = ("torch.distributed", "torch.distributed._shard", "torch.distributed.fsdp")

# Modules whose objects stand beside weights, in settings and counters. They are replaced, never loaded.
_REPLACED = (
    "argparse",
    "datetime",
    "deepspeed",
    "lightning",
    "lightning_fabric",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torch.optim",
    "torch.torch_version",
    "typing",
)
_REPLACED_NAMES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")}


class StandIn:
    """In place of an object whose class is not loaded: what its fields were, and no behaviour."""

    def __new__(cls, *arguments: Any, **_: Any) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.fields: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}


class _Dictionary:
    """In place of classes that are filled like dictionaries."""

    def __new__(cls, *arguments: Any) -> Any:
        return {}


def fields_of(value: Any) -> Mapping[str, Any]:
    """Names and values of settings, however they were kept: a dictionary, a namespace, omegaconf's."""
    if isinstance(value, StandIn):
        value = getattr(value, "fields", {})  # one that was never filled has none
        value = value.get("_content", value)  # omegaconf's
    if not isinstance(value, dict):
        return {}
    inside = {name: fields_of(x).get("_val", x) if isinstance(x, StandIn) else x for name, x in value.items()}
    return {name: x for name, x in inside.items() if isinstance(name, str)}


def read(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds, on the CPU; tensors stay in the file until somebody looks at them."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is no ordinary file: copy its contents into one")
    try:
        contents = _read(path)
    except Refused as error:
        raise ValueError(f"{path} {error}") from error.__cause__
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path} holds {type(contents).__name__} and no names of weights: save a state dict, "
            "torch.save(model.state_dict(), ...)"
        )
    return contents


class Refused(Exception):
    """Why a file is not taken; its name is put before it."""


@contextlib.contextmanager
def _foreign() -> Iterator[None]:
    """Around what others' code does with a file: where that is damaged, it may fail in any way."""
    try:
        yield
    except (Refused, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused(f"cannot be read: it is cut off, damaged, or no file of weights ({first})") from error


def _read(path: Path) -> Any:
    size = path.stat().st_size
    if not size:
        raise Refused("is empty: copy it again")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
        if start.startswith(_ZIP):
            return _zipped(path)
        if start == _MAGIC:
            return _legacy(path, file)
        length = struct.unpack("<Q", start[:8])[0] if len(start) > 8 and start[8:9] == b"{" else None
        if length is None and start.startswith(_PICKLE):  # the length of a header may begin with the same byte
            raise Refused("is a pickle of Python objects, not of torch: save it with torch.save, or as safetensors")
    if length is None:
        raise Refused("is no file of weights: give what torch.save or safetensors wrote")
    if length > min(_HEADER, size - 8):
        raise Refused(f"is no whole file of safetensors: its header would have {length:,} bytes, the file has {size:,}")
    return _safetensors(path)


def _safetensors(path: Path) -> dict[str, Any]:
    with _foreign(), safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable itself


def _zipped(path: Path) -> Any:
    with _foreign(), zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
            raise Refused(
                "is an archive, and none that torch.save wrote: extract the weights in it, or save them again"
            )
        if len(records) > _RECORDS or len({name.lower() for name in names}) < len(names):
            raise Refused("is an archive of too many records, or of two with one name: save the weights again")
        packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise Refused(f"holds compressed records ({packed[0]}), which torch.save never writes: save it again")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise Refused("holds records that are larger than itself: save the weights again")
        for record in records:
            with archive.open(record) as file:  # which checks the sum at its end
                while file.read(_CHUNK):
                    pass
        with archive.open(pickles[0]) as file:
            found = _globals(file)
    return _load(path, found, mmap=True)


def _legacy(path: Path, file: IO[bytes]) -> Any:
    """A file of before torch 1.6: five pickles, of which the fourth has the names, and then the numbers."""
    file.seek(0)
    found = set[str]()
    for _ in range(5):
        found |= _globals(file)
    return _load(path, found, mmap=False)


def _globals(file: Any) -> set[str]:
    """The classes and functions that a pickle names, of whatever Python it is from; up to its end."""
    found = set[str]()
    with _foreign():
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step > _STEPS:
                raise Refused("holds millions of Python objects, which no network needs: save the weights alone")
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
                found.add(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")
            elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise Refused("was pickled with a protocol that torch does not read safely: save it with torch.save")
    return found


def _load(path: Path, found: set[str], *, mmap: bool) -> Any:
    replaced: list[Any] = []
    for name in sorted(found - _OURS - _STORAGES):
        if name.startswith(_SHARDS):
            raise Refused(
                "is a part of a network that was trained on several GPUs (FSDP): give one whole file of weights, such "
                "as DINOv2's eval/training_*/teacher_checkpoint.pth"
            )
        if name.startswith("torch.nn.modules."):
            raise Refused("holds a whole model as Python objects: save its state_dict() where its code is")
        if name == "collections.defaultdict":
            replaced.append((_Dictionary, name))
        elif name in _REPLACED_NAMES or name.startswith(tuple(f"{module}." for module in _REPLACED)):
            replaced.append((StandIn, name))
        else:
            raise Refused(
                f"names {name}, which is no part of weights and may run code, so it is not read: load it where you "
                "trust it, and save the weights alone: torch.save(checkpoint['state_dict'], ...)"
            )
    with _foreign(), torch.serialization.safe_globals(replaced), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of storages' old names
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
