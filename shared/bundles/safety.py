"""What a bundle's configuration would execute, found without executing anything.

A MONAI configuration is a program: `_target_` calls any importable function, `$...` is Python,
`%file` reads other files. `findings` lists what lies outside an allow-list of names that
describe networks, transforms, data, losses, metrics and workflows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

# Modules whose classes may be built. Below them, what reaches out is named in DENIED.
ALLOWED_TARGETS = (
    *("monai.networks.", "monai.transforms.", "monai.data.", "monai.losses.", "monai.metrics."),
    *("monai.inferers.", "monai.engines.", "monai.handlers.", "monai.optimizers."),
    "monai.visualize.",
    *("torch.nn.", "torch.optim.", "torch.device", "torch.utils.data.DataLoader"),
    *("ignite.metrics.", "ignite.handlers.", "ignite.contrib.handlers."),
    "crossband.shared.create_model",
    "crossband.shared.registry.create_model",
)
# Allowed modules' parts that run other programs, code from strings or files, or fetch things.
DENIED = re.compile(
    r"\.(utils?\.module|utils?\.misc|apps|hub|load\w*|jit|package|save\w*|torchscript_utils"
    r"|run\w*|exec\w*|eval|system|popen|download\w*|extractall|import_module|convert_to_\w+"
    r"|TorchIO|RandTorchIO|Lambda|Lambdad|RandLambda|RandLambdad|MLFlowHandler|ClearMLHandler"
    r"|trt_export|onnx_export|ckpt_export|parameters_to_vector)$"
)
# A transform that calls what it is given is harmless with an expression that was checked itself.
_CHECKED_CALLERS = re.compile(r"(^|\.)((Rand)?Lambdad?|load_decathlon_datalist|LoadImaged?)$")
_MODULES = {
    *("monai", "torch", "np", "numpy", "glob", "os", "math", "ignite", "json", "re", "pathlib")
}
_CALLS = (
    *("torch.device", "torch.cuda.is_available", "torch.cuda.device_count", "torch.tensor"),
    *("torch.optim.", "torch.nn.", "torch.zeros", "torch.ones", "torch.manual_seed"),
    *("torch.cuda.current_device", "torch.cuda.amp.", "torch.amp.", "torch.distributed.get_rank"),
    *("torch.backends.",),
    *("monai.transforms.", "monai.networks.", "monai.data.", "monai.losses.", "monai.metrics."),
    *("monai.handlers.", "monai.inferers.", "monai.engines.", "monai.utils.set_determinism"),
    *("monai.utils.first", "monai.utils.CommonKeys.", "monai.utils.ensure_tuple"),
    *("np.", "numpy.", "math.", "re."),
    *("glob.glob", "os.path.", "pathlib.Path", "pathlib.PurePath"),
)
_NUMPY_REACHES_OUT = re.compile(
    r"\b(load\w*|save\w*|fromfile|tofile|genfromtxt|memmap|DataSource|ctypeslib|f2py|distutils"
    r"|testing|lib|fromregex|open_memmap|compat|core|_core|sys|os|subprocess)\b"
)
_BUILTINS = {
    *("abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "int", "isinstance"),
    *("len", "list", "map", "max", "min", "range", "reversed", "round", "set", "slice", "sorted"),
    *("str", "sum", "tuple", "zip", "print"),
}
_METHODS = {
    *("to", "parameters", "named_parameters", "state_dict", "run", "train", "eval", "cpu", "cuda"),
    *("items", "keys", "values", "get", "split", "replace", "join", "startswith", "endswith"),
    *("strip", "lower", "upper", "append", "index", "mean", "sum", "max", "min", "item", "detach"),
    *("unsqueeze", "squeeze", "view", "reshape", "permute", "flatten", "float", "long", "int"),
    *("glob", "rglob", "is_file", "is_dir", "exists", "set_epoch", "repeat", "requires_grad_"),
    *("add_module", "manual_seed", "copy", "pop", "update", "sort", "count", "rsplit"),
}
# What may be read of an object without being called.
_ATTRIBUTES = {
    *("shape", "meta", "affine", "device", "dtype", "output", "batch", "state", "metrics", "epoch"),
    *("iteration", "name", "stem", "suffix", "parent", "ndim", "T", "max_epochs", "optimizer"),
}
_REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")


@dataclass(frozen=True)
class Finding:
    """One thing in a configuration that would do more than describe a workflow."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.where}: {self.what}"


