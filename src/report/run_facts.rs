//! `plan.json` in a run's folder: what the run will do, with all defaults, and its environment.
//! People and reports read it; runs do not.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::files::replace::replace_file;

const FILE: &str = "plan.json";

/// Names and values in the order of display.
pub type Facts = Vec<(String, String)>;

/// What a run was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// "sft", "dpo".
    pub stage: String,
    /// Model, rows, steps.
    pub facts: Facts,
    /// The keys that the recipe's author wrote.
    pub written: Facts,
    /// Defaults that were filled in.
    pub filled: Facts,
    /// Program and libraries.
    pub versions: Facts,
    /// Processor, memory, system.
    pub machine: Facts,
}

impl RunFacts {
    /// Reads the facts from a run's folder; `None` if they are missing or cannot be read.
    pub fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(FILE)).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let facts = |name: &str| match value.get(name) {
            Some(Value::Object(fields)) => {
                fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
            }
            _ => Facts::new(),
        };
        Some(RunFacts {
            stage: plain(value.get("stage")?),
            facts: facts("plan"),
            written: facts("written"),
            filled: facts("filled"),
            versions: facts("versions"),
            machine: facts("machine"),
        })
    }

    /// The folder of the run's event files, if the recipe's `logging_dir` names a folder that
    /// exists.
    pub fn logging_dir(&self, folder: &Path) -> Option<PathBuf> {
        let find = |facts: &Facts, key: &str| {
            facts.iter().find(|(name, _)| name == key).map(|(_, text)| PathBuf::from(text))
        };
        // A null that was written also appears among the defaults.
        let written =
            |key: &str| find(&self.written, key).filter(|_| find(&self.filled, key).is_none());
        let logging_dir = written("logging_dir")?;
        let output_dir = written("output_dir").or_else(|| find(&self.filled, "output_dir"));
        // A relative path starts where the run was started. That folder follows from `output_dir`
        // and the run's folder; if not, assume the current folder.
        let started =
            output_dir.and_then(|path| start_of(&path, &std::path::absolute(folder).ok()?));
        let events = started.unwrap_or_default().join(logging_dir);
        events.is_dir().then_some(events)
    }

    /// Replaces `plan.json` in `folder`; creates the folder if needed.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let object = |facts: &Facts| {
            let fields = facts.iter().map(|(name, value)| (name.clone(), Value::from(&**value)));
            Value::Object(fields.collect())
        };
        let parts = [
            ("stage", Value::from(&*self.stage)),
            ("plan", object(&self.facts)),
            ("written", object(&self.written)),
            ("filled", object(&self.filled)),
            ("versions", object(&self.versions)),
            ("machine", object(&self.machine)),
        ];
        let all: Map<String, Value> =
            parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        std::fs::create_dir_all(folder)?;
        replace_file(&folder.join(FILE), format!("{:#}\n", Value::Object(all)).as_bytes())
    }
}

/// The folder from which the relative `path` leads to the absolute path `place`, if one exists.
fn start_of(path: &Path, place: &Path) -> Option<PathBuf> {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    let is_downwards = path.components().all(|part| matches!(part, Component::Normal(_)));
    let leads_there = is_downwards && place.ends_with(&path);
    let start = place.ancestors().nth(path.components().count())?;
    leads_there.then(|| start.to_path_buf())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The machine: processor, threads, memory, system. Unknown values are left out.
pub fn machine() -> Facts {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| {
        let kilobytes: f64 = text.split_whitespace().next()?.parse().ok()?;
        Some(format!("{:.0} GiB", kilobytes / (1024.0 * 1024.0)))
    });
    let threads = std::thread::available_parallelism().ok().map(|threads| threads.to_string());
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    let facts = [
        ("processor", field("/proc/cpuinfo", "model name")),
        ("threads", threads),
        ("memory", memory),
        ("system", Some(system)),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let facts =
            |text: &str| vec![(format!("{text} b"), "1".to_owned()), ("a".into(), "2".into())];
        let facts = RunFacts {
            stage: "dpo".into(),
            facts: facts("plan"),
            written: facts("written"),
            filled: facts("filled"),
            versions: facts("versions"),
            machine: machine(),
        };
        let run = folder.path().join("new/run");
        facts.write(&run).unwrap();
        assert_eq!(RunFacts::read(&run), Some(facts));
        assert_eq!(RunFacts::read(folder.path()), None);
    }

    #[test]
    fn event_files_are_looked_for_where_the_run_put_them() {
        let facts = |pairs: &[(&str, &str)]| -> Facts {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let run_facts = |written: &[(&str, &str)], filled: &[(&str, &str)]| RunFacts {
            written: facts(written),
            filled: facts(filled),
            ..RunFacts::default()
        };
        let place = tempfile::tempdir().unwrap();
        let (run, logs) = (place.path().join("out/dpo"), place.path().join("logs/dpo"));
        std::fs::create_dir_all(&run).unwrap();
        let relative = [("output_dir", "./out/dpo"), ("logging_dir", "logs/dpo")];
        assert_eq!(run_facts(&relative, &[]).logging_dir(&run), None, "it is not there");
        std::fs::create_dir_all(&logs).unwrap();
        assert_eq!(run_facts(&relative, &[]).logging_dir(&run), Some(logs.clone()));
        let absolute = [("output_dir", "elsewhere"), ("logging_dir", logs.to_str().unwrap())];
        assert_eq!(run_facts(&absolute, &[]).logging_dir(&run), Some(logs.clone()));
        let default = run_facts(&relative[1..], &[("output_dir", "dpo")]);
        assert_eq!(default.logging_dir(&run), None, "it would be out/logs/dpo");
        let null = run_facts(&[("logging_dir", "null")], &[("logging_dir", "null")]);
        assert_eq!(null.logging_dir(&run), None);
        assert_eq!(run_facts(&[], &[("logging_dir", "null")]).logging_dir(&run), None);
    }

    #[test]
    fn this_machine_has_a_system_and_threads() {
        let names: Vec<String> = machine().into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"system".to_owned()) && names.contains(&"threads".to_owned()));
    }
}
