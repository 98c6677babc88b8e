"""Errors of collective operations: the loss of a peer, or a misconfiguration of NCCL.

NCCL needs GPUs; its messages here are those of its sources and of public reports.
"""

import pytest
import torch.distributed as dist

from smt.engine import distributed
from smt.errors import TrainingError

PEER_FAILURES = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
    "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error, "
    "NCCL version 2.28.9\nncclRemoteError: A call failed possibly due to a network error or a "
    "remote process exiting prematurely.",
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for "
    "600029 milliseconds before timing out.",
)
MISCONFIGURATIONS = {
    "NCCL error in: NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL "
    "version 2.28.9\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast "
    "error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000":
        "Duplicate GPU detected : rank 1 and rank 0",
    "NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled system error, NCCL version 2.28.9\n"
    "ncclSystemError: System call failed or device error.\nLast error:\nError while creating "
    "shared memory segment /dev/shm/nccl-nFeKDg (size 9637888), error: No space left on device "
    "(28)": "No space left on device (28)",
    "NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled cuda error\nncclUnhandledCudaError: Call "
    "to CUDA function failed.\nLast error:\nCuda failure 'out of memory'":
        "Cuda failure 'out of memory'",
}  # fmt: skip


@pytest.mark.parametrize("torch_message", PEER_FAILURES)
def test_the_loss_of_a_peer_is_recognised(torch_message):
    error = dist.DistBackendError(torch_message)
    assert distributed.is_loss_of_peer(error)
    distributed.refuse_misconfiguration(error)  # raises nothing


@pytest.mark.parametrize("torch_message", MISCONFIGURATIONS)
def test_an_nccl_misconfiguration_is_one_line(torch_message):
    """Requeueing would not help: every attempt would fail alike."""
    error = dist.DistBackendError(torch_message)
    assert not distributed.is_loss_of_peer(error)
    with pytest.raises(TrainingError) as caught:
        distributed.refuse_misconfiguration(error)
    message = str(caught.value)
    assert (
        MISCONFIGURATIONS[torch_message] in message
        and "\n" not in message
        and "NCCL_DEBUG=INFO" in message
    )


def test_another_error_is_neither_a_lost_peer_nor_a_misconfiguration():
    error = RuntimeError("No space left on device")
    assert not distributed.is_loss_of_peer(error)
    distributed.refuse_misconfiguration(error)
