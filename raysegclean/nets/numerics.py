"""One place that fixes how numbers are computed, so that repeated work is bit for bit the same.

Bit equality is promised within a numeric class: the same device model, library builds and thread
count. `fix_numerics` sets what a process can set; `numeric_class` names the rest, for the run's
frozen record.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raysegclean.errors import UnfitEnvironment

__all__ = ["fix_numerics", "numeric_class", "numerics_put_back", "one_thread", "usable_gpu"]


def fix_numerics(threads: int = 1) -> None:
    """Fix the thread count, switch TF32 and autotuning off, and prefer deterministic kernels.

    Changes global state of torch: call it once at the start of a worker process. Operations that
    have no deterministic kernel (on CUDA only) warn and go on.
    """
    # cuBLAS reads this at its first use; without it deterministic matrix products are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nobody here reads memory that was not written, and filling it takes a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def numerics_put_back() -> Iterator[None]:
    """Put back afterwards the threads and the kernels that `fix_numerics` chooses inside."""
    threads, fixed = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(fixed, warn_only=warns)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, for work so small that threads would only wait."""
    with numerics_put_back():
        torch.set_num_threads(1)
        yield


def numeric_class(device: torch.device | str = "cpu", precision: str = "fp32") -> dict[str, str]:
    """Return what must be equal for two workers to give the same bits."""
    device = torch.device(device)
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
    else:
        model = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": model,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "precision": precision,
    }


def usable_gpu() -> str:
    """Return the device of a process that was given a GPU; raise UnfitEnvironment without one.

    On a CPU in its place the work would take days, at the price of the GPU.
    """
    if not torch.cuda.is_available():
        raise UnfitEnvironment(
            f"this worker was given a GPU that torch {torch.__version__} cannot use: it is a build "
            "for CPUs, or the driver is too old. Use the CUDA image, or set resources.train.gpus "
            "and resources.relabel.gpus to 0."
        )
    return "cuda"
