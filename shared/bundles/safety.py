"""What a bundle's configuration would execute, compared with an allow-list.

A MONAI configuration is a program: `_target_` calls any importable function, `$...` is Python,
`%file` reads other files. `findings` looks at a configuration as MONAI would evaluate it (macros
and relative ids resolved, metadata included, references put in as MONAI puts them in) and names
everything outside an allow-list of classes, functions, methods and paths that ordinary workflows
use. Nothing of the bundle runs for that; MONAI itself is imported, to find where names come from.

It narrows what a stranger's file can do. It is no sandbox.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

# Classes of these modules may be built; what is found there but defined elsewhere may not.
_CLASS_MODULES = (
    *("monai.networks.", "monai.transforms.", "monai.losses.", "monai.metrics.", "monai.inferers."),
    *("monai.engines.", "monai.handlers.", "monai.optimizers.", "torch.nn.modules."),
    *("torch.optim.", "ignite.metrics.", "ignite.handlers."),
)
_DATA_CLASSES = {
    *("monai.data.dataset.Dataset", "monai.data.dataset.CacheDataset"),
    *("monai.data.dataset.SmartCacheDataset", "monai.data.dataloader.DataLoader"),
    *("monai.data.thread_buffer.ThreadDataLoader", "torch.utils.data.dataloader.DataLoader"),
    *("monai.data.dataset.ZipDataset", "monai.data.dataset.ArrayDataset"),
    *("monai.data.image_reader.PILReader", "monai.data.image_reader.ITKReader"),
    *("monai.data.image_reader.NibabelReader", "monai.data.image_reader.NrrdReader"),
    *("monai.data.image_reader.PydicomReader", "torch.device"),
}
# Classes of the allowed modules that fetch, unpickle, run code given as text, or log elsewhere.
_DENIED_CLASSES = {
    *("PerceptualLoss", "Transchex", "BertPreTrainedModel", "MultiModal", "MLFlowHandler"),
    *("ClearMLHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "TrtHandler"),
    *("TorchVision", "TorchVisiond", "TorchVisionD", "TorchVisionDict"),
    *("RandTorchVision", "RandTorchVisiond", "TorchIO", "TorchIOd", "RandTorchIO", "RandTorchIOd"),
    *("CuCIM", "CuCIMd", "RandCuCIM", "RandCuCIMd"),
}
# Modules of crossband that are written to be built from, with any arguments, by a stranger's file.
_OURS = re.compile(r"crossband\.(\w+\.)+bundles\.(\w+_)?transforms")
_FUNCTIONS = {
    "crossband.shared.registry.create_model",
    "monai.data.decathlon_datalist.load_decathlon_datalist",
    "monai.data.utils.partition_dataset",
    "monai.handlers.utils.from_engine",
    "monai.utils.misc.set_determinism",
}
_CALLS = {
    *("torch.device", "torch.cuda.is_available", "torch.cuda.device_count", "torch.tensor"),
    *("torch.zeros", "torch.ones", "torch.manual_seed", "monai.handlers.from_engine"),
    *("monai.data.load_decathlon_datalist", "monai.data.partition_dataset"),
    *("monai.utils.set_determinism", "monai.handlers.utils.from_engine", "glob.glob"),
    *("os.path.join", "os.path.exists", "os.path.basename", "os.path.dirname", "os.path.isfile"),
    *("os.path.isdir", "os.path.splitext", "math.ceil", "math.floor", "math.sqrt", "math.log"),
    *("np.array", "np.asarray", "np.mean", "np.max", "np.min", "np.sum", "np.unique", "np.arange"),
    *("np.linspace", "np.clip", "np.round", "np.zeros", "np.ones"),
}
_VALUES = re.compile(
    r"^(torch\.(float\d*|int\d*|long|uint8|bool|half|bfloat16)|(np|numpy)\.(float\d*|u?int\d*|bool_)"
    r"|math\.(pi|inf)|os\.sep)$"
)
_IMPORTS = {"monai", "torch", "numpy", "glob", "os", "os.path", "math", "ignite", "json", "re"}
_MODULES = {"monai", "torch", "np", "numpy", "glob", "os", "math", "ignite", "json", "re"}
_BUILTINS = {
    *("abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "int", "isinstance"),
    *("len", "list", "map", "max", "min", "range", "reversed", "round", "set", "slice", "sorted"),
    *("str", "sum", "tuple", "zip", "print"),
}
_METHODS = {
    *("to", "parameters", "named_parameters", "state_dict", "run", "train", "eval", "cpu", "cuda"),
    *("items", "keys", "values", "get", "split", "replace", "startswith", "endswith", "strip"),
    *("lower", "upper", "append", "index", "mean", "sum", "max", "min", "item", "detach", "count"),
    *("unsqueeze", "squeeze", "view", "reshape", "permute", "flatten", "float", "long", "int"),
    *("repeat", "requires_grad_", "rsplit", "copy"),
}
_ATTRIBUTES = {
    *("shape", "meta", "affine", "device", "dtype", "output", "batch", "state", "metrics", "epoch"),
    *("iteration", "ndim", "T", "max_epochs", "optimizer"),
}
_READERS = {"PILReader", "ITKReader", "NibabelReader", "NrrdReader", "PydicomReader"}
_WRITERS = {"PILWriter", "ITKWriter", "NibabelWriter"}
# Arguments that name a place to write to, and the only forms that stay inside.
_PLACES = {"output_dir", "save_dir", "log_dir", "cache_dir", "summary_dir", "mapping_file_path"}
_INSIDE = re.compile(r"^\$\s*@bundle_root\s*\+\s*(['\"])/[\w\-]+(/[\w\-]+)*\1$")
_PLACE_IDS = ("output_dir", "ckpt_dir", "log_dir")
_REFERENCES = "__local_refs"  # MONAI's name for what @ids stand for


@dataclass(frozen=True)
class Finding:
    """One thing in a configuration that is not on the allow-list."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.where}: {self.what}"


