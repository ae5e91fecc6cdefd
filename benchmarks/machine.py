"""On what a benchmark ran: the line that every report begins with."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: str) -> str:
    """CPU, the GPU if device is "cuda", versions, and how busy the machine is now."""
    import torch  # not where peers without it are measured

    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    load = f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} CPUs when the measurement began"
    return f"{cpu_name()}{gpu}; torch {torch.__version__}; Python {platform.python_version()}; {load}"
