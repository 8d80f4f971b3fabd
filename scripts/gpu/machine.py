"""What is known of the machine: GPU, driver, versions, and the GPU's published limits."""

import os
import platform
import re
import subprocess
import sysconfig
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Published rates of a GPU: dense FLOP/s and bytes/s."""

    bfloat16: float
    float32: float
    bandwidth: float

    def of(self, dtype: str) -> float:
        return self.bfloat16 if dtype == "bfloat16" else self.float32


# By parts of the name that nvidia-smi prints; the first that fits counts. From NVIDIA's data
# sheets. float32 is without tensor cores.
LIMITS = [
    ("H200", Limits(989.5e12, 67e12, 4.8e12)),
    ("GH200", Limits(989.5e12, 67e12, 4.0e12)),
    ("H100 PCIe", Limits(756.5e12, 51e12, 2.0e12)),
    ("H100 NVL", Limits(835.5e12, 60e12, 3.9e12)),
    ("H100", Limits(989.5e12, 67e12, 3.35e12)),
    ("B200", Limits(2250e12, 80e12, 8.0e12)),
    ("A100-SXM4-40GB", Limits(312e12, 19.5e12, 1.555e12)),
    ("A100-PCIE-40GB", Limits(312e12, 19.5e12, 1.555e12)),
    ("A100", Limits(312e12, 19.5e12, 2.039e12)),
    ("L40S", Limits(362e12, 91.6e12, 0.864e12)),
    ("4090", Limits(165.2e12, 82.6e12, 1.008e12)),
]


@dataclass(frozen=True)
class Machine:
    device: str
    memory: float
    """Bytes of the GPU's memory, 0 without a GPU."""
    driver: str
    cuda: str
    processors: int
    python: str
    versions: dict[str, str]

    @property
    def limits(self) -> Limits | None:
        """The published limits of the GPU, if it is in the table."""
        return next((limits for part, limits in LIMITS if part in self.device), None)

    def as_json(self) -> dict:
        return asdict(self)


def output(*command: str) -> str:
    """What a command prints; nothing if it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def describe(index: int | None) -> Machine:
    """The machine with the GPU of this index, or without a GPU."""
    cpus = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    common = dict(processors=cpus, python=platform.python_version(), versions=versions)
    if index is None:
        return Machine(device=processor(), memory=0.0, driver="none", cuda="none", **common)
    fields = output("nvidia-smi", f"--id={index}", "--query-gpu=name,memory.total,driver_version",
                    "--format=csv,noheader,nounits").strip().split(", ")
    if len(fields) != 3:
        raise SystemExit("nvidia-smi shows no GPU; `--rehearse` runs without one")
    cuda = re.search(r"CUDA[\w ]* Version: *([\d.]+)", output("nvidia-smi"))
    return Machine(device=fields[0], memory=float(fields[1]) * 2**20, driver=fields[2],
                   cuda=cuda[1] if cuda else "unknown", **common)


def libdevice_folder() -> str | None:
    """The folder of a CUDA toolkit with `nvvm/libdevice/libdevice.10.bc`, which CubeCL's compiler
    reads: CUDA_PATH, the usual places, and packages of Python."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places = [Path(os.environ.get("CUDA_PATH", "/usr/local/cuda")), Path("/usr/local/cuda"),
              Path("/opt/cuda"), *sorted(Path("/usr/local").glob("cuda-*")),
              *sorted(packages.glob("*"))]
    for place in places:
        if (place / "nvvm/libdevice/libdevice.10.bc").is_file():
            return str(place)
    return None
