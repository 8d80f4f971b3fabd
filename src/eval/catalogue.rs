//! Names of tasks and groups → tasks: the built-in ones and those in task files of users.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::TaskConfig;
use super::config::group::{GroupConfig, GroupMetric, Member};
use super::config::keys::Keys;
use super::data::DataFolder;
use super::error::EvalError;
use super::options::Options;
use super::rules::Rules;
use super::task::{Definition, Task};
use super::tasks::{self, mmlu, openllm};
use super::{leaderboard, lm_eval};

/// The deepest nesting of groups.
const DEEPEST: usize = 20;

/// A task whose data is not read yet.
#[derive(Debug, Clone)]
pub struct TaskSpec(Spec);

#[derive(Debug, Clone)]
enum Spec {
    LmEval(Box<TaskConfig>),
    Leaderboard(Box<Rules>),
}

impl TaskSpec {
    /// The name of the task.
    pub fn name(&self) -> &str {
        match &self.0 {
            Spec::LmEval(config) => &config.name,
            Spec::Leaderboard(rules) => &rules.name,
        }
    }

    /// Reads the task's data and draws its examples.
    ///
    /// # Errors
    /// The data cannot be read, a row is unusable, or too few examples exist.
    pub fn load(self, data: &DataFolder, options: &Options) -> Result<Box<dyn Task>, EvalError> {
        match self.0 {
            Spec::LmEval(config) => lm_eval::load(*config, data, options),
            Spec::Leaderboard(rules) => {
                if options.chat.is_some() || options.system_instruction.is_some() {
                    let message = "the leaderboard's definition has neither a chat template nor a \
                                   system instruction";
                    let help = "remove --apply_chat_template, or use the definition lm-eval";
                    let (message, help) = (message.to_owned(), help.to_owned());
                    return Err(EvalError::Task { task: rules.name, message, help });
                }
                leaderboard::load(*rules, data, options)
            }
        }
    }
}

/// A score that counts in the average of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    /// A task or group.
    pub name: String,
    pub metric: String,
    pub filter: String,
}

/// A group of tasks.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub alias: String,
    pub version: String,
    pub entries: Vec<Entry>,
    /// The metrics that are averaged over all tasks in the group.
    pub metrics: Vec<GroupMetric>,
    /// The scores whose plain mean is the group's score `average`.
    pub average: Vec<Headline>,
}

/// A task or a group.
#[derive(Debug, Clone)]
pub enum Entry {
    Task(TaskSpec),
    Group(Group),
}

impl Entry {
    /// All tasks in their order.
    pub fn tasks(&self) -> Vec<&TaskSpec> {
        match self {
            Self::Task(task) => vec![task],
            Self::Group(group) => group.entries.iter().flat_map(Entry::tasks).collect(),
        }
    }

    /// The name of the task or group.
    pub fn name(&self) -> &str {
        match self {
            Self::Task(task) => task.name(),
            Self::Group(group) => &group.name,
        }
    }
}

/// The tasks that can be named.
#[derive(Debug)]
pub struct Catalogue {
    definition: Definition,
    /// Tasks and groups of users.
    own: BTreeMap<String, Keys>,
    /// Tags of users' tasks.
    tags: BTreeMap<String, Vec<String>>,
}

impl Catalogue {
    /// The built-in tasks by this definition. Task files of users have lm-eval's definition.
    pub fn new(definition: Definition) -> Self {
        Self { definition, own: BTreeMap::new(), tags: BTreeMap::new() }
    }

