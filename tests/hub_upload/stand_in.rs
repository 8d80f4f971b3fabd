//! A stand-in for the Hugging Face hub on a local port. It gives the answers that an upload needs,
//! and records the requests.
//!
//! It does not store files. Weights arrive as "xorbs" (compressed chunks) and "shards" (lists of
//! the chunks of a file), and it accepts any. The tests check the files that a commit lists.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

/// The only valid token, and the user that it belongs to.
pub const TOKEN: &str = "hf_TheTokenOfTheTests";
pub const USER: &str = "tester";
/// An organization in which the user may create repositories.
pub const TEAM: &str = "team";
/// The commit hash of all repositories that can be downloaded.
pub const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of a commit, as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Sent {
    /// The content, in base64.
    Whole(String),
    /// The SHA-256 and the size; the content is in xorbs.
    ByHash { oid: String, size: u64 },
}

/// A commit that was sent to the hub.
#[derive(Debug, Clone)]
pub struct Commit {
    pub repository: String,
    pub revision: String,
    pub summary: String,
    pub files: BTreeMap<String, Sent>,
}

/// The requests that the hub received, and its settings.
#[derive(Debug, Default)]
pub struct State {
    /// Method and path of each request, in order, such as "POST /api/repos/create".
    pub requests: Vec<String>,
    /// The bodies of the requests that created repositories.
    pub created: Vec<Value>,
    pub repositories: BTreeSet<String>,
    pub branches: BTreeSet<String>,
    pub commits: Vec<Commit>,
    pub xorb_bytes: usize,
    pub shards: Vec<Vec<u8>>,
    /// The role of the token; empty means "write".
    pub role: String,
    /// Whether the hub closes the connection when weights are uploaded.
    pub dies_at_weights: bool,
    /// Repositories to download from: `models/owner/name` or `datasets/owner/name`, and the folder
    /// with their files.
    pub shelves: BTreeMap<String, PathBuf>,
}

/// The stand-in hub. Its thread ends with the test's process.
pub struct StandIn {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl StandIn {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, base) = (Arc::clone(&state), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, base) = (Arc::clone(&shared), base.clone());
                std::thread::spawn(move || serve(stream, &state, &base));
            }
        });
        StandIn { endpoint, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread died")
    }
}

/// Serves one request per connection.
fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) {
    let Some(request) = read_request(&stream) else { return };
    let answered = {
        let mut state = state.lock().expect("no thread died");
        state.requests.push(format!("{} {}", request.method, request.path));
        answer(&request, &mut state, base)
    };
    // Without an answer the connection is closed.
    let Some((status, headers, body)) = answered else { return };
    let mut head = format!("HTTP/1.1 {status} Reason\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = stream;
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&body);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn answer(request: &Request, state: &mut State, base: &str) -> Option<Answer> {
    let path = request.path.split('?').next().unwrap_or_default().trim_start_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    if let ["cas", rest @ ..] = parts.as_slice() {
        return storage(rest, request, state);
    }
    if request.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return Some(refused(401, "Invalid user token."));
    }
    Some(match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["api", "whoami-v2"]) => {
            let role = if state.role.is_empty() { "write" } else { &state.role };
            let token = json!({"displayName": "tests", "role": role});
            said(json!({"type": "user", "name": USER, "auth": {"accessToken": token}}))
        }
        ("POST", ["api", "repos", "create"]) => create(parsed(request), state, base),
        ("GET", ["api", "models", owner, name, "auth-check", "write"]) => {
            match state.repositories.contains(&format!("{owner}/{name}")) {
                true => said(json!({})),
                false => refused(404, "Repository not found"),
            }
        }
        ("GET", ["api", "models", owner, name, "revision", branch])
            if state.repositories.contains(&format!("{owner}/{name}")) =>
        {
            match *branch == "main" || state.branches.contains(*branch) {
                true => said(json!({"id": format!("{owner}/{name}"), "sha": SHA})),
                false => refused(404, "Invalid rev id"),
            }
        }
        ("POST", ["api", "models", _, _, "branch", branch]) => {
            state.branches.insert((*branch).to_owned());
            said(json!({}))
        }
        ("POST", ["api", "models", _, _, "preupload", _]) => said(upload_modes(&parsed(request))),
        ("POST", [.., "info", "lfs", "objects", "batch"]) => {
            said(json!({"transfer": "xet", "objects": parsed(request)["objects"]}))
        }
        ("GET", ["api", "models", _, _, "xet-write-token", _]) => {
            let cas = format!("{base}/cas");
            said(json!({"accessToken": "xet", "exp": 4_102_444_800_u64, "casUrl": cas}))
        }
        ("POST", ["api", "models", owner, name, "commit", revision]) => {
            state.commits.push(commit(format!("{owner}/{name}"), revision, &request.body));
            said(json!({"success": true, "commitOid": SHA, "commitUrl": base}))
        }
        ("GET" | "HEAD", _) => shelf(&request.method, &parts, state),
        _ => refused(404, "Not found"),
    })
}

