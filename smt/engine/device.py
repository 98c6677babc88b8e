"""Which device a process trains on, and how exactly it computes there."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from smt.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")
"""What the kernel's NVIDIA driver says of itself, where there is one."""

_GPU_VARIABLES = {
    "SLURM_JOB_GPUS": (),
    "SLURM_STEP_GPUS": (),
    "SLURM_GPUS_ON_NODE": ("0",),
    "CUDA_VISIBLE_DEVICES": ("-1", "NoDevFiles"),
}
"""Variables that hold the GPUs that a process has been given; what in them stands for none."""

REMEDY = (
    "see there: nvidia-smi; then take a node with another driver or GPU (smt doctor looks at one), "
    "or install a torch that is built for this one"
)
"""What to do about a GPU that cannot be used."""


def choose(local_rank: int, *, half_precision: bool) -> torch.device:
    """Return the GPU of this process, by its number on its node; the CPU where there is none.

    A process sees its own GPU alone on some clusters.

    Raises:
        UserError: there is a GPU that this torch cannot use, or one was granted for a recipe in
            half precision and none is there: on the CPU it would take a hundred times as long.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        capability = torch.cuda.get_device_capability(device)
        if not supports(capability, torch.cuda.get_arch_list()):
            raise UserError(
                f"{torch.cuda.get_device_name(device)} has compute capability "
                f"{capability[0]}.{capability[1]}, and {_torch()} is built for "
                f"{', '.join(torch.cuda.get_arch_list())}; {REMEDY}"
            )
        return device
    grant = granted_gpus(os.environ)
    if grant and (half_precision or DRIVER.exists()):
        raise UserError(
            f"this process was given GPUs ({grant}), and {_torch()} can use none of them: "
            f"{_failure_reason()}; {REMEDY}"
        )
    return torch.device("cpu")


def granted_gpus(environment: Mapping[str, str]) -> str | None:
    """Return the variable that says that this process was given GPUs, and its value."""
    for name, none_values in _GPU_VARIABLES.items():
        value = environment.get(name, "").strip()
        if value and value not in none_values:
            return f"{name}={value}"
    return None


def supports(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Return whether code built for `architectures`, such as sm_80, runs on a GPU.

    Machine code (sm) runs on GPUs of its major version from its minor one on; intermediate code
    (compute) on all that are no older.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        same = built[0] == capability[0] or match[1] == "compute"
        if same and built <= capability:
            return True
    return False


def _torch() -> str:
    return f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"


def _failure_reason() -> str:
    """Return what torch says when it is asked for a GPU, and the driver that is there."""
    try:
        torch.cuda.init()
        reason = "it sees no device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
    version = driver()
    return f"{reason}; " + (f"driver {version}" if version else "this node has no NVIDIA driver")


def driver() -> str | None:
    """Return the version of the node's NVIDIA driver, or None where there is none."""
    try:
        match = re.search(r"\d+\.\d+(\.\d+)*", DRIVER.read_text())
    except OSError:
        return None
    return match[0] if match else "unknown"


def allow_tf32(allowed: bool) -> None:
    """Allow TF32: GPUs multiply float32 with 10 bits of mantissa.

    torch's own default is yes for convolutions and no for matrix products.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def make_deterministic(device: torch.device, threads: int) -> None:
    """Make a process with `threads` CPU threads bitwise reproducible, where torch can."""
    torch.backends.cudnn.benchmark = False
    # What cuBLAS asks for before it promises them; and no sums in NVLink's switches, whose order is
    # their own.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    # On one CPU thread there is one order to add in, whatever the algorithm.
    if device.type != "cpu" or threads > 1:
        use_deterministic_algorithms()


def use_deterministic_algorithms() -> None:
    """Ask torch for deterministic algorithms where there are any, and for a warning elsewhere.

    Without `fill_uninitialized_memory`, which helps to find code that reads memory before it writes
    it, and costs a part of every step.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