    /// Adds the task files in a folder and below it. Files without a task or group, which other
    /// files include, are left out.
    ///
    /// # Errors
    /// The folder cannot be read, or a file is not YAML.
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), EvalError> {
        let failed = |source| crate::data::DataError::Io { path: folder.to_owned(), source };
        let entries = std::fs::read_dir(folder).map_err(failed)?;
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        paths.sort();
        for path in paths {
            let is_hidden =
                path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '_']));
            if path.is_dir() && !is_hidden {
                self.add_folder(&path)?;
            } else if is_task_file(&path) {
                self.add_file(&path)?;
            }
        }
        Ok(())
    }

    /// Adds the task or group in a file. Returns its name, if it has one.
    ///
    /// # Errors
    /// The file cannot be read or is not YAML, or its name is taken.
    pub fn add_file(&mut self, file: &Path) -> Result<Option<String>, EvalError> {
        let keys = Keys::read(file)?;
        let mut copy = keys.clone();
        let tags = copy.take("tag").map(|key| key.texts()).transpose()?.unwrap_or_default();
        let task = copy.take("task").filter(|key| !key.is_list());
        let Some(name) = task.or_else(|| copy.take("group")) else { return Ok(None) };
        let text = name.text()?;
        if let Some(known) = self.own.get(&text)
            && known.file != file
        {
            let message = format!("`{text}` is also in {}", known.file.display());
            return Err(name.error(message, "give one of the two another name").into());
        }
        for tag in tags {
            let members = self.tags.entry(tag).or_default();
            if !members.contains(&text) {
                members.push(text.clone());
            }
        }
        self.own.insert(text.clone(), keys);
        Ok(Some(text))
    }

    /// The names of all tasks, groups and tags.
    pub fn names(&self) -> Vec<String> {
        let fixed = ["mmlu", "openllm", "ai2_arc"].into_iter().chain(tasks::NAMES);
        let groups = mmlu::GROUPS.iter().map(|(name, _, _)| (*name).to_owned());
        let subjects = mmlu::GROUPS.iter().flat_map(|(_, _, subjects)| *subjects);
        let subjects = subjects.map(|subject| format!("mmlu_{subject}"));
        let own = self.own.keys().chain(self.tags.keys()).cloned();
        fixed.map(str::to_owned).chain(groups).chain(subjects).chain(own).collect()
    }

    /// The tasks and groups with these names. A name may be a task, a group, a tag, a pattern with
    /// `*`, a task file, or a folder of task files, whose tasks are all meant.
    ///
    /// # Errors
    /// A name is unknown, a task file has mistakes, or a task is named twice.
    pub fn find(&mut self, names: &[String]) -> Result<Vec<Entry>, EvalError> {
        let mut wanted: Vec<String> = Vec::new();
        for name in names {
            wanted.extend(self.expanded(name)?);
        }
        let mut seen = std::collections::HashSet::new();
        wanted.retain(|name| seen.insert(name.clone()));
        let mut entries = Vec::new();
        for name in wanted {
            entries.extend(self.entries(&name, &[], 0)?);
        }
        refuse_twice(&entries)?;
        Ok(entries)
    }

    /// The names that a name of the command line stands for.
    fn expanded(&mut self, name: &str) -> Result<Vec<String>, EvalError> {
        let path = Path::new(name);
        if is_task_file(path) {
            // A group may name tasks in files beside it.
            if let Some(folder) = path.parent().filter(|folder| folder.is_dir()) {
                self.add_folder(folder)?;
            }
            return match self.add_file(path)? {
                Some(name) => Ok(vec![name]),
                None => {
                    let keys = Keys::read(path)?;
                    Err(keys.missing("the file has no `task`", "write task: NAME").into())
                }
            };
        }
        if path.is_dir() && self.is_unknown(name) {
            let before: Vec<String> = self.own.keys().cloned().collect();
            self.add_folder(path)?;
            return Ok(self.own.keys().filter(|name| !before.contains(name)).cloned().collect());
        }
        if !name.contains('*') {
            return Ok(vec![name.to_owned()]);
        }
        let found: Vec<String> =
            self.names().into_iter().filter(|known| matches(name, known)).collect();
        match found.is_empty() {
            true => Err(self.unknown(name)),
            false => Ok(found),
        }
    }

    fn is_unknown(&self, name: &str) -> bool {
        !self.names().iter().any(|known| known == name)
    }

    fn unknown(&self, name: &str) -> EvalError {
        let names = self.names();
        let likeness = |known: &String| strsim::jaro_winkler(known, name);
        let near = names
            .iter()
            .filter(|known| likeness(known) > 0.85)
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        EvalError::NoTask {
            name: name.to_owned(),
            near: near.cloned(),
            help: format!(
                "the tasks are {}, mmlu and its subjects, the group openllm, and task files \
                 (NAME.yaml)",
                tasks::NAMES.join(", ")
            ),
        }
    }

    /// The task, the group, or the tasks of the tag. `overrides` replace keys of the tasks.
    fn entries(
        &self,
        name: &str,
        overrides: &[&Keys],
        depth: usize,
    ) -> Result<Vec<Entry>, EvalError> {
        if depth > DEEPEST {
            let message = "the group contains itself".to_owned();
            let help = "remove one of the two names".to_owned();
            return Err(EvalError::Task { task: name.to_owned(), message, help });
        }
        if let Some(keys) = self.own.get(name) {
            let mut copy = keys.clone();
            if copy.take("task").is_some_and(|key| !key.is_list()) {
                return Ok(vec![own_task(keys.clone(), overrides)?]);
            }
            let config = GroupConfig::read(keys.clone())?;
            return Ok(vec![Entry::Group(self.group(config, overrides, depth)?)]);
        }
        if let Some(members) = self.tags.get(name).cloned().or_else(|| built_in_tag(name)) {
            let entries = members.iter().map(|member| self.entries(member, overrides, depth + 1));
            return Ok(entries.collect::<Result<Vec<_>, _>>()?.concat());
        }
        if name == "mmlu" {
            return self.mmlu(overrides).map(|group| vec![Entry::Group(group)]);
        }
        if let Some(at) = mmlu::GROUPS.iter().position(|(group, _, _)| *group == name) {
            return self.mmlu_part(at, overrides).map(|group| vec![Entry::Group(group)]);
        }
        if name == "openllm" {
            return self.openllm(overrides).map(|group| vec![Entry::Group(group)]);
        }
        self.built_in(name, overrides).map(|task| vec![Entry::Task(task)])
    }

    fn built_in(&self, name: &str, overrides: &[&Keys]) -> Result<TaskSpec, EvalError> {
        match self.definition {
            Definition::LmEval => {
                let text = tasks::lm_eval(name).ok_or_else(|| self.unknown(name))?;
                let file = PathBuf::from(format!("{name} (built-in)"));
                let mut keys = Keys::parse(&file, &text)?;
                overrides.iter().for_each(|others| keys.override_by((*others).clone()));
                let config = TaskConfig::read(keys, true)?;
                Ok(TaskSpec(Spec::LmEval(Box::new(config))))
            }
            Definition::Leaderboard => {
                let mut rules = tasks::leaderboard(name).ok_or_else(|| self.unknown(name))?;
                for others in overrides {
                    let mut others = (*others).clone();
                    if let Some(key) = others.take("num_fewshot") {
                        rules.num_fewshot = key.count()?;
                    }
                    if let Some(key) = others.rest() {
                        let message = format!("`{}` has no effect on `{name}`", key.name);
                        let help = "the leaderboard's definition has only num_fewshot";
                        return Err(key.error_at_name(message, help).into());
                    }
                }
                Ok(TaskSpec(Spec::Leaderboard(Box::new(rules))))
            }
        }
    }

    fn mmlu(&self, overrides: &[&Keys]) -> Result<Group, EvalError> {
        let part = |at| self.mmlu_part(at, overrides).map(Entry::Group);
        let entries = (0..mmlu::GROUPS.len()).map(part).collect::<Result<_, _>>()?;
        Ok(self.mmlu_group("mmlu", "mmlu", entries))
    }

    fn mmlu_part(&self, at: usize, overrides: &[&Keys]) -> Result<Group, EvalError> {
        let (name, alias, subjects) = mmlu::GROUPS[at];
        let task =
            |subject: &&str| self.built_in(&format!("mmlu_{subject}"), overrides).map(Entry::Task);
        let entries = subjects.iter().map(task).collect::<Result<_, _>>()?;
        Ok(self.mmlu_group(name, alias, entries))
    }

    /// lm-eval weights subjects by their size; the leaderboard takes the plain mean.
    fn mmlu_group(&self, name: &str, alias: &str, entries: Vec<Entry>) -> Group {
        let weight_by_size = self.definition == Definition::LmEval;
        let metric = |metric: &&str| GroupMetric {
            metric: (*metric).to_owned(),
            filters: None,
            weight_by_size,
        };
        let metrics: &[&str] = if weight_by_size { &["acc"] } else { &["acc", "acc_norm"] };
        Group {
            name: name.to_owned(),
            alias: alias.to_owned(),
            version: if weight_by_size { "2" } else { "1" }.to_owned(),
            entries,
            metrics: metrics.iter().map(metric).collect(),
            average: Vec::new(),
        }
    }

    fn openllm(&self, overrides: &[&Keys]) -> Result<Group, EvalError> {
        let is_lm_eval = self.definition == Definition::LmEval;
        let mut entries = Vec::new();
        let mut average = Vec::new();
        for entry in openllm::ENTRIES {
            // The lines that lm-eval's own group `openllm` gives its tasks.
            let split = match entry.name {
                "arc_challenge" | "hellaswag" | "winogrande" if is_lm_eval => {
                    "fewshot_split: train\n"
                }
                _ => "",
            };
            let text = format!("num_fewshot: {}\n{split}", entry.num_fewshot);
            let own = Keys::parse(Path::new("openllm (built-in)"), &text)?;
            let all: Vec<&Keys> = [&own].into_iter().chain(overrides.iter().copied()).collect();
            entries.extend(self.entries(entry.name, &all, 1)?);
            let (metric, filter) = if is_lm_eval { entry.lm_eval } else { entry.leaderboard };
            let (name, metric, filter) =
                (entry.name.to_owned(), metric.to_owned(), filter.to_owned());
            average.push(Headline { name, metric, filter });
        }
        Ok(Group {
            name: "openllm".to_owned(),
            alias: "Open LLM Leaderboard".to_owned(),
            version: "2".to_owned(),
            entries,
            metrics: Vec::new(),
            average,
        })
    }

    fn group(
        &self,
        config: GroupConfig,
        overrides: &[&Keys],
        depth: usize,
    ) -> Result<Group, EvalError> {
        let mut entries = Vec::new();
        for member in &config.members {
            let mut all = vec![&config.overrides];
            all.extend(overrides.iter().copied());
            match member {
                Member::Group(inner) => {
                    let mut inner = (**inner).clone();
                    inner.alias = inner.alias.or(Some(inner.name.clone()));
                    inner.name = format!("{}::{}", config.name, inner.name);
                    entries.push(Entry::Group(self.group(inner, &all, depth + 1)?));
                }
                Member::Named { name, keys } => {
                    all.extend(keys.as_ref());
                    let text = name.text()?;
                    let written = keys.as_ref().filter(|keys| keys.has("dataset_path"));
                    match written.filter(|_| self.is_unknown(&text)) {
                        // A task that is written inside the group.
                        Some(keys) => {
                            let name = format!("task: \"{}::{text}\"", config.name);
                            let own = Keys::parse(&keys.file, &name)?;
                            entries.push(own_task(own, &all)?);
                        }
                        None if self.is_unknown(&text) => {
                            let message = format!("no task or group `{text}`");
                            let help = "the files of its tasks must be in the same folder, or in \
                                        a folder that --include_path names";
                            return Err(name.error(message, help).into());
                        }
                        None => entries.extend(self.entries(&text, &all, depth + 1)?),
                    }
                }
            }
        }
        Ok(Group {
            alias: config.alias.unwrap_or_else(|| config.name.clone()),
            name: config.name,
            version: config.version,
            entries,
            metrics: config.metrics,
            average: Vec::new(),
        })
    }
}

