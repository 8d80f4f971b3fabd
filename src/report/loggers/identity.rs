//! The identity of a run in its loggers, which a resumed run keeps: `loggers.json` in the run's
//! folder.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::replace::replace_file;

const FILE: &str = "loggers.json";

/// The identity of a run in its loggers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// 32 hexadecimal digits.
    pub id: String,
    /// When the run began, in seconds since 1970.
    pub started: f64,
    /// Whether all steps of the run are done.
    pub is_finished: bool,
}

impl RunIdentity {
    /// The identity of the run in `output_dir`. A run that continues from a checkpoint
    /// (`continues`), or begins again after it was killed, has the identity of its earlier start.
    /// After a finished run, a run that begins anew is another run.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn of(output_dir: &Path, continues: bool, now: f64) -> io::Result<Self> {
        let read = std::fs::read(output_dir.join(FILE)).ok();
        let earlier: Option<Self> = read.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(mut earlier) =
            earlier.filter(|run| is_id(&run.id) && (continues || !run.is_finished))
        {
            earlier.is_finished = false;
            earlier.write(output_dir)?;
            return Ok(earlier);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(std::path::absolute(output_dir)?.as_os_str().as_encoded_bytes());
        hasher.update(&now.to_le_bytes());
        hasher.update(&std::process::id().to_le_bytes());
        let id = hasher.finalize().to_hex()[..32].to_owned();
        let run = Self { id, started: now, is_finished: false };
        run.write(output_dir)?;
        Ok(run)
    }

    /// Writes the identity into the run's folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, output_dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(output_dir)?;
        replace_file(
            &output_dir.join(FILE),
            format!("{}\n", serde_json::to_string(self)?).as_bytes(),
        )
    }
}

/// The id becomes part of file names.
fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunIdentity::of(folder.path(), false, 1.0).unwrap();
        assert_eq!(RunIdentity::of(folder.path(), true, 2.0).unwrap(), first);
        let killed = RunIdentity::of(folder.path(), false, 3.0).unwrap();
        assert_eq!(killed, first, "it was killed before its first checkpoint");
        RunIdentity { is_finished: true, ..first.clone() }.write(folder.path()).unwrap();
        let extended = RunIdentity::of(folder.path(), true, 4.0).unwrap();
        assert_eq!(extended, first, "a finished run is extended");
        RunIdentity { is_finished: true, ..first.clone() }.write(folder.path()).unwrap();
        let other = RunIdentity::of(folder.path(), false, 5.0).unwrap();
        assert_ne!(other.id, first.id);
        assert_eq!(other.started, 5.0);
    }

    #[test]
    fn a_damaged_file_is_a_new_run() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join(FILE),
            r#"{"id":"../x","started":1,"is_finished":false}"#,
        )
        .unwrap();
        assert!(is_id(&RunIdentity::of(folder.path(), true, 1.0).unwrap().id));
    }
}
