//! Groups of tasks: `group:` with its members and the metrics that are averaged over them.

use super::keys::{Key, Keys, version};
use crate::recipe::{RecipeError, RecipeErrors};

/// A member of a group.
#[derive(Debug, Clone)]
pub enum Member {
    /// A task, group or tag by its name, with the keys that replace those of its tasks.
    Named { name: Key, keys: Option<Keys> },
    /// A group that is written inside the group.
    Group(Box<GroupConfig>),
}

/// A metric that is averaged over the tasks of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMetric {
    pub metric: String,
    /// The filters whose values are averaged; `None` is all filters that the tasks have.
    pub filters: Option<Vec<String>>,
    /// Whether a task counts by the number of its documents.
    pub weight_by_size: bool,
}

/// A group as its file describes it.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    pub name: String,
    pub alias: Option<String>,
    pub members: Vec<Member>,
    pub metrics: Vec<GroupMetric>,
    pub version: String,
    /// Keys of the group that replace those of all its tasks.
    pub overrides: Keys,
}

impl GroupConfig {
    /// Reads the keys of a file with `group:`.
    ///
    /// # Errors
    /// A key is missing or has a wrong value.
    pub fn read(mut keys: Keys) -> Result<Self, RecipeErrors> {
        let missing = |name: &str| {
            RecipeErrors::from(keys.missing(
                format!("`{name}` is missing"),
                "a group needs group: NAME and task: [NAMES]",
            ))
        };
        if !keys.has("group") {
            return Err(missing("group"));
        }
        if !keys.has("task") {
            return Err(missing("task"));
        }
        let name = keys.take("group").map_or(Ok(String::new()), |key| key.text())?;
        let alias = keys.take("group_alias").map(|key| key.text()).transpose()?;
        let members = keys.take("task").map(|key| key.items()).unwrap_or_default();
        let members = members.into_iter().map(member).collect::<Result<_, _>>()?;
        let metrics = keys.take("aggregate_metric_list").map(|key| key.items());
        let metrics = metrics.unwrap_or_default().iter().map(metric).collect::<Result<_, _>>()?;
        let version = version(&mut keys)?;
        keys.take("tag");
        Ok(Self { name, alias, members, metrics, version, overrides: keys })
    }
}

fn member(item: Key) -> Result<Member, RecipeErrors> {
    if !item.is_mapping() {
        item.text()?;
        return Ok(Member::Named { name: item, keys: None });
    }
    let mut keys = Keys::of_key(&item)?;
    // Without members of its own, `group:` names a group that exists.
    if keys.has("group") && keys.has("task") {
        return GroupConfig::read(keys).map(|group| Member::Group(Box::new(group)));
    }
    let name = keys.take("group").or_else(|| keys.take("task"));
    match name {
        Some(name) => Ok(Member::Named { name, keys: Some(keys) }),
        None => Err(item.error("a member of a group needs `task` or `group`", "add one").into()),
    }
}

fn metric(item: &Key) -> Result<GroupMetric, RecipeError> {
    let mut keys = Keys::of_key(item)?;
    let Some(metric) = keys.take("metric") else {
        let message = "an item of `aggregate_metric_list` has no `metric`";
        return Err(item.error(message, "write metric: acc"));
    };
    if let Some(key) = keys.take("aggregation")
        && key.text()? != "mean"
    {
        return Err(key.error("a group has only the aggregation `mean`", "write mean"));
    }
    let filters = keys.take("filter_list").map(|key| key.texts()).transpose()?;
    let weight_by_size = keys.take("weight_by_size").map_or(Ok(true), |key| key.flag())?;
    if let Some(key) = keys.rest() {
        let message = format!("`{}` is not a setting of a group's metric", key.name);
        return Err(key.error_at_name(message, "remove it, or correct its spelling"));
    }
    Ok(GroupMetric { metric: metric.text()?, filters, weight_by_size })
}
