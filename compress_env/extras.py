"""Packages that only some features need: which extra of this package has them, and what to say where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from compress_env.errors import UserError

EXTRAS = {
    "onnx": "export", "onnxruntime": "export", "onnxscript": "export", "optuna": "optuna", "cmaes": "optuna", "pandas": "pandas",
    "tensorboard": "tensorboard", "datasets": "hf", "huggingface_hub": "hub", "ray": "ray",
}  # fmt: skip
"""By module, the extra that installs it."""
ONNX = ("onnx", "onnxruntime", "onnxscript")
"""Modules that write, check and run ONNX files."""


class MissingPackage(UserError):
    """A package that is not installed; the message has the command that installs it."""


class Skipped(UserWarning):
    """A file that is not written because a package is not installed; the message says how to have it after all."""


def need(feature: str, *modules: str) -> None:
    """Look whether what a feature needs is installed; nothing is imported.

    Args:
        feature: The subject of the message, such as "workers on a cluster".
        modules: Names in `EXTRAS`.

    Raises:
        MissingPackage: For the first module that is not there.
    """
    for name in modules:
        if not installed(name):
            raise MissingPackage(f'{feature} needs the package {name}; install it with: pip install "compress-env[{EXTRAS[name]}]"')


def installed(*modules: str) -> bool:
    """Whether all of these modules are there."""
    return all(find_spec(name) is not None for name in modules)
