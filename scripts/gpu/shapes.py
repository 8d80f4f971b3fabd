"""Sizes of the measured models and operations: those of Mistral-7B, and tiny ones with which
`run.py --rehearse` tries everything without a GPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OperationShape:
    """The sizes of `crates/kernels/examples/operations_on_gpu/setting.rs`."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    sequence: int
    scored: int
    token_counts: tuple[int, ...]


@dataclass(frozen=True)
class TrainingShape:
    """A model, its rows, and the steps that are measured."""

    config: dict
    tokenizer: str
    """The folder of the tokenizer, below the assets."""
    prompt_words: int
    """Median number of words of a prompt, and below, of a response."""
    response_words: int
    most_words: int
    max_length: int
    micro_batch: int
    """Pairs of a micro-batch."""
    accumulation: int
    steps: int
    lora_r: int

    @property
    def pairs_a_step(self) -> int:
        return self.micro_batch * self.accumulation

    @property
    def pairs(self) -> int:
        return self.pairs_a_step * self.steps


OPERATIONS = OperationShape(4096, 32, 8, 128, 14336, 32000, 1024, 1024, (4096, 8192))
TINY_OPERATIONS = OperationShape(32, 4, 2, 8, 64, 97, 24, 16, (48, 96))

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
# Lengths as in UltraFeedback: prompts of some 150 tokens, responses of some 250, a few much longer.
TRAINING = TrainingShape(
    config=MISTRAL_7B, tokenizer="tokenizers/mistral-7b-v0.1", prompt_words=110,
    response_words=220, most_words=480, max_length=1024, micro_batch=8, accumulation=2, steps=5,
    lora_r=16)
TINY_TRAINING = TrainingShape(
    config=MISTRAL_7B | {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2},
    tokenizer="models/stories260k", prompt_words=4, response_words=5, most_words=12,
    max_length=128, micro_batch=2, accumulation=1, steps=2, lora_r=4)
