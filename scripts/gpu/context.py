"""What every part of `run.py` gets: programs, folders, the device, and its time."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import machine
import process
from shapes import OPERATIONS, TINY_OPERATIONS, TINY_TRAINING, TRAINING


@dataclass
class Context:
    root: Path
    """The unpacked archive, or the repository."""
    programs: Path
    """The folder of the programs `favonius` and `kernels`."""
    assets: Path
    work: Path
    log: Path
    device: str
    """As `favonius --device` has it."""
    is_rehearsal: bool
    machine: machine.Machine
    deadline: float = 0.0
    """When the running part must end, on the monotonic clock."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def gpu(self) -> int | None:
        """The index of the GPU."""
        return None if self.is_rehearsal else int(self.device.partition(":")[2] or 0)

    @property
    def torch_device(self) -> str:
        return "cpu" if self.is_rehearsal else f"cuda:{self.gpu}"

    @property
    def operations(self):
        return TINY_OPERATIONS if self.is_rehearsal else OPERATIONS

    @property
    def training(self):
        return TINY_TRAINING if self.is_rehearsal else TRAINING

    def left(self, most: float = float("inf")) -> float:
        """Seconds that the part still has, at most `most`."""
        return min(most, self.deadline - time.monotonic())

    def run(self, command: list[str | Path], most: float = float("inf"),
            **environment: str) -> process.Finished:
        """Runs a program until the part's time is over, or for `most` seconds."""
        return process.run([str(word) for word in command], self.left(most), log=self.log,
                           environment=self.environment | environment, gpu=self.gpu)

    def favonius(self, *words: str | Path, most: float = float("inf"),
                 **environment: str) -> process.Finished:
        return self.run([self.programs / "favonius", *words], most, **environment)

    def python(self, script: str, *words: str, most: float = float("inf")) -> process.Finished:
        """Runs one of the scripts beside this file with this Python."""
        return self.run([sys.executable, self.root / "scripts" / script, *words], most)


def environment_of(work: Path) -> dict[str, str]:
    """Variables of all programs."""
    variables = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
                 "FAVONIUS_CACHE": str(work / "cache"), "RUST_BACKTRACE": "0"}
    if "CUDA_PATH" not in os.environ and (folder := machine.libdevice_folder()):
        variables["CUDA_PATH"] = folder
    return variables
