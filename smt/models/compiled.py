"""Blocks of a network through torch.compile, one by one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from smt.errors import UserError, first_line
from smt.models.blocks import Block

_VARIANTS = 64
"""Of one function: kinds of blocks by forms of batches. By default torch stops compiling at 8."""


def compile_blocks(network: nn.Module) -> None:
    """Let torch.compile fuse the operations of each block; alike blocks are compiled once.

    Sizes are constants in the code: with variable ones, the code and so the last bits would depend
    on which sizes a process has seen before, and a resumed training has seen others.
    """
    torch._dynamo.config.recompile_limit = _VARIANTS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in network.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, fullgraph=True)


@contextmanager
def explained_compilation(recipe: str, file: str) -> Iterator[None]:
    """Turn an error of the compiler into a line on the recipe that asks for it.

    Raises:
        UserError: a block cannot be compiled: it breaks the graph, or no C++ compiler is there.
    """
    try:
        yield
    except TorchDynamoException as error:
        raise UserError(
            f"recipe {recipe}: compile: true: torch.compile fails: {first_line(error)}; install a "
            f"C++ compiler (apt-get install g++), or set compile: false in params/{file}"
        ) from None
