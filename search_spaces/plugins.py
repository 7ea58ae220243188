"""Files of a user's own losses: read, digested and checked here, and never executed.

What they hold is found in their syntax tree, so that planning a stranger's grid runs nothing.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, Signature
from pathlib import Path as FilePath
from typing import Any

from .errors import PluginError, Problem
from .knowledge import LOSS_PATTERN, Plugin, PluginLoss, Term, kind_of, term_label
from .report import Report, did_you_mean, show
from .tree import Path

_ALLOW = (
    "Training executes this code, with all your rights. Read it; if you trust it, add "
    "`--allow-plugins` to the command"
)
_LIST = "Write a list of files beside the grid: `plugins: [my_loss.py]`"
_NAME = "Write a file without `.py` and a function of it: `loss: my_loss.pooled_l1`"
_LOSS_AXIS = re.compile(r"terms\..+\.loss")
_PLUGIN = kind_of(Plugin)
_TENSORS = 3
_UNKNOWN = {"file": "", "digest": "0" * 64, "function": "unknown"}
"""Stands for a loss that has been complained of, so that it is not complained of twice."""


class FlawedPluginError(ValueError):
    """A file that cannot be a plugin: what is wrong, and the mend."""

    def __init__(self, what: str, mend: str) -> None:
        self.what, self.mend = what, mend
        super().__init__(what)


@dataclass(frozen=True)
class Function:
    """A function at the top level of a file, as its source says it."""

    name: str
    line: int
    signature: Signature

    def misuse(self, settings: Collection[str] | None) -> str | None:
        """Why it cannot be called with three tensors and these settings, if it cannot.

        Args:
            settings: Their names; None where they are not known.
        """
        required = [
            parameter
            for parameter in self.signature.parameters.values()
            if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
            and parameter.default is Parameter.empty
        ]
        said = f"`{self.name}{self.signature}`"
        if len(required) < _TENSORS:
            # A third parameter with a default would take the mask for a setting, unnoticed.
            return f"{said} does not take three tensors"
        if settings is None:
            return None
        try:
            self.signature.bind(*range(_TENSORS), **dict.fromkeys(settings))
        except TypeError as error:
            given = f"the settings {', '.join(settings)}" if settings else "no settings"
            return f"{said} cannot be called with three tensors and {given}: {error}"
        return None


@dataclass(frozen=True)
class PluginFile:
    """A file of losses."""

    path: FilePath
    """Absolute; where it was found."""
    source: bytes
    """Its content."""
    functions: Mapping[str, Function]
    """Those at its top level, by name."""

    @property
    def name(self) -> str:
        """What terms call it."""
        return self.path.stem

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of its bytes."""
        return hashlib.sha256(self.source).hexdigest()

    def misuse(self, function: str, settings: Collection[str] | None) -> tuple[str, str] | None:
        """What is wrong with a loss of this file and how to mend it; None if nothing is."""
        further = "".join(f", {name}" for name in ("*", *settings)) if settings else ""
        define = f"Write `def {function}(student, teacher, token_mask{further}):`"
        if function not in self.functions:
            what = f"{self.path.name} has no function `{function}` at its top level"
            return what, did_you_mean(function, self.functions) if self.functions else define
        found = self.functions[function]
        if misuse := found.misuse(settings):
            return f"{self.path.name}:{found.line}: {misuse}", define
        return None


def read_bytes(path: FilePath) -> bytes:
    """The content of a plugin.

    Raises:
        FlawedPluginError: It is no file, or cannot be read.
    """
    try:
        # A device or a pipe would be read for ever.
        if path.exists() and not path.is_file():
            raise FlawedPluginError(f"{path} is no file", "Name a file of Python code")
        return path.read_bytes()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        mend = "Check its name; it is relative to the grid file"
        raise FlawedPluginError(what, mend) from None