def findings(config: dict[str, Any], where: str = "", given: Iterable[str] = ()) -> list[Finding]:
    """List what a configuration would do that is not on the allow-list.

    Args:
        config: As MONAI evaluates it: macros and relative ids resolved.
        where: Name of the file.
        given: Ids whose values are not the bundle's but the caller's.
    """
    scan = _Scan(config, frozenset(given))
    sign = "#" if where else ""
    return [Finding(f"{where}{sign}{place}", what) for place, what in scan.walk(config, "", "")]


def raw_problems(config: Any) -> Iterator[str]:
    """Name what must not even be resolved: macros that read other files, and odd keys."""
    if isinstance(config, dict):
        for key, value in config.items():
            if not re.fullmatch(r"[\w:#.+\-]*", str(key)):
                yield f"the key {str(key)[:60]!r} holds more than a name"
            yield from raw_problems(value)
    elif isinstance(config, list):
        for value in config:
            yield from raw_problems(value)
    elif isinstance(config, str) and config.startswith("%") and re.search(r"[./\\]", config):
        yield f"the macro {config[:60]!r} reads another file"


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
    source = _with_references(text.strip())
    if source.startswith(("import ", "from ")):
        return _import_problem(source)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "cannot be read as one expression"
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.comprehension)
        for name in ast.walk(node.target)
        if isinstance(name, ast.Name)
    }
    reserved = bound & (_MODULES | _BUILTINS | {_REFERENCES})
    if reserved:
        return f"binds {min(reserved)} anew"
    return _Checker(bound).problem(tree.body)


def target_problem(target: str) -> str | None:
    """Say why a `_target_` is not on the allow-list; None if it is.

    A name is judged by what it leads to, not by the way that is written.
    """
    found = _locate(target)
    if found is None:
        return f"_target_ {target[:60]!r} is not known here"
    module = getattr(found, "__module__", None) or ""
    home = f"{module}.{getattr(found, '__qualname__', '')}"
    if _OURS.fullmatch(module):  # and public, since `_locate` takes no other names
        return None if found.__qualname__ == found.__name__ else f"_target_ {target!r} is a method"
    if not inspect.isclass(found):
        return None if home in _FUNCTIONS else f"_target_ {target!r} is not on the allow-list"
    if home in _DATA_CLASSES or found.__name__ == "device" and module == "torch":
        return None
    if not module.startswith(_CLASS_MODULES) or found.__name__ in _DENIED_CLASSES:
        return f"_target_ {target!r} is not on the allow-list"
    return None


def is_ours(target: str) -> bool:
    """Whether a `_target_` is in a module of ours that is written for bundles."""
    return bool(_OURS.fullmatch(target.rpartition(".")[0]))


def path_problem(text: str) -> str | None:
    """Say how a text leaves the bundle's folder if it is a path; None if it does not."""
    if ".." in re.split(r"[/\\]", text):
        return f"the path {text!r} leaves the folder"
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    if (absolute and len(text) > 1) or text.startswith("~"):
        return f"the path {text!r} lies outside the folder"
    if re.match(r"\w+://", text):
        return f"{text!r} is an address outside the folder"
    return None