def findings(config: Any, where: str = "") -> list[Finding]:
    """List what a configuration would do that is not on the allow-list.

    Args:
        config: As read from JSON or YAML.
        where: Name of the file.
    """
    return [
        Finding(f"{where}{'#' if where and place else ''}{place}", what)
        for place, what in _walk(config, "", "")
    ]


def targets(config: Any) -> set[str]:
    """Return everything that `_target_` names."""
    if isinstance(config, dict):
        own = {str(config["_target_"])} if "_target_" in config else set()
        return own.union(*(targets(value) for value in config.values()))
    if isinstance(config, list):
        return set().union(*(targets(value) for value in config))
    return set()


def expression_problem(text: str) -> str | None:
    """Say why a Python expression (without its `$`) is not on the allow-list; None if it is."""
    source = _REFERENCE.sub("__reference__", text.strip())
    if source.startswith(("import ", "from ")):
        return _import_problem(source)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "cannot be read as one expression"
    bound = {"__reference__"} | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.comprehension)
        for name in ast.walk(node.target)
        if isinstance(name, ast.Name)
    }
    return _Checker(bound).problem(tree.body)


def target_problem(target: str) -> str | None:
    """Say why a `_target_` is not on the allow-list; None if it is."""
    if target.startswith(("$", "@", "%")):
        return f"_target_ {target!r} is computed"
    if "." not in target:  # a bare name: MONAI looks it up among its own
        module = _module_of(target)
        if module is None:
            return f"_target_ {target!r} is not known to MONAI"
        target = f"{module}.{target}"
    allowed = any(
        target.startswith(name) if name.endswith(".") else target == name
        for name in ALLOWED_TARGETS
    )
    if not allowed or any(part.startswith("_") for part in target.split(".")):
        return f"_target_ {target!r} is not on the allow-list"
    if DENIED.search(target) and not _CHECKED_CALLERS.search(target):
        return f"_target_ {target!r} can run code or reach out"
    return f"_target_ {target!r} {problem}" if (problem := _foreign(target)) else None


def path_problem(text: str) -> str | None:
    """Say how a text leaves the bundle's folder if it is a path; None if it does not."""
    parts = re.split(r"[/\\]", text.removeprefix("%").split("::")[0])
    if ".." in parts:
        return f"the path {text!r} leaves the folder"
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    if (absolute and len(text) > 1) or text.startswith("~"):
        return f"the path {text!r} lies outside the folder"
    if re.match(r"(https?|ftp|s3|gs|file)://", text):
        return f"{text!r} is an address outside the folder"
    return None


