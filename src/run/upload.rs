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

/// The message of the commit, as transformers has it.
const MESSAGE: &str = "End of training";

/// A finished model whose upload to the hub failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model is in {folder}, but it could not be uploaded to {id}: {reason}\n\
     help: `{command}` uploads it"
)]
pub struct NotUploaded {
    folder: String,
    id: String,
    reason: String,
    command: String,
}

/// Whether the recipe asks for an upload that is not done yet.
pub fn is_pending(recipe: &Recipe) -> bool {
    let Some(push) = &recipe.train.push_to_hub else { return false };
    let uploaded = &mark::read_mark(recipe.output_dir())["hub"];
    let Some(id) = uploaded["id"].as_str().filter(|_| uploaded["uploaded"] == true) else {
        return true;
    };
    let given = repository_id(recipe);
    let same_id = id == given || id.split_once('/').is_some_and(|(_, name)| name == given);
    !same_id || uploaded["revision"].as_str() != push.revision.as_deref()
}

/// The repository for the recipe's model; `None` without `push_to_hub`. The repository is created
/// if it does not exist, and the token is checked, so that a run does not fail at its end.
///
/// # Errors
/// [`RunError::Recipe`] with the line of `push_to_hub` if no token exists or the token does not
/// allow the upload; [`RunError::HubNotReached`].
pub fn destination(recipe: &Recipe) -> Result<Option<Destination>, RunError> {
    let Some(push) = &recipe.train.push_to_hub else { return Ok(None) };
    let token = token(recipe);
    let destination =
        hub::open(token.as_deref(), &repository_id(recipe), push.private, push.revision.as_deref());
    destination.map(Some).map_err(|error| match error {
        AccessError::Failed { .. } => RunError::HubNotReached { reason: error.to_string() },
        error => {
            let help = error.help().unwrap_or("correct the recipe");
            let help = format!(
                "{help}; `push_to_hub: false` trains without it, and `favonius push` uploads a \
                 finished run later"
            );
            let error = push.asked_at.error(format!("`push_to_hub`: {error}"), Some(help));
            RunError::Recipe(error)
        }
    })
}

/// The repository's id: `hub_model_id` or, as in transformers, the name of `output_dir`.
fn repository_id(recipe: &Recipe) -> String {
    let given = recipe.train.hub_model_id.clone();
    given.unwrap_or_else(|| folder_name(recipe.output_dir()))
}

/// The last part of a folder's absolute path.
pub fn folder_name(folder: &Path) -> String {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The access token: the recipe's, or that of the environment.
fn token(recipe: &Recipe) -> Option<String> {
    let push = recipe.train.push_to_hub.as_ref();
    push.and_then(|push| push.token.as_ref()).map(|token| token.0.clone()).or_else(hub::token)
}

/// Uploads a finished run from rank 0. Returns on all ranks why the upload failed, if it did.
///
/// # Errors
/// An observer failed.
pub fn upload_run(
    recipe: &Recipe,
    destination: &Destination,
    observer: &mut dyn Observer,
    ranks: &Ranks,
) -> Result<Option<NotUploaded>, RunError> {
    let folder = recipe.output_dir();
    ranks.at_work(|| "uploading the model".into());
    let failure = ranks.decide("the upload", || {
        let text = format!("uploading {} to {}", folder.display(), destination.url);
        observer.on(&Event::Message(&text))?;
        let token = token(recipe).unwrap_or_default();
        let uploaded = upload(folder, destination, &token);
        Ok::<_, RunError>(uploaded.err().map(|error| error.to_string()))
    })?;
    let Some(reason) = failure else {
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

/// Uploads the run in `folder` and records the upload in the run's mark. `favonius push` reads the
/// destination there, and a run that is started again reads whether it was uploaded.
///
/// # Errors
/// The upload fails, or the mark cannot be written.
pub fn upload(folder: &Path, destination: &Destination, token: &str) -> Result<(), UploadRunError> {
    record(folder, destination, None)?;
    let commit = hub::upload(folder, destination, token, MESSAGE)?;
    Ok(record(folder, destination, Some(commit))?)
}

/// Records the destination in the run's mark. `commit` is `None` before the upload; after it, it
/// holds the commit that the hub names, if it names one.
fn record(
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

/// The command that uploads the run later.
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
    fn the_command_for_a_later_upload_is_quoted_for_the_shell() {
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