class _Scan:
    """Goes through a configuration."""

    def __init__(self, config: dict[str, Any], given: frozenset[str]) -> None:
        self.config, self.given = config, given

    def walk(self, node: Any, place: str, key: str) -> Iterator[tuple[str, str]]:
        """Yield place and problem."""
        if isinstance(node, dict):
            if "_target_" in node:
                yield from ((place, problem) for problem in self._arguments(node))
            for name, value in node.items():
                if place or name not in self.given:
                    yield from self.walk(value, f"{place}::{name}" if place else str(name), name)
            return
        if isinstance(node, list):
            for number, value in enumerate(node):
                yield from self.walk(value, f"{place}::{number}", key)
            return
        if isinstance(node, str) and (problem := self._text(node, place, key)):
            yield place, problem

    def _text(self, text: str, place: str, key: str) -> str | None:
        if key == "_target_":
            return target_problem(text)
        if key == "_mode_":
            known = ("default", "callable", "partial")
            return None if text in known else f"_mode_ {text!r} starts a debugger"
        if text.startswith("$"):
            problem = expression_problem(text[1:])
            return f"the expression {text[:80]!r} {problem}" if problem else None
        if key == "_desc_" or place.startswith("_meta_"):
            return None
        return path_problem(text)

    def _arguments(self, node: dict[str, Any]) -> Iterator[str]:
        """Look at arguments that would make an allowed class reach out."""
        target = str(node["_target_"])
        found = _locate(target)
        name = getattr(found, "__name__", "")
        for key, value in node.items():
            if key == "reader" and not _known(value, _READERS):
                yield f"{target} takes the reader {value!r}"
            elif key == "writer" and not _known(value, _WRITERS):
                yield f"{target} takes the writer {value!r}"
            elif key in ("allow_pickle", "pretrained", "pickle") and value not in (False, None):
                yield f"{target} is given {key}={value!r}"
            elif key == "weights_only" and value is not True:
                yield f"{target} is given weights_only={value!r}"
            elif key.startswith("pretrained") and key != "pretrained" and value:
                yield f"{target} is given {key}={value!r}"
            elif key in _PLACES and not self._inside(value):
                yield f"{target} writes to {value!r}"
            elif "filename" in key and str(value).startswith(("$", "@", "%")):
                yield f"{target} computes the name of a file, {value!r}"
        if name in ("create_model", "create_tuned"):
            model = str(node.get("name", ""))
            prefix = model.partition(":")[0] if ":" in model else ""
            if prefix not in ("", "timm", "monai") or model.startswith(("$", "@", "%")):
                yield f"{target} builds {model!r}, whose arguments can name any code"
            if prefix == "monai":
                problem = target_problem(f"monai.networks.nets.{model.partition(':')[2]}")
                if problem:
                    yield f"{target} builds {model!r}"
        elif inspect.isclass(found) and "pretrained" not in node:
            default = _default(found, "pretrained")
            if default is True:
                yield f"{target} downloads weights: set pretrained to false"

    def _inside(self, value: Any) -> bool:
        """Whether a place to write to is the caller's, or below the bundle's folder."""
        if value is None:
            return True
        if not isinstance(value, str):
            return False
        name = value.removeprefix("$").strip().removeprefix("@")
        if value.removeprefix("$").strip().startswith("@") and name in _PLACE_IDS:
            return name in self.given or self._inside(self.config.get(name))
        if value.startswith(("$", "@", "%")):
            return bool(_INSIDE.match(value))
        return path_problem(value) is None


