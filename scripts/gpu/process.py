"""Runs programs with a time limit and watches their memory."""

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
    peak: float = 0.0
    """The most bytes in use: of the GPU, without those in use before; else of resident memory."""

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


class Memory:
    """Polls the memory in use of a GPU, through NVML; without a GPU the largest resident set of a
    process. What cannot be read counts as 0."""

    def __init__(self, gpu: int | None):
        self.handle = None
        self.pid = 0
        self.most = 0
        self.ends = threading.Event()
        self.is_gpu = gpu is not None
        if self.is_gpu:
            with contextlib.suppress(Exception):
                import pynvml

                pynvml.nvmlInit()
                self.nvml = pynvml
                self.handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        self.before = self.used()

    def used(self) -> int:
        if self.handle:
            return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)
        if self.is_gpu or not self.pid:
            return 0
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        return 0

    def watch(self, pid: int) -> None:
        """Polls in the background until `end`."""
        self.pid = pid
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self) -> None:
        while not self.ends.wait(POLL_SECONDS):
            self.most = max(self.most, self.used())

    def end(self) -> float:
        """The most bytes that were in use, without those of before."""
        self.ends.set()
        self.thread.join()
        return float(max(0, self.most - self.before))


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
    memory = Memory(gpu)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=os.environ | (environment or {}), start_new_session=True)
        memory.watch(process.pid)
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
            peak = memory.end()
    return Finished(code=process.returncode, seconds=time.monotonic() - started, is_late=is_late,
                    lines=lines, peak=peak)