def _walk(node: Any, place: str, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{place}::{name}" if place else str(name), str(name))
        return
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from _walk(value, f"{place}::{number}", key)
        return
    if not isinstance(node, str):
        return
    problem: str | None
    if key == "_target_":
        problem = target_problem(node)
    elif key == "_mode_":
        problem = None if node in ("default", "callable") else f"_mode_ {node!r} starts a debugger"
    elif node.startswith("$"):
        problem = expression_problem(node[1:])
        problem = f"the expression {node[:80]!r} {problem}" if problem else None
    elif key == "_desc_":
        problem = None
    else:
        problem = path_problem(node)
    if problem:
        yield place, problem


def _import_problem(source: str) -> str | None:
    try:
        statement = ast.parse(source).body
    except SyntaxError:
        return "cannot be read"
    if len(statement) != 1:
        return "holds more than one statement"
    node = statement[0]
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return "is no import"
    plain = {*_MODULES, "monai.transforms", "monai.data", "torch.nn", "torch.optim", "os.path"}
    for name in names:
        if isinstance(node, ast.ImportFrom):
            if not any(name.startswith(c) for c in _CALLS) or _reaches_out(name):
                return f"imports {name}"
        elif name not in plain:
            return f"imports {name}"
        for alias in node.names:
            if alias.asname and alias.asname in _BUILTINS | _MODULES - {"np"}:
                return f"imports {name} under the name {alias.asname}"
            if alias.asname == "np" and name != "numpy":
                return f"imports {name} under the name np"
    return None


class _Checker:
    """Looks through an expression; `bound` are names that it binds itself."""

    def __init__(self, bound: set[str]) -> None:
        self.bound = bound

    def problem(self, node: ast.AST) -> str | None:
        """Say what is not on the allow-list; None if nothing is."""
        if isinstance(node, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)):
            return f"holds a {type(node).__name__}"
        if isinstance(node, ast.Attribute):
            return self._attribute(node, called=False)
        if isinstance(node, ast.Name):
            return None if node.id in self.bound | _BUILTINS else f"uses {node.id}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return path_problem(node.value.lstrip("/"))  # as in @bundle_root + '/models/model.pt'
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = self._attribute(node.func, called=True)
            rest: list[ast.AST] = [*node.args, *node.keywords]
            return found or self._first(rest)
        return self._first(ast.iter_child_nodes(node))

    def _first(self, nodes: Iterable[ast.AST]) -> str | None:
        return next((found for node in nodes if (found := self.problem(node))), None)

    def _attribute(self, node: ast.Attribute, *, called: bool) -> str | None:
        if node.attr.startswith("_"):
            return f"reads the private attribute {node.attr}"
        verb, dotted = ("calls" if called else "uses"), _dotted(node)
        if dotted and dotted.split(".")[0] in _MODULES - self.bound:
            if not (_may_call(dotted) or (not called and _is_value(dotted))):
                return f"{verb} {dotted}"
            found = _foreign(dotted)
            return f"{verb} {dotted}, which {found}" if found else None
        if node.attr not in (_METHODS if called else _METHODS | _ATTRIBUTES):
            return f"{verb} the {'method' if called else 'attribute'} {node.attr}"
        return self.problem(node.value)


def _may_call(dotted: str) -> bool:
    return any(
        dotted.startswith(name) if name.endswith(".") else dotted == name for name in _CALLS
    ) and not _reaches_out(dotted)


def _is_value(dotted: str) -> bool:
    kinds = ("torch.float", "torch.int", "torch.long", "torch.uint8", "torch.bool", "torch.half")
    return dotted.startswith((*kinds, "os.sep")) and not _reaches_out(dotted)


def _reaches_out(dotted: str) -> bool:
    root = dotted.split(".")[0]
    if root in ("np", "numpy"):
        return bool(_NUMPY_REACHES_OUT.search(dotted.partition(".")[2]))
    if any(part.startswith("_") for part in dotted.split(".")):
        return True
    return bool(DENIED.search(dotted)) and not _CHECKED_CALLERS.search(dotted)


def _foreign(dotted: str) -> str | None:
    """Say how a dotted name leaves its package, through a module that was imported there."""
    root, *parts = dotted.split(".")
    root = "numpy" if root == "np" else root
    try:
        found: Any = import_module(root)
    except ImportError:
        return "needs a package that is not installed"
    path = root
    for part in parts:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                import_module(path)
            except ImportError:
                return "does not exist here"
        found = getattr(found, part, None)
        name = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", "")
        known = (root, "builtins", "posixpath", "ntpath", "genericpath")
        if isinstance(name, str) and name and name.split(".")[0] not in known:
            return f"is {name}"
    return "is a module" if isinstance(found, ModuleType) else None


@cache
def _module_of(name: str) -> str | None:
    """Return the module in which MONAI finds a bare name."""
    from monai.bundle.config_item import ComponentLocator

    found = ComponentLocator(excludes=["metatensor"]).get_component_module_name(name)
    return found if found is None or isinstance(found, str) else found[0]


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else None
    return None
