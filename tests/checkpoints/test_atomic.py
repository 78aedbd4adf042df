"""Files that are there as a whole or not at all."""

import errno
import os

import pytest

from prototile.checkpoints.atomic import remove_partial, write_atomically


def test_a_file_takes_the_place_of_another(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask()


def mask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def full(file):
    file.write(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def hidden(file):
    """As torch's writer says it."""
    try:
        full(file)
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos") from None


@pytest.mark.parametrize("write", [full, hidden])
def test_a_full_disk_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "last.ckpt"
    with pytest.raises(OSError, match=r"no room to write last.ckpt: free some in .*") as error:
        write_atomically(path, write)
    assert "kept" not in str(error.value)
    write_atomically(path, lambda file: file.write(b"old"))
    with pytest.raises(OSError, match=r"; the previous last.ckpt is kept") as error:
        write_atomically(path, write)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_atomically(path, lambda file: {}["missing"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writes_left_is_removed(tmp_path):
    (tmp_path / ".last.ckpt.x1.partial").write_bytes(b"half")
    (tmp_path / "last.ckpt").write_bytes(b"whole")
    remove_partial(tmp_path)
    remove_partial(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
