//! Who we are on the hub, and whether we may write to a repository: asked before hours are spent on what goes there.
//!
//! The library (hf-hub) has no call for two of these questions: its `whoami` leaves out what the token may do, and it
//! makes a repository public where nothing was said, over the head of an organization whose repositories are private.
//! So these few requests are our own.

use std::time::Duration;

use hf_hub::{HFClientSync, HFError, split_id};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::environment::{client, is_offline, with_cause};

/// How often a repository is asked for while the hub is busy with another one of the same owner.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// A model repository that is there and that we may write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `owner/name`.
    pub id: String,
    /// Whether it was to be private when it was made; `None` is as its owner has it.
    pub private: Option<bool>,
    /// The branch; `None` is `main`.
    pub revision: Option<String>,
    /// Where a browser finds it.
    pub url: String,
}

/// Why nothing can be written to the hub.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("HF_HUB_OFFLINE is set, so nothing can be uploaded")]
    Offline,
    #[error("an upload needs a token of the hub, and there is none")]
    NoToken,
    #[error("the hub refuses the token: {answer}")]
    Refused { answer: String },
    #[error("the token of `{user}` may only read")]
    ReadOnly { user: String },
    #[error("`{user}` may not write to `{id}` on the hub: {answer}")]
    NotAllowed { user: String, id: String, answer: String },
    #[error("`{id}` is no name of a repository on the hub")]
    BadName { id: String },
    #[error("the hub cannot be asked about `{id}`: {answer}")]
    Failed { id: String, answer: String },
}

impl AccessError {
    /// What to do about it; `None` where only the hub can do something.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            AccessError::Offline => Some("unset HF_HUB_OFFLINE"),
            AccessError::NoToken => Some("set HF_TOKEN or run `hf auth login`"),
            AccessError::Refused { .. } => {
                Some("set HF_TOKEN to a token that is valid, or run `hf auth login`")
            }
            AccessError::ReadOnly { .. } => {
                Some("make a token with write access in the settings of your account")
            }
            AccessError::NotAllowed { .. } => {
                Some("name a repository of yours, or use a token that may write there")
            }
            AccessError::BadName { .. } => {
                Some("write `owner/name` or `name`: letters, digits, `-`, `_`, `.`")
            }
            AccessError::Failed { .. } => None,
        }
    }
}

