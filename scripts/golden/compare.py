"""How much the golden files of two folders differ, which is how well their numbers are determined.

usage: compare.py DIR DIR [NAME ...]

One line per run: the largest relative difference of rewards and margins, of the same on a scale of at least 0.2, of everything else
(on a scale of at least 0.1; mean logits 0.2), and of the norms of how far the weights moved.
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
