//! The kinds of training.

use serde::{Deserialize, Serialize};

use super::choice::{Choice, choices};

/// The kind of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Supervised fine-tuning on chats.
    Sft,
    /// Direct preference optimization on pairs, with all losses of its family.
    Dpo,
    /// Odds-ratio preference optimization on pairs, without a reference.
    Orpo,
    /// Contrastive preference optimization and SimPO on pairs, without a reference.
    Cpo,
    /// Triple preference optimization on pairs with a gold response, without a reference model.
    Tpo,
    /// Kahneman-Tversky optimization on single responses with a label.
    Kto,
}

choices!(Stage {
    "sft" => Stage::Sft, "dpo" => Stage::Dpo, "orpo" => Stage::Orpo, "cpo" => Stage::Cpo,
    "tpo" => Stage::Tpo, "kto" => Stage::Kto,
} unsupported ["simpo", "reward", "rm", "grpo", "rloo", "ppo"]);

impl Stage {
    /// All stages, the most common ones first.
    pub const ALL: [Stage; 6] =
        [Stage::Sft, Stage::Dpo, Stage::Orpo, Stage::Cpo, Stage::Tpo, Stage::Kto];

    /// Its subcommand.
    pub fn command(self) -> &'static str {
        self.word()
    }

    /// Its name in prose.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Sft => "SFT",
            Stage::Dpo => "DPO",
            Stage::Orpo => "ORPO",
            Stage::Cpo => "CPO",
            Stage::Tpo => "TPO",
            Stage::Kto => "KTO",
        }
    }

    /// The stage of a subcommand.
    pub fn of_command(word: &str) -> Option<Stage> {
        Stage::from_word(word)
    }
}
