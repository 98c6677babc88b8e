"""`smt convert` on small checkpoints, in the process of the test."""

import torch

from tests.helpers import released_files
from tests.helpers.in_process import smt


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def convert(source, target, *options):
    scale = ("--scale", released_files.SCALE)
    return smt("convert", source, target, "--model", "smt_tiny", *scale, *options)


def taken(done, target, state, *words):
    """Assert that the weights were imported as in `state`, and that the output has these words."""
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout, done.stdout
    exported = target.with_name("exported.pth")
    assert convert(target, exported, "--to", "released").returncode == 0
    tensors = torch.load(exported, weights_only=True)["model"]
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())


def refused(done, target, *words):
    """Assert that nothing was written, and that the error is one line with these words."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("smt: error: ")
    for word in words:
        assert word in line, line
    assert not target.exists()