fn create(wanted: Value, state: &mut State, base: &str) -> Answer {
    let owner = wanted["organization"].as_str().unwrap_or(USER);
    let id = format!("{owner}/{}", wanted["name"].as_str().expect("a name"));
    if ![USER, TEAM].contains(&owner) {
        return refused(403, &format!("You may not create a model under \"{owner}\""));
    }
    if !state.repositories.insert(id.clone()) {
        return refused(409, "You already created this model repo");
    }
    state.created.push(wanted);
    said(json!({"url": format!("{base}/{id}")}))
}

/// Weights and TensorBoard files go to the storage (LFS), as on the real hub.
fn upload_modes(asked: &Value) -> Value {
    let mode = |file: &Value| {
        let path = file["path"].as_str().expect("a path");
        let stored = path.ends_with(".safetensors") || path.contains("tfevents");
        json!({"path": path, "uploadMode": if stored { "lfs" } else { "regular" }})
    };
    json!({"files": asked["files"].as_array().expect("files").iter().map(mode).collect::<Vec<_>>()})
}

/// The content-addressed storage: accepts every upload, and has no chunk already.
fn storage(parts: &[&str], request: &Request, state: &mut State) -> Option<Answer> {
    match (request.method.as_str(), parts) {
        ("POST", ["v1", "xorbs", ..]) if state.dies_at_weights => None,
        ("POST", ["v1", "xorbs", ..]) => {
            state.xorb_bytes += request.body.len();
            Some(said(json!({"was_inserted": true})))
        }
        ("POST", ["v1", "shards", ..]) => {
            state.shards.push(request.body.clone());
            Some(said(json!({"result": 1})))
        }
        _ => Some(refused(404, "Not found")),
    }
}

fn commit(repository: String, revision: &str, body: &[u8]) -> Commit {
    let text = String::from_utf8(body.to_vec()).expect("NDJSON");
    let mut summary = String::new();
    let mut files = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let value = &line["value"];
        let text = |key: &str| value[key].as_str().expect(key).to_owned();
        match line["key"].as_str() {
            Some("header") => summary = text("summary"),
            Some("file") => {
                assert_eq!(value["encoding"], "base64");
                files.insert(text("path"), Sent::Whole(text("content")));
            }
            Some("lfsFile") => {
                assert_eq!(value["algo"], "sha256");
                let size = value["size"].as_u64().expect("a size");
                files.insert(text("path"), Sent::ByHash { oid: text("oid"), size });
            }
            other => panic!("a commit's line of kind {other:?}"),
        }
    }
    Commit { repository, revision: revision.to_owned(), summary, files }
}

/// Downloads from the repositories in `shelves`.
fn shelf(method: &str, parts: &[&str], state: &State) -> Answer {
    if let ["api", kind, owner, name, "revision", _] = parts
        && let Some(folder) = state.shelves.get(&format!("{kind}/{owner}/{name}"))
    {
        let names = std::fs::read_dir(folder).expect("a shelf").flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let siblings: Vec<Value> = names.map(|name| json!({"rfilename": name})).collect();
        return said(json!({"id": format!("{owner}/{name}"), "sha": SHA, "siblings": siblings}));
    }
    let (kind, parts) = match parts {
        ["datasets", rest @ ..] => ("datasets", rest),
        rest => ("models", rest),
    };
    let [owner, name, "resolve", SHA, file] = parts else { return refused(404, "Not found") };
    let Some(folder) = state.shelves.get(&format!("{kind}/{owner}/{name}")) else {
        return refused(404, "Repository not found");
    };
    let Ok(bytes) = std::fs::read(folder.join(file)) else {
        return refused(404, "Entry not found");
    };
    let headers = vec![
        ("ETag", format!("\"etag-of-{file}\"")),
        ("X-Repo-Commit", SHA.to_owned()),
        ("Content-Length", bytes.len().to_string()),
    ];
    (200, headers, if method == "HEAD" { Vec::new() } else { bytes })
}

fn parsed(request: &Request) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

fn said(value: Value) -> Answer {
    (200, vec![("Content-Type", "application/json".into())], value.to_string().into_bytes())
}

fn refused(status: u16, why: &str) -> Answer {
    let body = json!({"error": why}).to_string().into_bytes();
    (status, vec![("Content-Type", "application/json".into())], body)
}
