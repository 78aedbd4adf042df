"""Bad images: the list of them."""

import os

from prototile.data.bad import BadImages


def test_names_of_any_bytes_are_listed(tmp_path, caplog):
    bad = BadImages(10, 1)
    bad.note(2, [(os.fsdecode(b"b\xff.png"), "broken"), ("ü.png", "empty")])
    bad.write(tmp_path / "bad.txt")
    assert (tmp_path / "bad.txt").read_bytes() == b"b\xff.png\tbroken\n" + "ü.png\tempty\n".encode()
    assert caplog.messages == [r"skipped b\xff.png: broken", "skipped ü.png: empty"]
