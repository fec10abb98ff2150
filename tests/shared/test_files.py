import errno
import os

import pytest

from crossband.shared.errors import CrossbandError
from crossband.shared.files import atomic_path, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    with pytest.raises(CrossbandError, match="No space left"):
        with atomic_path(tmp_path / "x.txt") as path:
            path.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "old"


def test_ctrl_c_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(tmp_path / "deep" / "x.txt") as path:
            path.write_text("half")
            raise KeyboardInterrupt
    assert os.listdir(tmp_path / "deep") == []
