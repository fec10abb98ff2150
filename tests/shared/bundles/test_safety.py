"""What a configuration may do without being trusted, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'crossband[medical]'")

from crossband.shared.bundles.folder import Bundle
from crossband.shared.bundles.safety import (
    expression_problem,
    findings,
    path_problem,
    raw_problems,
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
    "np.__builtins__.get('exec')('1')",
    "monai.transforms.utils.optional_import('os', name='system')[0]('x')",
    "from monai.data.utils import optional_import",
    "torch.nn.functional.torch.hub.list('a/b')",
    "torch.nn.functional.torch.from_file('x', shared=True, size=4)",
    "np.ndarray.dump(np.array(1), '/tmp/x')",
    "monai.handlers.write_metrics_reports('.' + './d')",
    "'.' + './x'",
    "'/etc/passwd'",
    "f'{@a}'",
    "'@f {__import__(chr(111))}'",
    "[*@a]",
    "@net.apply(print)",
    "dict(**@a)",
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
        *("monai.data.utils.optional_import", "monai.data.PersistentDataset", "PersistentDataset"),
        *("monai.losses.PerceptualLoss", "monai.networks.utils.copy_model_state"),
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
    ):
        assert path_problem(text), text
    for text in ("models/model.pt", "image", "/", "val_mean_dice", "a..b", "%train::preprocessing"):
        assert path_problem(text) is None, text


def test_findings_say_where() -> None:
    config = {
        "a": [{"_target_": "os.system", "command": "x"}],
        "b": {"c": "$os.system('x')", "path": "../../secret"},
        "d": {"_target_": "monai.networks.nets.UNet", "_mode_": "debug"},
    }
    found = {str(f) for f in findings(config, "train.json")}
    assert len(found) == 4
    assert any(f.startswith("train.json#a::0::_target_: _target_ 'os.system'") for f in found)
    assert any("b::c" in f and "os.system" in f for f in found)
    assert targets(config) == {"os.system", "monai.networks.nets.UNet"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"_target_": "LoadImage", "reader": "subprocess.getoutput", "cmd": "x"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader", "allow_pickle": True},
        {"_target_": "SaveImaged", "keys": "pred", "writer": "os.system"},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$'/tmp' + '/x'"},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$'/tmp/x'"},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@somewhere"},
        {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir"},
        {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"},
        {"_target_": "ResNet", "pretrained": True},
        {"_target_": "crossband.shared.create_model", "name": "mmseg:EncoderDecoder"},
        {"_target_": "crossband.shared.create_model", "name": "timm:resnet18", "pretrained": True},
        {"_target_": "crossband.shared.create_model", "name": "$'mmseg:' + 'x'"},
    ],
)
def test_allowed_classes_with_arguments_that_reach_out(arguments: dict) -> None:
    assert findings({"x": arguments, "ckpt_dir": "/tmp/x"})


def test_places_below_the_bundle_and_of_the_caller_are_fine() -> None:
    saver = {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir"}
    assert not findings({"x": saver, "ckpt_dir": "$@bundle_root + '/models'"})
    image = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}
    assert not findings({"x": image, "output_dir": "/elsewhere"}, given=["output_dir"])
    assert findings({"x": image, "output_dir": "/elsewhere"})


def test_macros_to_files_and_odd_keys() -> None:
    assert list(raw_problems({"a": "%docs/evil.json::x"})) and list(
        raw_problems({"a": ["%x.yaml"]})
    )
    assert list(raw_problems({"x or torch.hub": 1}))
    assert not list(raw_problems({"a::b": "%train::preprocessing", "c": [{"d-e": "%a#b"}]}))


def test_a_bundle_of_the_specification_passes(shared_dir: Path) -> None:
    folder = shared_dir / "fixtures/medical/monai_bundle_minimal/configs"
    assert Bundle.open(folder.parent).findings() == []
    assert len(list(folder.glob("*.json"))) == 4