def parse_plugin(source: bytes, path: FilePath) -> PluginFile:
    """What a file holds, without executing it.

    Raises:
        FlawedPluginError: It is not Python, or imports a file beside it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        what = f"{path.name}{line}: is not Python: {said}"
        raise FlawedPluginError(what, f"`python {path}` says more") from None
    for line_number, module in _imports(body):
        beside = path.parent / f"{module}.py", path.parent / module / "__init__.py"
        if any(file.exists() for file in beside):
            what = f"{path.name}:{line_number}: imports `{module}` from beside it"
            mend = "Put all that the loss needs into its one file: trials are known by its content"
            raise FlawedPluginError(what, mend)
    functions = {
        node.name: Function(node.name, node.lineno, _signature(node.args))
        for node in body
        if isinstance(node, ast.FunctionDef)
    }
    return PluginFile(path, source, functions)


def _imports(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Line and first name of every module that is imported."""
    for statement in body:
        for node in ast.walk(statement):
            match node:
                case ast.Import(names=names):
                    yield from ((node.lineno, each.name.split(".")[0]) for each in names)
                case ast.ImportFrom(module=str(module)):
                    yield node.lineno, module.split(".")[0]
                case ast.ImportFrom(names=names):
                    yield from ((node.lineno, each.name) for each in names)
                case _:
                    continue


def _signature(arguments: ast.arguments) -> Signature:
    first = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(first) - len(arguments.defaults))
    parameters = [
        Parameter(
            each.arg,
            Parameter.POSITIONAL_ONLY
            if each in arguments.posonlyargs
            else Parameter.POSITIONAL_OR_KEYWORD,
            default=_default(default),
        )
        for each, default in zip(first, [*without, *arguments.defaults], strict=True)
    ]
    if arguments.vararg is not None:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    parameters += [
        Parameter(each.arg, Parameter.KEYWORD_ONLY, default=_default(default))
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)


class _Source(str):
    """An expression as it stands in the source."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _default(expression: ast.expr | None) -> object:
    return Parameter.empty if expression is None else _Source(ast.unparse(expression))


ReadBytes = Callable[[FilePath], bytes]


def read_plugins(
    data: object, *, base: FilePath, is_allowed: bool, read: ReadBytes, report: Report
) -> dict[str, PluginFile | None]:
    """The files that a grid lists, by the name that its terms call them; None: it is flawed.

    Args:
        data: What the grid says.
        base: The folder that paths are relative to.
        is_allowed: Whether the user agrees that training executes them; nothing is read without.
        read: Gives the content of a file.
        report: Told what is wrong.

    Raises:
        GridError: They are not allowed.
    """
    if data is None:
        return {}
    if not isinstance(data, list) or not all(isinstance(each, str) for each in data):
        report.add(("plugins",), f"{show(data)} is not a list of files", _LIST)
        return {}
    if data and not is_allowed:
        report.add(("plugins",), *code_of_its_own(data))
        report.raise_if_any()
    found: dict[str, PluginFile | None] = {}
    for n, written in enumerate(data):
        path = (base / FilePath(written).expanduser()).resolve()
        if path.stem in found:
            what = f"a second file is called `{path.stem}`"
            report.add(("plugins", n), what, "Rename one: terms name files without their folder")
        found[path.stem] = None
        if path.suffix != ".py":
            report.add(("plugins", n), f"{show(written)} is not a `.py` file", _LIST)
            continue
        try:
            found[path.stem] = parse_plugin(read(path), path)
        except FlawedPluginError as error:
            report.add(("plugins", n), error.what, error.mend)
    return found


def code_of_its_own(files: Collection[str]) -> tuple[str, str]:
    """What is said of files that the user has not agreed to execute, and the mend."""
    return f"the grid brings code of its own: {', '.join(files)}", _ALLOW


def name_losses(
    data: Mapping[str, Any], plugins: Mapping[str, PluginFile | None], report: Report
) -> dict[str, Any]:
    """A grid's data with every name of a loss replaced by what identifies it."""
    names = _Names(plugins, report)
    return {
        key: names.replace(value, (key,)) if key in ("axes", "when") else value
        for key, value in data.items()
    }


