"""Makes preference pairs and models from a seed."""

import json
import math
import random
import re
import shutil
import sys
from pathlib import Path

from shapes import TrainingShape

sys.path.append(str(Path(__file__).resolve().parents[1]))
from synthetic_mistral_7b import write_model  # noqa: E402

SEED = 42
PROMPT_SPREAD, RESPONSE_SPREAD = 0.9, 0.7
"""Standard deviations of the logarithm of a length."""


def words_of(tokenizer: Path) -> list[str]:
    """Words that are one token each, in a fixed order."""
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(piece[1:] for piece in vocabulary if re.fullmatch("▁[a-z]{2,9}", piece))
    if not words:
        raise ValueError(f"{tokenizer}/tokenizer.json has no pieces such as `▁word`")
    return words


def length(generator: random.Random, median: int, spread: float, most: int) -> int:
    return max(2, min(most, round(median * math.exp(generator.gauss(0.0, spread)))))


def write_pairs(folder: Path, tokenizer: Path, shape: TrainingShape) -> Path:
    """Writes `train.jsonl` with random words as prompts and responses, and the number of tokens of
    prompt, chosen and rejected response with BOS and EOS. Returns the file."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    generator, words = random.Random(SEED), words_of(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "train.jsonl"

    def text(median: int, spread: float) -> str:
        count = length(generator, median, spread, shape.most_words)
        return "".join(f" {generator.choice(words)}" for _ in range(count))

    with file.open("w") as out:
        for _ in range(shape.pairs):
            prompt = text(shape.prompt_words, PROMPT_SPREAD).strip()
            chosen, rejected = (text(shape.response_words, RESPONSE_SPREAD) for _ in range(2))
            of_prompt = len(encode(prompt).ids)
            of_both = [len(encode(prompt + side).ids) for side in (chosen, rejected)]
            lengths = [count - of_prompt + 1 for count in of_both]
            row = dict(prompt=prompt, chosen=chosen, rejected=rejected,
                       tokens=[of_prompt, *lengths])
            out.write(json.dumps(row) + "\n")
    return file


def make_model(folder: Path, tokenizer: Path, config: dict) -> float:
    """Writes a model with random weights. Returns the bytes of its weights."""
    size, _ = write_model(folder, config)
    for file in tokenizer.iterdir():
        if file.name.startswith(("token", "special")):
            shutil.copyfile(file, folder / file.name)
    return float(size)
