from __future__ import annotations

import importlib.util
import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import numpy as np  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402
from mmseg.registry import MODELS as MMSEG  # noqa: E402

import crossband.shared.plugins.openmmlab as plugin  # noqa: E402
from crossband.shared.errors import CheckpointError  # noqa: E402


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


class Reaches:
    """Asks for an attribute when it is unpickled."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


class TestSafeLoading:
    @pytest.mark.parametrize("way", ["load_from", "resume", "init_cfg", "prefix"])
    def test_no_code_runs(self, config: Path, tmp_path: Path, way: str) -> None:
        mark, path = tmp_path / "ran", tmp_path / "evil.pth"
        torch.save({"state_dict": {"w": torch.zeros(1)}, "meta": {}, "x": Runs(mark)}, path)
        settings = Config.fromfile(config)
        settings.update(work_dir=str(tmp_path), experiment_name=f"evil_{way}")
        init = {"type": "Pretrained", "checkpoint": str(path)}
        with pytest.raises(CheckpointError, match="would run code"):
            if way == "init_cfg":
                settings.model.backbone.init_cfg = init
                MMSEG.build(settings.model).init_weights()
            elif way == "prefix":
                settings.model.decode_head.init_cfg = {**init, "prefix": "decode_head."}
                MMSEG.build(settings.model).init_weights()
            else:
                settings.update(load_from=str(path), resume=way == "resume")
                Runner.from_cfg(settings).load_or_resume()
        assert not mark.exists()
        torch.load(path, weights_only=False)  # the trap works
        assert mark.exists()

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (Tensor, "__class__"),
            (HistoryBuffer, "__init__"),
            (HistoryBuffer, "register_statistics"),
        ],
    )
    def test_no_attribute_is_handed_out(self, tmp_path: Path, owner: Any, name: str) -> None:
        path = tmp_path / "x.pth"
        torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Reaches(owner, name)}, path)
        with pytest.raises(CheckpointError, match="would run code"):
            CheckpointLoader.load_checkpoint(str(path), "cpu")

    def test_getattr_is_not_allowed(self) -> None:
        assert getattr not in plugin.ALLOWED
        assert all(part[0] is not getattr for part in plugin.ALLOWED if isinstance(part, tuple))

    def test_what_mmengine_stores(self, tmp_path: Path) -> None:
        numbers = [np.float64(3), np.float32(1), np.int64(2), np.bool_(True), np.arange(3)]
        history = HistoryBuffer([1.0, 2.0], [1, 1])
        torch.save({"state_dict": {}, "history": history, "numbers": numbers}, tmp_path / "x.pth")
        found = CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"), "cpu")
        assert found["history"].mean() == 1.5 and found["history"].statistics("max") == 2.0
        for a, b in zip(found["numbers"], numbers, strict=True):
            assert type(a) is type(b) and np.array_equal(a, b)

    @pytest.mark.parametrize("way", ["address", "torchvision", "mmcls"])
    def test_downloads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        torch.save({"state_dict": {"backbone.w": torch.ones(1)}}, tmp_path / "good.pth")
        torch.save({"state_dict": {}, "x": Runs(tmp_path / "ran")}, tmp_path / "evil.pth")
        handler = partial(QuietHandler, directory=str(tmp_path))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}"
            names = {name: f"{root}/{name}.pth?key=1" for name in ("good", "evil", "absent")}
            monkeypatch.setattr(plugin.checkpoint, f"get_{way}_models", lambda: names, False)
            where = names if way == "address" else {name: f"{way}://{name}" for name in names}
            found = CheckpointLoader.load_checkpoint(where["good"], "cpu")["state_dict"]
            assert found == {"w" if way == "mmcls" else "backbone.w": torch.ones(1)}
            with pytest.raises(CheckpointError, match="would run code"):
                CheckpointLoader.load_checkpoint(where["evil"], "cpu")
            with pytest.raises(CheckpointError, match="cannot be downloaded"):
                CheckpointLoader.load_checkpoint(where["absent"], "cpu")
            server.shutdown()
            again = CheckpointLoader.load_checkpoint(where["good"], "cpu")  # from the cache
            assert again["state_dict"].keys() == found.keys()
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("path", ["s3://bucket/x.pth", "a:petrel://b/x.pth", "pavi://x"])
    def test_storage_that_cannot_be_checked(self, path: str) -> None:
        with pytest.raises(CheckpointError, match="copy it to a local file"):
            CheckpointLoader.load_checkpoint(path, "cpu")

    def test_a_local_file_of_the_users_zoo(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
        (tmp_path / "open_mmlab.json").write_text(json.dumps({"mine": "x.pth"}))
        torch.save({"x": Runs(tmp_path / "ran")}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="would run code"):
            CheckpointLoader.load_checkpoint("open-mmlab://mine", "cpu")
        assert not (tmp_path / "ran").exists()
