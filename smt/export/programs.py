"""A classifier as a program of torch.export, and of ONNX: made once, for every size of batch."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from smt.models.smt import SMT

SMALLEST_FREE = 64
"""Pixels of a side from which on programs take other sizes: below, the last stage may be one
position wide, which torch.export takes for a constant."""

Program = Callable[[Tensor], Tensor]
"""What computes logits (B, classes) of images (B, 3, H, W), as the network does."""


def export(network: SMT, size: int) -> ExportedProgram:
    """Return the program of a network set to evaluation, made for images of `size` x `size` pixels.

    The batch is free. So are both sides of the images from `SMALLEST_FREE` pixels on.
    """
    is_free = size >= SMALLEST_FREE
    # Two images, for torch would take a batch of one for a constant; sides that differ, so that
    # nothing takes them for the same.
    images = torch.zeros(2, 3, size, size + 32 if is_free else size)
    free = dict.fromkeys((0, 2, 3) if is_free else (0,), Dim.AUTO)
    with torch.no_grad(), _quiet():
        return torch.export.export(network, (images,), dynamic_shapes={"images": free})


def to_torch(program: ExportedProgram) -> tuple[bytes, Program]:
    """Return a program as torch.export.load takes it, and what that reads of it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return file.getvalue(), run


def to_onnx(program: ExportedProgram) -> tuple[bytes, Program]:
    """Return a program as ONNX, and as ONNX Runtime computes it on the CPU."""
    import onnxruntime

    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
    assert exported is not None
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return content, run


WRITERS: dict[str, Callable[[ExportedProgram], tuple[bytes, Program]]] = {
    "torch_export": to_torch,
    "onnx": to_onnx,
}
"""What gives the content of a file in each format, and the program as it is read from there."""


def require_onnx() -> None:
    """Import what writing and checking ONNX takes, before minutes are spent on the program.

    Raises:
        ImportError: a package of the extra `export` is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        importlib.import_module(package)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and warnings off the terminal; their errors are exceptions."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.export", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
