//! The seven tasks of the first Open LLM Leaderboard with their examples.

/// A task of the leaderboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// A task or a group.
    pub name: &'static str,
    pub num_fewshot: usize,
    /// The score in the definition `lm-eval`: metric and filter.
    pub lm_eval: (&'static str, &'static str),
    /// The score in the definition `leaderboard`.
    pub leaderboard: (&'static str, &'static str),
}

const fn entry(
    name: &'static str,
    num_fewshot: usize,
    lm_eval: (&'static str, &'static str),
    leaderboard: &'static str,
) -> Entry {
    Entry { name, num_fewshot, lm_eval, leaderboard: (leaderboard, "none") }
}

/// The order and the scores of a Zephyr card.
pub const ENTRIES: [Entry; 7] = [
    entry("arc_challenge", 25, ("acc_norm", "none"), "acc_norm"),
    entry("hellaswag", 10, ("acc_norm", "none"), "acc_norm"),
    entry("mmlu", 5, ("acc", "none"), "acc"),
    entry("truthfulqa_mc2", 0, ("acc", "none"), "mc2"),
    entry("winogrande", 5, ("acc", "none"), "acc"),
    entry("gsm8k", 5, ("exact_match", "strict-match"), "acc"),
    entry("drop", 3, ("f1", "none"), "f1"),
];
