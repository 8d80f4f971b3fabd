"""Rows of the result, and the tables that show them."""

from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    """One number of Favonius, with torch's for the same if torch has one."""

    what: str
    unit: str = ""
    ours: float | None = None
    torch: float | None = None
    faster: float | None = None
    """How many times as fast as torch, or as small."""
    share: float | None = None
    """The share of the GPU's limit that Favonius reaches, and torch."""
    torch_share: float | None = None
    goal: str = ""
    is_met: bool | None = None
    """Whether the goal is met; none without a goal or without a number."""
    note: str = ""


@dataclass
class PartResult:
    name: str
    title: str
    limit: float
    seconds: float = 0.0
    state: str = "done"
    """`done`, `failed` (with a message) or `left out`."""
    message: str = ""
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "PartResult":
        return cls(**value | {"rows": [Row(**row) for row in value["rows"]]})


def number(value: float | None, unit: str = "") -> str:
    """A number with four digits, large ones with separators."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def line(row: Row) -> str:
    verdict = {True: f"{row.goal}: met", False: f"{row.goal}: missed", None: row.goal}[row.is_met]
    faster = "" if row.faster is None else f"{row.faster:.2f} ×"
    cells = [row.what, number(row.ours, row.unit), number(row.torch, row.unit), faster,
             percent(row.share), percent(row.torch_share), verdict, row.note]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


HEADING = ["| measurement | Favonius | torch | Favonius against torch | of the limit | torch's | "
           "goal | note |", "|---|---|---|---|---|---|---|---|"]


def table(part: PartResult) -> list[str]:
    """A part as Markdown."""
    lines = [f"## {part.title}", "", f"{part.seconds:.0f} s of at most {part.limit:.0f} s."]
    if part.message:
        lines += ["", f"**{part.state}**: {part.message}"]
    if part.rows:
        lines += ["", *HEADING, *map(line, part.rows)]
    return [*lines, ""]


def document(result: dict) -> list[str]:
    """All results as Markdown."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    kind = "A rehearsal without a GPU: no number means anything. " if result["is_rehearsal"] else ""
    lines = [
        "# Favonius on a GPU", "",
        f"{kind}Made by `scripts/gpu/run.py` on {result['date']}. Commit {result['commit']}, "
        f"profile `{result['profile']}`.", "",
        f"{machine['device']}, {machine['memory'] / 2**30:.0f} GiB; driver {machine['driver']}, "
        f"CUDA {machine['cuda']}; {machine['processors']} processors; Python {machine['python']}, "
        f"{versions}.", "",
        "The limit is the larger of two times: FLOPs that the mathematics needs over the GPU's "
        "dense rate in the data sheet, and bytes of inputs and outputs over its bandwidth. "
        "Recomputation and padding are not counted.", ""]
    for part in result["parts"]:
        lines += table(PartResult.from_json(part))
    return lines