class _Names:
    def __init__(self, plugins: Mapping[str, PluginFile | None], report: Report) -> None:
        self._plugins = plugins
        self._report = report

    def replace(self, data: object, at: Path) -> Any:  # noqa: ANN401 - of any part
        match data:
            case list():
                return [self.replace(each, (*at, n)) for n, each in enumerate(data)]
            case dict() if data.get("kind") == _PLUGIN and "loss" in data:
                settings = data.get("settings")
                given = tuple(map(str, settings)) if isinstance(settings, dict) else ()
                return {**data, "loss": self._loss(data["loss"], (*at, "loss"), given)}
            case dict():
                return {key: self._below(key, value, (*at, key)) for key, value in data.items()}
            case _:
                return data

    def _below(self, key: object, value: object, at: Path) -> object:
        if key == "if":
            # Predicates compare labels, and a loss's label is what is written.
            return value
        if _LOSS_AXIS.fullmatch(str(key)):
            return self._values(value, at)
        return self.replace(value, at)

    def _values(self, data: object, at: Path) -> object:
        """Of an axis of losses, or of a rule that sets one; their settings are not known here."""
        match data:
            case list():
                return [self._values(each, (*at, n)) for n, each in enumerate(data)]
            case {"label": label, "value": value}:
                return {"label": label, "value": self._loss(value, (*at, "value"), None)}
            case _:
                return {"label": data, "value": self._loss(data, at, None)}

    def _loss(self, loss: object, at: Path, settings: Collection[str] | None) -> object:
        if not isinstance(loss, str) or not re.match(LOSS_PATTERN, loss):
            self._report.add(at, f"{show(loss)} names no loss", _NAME)
            return _UNKNOWN
        name, function = loss.split(".")
        plugin = self._plugins.get(name)
        if plugin is None:
            if name not in self._plugins:
                mend = f"Write `plugins: [{name}.py]` at the top of the grid"
                mend = did_you_mean(name, self._plugins, otherwise=mend)
                self._report.add(at, f"`plugins` lists no file `{name}.py`", mend)
            return _UNKNOWN
        if wrong := plugin.misuse(function, settings):
            self._report.add(at, *wrong)
        return {"file": str(plugin.path), "digest": plugin.digest, "function": function}


def first_misuse(terms: Iterable[Term], plugins: Collection[PluginFile]) -> str | None:
    """Why the first loss that cannot be called with its settings cannot be."""
    by_digest = {plugin.digest: plugin for plugin in plugins}
    for term in terms:
        if isinstance(term, Plugin) and (plugin := by_digest.get(term.loss.digest)):
            settings = tuple(term.settings.as_arguments())
            if wrong := plugin.misuse(term.loss.function, settings):
                return f"`{term_label(term)}`: {'. '.join(wrong)}"
    return None


def plugin_losses(terms: Collection[Term]) -> Iterator[PluginLoss]:
    """The losses of the terms that are the user's own."""
    return (term.loss for term in terms if isinstance(term, Plugin))


def check_loss(term: Plugin, source: bytes, *, found: FilePath) -> PluginFile:
    """A term's file, of the content that was planned, with a function that the term can call.

    Args:
        term: Names both.
        source: The content.
        found: Where it lies now.

    Raises:
        PluginError: It is not so.
    """
    loss = term.loss
    path = FilePath(loss.file)
    if hashlib.sha256(source).hexdigest() != loss.digest:
        raise PluginError([changed(found)])
    try:
        plugin = parse_plugin(source, path)
    except FlawedPluginError as error:
        raise PluginError([Problem(loss.file, error.what, error.mend)]) from None
    if wrong := plugin.misuse(loss.function, tuple(term.settings.as_arguments())):
        raise PluginError([Problem(loss.file, *wrong)])
    return plugin


def changed(file: FilePath) -> Problem:
    """What is said of a file whose content is no longer what was planned."""
    return Problem(
        str(file),
        "the file has changed since the plan was made",
        "Re-plan: `kdsweep launch` with the grid plans anew with the file as it is now; or undo "
        "the change.",
    )
