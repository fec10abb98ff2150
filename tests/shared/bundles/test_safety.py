"""What a configuration may do without being trusted, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'crossband[medical]'")

from crossband.shared.bundles.safety import (
    expression_problem,
    findings,
    path_problem,
    target_problem,
    targets,
)

HARMLESS = (
    "@network_def.to(@device)",
    "torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "list(sorted(glob.glob(@dataset_dir + '/*.png')))",
    "[{'image': i, 'label': j} for i, j in zip(@images, @labels)]",
    "monai.handlers.from_engine(['pred','label'])",
    "lambda x: [item['image'].meta for item in x]",
    "lambda x: x[:3].mean(0, keepdim=True)",
    "np.uint8",
    "torch.float32",
    "import glob",
    "import os",
    "monai.utils.set_determinism(seed=0)",
    "@images[:int(0.9 * len(@images))]",
    "not os.path.exists(@ckpt_path)",
    "monai.data.load_decathlon_datalist(@path, data_list_key='training')",
    "[@train#trainer.run()]",
    "@bundle_root + '/models/model.pt'",
    "torch.optim.Adam(@network.parameters(), lr=1e-3)",
)
HARMFUL = (
    "os.system('x')",
    "__import__('os').system('x')",
    "list(map(os.system, ['x']))",
    "list(map(@x.system, ['x']))",
    "(lambda f: f('x'))(os.system)",
    "(lambda os: os.system('x'))(1)",
    "[x.system('a') for x in [os]]",
    "os",
    "torch.nn",
    "torch.load('x')",
    "torch.hub.load('a', 'b')",
    "torch.nn.functional.torch.load('x')",
    "torch.classes.load_library('x')",
    "monai.data.utils.os.system('x')",
    "monai.utils.optional_import('os')[0].system('x')",
    "np.load('x', allow_pickle=True)",
    "np.f2py.compile('x')",
    "np.lib.format.read_array(1)",
    "().__class__",
    "@net.__class__",
    "@a.read_config('x')",
    "map(pathlib.Path('models/x').write_text, ['a'])",
    "open('/etc/passwd').read()",
    "print(open)",
    "eval('1')",
    "exec('1')",
    "getattr(torch, 'load')",
    "glob.glob('../*')",
    "(x := 1)",
    "import subprocess",
    "import os as np",
    "from os import system",
    "import os; os.system('x')",
    "1 +",
)


@pytest.mark.parametrize("text", HARMLESS)
def test_expressions_of_ordinary_workflows_pass(text: str) -> None:
    assert expression_problem(text) is None


@pytest.mark.parametrize("text", HARMFUL)
def test_expressions_that_reach_out_do_not(text: str) -> None:
    assert expression_problem(text)


@pytest.mark.parametrize(
    "name",
    [
        *("UNet", "LoadImaged", "SaveImaged", "CheckpointLoader", "DiceCELoss", "Lambdad"),
        *("monai.networks.nets.UNet", "torch.nn.Conv2d", "torch.optim.Adam"),
        *(
            "torch.utils.data.DataLoader",
            "ignite.metrics.Accuracy",
            "crossband.shared.create_model",
        ),
    ],
)
def test_targets_of_ordinary_workflows_pass(name: str) -> None:
    assert target_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "subprocess.Popen", "builtins.eval", "pickle.loads", "scripts.net.Net"),
        *(
            "monai.apps.download_url",
            "download_url",
            "run_cmd",
            "optional_import",
            "monai.bundle.run",
        ),
        *("monai.networks.utils.subprocess.Popen", "torch.nn.modules.module.torch.hub.load"),
        *("torch.load", "torch.nn.Module.__init__", "MLFlowHandler", "NoSuchClass", "@name", "$x"),
    ],
)
def test_other_targets_do_not(name: str) -> None:
    assert target_problem(name)


def test_paths_that_leave_the_folder() -> None:
    for text in (
        "../x",
        "a/../../x",
        "/etc/passwd",
        "~/x",
        "C:\\x",
        "https://a.b/c",
        "%../x.json::y",
    ):
        assert path_problem(text), text
    for text in ("models/model.pt", "image", "/", "val_mean_dice", "a..b", "%train::preprocessing"):
        assert path_problem(text) is None, text


def test_findings_say_where() -> None:
    config = {
        "a": [{"_target_": "os.system", "command": "x"}],
        "b": {"c": "$os.system('x')", "path": "../../secret"},
        "d": {"_target_": "UNet", "_mode_": "debug"},
    }
    found = {str(f) for f in findings(config, "train.json")}
    assert len(found) == 4
    assert any(f.startswith("train.json#a::0::_target_: _target_ 'os.system'") for f in found)
    assert any("b::c" in f and "os.system" in f for f in found)
    assert targets(config) == {"os.system", "UNet"}


def test_a_bundle_of_the_specification_passes(shared_dir: Path) -> None:
    folder = shared_dir / "fixtures/medical/monai_bundle_minimal/configs"
    for path in folder.glob("*.json"):
        if path.stem != "metadata":
            assert findings(json.loads(path.read_text())) == [], path
