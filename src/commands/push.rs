//! `favonius push`: uploads a finished run to the hub.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::ending::Ending;
use crate::hub;
use crate::report::screen::Screen;
use crate::run::mark;
use crate::run::upload::{folder_name, upload};

#[derive(Debug, Args)]
pub struct PushArguments {
    /// The `output_dir` of a finished run
    run: PathBuf,
    /// The repository, as `owner/name`, or as `name` in your own account; by default that of the
    /// recipe, else the folder's name
    #[arg(long, value_name = "OWNER/NAME")]
    to: Option<String>,
    /// Create a private repository, if it does not exist yet
    #[arg(long)]
    private: bool,
    /// The branch; by default that of the recipe, else main
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
}

/// Uploads the model, tokenizer, record and card of a run.
pub fn run(arguments: &PushArguments) -> anyhow::Result<Ending> {
    let folder = &arguments.run;
    if !mark::is_finished(folder) {
        bail!("{} holds no finished run", folder.display());
    }
    let noted = &mark::read_mark(folder)["hub"];
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let id = arguments.to.clone().or_else(|| text(&noted["id"]));
    let id = id.unwrap_or_else(|| folder_name(folder));
    let private = if arguments.private { Some(true) } else { noted["private"].as_bool() };
    let revision = arguments.revision.clone().or_else(|| text(&noted["revision"]));
    let token = hub::token();
    let opened = hub::open(token.as_deref(), &id, private, revision.as_deref());
    let destination = opened.map_err(|error| match error.help() {
        Some(help) => anyhow::anyhow!("{error}\nhelp: {help}"),
        None => error.into(),
    })?;
    let screen = Screen::detect(true);
    screen.line(&format!("uploading {} to {}", folder.display(), destination.url))?;
    upload(folder, &destination, &token.unwrap_or_default())
        .with_context(|| format!("{} could not be uploaded", folder.display()))?;
    screen.line("the model is on the hub")?;
    Ok(Ending::Done)
}
