//! The error of a run in a file, for the sweep that started the run.
//!
//! The sweep names the file in the environment variable [`VARIABLE`]. The run writes the file when
//! it ends with an error or a panic. It removes the file at its start, and at an end without error.

use std::io;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::caught::is_catching;
use crate::files::replace::replace_file;

/// The environment variable with the path of the file.
pub const VARIABLE: &str = "FAVONIUS_ERROR_FILE";
/// Exit code of a panic on the main thread.
const PANICKED: u8 = 101;

/// The error that a run ended with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// The whole message, without `error:` before it.
    pub message: String,
    pub exit_code: u8,
}

impl RunError {
    /// Reads the file at `path`; `None` if the run left no error.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// The first line of the message: causes and help follow it.
    pub fn first_line(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// The file that this process leaves its error in; without a sweep it has none.
#[derive(Debug, Clone)]
pub struct ErrorFile(Option<PathBuf>);

impl ErrorFile {
    /// The file that the environment names.
    pub fn from_environment() -> Self {
        Self(std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    /// Removes the error of an earlier start, and writes panics from now on.
    pub fn begin(&self, is_first: bool) {
        if self.0.is_none() {
            return;
        }
        if is_first {
            self.remove();
        }
        let file = self.clone();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_catching() {
                return;
            }
            file.write(panic_message(panic), PANICKED);
            print(panic);
        }));
    }

    /// Writes the error that this process ends with.
    pub fn write(&self, message: String, exit_code: u8) {
        let Some(path) = &self.0 else { return };
        // The exit code and the log still say that the run failed.
        if let Err(error) = (RunError { message, exit_code }).write(path) {
            tracing::warn!("the sweep does not get the error of this run: {error}");
        }
    }

    /// Removes the file, because this process ends without an error. A file with other content
    /// stays.
    pub fn remove(&self) {
        if let Some(path) = self.0.as_ref().filter(|path| RunError::read(path).is_some()) {
            // If it stays, the next start removes it.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn panic_message(panic: &PanicHookInfo) -> String {
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let text = panic.payload_as_str().unwrap_or("no message");
    format!("panicked{place}: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_back_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("error.json");
        let file = ErrorFile(Some(path.clone()));
        assert_eq!(RunError::read(&path), None);
        file.write("no room\n  because: full\nhelp: make room".into(), 1);
        let error = RunError::read(&path).unwrap();
        assert_eq!((error.first_line(), error.exit_code), ("no room", 1));
        file.remove();
        file.remove();
        assert_eq!(RunError::read(&path), None);
        std::fs::write(&path, "[\"a file of the user\"]").unwrap();
        file.remove();
        assert!(path.is_file());
    }

    #[test]
    fn a_process_without_a_sweep_writes_nothing() {
        let file = ErrorFile(None);
        file.write("no room".into(), 1);
        file.remove();
    }
}
