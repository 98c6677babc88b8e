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


def assert_imported(result, target, state, *messages):
    """Assert that the weights are those of `state`, and that the output has these messages."""
    assert result.returncode == 0, result.stderr
    for message in messages:
        assert message in result.stdout, result.stdout
    exported = target.with_name("exported.pth")
    assert convert(target, exported, "--to", "released").returncode == 0
    tensors = torch.load(exported, weights_only=True)["model"]
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())


def assert_refused(result, target, *messages):
    """Assert that nothing was written, and that the error is one line with these messages."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("smt: error: ")
    for message in messages:
        assert message in line, line
    assert not target.exists()
