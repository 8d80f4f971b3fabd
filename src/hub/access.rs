//! Checks the user's access to a hub repository before a long run starts.
//!
//! Two of these requests do not use the hf-hub library: its `whoami` omits the role of the token,
//! and it creates public repositories unless asked for private ones, even if the organization's
//! default is private.

use std::time::Duration;

use hf_hub::{HFClientSync, HFError, split_id};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::environment::{client, is_offline, with_cause};

/// The number of attempts while the hub is busy with another repository of the same owner.
const TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// A model repository that exists and that the user may write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `owner/name`.
    pub id: String,
    /// The visibility that was asked for at its creation; `None` is the owner's default.
    pub private: Option<bool>,
    /// The branch; `None` is `main`.
    pub revision: Option<String>,
    /// The address for a browser.
    pub url: String,
}

/// Why nothing can be written to the hub.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("HF_HUB_OFFLINE is set, so nothing can be uploaded")]
    Offline,
    #[error("an upload needs a hub token, and none is set")]
    NoToken,
    #[error("the hub refuses the token: {answer}")]
    Refused { answer: String },
    #[error("the token of `{user}` has only read access")]
    ReadOnly { user: String },
    #[error("`{user}` may not write to `{id}` on the hub: {answer}")]
    NotAllowed { user: String, id: String, answer: String },
    #[error("`{id}` is not a valid repository name")]
    BadName { id: String },
    #[error("the hub did not answer a request about `{id}`: {answer}")]
    Failed { id: String, answer: String },
}

impl AccessError {
    /// Advice for the user; `None` if the problem is on the hub's side.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            AccessError::Offline => Some("unset HF_HUB_OFFLINE"),
            AccessError::NoToken => Some("set HF_TOKEN or run `hf auth login`"),
            AccessError::Refused { .. } => {
                Some("set HF_TOKEN to a valid token, or run `hf auth login`")
            }
            AccessError::ReadOnly { .. } => {
                Some("create a token with write access in your account settings")
            }
            AccessError::NotAllowed { .. } => {
                Some("name one of your repositories, or use a token with write access to this one")
            }
            AccessError::BadName { .. } => {
                Some("write `owner/name` or `name`: letters, digits, `-`, `_`, `.`")
            }
            AccessError::Failed { .. } => None,
        }
    }
}

/// Whether `id` is `owner/name` or `name` by the rules of the hub.
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

/// Checks that `token` may write to the repository `id`. Creates the repository and its branch
/// `revision` if they do not exist. An `id` without an owner is in the account of the token's user.
///
/// # Errors
/// The token is missing or has no write access, or the hub cannot be reached.
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

/// A user who has signed in.
struct Account {
    http: Client,
    client: HFClientSync,
    endpoint: String,
    token: String,
    user: String,
}

/// The hub's answer about a token.
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

    /// Creates the repository if it does not exist. A user who may not create it may still have
    /// write access if it exists.
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
            // The server does not have this endpoint.
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

/// The hub's message from a header or from JSON, else the HTTP status.
fn answer(response: Response) -> String {
    let status = response.status();
    let header = response.headers().get("x-error-message").and_then(|text| text.to_str().ok());
    if let Some(text) = header {
        return text.to_owned();
    }
    let body: Option<Value> = response.json().ok();
    let message = body.as_ref().and_then(|body| body["error"].as_str());
    message.map_or_else(|| status.to_string(), ToOwned::to_owned)
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
