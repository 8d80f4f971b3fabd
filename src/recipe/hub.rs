//! Where the finished model is uploaded to: `push_to_hub` and the `hub_…` keys of transformers.

use std::fmt;

use serde::Serialize;

use super::choice::{Choice, choices};
use super::error::KeyPlace;
use super::reader::Reader;

/// The upload that `push_to_hub: true` asks for. Where it goes is `hub_model_id`, which the model's card reads too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PushToHub {
    /// `hub_private_repo`; `None` is as the owner's repositories are.
    pub private: Option<bool>,
    /// `hub_revision`: the branch; `None` is `main`.
    pub revision: Option<String>,
    /// `hub_token`; `None` is the user's own.
    #[serde(skip)]
    pub token: Option<HubToken>,
    /// The line that asks for it.
    #[serde(skip)]
    pub asked_at: KeyPlace,
}

/// A secret: it is in no output of the program.
#[derive(Clone, PartialEq)]
pub struct HubToken(pub String);

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

/// When transformers uploads; here it is always the end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strategy {
    End,
    EverySave,
    Checkpoint,
    AllCheckpoints,
}

choices!(Strategy {
    "end" => Strategy::End, "every_save" => Strategy::EverySave, "checkpoint" => Strategy::Checkpoint,
    "all_checkpoints" => Strategy::AllCheckpoints,
} unsupported []);

/// Reads all keys of the upload. They are checked without `push_to_hub` too, and mean nothing then.
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
