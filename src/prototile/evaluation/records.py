"""Results on disk: one record for each evaluation, a line of JSON each, in a file that only grows.

    Record                   what was measured, of what, how, and how long it took
    append, read             to and from a file, `evaluations.jsonl`
    finished                 the records of this key, where there are any
    key_of                   the key of all that decides a number
    Parts                    what an evaluation that was interrupted had finished
    packed, unpacked         which images were right, in little room
    table                    records as lines of text
    shown, chosen_said       a value, and what was chosen, in words

n images.
"""

import base64
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
FILE = "evaluations.jsonl"
_OWN_UNITS = ("RankMe", "alpha-ReQ", "LiDAR")


@dataclass(frozen=True)
class Record:
    """One evaluation: the mean of a metric over seeds, and all that is needed to trust it and to compare it.

    `selected_on` is what hyper-parameters were chosen on: "validation", "test", or "nothing", and `chosen` what was,
    for each seed. `right` says which test images were, for each seed, where the metric counts images; `classes` are
    theirs where it counts classes.
    """

    protocol: str
    metric: str
    value: float
    images: int
    seeds: tuple[int, ...] = (0,)
    values: tuple[float, ...] = ()
    selected_on: str = "nothing"
    chosen: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    checkpoint: Mapping[str, Any] = field(default_factory=dict)  # name, layout, network, hash of weights
    data: Mapping[str, Any] = field(default_factory=dict)  # names and hashes of training and test images, crop
    features: str = ""  # what was read from the backbone
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""  # when, UTC
    key: str = ""
    right: tuple[str, ...] = field(default=(), repr=False)
    classes: str | None = field(default=None, repr=False)

    @property
    def standard_error(self) -> float | None:
        """Of the mean over seeds; none of a single one."""
        if len(self.values) < 2:
            return None
        return float(np.std(self.values, ddof=1)) / math.sqrt(len(self.values))

    @property
    def subject(self) -> tuple[str, str, str, str]:
        """What another record must agree in to be compared: protocol, metric, options, test images."""
        options = json.dumps(plain(self.options), sort_keys=True)
        return self.protocol, self.metric, options, str(self.data.get("test hash"))

    def as_dict(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"format": FORMAT, **plain(found), "standard_error": self.standard_error}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Record":
        """From what `as_dict` gives; what a later version adds is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in told.items() if name in known}
        for name in ("seeds", "values", "chosen", "right"):
            values[name] = tuple(math.nan if x is None else x for x in values.get(name, ()))
        values["value"] = math.nan if values["value"] is None else values["value"]
        return cls(**values)

    def __str__(self) -> str:
        spread = "" if self.standard_error is None else f" ± {self.standard_error:.2%}"
        flattered = ", chosen on the test images" if self.selected_on == "test" else ""
        return f"{self.protocol}: {shown(self.value, self.metric)}{spread} ({self.metric}{flattered})"


def is_share(metric: str) -> bool:
    """Whether its values are shares; others are ranks and exponents."""
    return metric not in _OWN_UNITS


def shown(value: float, metric: str) -> str:
    """A share as per cent; ranks and exponents as they are."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f}%" if is_share(metric) else f"{value:.2f}"


def append(file: Path, *records: Record) -> None:
    """Adds lines in one write, so that those of several processes stay whole; a line that was cut off is ended."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = b"".join(json.dumps(record.as_dict(), allow_nan=False).encode() + b"\n" for record in records)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[Record]:
    """All records of a file, in order; lines that were cut off are left out, and this is said."""
    if not file.is_file():
        raise ValueError(f"there is no file of evaluations {file}: name the run, its folder, or an {FILE}")
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(Record.of(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s, line %d is no record of an evaluation, and is left out: %s", file, number, error)
    return found


def finished(file: Path, key: str) -> list[Record]:
    """The latest records with this key, one of each protocol and metric; none where it has not been finished."""
    found = {} if not file.is_file() else {(x.protocol, x.metric): x for x in read(file) if x.key == key}
    return list(found.values())


def key_of(about: Mapping[str, Any]) -> str:
    """A hash of plain values."""
    text = json.dumps({"format": FORMAT, **plain(about)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Parts:
    """What is finished of an evaluation of several parts: seeds, splits. A file that is there until all of it is."""

    def __init__(self, folder: Path, key: str):
        self._file = folder / f".{key}.parts.jsonl"
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self._found: dict[str, Any] = {}
        for line in lines:
            try:
                name, value = json.loads(line)
            except ValueError:  # cut off
                continue
            self._found[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._found[name] = plain(value)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([name, self._found[name]])}\n")  # a line of its own, whatever was cut off

    def clear(self) -> None:
        self._file.unlink(missing_ok=True)
        self._found = {}


def packed(right: Bool[Tensor, " n"]) -> str:
    """A bit for each, compressed, as text."""
    return _text(np.packbits(right.numpy()).tobytes())


def unpacked(text: str, images: int) -> Bool[np.ndarray, " n"]:
    return np.unpackbits(np.frombuffer(_bytes(text), np.uint8), count=images).astype(bool)


def packed_classes(labels: Int[Tensor, " n"]) -> str:
    return _text(labels.numpy().astype("<i4").tobytes())


def unpacked_classes(text: str) -> Int[np.ndarray, " n"]:
    return np.frombuffer(_bytes(text), "<i4").astype(np.int64)


def versions() -> dict[str, str]:
    """Of what computes numbers here."""
    try:
        own = version("prototile")
    except PackageNotFoundError:
        own = "unknown"
    return {"prototile": own, "torch": torch.__version__, "python": platform.python_version()}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def table(records: Iterable[Record]) -> str:
    """A line each: what, how much, of how many images, and what was chosen."""
    rows = [("protocol", "metric", "value", "images", "chosen", "seconds")]
    for x in records:
        spread = "" if x.standard_error is None else f" ± {100 * x.standard_error:.2f}"
        chosen = chosen_said(x) + (" (on test)" if x.chosen and x.selected_on == "test" else "")
        rows.append(
            (x.protocol, x.metric, shown(x.value, x.metric) + spread, f"{x.images:,}", chosen, f"{x.seconds:.1f}")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def chosen_said(record: Record) -> str:
    """What was chosen for the first seed; a mark where others chose otherwise."""
    if not record.chosen:
        return ""
    said = ", ".join(f"{name} {_short(value)}" for name, value in record.chosen[0].items())
    return said + (" ..." if any(x != record.chosen[0] for x in record.chosen[1:]) else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """As JSON has it: keys as text, tuples as lists, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {f"{k:g}" if isinstance(k, float) else str(k): plain(x) for k, x in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(x) for x in value]
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    return value


def _text(content: bytes) -> str:
    return base64.b85encode(zlib.compress(content, 9)).decode()


def _bytes(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