fn own_task(mut keys: Keys, overrides: &[&Keys]) -> Result<Entry, EvalError> {
    overrides.iter().for_each(|others| keys.override_by((*others).clone()));
    let config = TaskConfig::read(keys, false)?;
    Ok(Entry::Task(TaskSpec(Spec::LmEval(Box::new(config)))))
}

fn built_in_tag(name: &str) -> Option<Vec<String>> {
    if name == "ai2_arc" {
        return Some(vec!["arc_challenge".to_owned(), "arc_easy".to_owned()]);
    }
    let group = name.strip_suffix("_tasks")?;
    let (_, _, subjects) = mmlu::GROUPS.iter().find(|(known, _, _)| *known == group)?;
    Some(subjects.iter().map(|subject| format!("mmlu_{subject}")).collect())
}

/// Two tasks of one name would have one line in the results.
fn refuse_twice(entries: &[Entry]) -> Result<(), EvalError> {
    let mut seen = std::collections::HashSet::new();
    for task in entries.iter().flat_map(Entry::tasks) {
        if !seen.insert(task.name()) {
            return Err(EvalError::Task {
                task: task.name().to_owned(),
                message: "the task is named twice, by itself or by a group".to_owned(),
                help: "name it once, or evaluate the groups in two runs".to_owned(),
            });
        }
    }
    Ok(())
}

fn is_task_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Whether a name matches a pattern in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len())
                .filter(|at| name.is_char_boundary(*at))
                .any(|at| matches(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests;
