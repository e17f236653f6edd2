"""Files that are written whole, and what a command says where the disk takes no more."""

import errno
import os

import pytest

from ibtpo.config.command_line import _one_line
from ibtpo.whole_files import replacing, write_text


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "first \ud800")
    assert path.read_text() == "first &#55296;"
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half of the sec")
        raise ZeroDivisionError
    assert path.read_text() == "first &#55296;"
    with replacing(path) as part:
        part.write_bytes(b"second")
    assert path.read_text() == "second" and not part.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, _one_line(), open("/dev/full", "w") as file:
        file.write("x")
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: No space left on device; what was written is whole: make room, and run the same command again\n"
    )
    with pytest.raises(FileNotFoundError), _one_line():
        raise FileNotFoundError(errno.ENOENT, "no such file", "nowhere")
