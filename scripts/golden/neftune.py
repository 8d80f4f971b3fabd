"""The noise of NEFTune with the program's own values.

transformers draws the noise from torch's generator. Here the noise has the form and the scale of
transformers' hook, but value c of a token is (2 u - 1) * alpha / sqrt(L * d), where u are the
highest 24 bits of splitmix64(key + c) as a share. `key` depends on seed, step, row and token, as
in the program. The rows of a run are in order, and a step has one micro-batch.
"""
import numpy as np
import torch
from transformers.integrations import neftune

NAME = "model.embed_tokens.weight"
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(counter):
    z = counter + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def name_hash(name):
    """FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return np.uint64(value)


def noise(seed, step, first_row, shape):
    """Values in -1..1 for the padded rows of a micro-batch, [rows, tokens, width]."""
    rows, tokens, width = (np.arange(size, dtype=np.uint64) for size in shape)
    with np.errstate(over="ignore"):
        key = splitmix64(splitmix64(np.uint64([seed])) ^ np.uint64(step))
        key = splitmix64(key[:, None] ^ (rows + np.uint64(first_row))[None])[0]
        key = splitmix64(key[:, None] ^ tokens[None])
        key = splitmix64(key ^ name_hash(NAME))
        bits = splitmix64(key[:, :, None] + width[None, None]) >> np.uint64(40)
    return bits.astype(np.float64) / 2**24 * 2 - 1


def use_own_noise(seed):
    """Replaces the noise of transformers' hook."""
    steps = iter(range(10**9))

    def hook(module, inputs, output):
        if not module.training:
            return output
        step, (rows, length, width) = next(steps), output.shape
        bound = module.neftune_noise_alpha / np.sqrt(float(length * width))
        values = noise(seed, step, step * rows, output.shape) * bound
        return output + torch.from_numpy(values).to(output.dtype)

    neftune.neftune_post_forward_hook = hook