class _Checker:
    """Looks through an expression; `bound` are names that it binds itself."""

    def __init__(self, bound: set[str]) -> None:
        self.bound = bound

    def problem(self, node: ast.AST) -> str | None:
        """Say what is not on the allow-list; None if nothing is."""
        forbidden = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom, ast.JoinedStr, ast.Starred)
        if isinstance(node, forbidden):
            return f"holds a {type(node).__name__}"
        if isinstance(node, ast.Attribute):
            return self._attribute(node, called=False)
        if isinstance(node, ast.Name):
            return None if node.id in self.bound | _BUILTINS else f"uses {node.id}"
        if isinstance(node, ast.Constant):
            return _constant_problem(node.value)
        if isinstance(node, ast.Subscript) and _is_reference(node.value):
            fixed = isinstance(node.slice, ast.Constant)
            return None if fixed else f"reads {_REFERENCES} by a name that it computes"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            tail = node.right
            if isinstance(tail, ast.Constant) and isinstance(tail.value, str):
                if isinstance(node.left, ast.Subscript) and _is_reference(node.left.value):
                    return _constant_problem(tail.value.lstrip("/"))  # @bundle_root + '/models'
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = self._attribute(node.func, called=True)
            rest: list[ast.AST] = [*node.args, *node.keywords]
            if node.func.attr in ("replace", "split", "rsplit", "startswith", "endswith"):
                rest = [a for a in rest if not isinstance(a, ast.Constant) or ".." in str(a.value)]
            return found or self._first(rest)
        if isinstance(node, ast.keyword) and node.arg is None:
            return "passes arguments that it computes"
        return self._first(ast.iter_child_nodes(node))

    def _first(self, nodes: Iterable[ast.AST]) -> str | None:
        return next((found for node in nodes if (found := self.problem(node))), None)

    def _attribute(self, node: ast.Attribute, *, called: bool) -> str | None:
        if node.attr.startswith("_"):
            return f"reads the private attribute {node.attr}"
        verb, dotted = ("calls" if called else "uses"), _dotted(node)
        if dotted and dotted.split(".")[0] in _MODULES:
            plain = re.sub(r"^numpy\.", "np.", dotted)
            if (called and (plain in _CALLS or _is_torch_class(plain))) or _VALUES.match(dotted):
                return None
            return f"{verb} {dotted}"
        if node.attr not in (_METHODS if called else _METHODS | _ATTRIBUTES):
            return f"{verb} the {'method' if called else 'attribute'} {node.attr}"
        return self.problem(node.value)


def _constant_problem(value: Any) -> str | None:
    if isinstance(value, bytes):
        return "holds bytes"
    if not isinstance(value, str):
        return None
    if value == "." or value.startswith("./") or value.endswith(("/.", "..")):
        return f"holds {value!r}, from which a path out of the folder can be put together"
    return path_problem(value)


def _import_problem(source: str) -> str | None:
    try:
        statement = ast.parse(source).body
    except SyntaxError:
        return "cannot be read"
    if len(statement) != 1 or not isinstance(statement[0], ast.Import):
        return "is not one plain import"
    for alias in statement[0].names:
        if alias.name not in _IMPORTS:
            return f"imports {alias.name}"
        if alias.asname and (alias.name, alias.asname) != ("numpy", "np"):
            return f"imports {alias.name} under the name {alias.asname}"
    return None


def _with_references(text: str) -> str:
    """Put references in as MONAI does before it evaluates an expression."""
    from monai.bundle.reference_resolver import ReferenceResolver

    text = ReferenceResolver.normalize_id(text)
    for item in sorted(ReferenceResolver.id_matcher.findall(text), key=len, reverse=True):
        text = text.replace(item, f"{_REFERENCES}['{item[1:]}']")
    return text


@cache
def _locate(target: str) -> Any:
    """Return what a `_target_` leads to as MONAI looks for it; None if that is not known."""
    if not re.fullmatch(r"[A-Za-z][\w.]*", target):
        return None
    if "." not in target:
        from monai.bundle.config_item import ComponentLocator

        found = ComponentLocator(excludes=["metatensor"]).get_component_module_name(target)
        module = found if found is None or isinstance(found, str) else found[0]
        return getattr(import_module(module), target, None) if module else None
    parts = target.split(".")
    if parts[0] not in ("monai", "torch", "ignite", "crossband") or "" in parts:
        return None
    if any(part.startswith("_") for part in parts):
        return None
    here: Any = import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(here, part) and isinstance(here, ModuleType):
            try:
                import_module(".".join(parts[:number]))
            except ImportError:
                return None
        here = getattr(here, part, None)
        if here is None:
            return None
    return here


def _is_torch_class(dotted: str) -> bool:
    """Whether a name is a layer or an optimiser of PyTorch, called in an expression."""
    if not dotted.startswith(("torch.nn.", "torch.optim.")):
        return False
    found = _locate(dotted)
    home = getattr(found, "__module__", "") or ""
    return inspect.isclass(found) and home.startswith(("torch.nn.modules.", "torch.optim."))


def _default(found: type, name: str) -> Any:
    try:
        parameter = inspect.signature(found).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return parameter.default if parameter else None


def _known(value: Any, names: set[str]) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(
        v is None or (isinstance(v, str) and v in names) or isinstance(v, dict) for v in values
    )


def _is_reference(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == _REFERENCES


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else None
    return None
