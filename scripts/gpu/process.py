"""Runs programs with a time limit and watches the memory of the GPU meanwhile."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.05


@dataclass
class Finished:
    """A program that ended or was ended."""

    code: int
    """The exit code, negative for a signal."""
    seconds: float
    is_late: bool
    """Whether it was ended at its limit."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """Lines of both outputs, with seconds since the start."""
    gpu_bytes: float = 0.0
    """The most memory of the GPU that was in use, without what was in use before."""

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def trouble(self, lines: int = 6) -> str:
        """Why the program failed, with its last lines; nothing if it did not fail."""
        if self.code == 0:
            return ""
        why = "stopped at its limit" if self.is_late else f"exit code {self.code}"
        last = " / ".join(line.strip() for _, line in self.lines[-lines:] if line.strip())
        return f"{why} after {self.seconds:.0f} s: {last[-600:]}"


class GpuMemory:
    """Polls the memory in use of a GPU, through NVML. Without NVML or a GPU it reports 0."""

    def __init__(self, index: int | None):
        self.handle = None
        self.most = self.before = 0
        self.ends = threading.Event()
        if index is not None:
            with contextlib.suppress(Exception):
                import pynvml

                pynvml.nvmlInit()
                self.nvml = pynvml
                self.handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def used(self) -> int:
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used) if self.handle else 0

    def __enter__(self) -> "GpuMemory":
        self.before = self.most = self.used()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ends.wait(POLL_SECONDS):
            self.most = max(self.most, self.used())

    def __exit__(self, *_) -> None:
        self.ends.set()
        self.thread.join()

    @property
    def bytes(self) -> float:
        return float(self.most - self.before)


def end_group(process: subprocess.Popen) -> None:
    """Ends a program and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def read_lines(stream: IO[str], started: float, lines: list[tuple[float, str]],
               log: IO[str]) -> None:
    for line in stream:
        at = time.monotonic() - started
        lines.append((at, line.rstrip("\n")))
        log.write(f"{at:8.2f} {line}")
        log.flush()


def run(command: list[str], limit: float, *, log: Path, environment: dict[str, str] | None = None,
        gpu: int | None = None) -> Finished:
    """Runs a program for at most `limit` seconds. Its output goes to the file `log` too."""
    if limit <= 0:
        return Finished(code=-signal.SIGKILL, seconds=0.0, is_late=True)
    started = time.monotonic()
    lines: list[tuple[float, str]] = []
    with GpuMemory(gpu) as memory, log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=os.environ | (environment or {}), start_new_session=True)
        reader = threading.Thread(target=read_lines, args=(process.stdout, started, lines, file))
        reader.start()
        is_late = False
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            end_group(process)
            process.wait()
            reader.join()
    return Finished(code=process.returncode, seconds=time.monotonic() - started, is_late=is_late,
                    lines=lines, gpu_bytes=memory.bytes)
