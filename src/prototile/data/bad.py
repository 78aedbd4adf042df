"""Bad images are skipped, counted and listed; too many of them stop the run."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

_LOGGED = 20  # names that are logged one by one; all are listed
_SHOWN = 5  # names in the error


class BadImages:
    """Images that could not be read, by id, with the reason; more than the share `limit` of those seen is an error.

    One bad image is never too many.
    """

    def __init__(self, num_images: int, limit: float):
        if not 0 <= limit <= 1:
            raise ValueError(f"the share of bad images to bear must lie in [0, 1], got {limit}")
        self.reasons: dict[str, str] = {}
        self._num_images = num_images
        self._limit = limit
        self._seen = 0

    def __len__(self) -> int:
        return len(self.reasons)

    def note(self, seen: int, bad: Iterable[tuple[str, str]]) -> None:
        """Count `seen` more images, of which `bad` could not be read."""
        self._seen += seen
        new = {id: reason for id, reason in bad if id not in self.reasons}
        for id, reason in new.items():
            if len(self.reasons) < _LOGGED:
                logger.warning("skipped %s: %s", _printable(id), reason)
            self.reasons[id] = reason
        # early in a run a share means little: count as if a hundred had been seen, or all where there are fewer
        seen = min(max(self._seen, 100), self._num_images)
        if new and len(self.reasons) > max(1, self._limit * seen):
            shown = "".join(f"\n  {_printable(id)}: {reason}" for id, reason in list(self.reasons.items())[:_SHOWN])
            raise ValueError(
                f"{len(self.reasons)} of {seen} images cannot be read, more than the share of {self._limit:g} that is "
                f"skipped (bad_share): repair or remove them, or raise bad_share. The first are{shown}"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """List them in a text file, one a line: id, tab, reason."""
        lines = "".join(f"{id}\t{reason}\n" for id, reason in self.reasons.items())
        Path(path).write_text(lines, encoding="utf-8", errors="surrogateescape")  # names of files may be any bytes


def _printable(id: str) -> str:
    """What any terminal and log takes: the bytes of a name that are no UTF-8 stand escaped."""
    return os.fsencode(id).decode("utf-8", "backslashreplace")
