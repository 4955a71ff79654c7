import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regnet.atomic import write_bytes
from tests.faults import file_sizes_restored, limit_file_size
from tests.marks import linux, posix


@posix
def test_files_are_created_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    write_bytes(path, b"one")
    path.chmod(0o640)
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@linux
def test_links_and_pipes_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_bytes(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"one"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(tmp_path / "pipe", b"two")
    assert os.read(reader, 9) == b"two"
    os.close(reader)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(Path("/dev/full"), b"three")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_bytes(tmp_path / "none/a.json", b"")
    assert error.value.filename == str(tmp_path / "none/a.json")


@posix
def test_a_write_that_fails_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    with file_sizes_restored():
        limit_file_size(10)
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, b"x" * 100)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"\0" * 1_000_000)
    code = (
        "import sys; from pathlib import Path; from regnet.atomic import write_bytes\n"
        "number = 0\n"
        "while True:\n"
        "    number = (number + 1) % 256\n"
        "    write_bytes(Path(sys.argv[1]), bytes([number]) * 1_000_000)\n"
        "    print(flush=True)\n"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.01)
        writer.kill()
        writer.communicate()
        data = path.read_bytes()
        assert len(data) == 1_000_000
        assert len(set(data)) == 1
