//! The upload of a finished run.

use std::io;
use std::path::Path;

use serde_json::json;

use super::error::RunError;
use super::mark;
use super::shell::quoted;
use crate::hub::{self, AccessError, Destination, UploadError};
use crate::parallel::Ranks;
use crate::recipe::Recipe;
use crate::train::event::{Event, Observer};

/// The commit's message, that of transformers.
const MESSAGE: &str = "End of training";

/// A finished model that did not get to the hub.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model is in {folder}, but it could not be uploaded to {id}: {reason}\nhelp: `{command}` uploads it"
)]
pub struct NotUploaded {
    folder: String,
    id: String,
    reason: String,
    command: String,
}

/// Whether the recipe wants an upload that has not been made.
pub fn is_pending(recipe: &Recipe) -> bool {
    let Some(push) = &recipe.train.push_to_hub else { return false };
    let uploaded = &mark::read_mark(recipe.output_dir())["hub"];
    let Some(id) = uploaded["id"].as_str().filter(|_| uploaded["uploaded"] == true) else {
        return true;
    };
    let wanted = wanted_id(recipe);
    let same_id = id == wanted || id.split_once('/').is_some_and(|(_, name)| name == wanted);
    !same_id || uploaded["revision"].as_str() != push.revision.as_deref()
}

/// Where the recipe's model goes: made sure of before anything is prepared.
///
/// # Errors
/// The recipe's, with its line, where there is no token or it may not write there; the network's.
pub fn destination(recipe: &Recipe) -> Result<Option<Destination>, RunError> {
    let Some(push) = &recipe.train.push_to_hub else { return Ok(None) };
    let token = token(recipe);
    let opened =
        hub::open(token.as_deref(), &wanted_id(recipe), push.private, push.revision.as_deref());
    opened.map(Some).map_err(|error| match error {
        AccessError::Failed { .. } => RunError::HubNotReached { reason: error.to_string() },
        error => {
            let help = error.help().unwrap_or("correct the recipe");
            let help = format!(
                "{help}; `push_to_hub: false` trains without it, and `favonius push` uploads a \
                 finished run later"
            );
            let error = push.asked_at.error(format!("`push_to_hub`: {error}"), Some(help));
            RunError::Recipe(error.into())
        }
    })
}

/// `hub_model_id`, or as in transformers the name of `output_dir`.
fn wanted_id(recipe: &Recipe) -> String {
    let named = recipe.train.hub_model_id.clone();
    named.unwrap_or_else(|| folder_name(recipe.output_dir()))
}

/// The last part of a folder's absolute path.
pub fn folder_name(folder: &Path) -> String {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn token(recipe: &Recipe) -> Option<String> {
    let push = recipe.train.push_to_hub.as_ref();
    push.and_then(|push| push.token.as_ref()).map(|token| token.0.clone()).or_else(hub::token)
}

/// Uploads what a finished run left, from rank 0. Returns what went wrong, on all ranks.
///
/// # Errors
/// The observer's.
pub fn at_the_end(
    recipe: &Recipe,
    destination: &Destination,
    observer: &mut dyn Observer,
    ranks: &Ranks,
) -> Result<Option<NotUploaded>, RunError> {
    let folder = recipe.output_dir();
    ranks.at_work(|| "uploading the model".into());
    let failed = ranks.decide("the upload", || {
        let text = format!("uploading {} to {}", folder.display(), destination.url);
        observer.on(&Event::Message(&text))?;
        let token = token(recipe).unwrap_or_default();
        let uploaded = upload(folder, destination, &token);
        Ok::<_, RunError>(uploaded.err().map(|error| error.to_string()))
    })?;
    let Some(reason) = failed else {
        observer.on(&Event::Message("the model is on the hub"))?;
        return Ok(None);
    };
    Ok(Some(NotUploaded {
        folder: folder.display().to_string(),
        id: destination.id.clone(),
        reason,
        command: command(folder, destination),
    }))
}

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadRunError {
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error(transparent)]
    Mark(#[from] io::Error),
}

/// Uploads a run and notes it in the run's mark: `favonius push` reads there where the run wanted to go, and a run that
/// is started again whether it is there.
///
/// # Errors
/// The hub's, or the mark cannot be written.
pub fn upload(folder: &Path, destination: &Destination, token: &str) -> Result<(), UploadRunError> {
    note(folder, destination, None)?;
    let commit = hub::upload(folder, destination, token, MESSAGE)?;
    Ok(note(folder, destination, Some(commit))?)
}

/// `commit` is there where the upload was made.
fn note(
    folder: &Path,
    destination: &Destination,
    commit: Option<Option<String>>,
) -> io::Result<()> {
    let Destination { id, private, revision, .. } = destination;
    let mut mark = mark::read_mark(folder);
    mark["hub"] = json!({
        "id": id,
        "private": private,
        "revision": revision,
        "uploaded": commit.is_some(),
        "commit": commit.flatten(),
    });
    mark::write_mark(folder, &mark)
}

/// The command line that uploads the run later.
fn command(folder: &Path, destination: &Destination) -> String {
    let mut words =
        vec!["favonius".to_owned(), "push".to_owned(), quoted(&folder.display().to_string())];
    words.push(format!("--to {}", destination.id));
    if destination.private == Some(true) {
        words.push("--private".to_owned());
    }
    if let Some(revision) = &destination.revision {
        words.push(format!("--revision {}", quoted(revision)));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_later_is_one_that_a_shell_understands() {
        let mut destination =
            Destination { id: "me/mine".into(), private: None, revision: None, url: String::new() };
        assert_eq!(
            command(Path::new("out/dpo"), &destination),
            "favonius push out/dpo --to me/mine"
        );
        destination.private = Some(true);
        destination.revision = Some("v1".into());
        assert_eq!(
            command(Path::new("it's here"), &destination),
            r"favonius push 'it'\''s here' --to me/mine --private --revision v1"
        );
    }
}
