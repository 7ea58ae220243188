"""A user's own loss: loaded from the file that was planned, and held to what every loss does.

B rows, L tokens, H width, A heads, C classes. What is given in the place of padding is 0, whatever
a model left there.
"""

import importlib.abc
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ..search_spaces.errors import PluginError, Problem
from ..search_spaces.knowledge import Plugin, ShownFeature
from ..search_spaces.plugins import FlawedPluginError, check_loss, read_bytes

_RELATIVE, _ABSOLUTE = 1e-3, 1e-6
"""How far two sums of the same numbers may lie apart."""


class PluginFunction:
    """The function of a term; its first batch shows whether it is a loss."""

    def __init__(self, term: Plugin, *, copies: Path | None = None) -> None:
        """Execute the file, once its content is known to be what was planned.

        Args:
            term: Names file and function.
            copies: A folder with the file as `<digest>.py`; the file itself is read without.

        Raises:
            PluginError: There is no such file or function, or the content is another.
        """
        self._reads: ShownFeature = term.reads
        self._settings: Mapping[str, int | float] = term.settings.as_arguments()
        path = Path(term.loss.file)
        try:
            found = path if copies is None else copies / f"{term.loss.digest}.py"
            source = read_bytes(found)
        except FlawedPluginError as error:
            raise PluginError([Problem(term.loss.file, error.what, error.mend)]) from None
        plugin = check_loss(term, source, found=found)
        line = plugin.functions[term.loss.function].line
        self._place = f"{path}:{line}: {term.loss.function}"
        self._file = str(path)
        self._function: Callable[..., Any] = _execute(source, path, term.loss.digest)[
            term.loss.function
        ]
        self._is_checked: set[object] = set()

    def __call__(
        self, student: Tensor, teacher: Tensor, token_mask: Tensor, *, pair: object = None
    ) -> Tensor:
        """The loss of one pair of layers, or of logits, shape [].

        Args:
            student: The feature, float32, 0 in the place of padding.
            teacher: The same of the teacher, without a gradient.
            token_mask: Shape [B, L], True at real tokens.
            pair: Which layers these are; each pair's first batch is looked at more closely.

        Raises:
            PluginError: The function is no loss; says why.
        """
        loss = self._call(student, teacher, token_mask)
        is_judged = pair not in self._is_checked
        if is_judged and bool(student.isfinite().all()) and bool(teacher.isfinite().all()):
            self._is_checked.add(pair)
            cuda = [student.device] if student.device.type == "cuda" else []
            # Looking must not change the numbers of whoever draws next.
            with torch.random.fork_rng(devices=cuda), torch.enable_grad():
                self._judge(loss.detach(), student.detach(), teacher, token_mask)
        return loss

    def _call(self, student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
        given = (student, teacher, token_mask)
        before = [each._version for each in given]
        try:
            loss = self._function(*given, **self._settings)
        except Exception as error:
            error.add_note(f"{self._where(error)}: the plugin was given {_shapes(*given)}")
            raise
        if not isinstance(loss, Tensor):
            self._refuse(
                f"gives {type(loss).__name__}, not a tensor", "Return a tensor of shape []"
            )
        if loss.shape != () or not loss.is_floating_point():
            self._refuse(
                f"gives {_shape(loss)} of {loss.dtype}, not a scalar",
                "Reduce it to one number: the mean over the batch's real tokens",
            )
        if [each._version for each in given] != before:
            self._refuse("changes a tensor that it is given", "Make new ones: no `add_`, no `+=`")
        return loss

    def _judge(self, loss: Tensor, student: Tensor, teacher: Tensor, token_mask: Tensor) -> None:
        if not bool(loss.isfinite()):
            given = _shapes(student, teacher, token_mask)
            self._refuse(f"gives {float(loss)}, given {given}", _ZEROS)
        if not _is_close(self._call(student, teacher, token_mask), loss):
            self._refuse("gives two losses for one batch", "Draw no random numbers, keep no state")
        # A quarter more of padding, so that a mean over it is told from an error of rounding.
        more = 1 + token_mask.shape[1] // 4
        longer = _pad(self._reads, student, more).requires_grad_()
        padded = self._call(
            longer, _pad(self._reads, teacher, more), F.pad(token_mask, (0, more), value=False)
        )
        if not _is_close(padded.detach(), loss):
            said = f"{float(loss):.6g}, and {float(padded.detach()):.6g} with {more} more positions"
            self._refuse(
                f"depends on padding: {said} of padding",
                "Average over real tokens alone: leave out where `token_mask` is False, and divide "
                "by the number of True",
            )
        gradient = _gradient(padded, longer)
        if gradient is None:
            self._refuse(
                "has no gradient to the student",
                "Compute the loss from `student` with operations of torch; no `detach`, `item` or "
                "`no_grad`",
            )
        if not bool(gradient.isfinite().all()):
            self._refuse("has a gradient that is not finite", _ZEROS)

    def _where(self, error: Exception) -> str:
        """The last line of the file that took part in an exception."""
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == self._file
        ]
        return f"{self._file}:{lines[-1]}" if lines else self._place

    def _refuse(self, what: str, mend: str) -> NoReturn:
        raise PluginError([Problem(self._place, what, mend)])


_ZEROS = (
    "Zeros stand in the place of padding: mask before a division, a root or a logarithm, not after"
)


class _Loader(importlib.abc.InspectLoader):
    """Executes the bytes that were digested, whatever lies in the file by now."""

    def __init__(self, source: bytes, path: Path) -> None:
        self._source, self._path = source, path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - importlib's signature
        """What tracebacks show."""
        return importlib.util.decode_source(self._source)

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - importlib's signature
        """Compiled under the name of the user's file, which errors are to name."""
        return compile(self._source, str(self._path), "exec", dont_inherit=True)


def _execute(source: bytes, path: Path, digest: str) -> Mapping[str, Any]:
    """What a file defines, anew in each call, so that no trial sees another one's state."""
    name = f"_kdsweep_plugin_{digest[:16]}"
    loader = _Loader(source, path)
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look for the module of a class there.
    sys.modules[name] = module
    loader.exec_module(module)
    return vars(module)


def _gradient(loss: Tensor, feature: Tensor) -> Tensor | None:
    if not loss.requires_grad:
        return None
    return torch.autograd.grad(loss, feature, allow_unused=True)[0]


def _is_close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE))


def _pad(kind: ShownFeature, feature: Tensor, more: int) -> Tensor:
    match kind:
        case "logits":
            return feature.clone()
        case "attentions":
            return F.pad(feature, (0, more, 0, more))
        case _:
            return F.pad(feature, (0, 0, 0, more))


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _shapes(student: Tensor, teacher: Tensor, token_mask: Tensor) -> str:
    return f"student {_shape(student)}, teacher {_shape(teacher)}, token_mask {_shape(token_mask)}"
