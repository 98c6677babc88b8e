"""What an exchange between processes may end in: the loss of another, or a set-up that cannot work.

NCCL needs GPUs; its words here are those of its sources and of public reports.
"""

import pytest
import torch.distributed as dist

from smt.engine import distributed
from smt.errors import TrainingError

LOST = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
    "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error, "
    "NCCL version 2.28.9\nncclRemoteError: A call failed possibly due to a network error or a "
    "remote process exiting prematurely.",
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for "
    "600029 milliseconds before timing out.",
)
CANNOT = {
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


@pytest.mark.parametrize("words", LOST)
def test_a_lost_process_is_told_from_other_errors(words):
    error = dist.DistBackendError(words)
    assert distributed.is_loss_of_peer(error)
    distributed.refuse_misconfiguration(error)  # raises nothing


@pytest.mark.parametrize("words", CANNOT)
def test_a_set_up_in_which_nccl_cannot_work_is_a_failure_in_one_line(words):
    """It would come to the same end in each of fifty attempts."""
    error = dist.DistBackendError(words)
    assert not distributed.is_loss_of_peer(error)
    with pytest.raises(TrainingError) as raised:
        distributed.refuse_misconfiguration(error)
    message = str(raised.value)
    assert CANNOT[words] in message and "\n" not in message and "NCCL_DEBUG=INFO" in message


def test_an_error_of_ones_own_is_neither():
    error = RuntimeError("No space left on device")
    assert not distributed.is_loss_of_peer(error)
    distributed.refuse_misconfiguration(error)
