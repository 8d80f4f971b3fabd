"""Rows for the golden runs of TPO: short pairs with a gold response.

usage: triples.py ASSETS DIR

Writes DIR/train.jsonl and DIR/test.jsonl with the columns chosen, rejected and reference, three
chats with the same prompt. No data set of the assets has three responses to one prompt, so the gold
response is the chosen response of the next pair. TRL's numbers do not depend on its quality.
"""
import glob
import json
import os
import sys

ROWS = {"train": 40, "test": 16}
# Letters of prompt and responses.
SHORT = 420


def short_pairs(assets, split):
    from datasets import load_dataset
    [file] = glob.glob(os.path.join(assets, f"data/ultrafeedback_binarized_like/data/{split}_prefs-*.parquet"))
    for row in load_dataset("parquet", data_files=file, split="train"):
        texts = [turn["content"] for turn in row["chosen"] + row["rejected"][-1:]]
        if len(row["chosen"]) == 2 and sum(map(len, texts)) < SHORT and row["chosen"] != row["rejected"]:
            yield row["chosen"], row["rejected"]


def main():
    assets, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    for split, count in ROWS.items():
        pairs = [pair for pair, _ in zip(short_pairs(assets, split), range(count + 1))]
        assert len(pairs) == count + 1, f"{split} has only {len(pairs)} short pairs"
        with open(os.path.join(folder, f"{split}.jsonl"), "w") as file:
            for (chosen, rejected), (following, _) in zip(pairs, pairs[1:]):
                row = dict(chosen=chosen, rejected=rejected, reference=chosen[:-1] + following[-1:])
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
