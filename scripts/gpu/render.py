#!/usr/bin/env python3
"""Writes benches/GPU.md from the results of a run on a GPU.

    scripts/gpu/render.py results/results.json [benches/GPU.md]

A rehearsal is refused.
"""

import json
import sys
from pathlib import Path

from results import document


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    result = json.loads(Path(sys.argv[1]).read_text())
    if result["is_rehearsal"]:
        sys.exit(f"{sys.argv[1]} is a rehearsal without a GPU")
    root = Path(__file__).resolve().parents[2]
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else root / "benches/GPU.md"
    target.write_text("\n".join(document(result)))
    print(target)


if __name__ == "__main__":
    main()
