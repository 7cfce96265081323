"""The errors that users of pywebgpu see.

Every error answers five questions: what went wrong, where, what was found, what was expected and
what to do about it. The class says who can act on it, so there are few classes, and callers tell
cases apart by class, never by the text of a message. Standard library only: this module is also
imported in the browser.
"""

from __future__ import annotations


class PywebgpuError(Exception):
    """Base of all errors that pywebgpu raises on purpose.

    what: the problem, as a short clause ("rank 5 is not supported").
    where: the file, node, input or setting it is about ("Conv 'layer1/conv' input 'W'").
    got, expected: the value found and the values that would do, where that says more.
    remedy: one sentence on what the reader can do.
    """

    #: What the command line exits with: 2 means "change the model, input, option or machine".
    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: object = None,
        expected: object = None,
        remedy: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: `where: what (got X, expected Y). Remedy.`"""
        text = f"{self.where}: {self.what}" if self.where else self.what
        details = []
        if self.got is not None:
            details.append(f"got {self.got}")
        if self.expected is not None:
            details.append(f"expected {self.expected}")
        if details:
            text += f" ({', '.join(details)})"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def to_json(self) -> dict[str, str | None]:
        """The same facts as a JSON object, for `--json` and for the page."""
        return {
            "type": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "remedy": self.remedy,
        }


class ModelError(PywebgpuError):
    """The ONNX model is not readable or contradicts itself: not ONNX, truncated, wrong types."""


class UnsupportedError(PywebgpuError):
    """The model is valid but asks for something that pywebgpu does not do (yet)."""


class InputError(PywebgpuError):
    """A value or an option given by the caller is wrong: name, shape, dtype, path."""


class BundleError(PywebgpuError):
    """A bundle is missing a file, damaged, or of a version that this build does not read."""


class DeviceError(PywebgpuError):
    """A GPU, a browser or an executor is missing, lacks a feature, or was lost."""
