"""How fast a run goes, and how much of its time it waits for data."""

import time

from prototile import distributed
from prototile.data.loader import Waiting


class Speed:
    """Images a second of all ranks, and this rank's share of the time that was waiting, since the last reading."""

    def __init__(self) -> None:
        self._began = self._noted = time.perf_counter()
        self._images = 0
        self._batches = 0
        self._waited = 0.0
        self._before: tuple[Waiting | None, float] = (None, 0.0)  # of which epoch, and how long until now

    def begin_epoch(self) -> None:
        """What came between two epochs, such as a probe, does not count."""
        now = time.perf_counter()
        self._began += now - self._noted
        self._noted = now

    def note(self, images: int, waiting: Waiting) -> None:
        """One more batch is done, of so many images on this rank; `waiting` is the loader's."""
        self._noted = time.perf_counter()
        self._images += images * distributed.world_size()
        self._batches += 1
        before, waited = self._before
        self._waited += waiting.waited - (waited if waiting is before else 0.0)
        self._before = waiting, waiting.waited

    def read(self) -> tuple[float, float, float]:
        """Images a second, share of waiting and batches a second, since the last reading."""
        now = time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        found = self._images / seconds, min(self._waited / seconds, 1.0), self._batches / seconds
        self._began, self._images, self._batches, self._waited = now, 0, 0, 0.0
        return found

    def numbers(self) -> dict[str, float]:
        """The reading as a logger takes it."""
        images, waiting, _ = self.read()
        return {"time/images_per_second": images, "time/waiting": waiting}
