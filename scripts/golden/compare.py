"""Prints how much the golden files of two folders differ. If only rounding differs between the two,
this is the accuracy of the golden numbers.

usage: compare.py DIR DIR [NAME ...]

Prints one line per run with the largest relative differences of: rewards and margins; the same,
relative to at least 0.2; everything else, relative to at least 0.1 (mean logits 0.2); and the norms
of the weight changes.
"""
import glob
import json
import os
import sys


def relative(a, b, scale):
    return abs(a - b) / max(abs(a), abs(b), scale) if a != b else 0.0


def compare(one, other):
    rewards, scaled, rest, where = 0.0, 0.0, 0.0, ""
    assert [list(row) for row in one["log"]] == [list(row) for row in other["log"]]
    for row, same in zip(one["log"], other["log"]):
        for key, value in row.items():
            if "rewards/" in key:
                rewards = max(rewards, relative(value, same[key], 0.0))
                scaled = max(scaled, relative(value, same[key], 0.2))
            else:
                difference = relative(value, same[key], 0.2 if "logits/" in key else 0.1)
                rest, where = max((rest, where), (difference, f"{key} at {row['step']}"))
    moved = max(relative(one["weights"][name]["moved"], other["weights"][name]["moved"], 0.0) for name in one["weights"])
    return rewards, scaled, rest, where, moved


def main():
    left, right, *names = sys.argv[1:]
    names = names or [os.path.basename(path)[4:-5] for path in sorted(glob.glob(os.path.join(right, "trl_*.json")))]
    for name in names:
        files = [json.load(open(os.path.join(folder, f"trl_{name}.json"))) for folder in (left, right)]
        rewards, scaled, rest, where, moved = compare(*files)
        print(f"{name:24} rewards {rewards:.1e}  scaled {scaled:.1e}  else {rest:.1e} ({where})  moved {moved:.1e}")


if __name__ == "__main__":
    main()
