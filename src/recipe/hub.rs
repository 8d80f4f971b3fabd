//! The upload of the finished model: `push_to_hub` and the `hub_…` keys of transformers.

use std::fmt;

use serde::Serialize;

use super::choice::{Choice, choices};
use super::error::KeyPlace;
use super::reader::Reader;

/// The upload that `push_to_hub: true` asks for. Its target is `hub_model_id`, which the model card
/// reads too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PushToHub {
    /// `hub_private_repo`; `None` uses the default of the repository's owner.
    pub private: Option<bool>,
    /// `hub_revision`: the branch; `None` is `main`.
    pub revision: Option<String>,
    /// `hub_token`; `None` is the user's own token.
    #[serde(skip)]
    pub token: Option<HubToken>,
    /// The place of `push_to_hub` in the recipe.
    #[serde(skip)]
    pub asked_at: KeyPlace,
}

/// A secret token. No output of the program shows it.
#[derive(Clone, PartialEq)]
pub struct HubToken(pub String);

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

/// `hub_strategy`: when transformers uploads. Here the upload always comes at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strategy {
    End,
    EverySave,
    Checkpoint,
    AllCheckpoints,
}

choices!(Strategy {
    "end" => Strategy::End, "every_save" => Strategy::EverySave,
    "checkpoint" => Strategy::Checkpoint,
    "all_checkpoints" => Strategy::AllCheckpoints,
} unsupported []);

/// Reads all keys of the upload. Without `push_to_hub: true` they are checked but have no effect.
pub(super) fn read(r: &mut Reader) -> Option<PushToHub> {
    let push = r.flag("push_to_hub", false);
    let strategy = r.choice("hub_strategy", Strategy::End);
    let private = r.optional_flag("hub_private_repo");
    let revision = r.optional_text("hub_revision|hub_model_revision");
    let token = r.optional_text("hub_token|push_to_hub_token").map(HubToken);
    r.hide("hub_token");
    if !push {
        return None;
    }
    if strategy != Strategy::End {
        r.note(format!(
            "`hub_strategy: {}`: the model is uploaded once, at the end",
            strategy.word()
        ));
    }
    let asked_at = r.place_of("push_to_hub");
    Some(PushToHub { private, revision, token, asked_at })
}