/// Whether `id` is `owner/name` or `name` by the hub's rules.
pub fn is_repository_name(id: &str) -> bool {
    let is_word = |part: &str| {
        let edge = |c: char| c == '-' || c == '.';
        !part.is_empty()
            && !part.starts_with(edge)
            && !part.ends_with(edge)
            && !part.contains("--")
            && !part.contains("..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (owner, name) = split_id(id);
    id.len() <= 96 && (!id.contains('/') || is_word(owner)) && is_word(name)
}

/// Makes sure that `token` may write to the repository `id`, and makes it (and its branch `revision`) where it is not
/// there. An `id` without an owner is in the account of the token's user.
///
/// # Errors
/// There is no token, it may not write there, or the hub cannot be reached.
pub fn open(
    token: Option<&str>,
    id: &str,
    private: Option<bool>,
    revision: Option<&str>,
) -> Result<Destination, AccessError> {
    if is_offline() {
        return Err(AccessError::Offline);
    }
    let token = token.ok_or(AccessError::NoToken)?;
    if !is_repository_name(id) {
        return Err(AccessError::BadName { id: id.to_owned() });
    }
    let account = Account::sign_in(token, id)?;
    let id = match id.contains('/') {
        true => id.to_owned(),
        false => format!("{}/{id}", account.user),
    };
    account.make_repository(&id, private)?;
    if let Some(revision) = revision {
        account.make_branch(&id, revision)?;
    }
    let url = format!("{}/{id}", account.endpoint);
    Ok(Destination { id, private, revision: revision.map(ToOwned::to_owned), url })
}

/// A user of the hub who said who they are.
struct Account {
    http: Client,
    client: HFClientSync,
    endpoint: String,
    token: String,
    user: String,
}

/// What the hub tells of a token.
#[derive(Deserialize)]
struct WhoAmI {
    name: String,
    #[serde(default)]
    auth: Value,
}

impl Account {
    fn sign_in(token: &str, id: &str) -> Result<Self, AccessError> {
        let client = client(Some(token)).map_err(|error| failed(id, &error))?;
        let endpoint = client.endpoint().to_owned();
        let client = HFClientSync::from_inner(client).map_err(|error| failed(id, &error))?;
        let http = Client::builder().user_agent(concat!("favonius/", env!("CARGO_PKG_VERSION")));
        let http = http.build().map_err(|error| failed(id, &error))?;
        let user = String::new();
        let mut account = Account { http, client, endpoint, token: token.to_owned(), user };
        let response = account.send(id, account.http.get(account.url("whoami-v2")))?;
        if matches!(response.status().as_u16(), 401 | 403) {
            return Err(AccessError::Refused { answer: answer(response) });
        }
        let whoami: WhoAmI = match response.status().is_success() {
            true => response.json().map_err(|error| failed(id, &error))?,
            false => return Err(AccessError::Failed { id: id.into(), answer: answer(response) }),
        };
        account.user = whoami.name;
        if whoami.auth["accessToken"]["role"] == "read" {
            return Err(AccessError::ReadOnly { user: account.user });
        }
        Ok(account)
    }

    /// Makes the repository where it is not there. Who may not make one may still write to one that is there.
    fn make_repository(&self, id: &str, private: Option<bool>) -> Result<(), AccessError> {
        let (owner, name) = split_id(id);
        let mut wanted = json!({"type": "model", "name": name, "organization": owner});
        if let Some(private) = private {
            wanted["private"] = json!(private);
        }
        let mut tries = 0;
        let (status, answered) = loop {
            let request = self.http.post(self.url("repos/create")).json(&wanted);
            let response = self.send(id, request)?;
            let (status, answered) = (response.status(), answer(response));
            tries += 1;
            let is_busy = status.as_u16() == 409 && answered.contains("conflicting operation");
            if !is_busy || tries == TRIES {
                break (status, answered);
            }
            std::thread::sleep(BETWEEN_TRIES);
        };
        let is_there = status.is_success() || status.as_u16() == 409;
        if !is_there && !matches!(status.as_u16(), 401..=403) {
            return Err(AccessError::Failed { id: id.to_owned(), answer: answered });
        }
        let request = self.http.get(self.url(&format!("models/{id}/auth-check/write")));
        let response = self.send(id, request)?;
        let may_write = match response.status().as_u16() {
            401 | 403 => false,
            // A server that does not know the question.
            404 => is_there,
            _ => response.status().is_success() || is_there,
        };
        if may_write {
            return Ok(());
        }
        let answer = if is_there { answer(response) } else { answered };
        Err(AccessError::NotAllowed { user: self.user.clone(), id: id.to_owned(), answer })
    }

    fn make_branch(&self, id: &str, revision: &str) -> Result<(), AccessError> {
        let (owner, name) = split_id(id);
        let model = self.client.model(owner, name);
        let made = match model.revision_exists().revision(revision).send() {
            Ok(true) => Ok(()),
            Ok(false) => model.create_branch().branch(revision).send(),
            Err(error) => Err(error),
        };
        made.or_else(|error| match error {
            HFError::Conflict { .. } => Ok(()),
            error => Err(failed(id, &error)),
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/{path}", self.endpoint)
    }

    fn send(&self, id: &str, request: RequestBuilder) -> Result<Response, AccessError> {
        request.bearer_auth(&self.token).send().map_err(|error| failed(id, &error))
    }
}

fn failed(id: &str, error: &dyn std::error::Error) -> AccessError {
    AccessError::Failed { id: id.to_owned(), answer: with_cause(error) }
}

/// What the hub says in a header or in JSON, else the status.
fn answer(response: Response) -> String {
    let status = response.status();
    let header = response.headers().get("x-error-message").and_then(|text| text.to_str().ok());
    if let Some(text) = header {
        return text.to_owned();
    }
    let body: Option<Value> = response.json().ok();
    let told = body.as_ref().and_then(|body| body["error"].as_str());
    told.map_or_else(|| status.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_hub() {
        for good in ["zephyr-7b-dpo", "me/zephyr_7b.dpo", "a/b", "0"] {
            assert!(is_repository_name(good), "{good}");
        }
        for bad in
            ["", "a/", "/b", "a/b/c", "-a", "a.", "a b", "a--b", "a..b", "ä", &"a".repeat(97)]
        {
            assert!(!is_repository_name(bad), "{bad}");
        }
    }

    #[test]
    fn without_a_token_nothing_is_asked() {
        let error = open(None, "me/mine", None, None).unwrap_err();
        assert!(matches!(error, AccessError::NoToken | AccessError::Offline), "{error}");
        assert!(error.help().is_some());
    }
}
