//! The linear layers that an adapter is added to, by PEFT's rules, and the modules that are trained
//! whole.

use regex::Regex;

use super::error::AdapterError;
use crate::model::config::ModelConfig;

/// Modules outside of the layers that PEFT can adapt and this program cannot.
const OUTSIDE: [&str; 2] = ["lm_head", "model.embed_tokens"];

/// Names of the router and of the matrices of experts, in the checkpoints of the hub and in
/// transformers 5. With PEFT, a list that names one of them, `all-linear` and a pattern that
/// matches one of [`EXPERT_MODULES`] put adapters on the experts or on the router.
const EXPERT_NAMES: [&str; 6] = ["gate", "w1", "w2", "w3", "gate_up_proj", "down_proj"];
const EXPERT_MODULES: [&str; 8] = [
    "block_sparse_moe.gate",
    "block_sparse_moe.experts.0.w1",
    "block_sparse_moe.experts.0.w2",
    "block_sparse_moe.experts.0.w3",
    "mlp.gate",
    "mlp.experts.w1",
    "mlp.experts.w2",
    "mlp.experts.w3",
];

/// A choice of modules, as in PEFT's `target_modules` and `exclude_modules`.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// All linear layers except the head.
    AllLinear,
    /// Modules whose whole name, or the end of it after a dot, is in the list.
    Names(Vec<String>),
    /// Modules whose whole name matches the regular expression.
    Pattern(String),
}

impl Targets {
    /// A text of a recipe or of `adapter_config.json`: `all-linear`, the name of a module, or a
    /// regular expression.
    pub fn of_text(text: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match text {
            _ if text.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            _ if text.chars().all(is_name) => Self::Names(vec![text.to_owned()]),
            _ => Self::Pattern(text.to_owned()),
        }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        match self {
            Self::AllLinear => "`all-linear`".into(),
            Self::Names(names) => {
                names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            }
            Self::Pattern(pattern) => format!("`{pattern}`"),
        }
    }

    /// Whether a module with this whole name is meant.
    ///
    /// # Errors
    /// The regular expression is not valid.
    pub fn matches(&self, module: &str) -> Result<bool, AdapterError> {
        Ok(match self {
            Self::AllLinear => !OUTSIDE.contains(&module),
            Self::Names(names) => names.iter().any(|name| is_end(module, name)),
            Self::Pattern(pattern) => whole(pattern)?.is_match(module),
        })
    }
}

/// A linear layer that gets an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPlace {
    pub layer: usize,
    /// The index in [`Projections::names`](crate::model::family::Projections::names).
    pub linear: usize,
    /// The name within the layer, such as `self_attn.q_proj`.
    pub name: &'static str,
}

impl TargetPlace {
    /// Such as `model.layers.3.self_attn.q_proj`.
    pub fn module(self) -> String {
        format!("model.layers.{}.{}", self.layer, self.name)
    }
}

/// Which modules an adapter changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    pub targets: Targets,
    pub exclude: Option<Targets>,
    /// Only these layers; `None` is all.
    pub layers: Option<Vec<usize>>,
    /// Ends of the names of modules that are trained whole.
    pub modules_to_save: Vec<String>,
}

impl Selection {
    /// The linear layers that get an adapter, in the order of the model.
    ///
    /// # Errors
    /// Nothing matches, or a module outside of the layers does.
    pub fn places(&self, config: &ModelConfig) -> Result<Vec<TargetPlace>, AdapterError> {
        for module in OUTSIDE {
            if self.targets.matches(module)? && !self.is_excluded(module)? {
                let targets = self.targets.shown();
                return Err(AdapterError::NotInLayers { targets, module });
            }
        }
        if config.family.experts.is_some() && self.targets_experts(config.num_hidden_layers)? {
            return Err(AdapterError::Experts { targets: self.targets.shown() });
        }
        let mut places = Vec::new();
        let names = config.family.projections.names();
        for layer in 0..config.num_hidden_layers {
            for (linear, name) in names.iter().copied().enumerate() {
                let place = TargetPlace { layer, linear, name };
                let module = place.module();
                // PEFT reads `layers_to_transform` for lists of names only.
                let by_layer = matches!(self.targets, Targets::Names(_));
                let in_layer = self.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
                if self.targets.matches(&module)?
                    && (!by_layer || in_layer)
                    && !self.is_excluded(&module)?
                {
                    places.push(place);
                }
            }
        }
        if places.is_empty() {
            let targets = self.targets.shown();
            let last = |name: &&'static str| name.rsplit('.').next().unwrap_or(name);
            let there = names.iter().map(last).collect::<Vec<_>>().join(", ");
            return Err(AdapterError::NoTarget { targets, there });
        }
        Ok(places)
    }

    /// Whether the targets name experts or the router of a model that has them.
    fn targets_experts(&self, layers: usize) -> Result<bool, AdapterError> {
        Ok(match &self.targets {
            Targets::AllLinear => true,
            Targets::Names(names) => {
                let mut last = names.iter().filter_map(|name| name.rsplit('.').next());
                last.any(|name| EXPERT_NAMES.contains(&name))
            }
            Targets::Pattern(pattern) => {
                let pattern = whole(pattern)?;
                let of_layer = |layer: usize| EXPERT_MODULES.map(|part| (layer, part));
                let mut modules = (0..layers).flat_map(of_layer);
                modules
                    .any(|(layer, part)| pattern.is_match(&format!("model.layers.{layer}.{part}")))
            }
        })
    }

    fn is_excluded(&self, module: &str) -> Result<bool, AdapterError> {
        let by_name = self.exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(module))?;
        // A module that is trained whole gets no adapter, nor does a part of it.
        Ok(by_name || self.modules_to_save.iter().any(|name| has_part(module, name)))
    }

    /// Whether the parameter called `name` is trained whole: the name of its module, or of a module
    /// around it, ends with one of [`Self::modules_to_save`].
    pub fn is_saved(&self, name: &str) -> bool {
        let modules = name.match_indices('.').map(|(end, _)| &name[..end]);
        let mut modules = modules.filter(|module| *module != "model");
        modules.any(|module| self.modules_to_save.iter().any(|end| module.ends_with(end.as_str())))
    }
}

/// The value of the first pattern that matches the end of a module's name after a dot, or its
/// whole name. PEFT's `rank_pattern` and `alpha_pattern`.
///
/// # Errors
/// A pattern is not a valid regular expression.
pub fn of_pattern<T: Copy>(
    patterns: &[(String, T)],
    module: &str,
) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        if compiled(pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?.is_match(module) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn is_end(module: &str, name: &str) -> bool {
    module == name
        || module.strip_suffix(name).is_some_and(|front| !name.is_empty() && front.ends_with('.'))
}

/// Whether `name` is one or several of the components of a module's name.
fn has_part(module: &str, name: &str) -> bool {
    format!(".{module}.").contains(&format!(".{name}."))
}

fn whole(pattern: &str) -> Result<Regex, AdapterError> {
    compiled(pattern, &format!("^(?:{pattern})$"))
}

fn compiled(pattern: &str, anchored: &str) -> Result<Regex, AdapterError> {
    Regex::new(anchored).map_err(|error| {
        let reason = error.to_string();
        let last = reason.lines().last().unwrap_or_default().trim();
        AdapterError::Pattern(pattern.to_owned(), last.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn config() -> ModelConfig {
        config_of("mistral")
    }

    fn config_of(model_type: &str) -> ModelConfig {
        let raw = json!({"model_type": model_type, "vocab_size": 11, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2});
        ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
    }

    fn selection(targets: Targets) -> Selection {
        Selection { targets, exclude: None, layers: None, modules_to_save: Vec::new() }
    }

    fn places(selection: &Selection) -> Result<Vec<String>, String> {
        let places = selection.places(&config()).map_err(|error| error.to_string())?;
        Ok(places.into_iter().map(TargetPlace::module).collect())
    }

    fn names(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_match_whole_components() {
        let found = places(&selection(names(&["q_proj", "mlp.up_proj"]))).unwrap();
        let expected = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
        ];
        assert_eq!(found, expected);
        let message = places(&selection(names(&["proj"]))).unwrap_err();
        assert!(message.contains("no linear layer of the model matches the targets `proj`"));
        assert!(message.contains("q_proj, k_proj"), "{message}");
    }

    #[test]
    fn all_linear_layers_are_seven_of_each_layer() {
        assert_eq!(places(&selection(Targets::of_text("All-Linear"))).unwrap().len(), 14);
    }

    #[test]
    fn a_regular_expression_matches_the_whole_name() {
        let of = |text: &str| places(&selection(Targets::of_text(text)));
        assert_eq!(
            of(r".*\.1\..*(k|v)_proj").unwrap(),
            ["model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"]
        );
        assert!(of("self_attn.(k|v)_proj").is_err(), "it is not the whole name");
        assert_eq!(of("q_proj").unwrap().len(), 2, "a plain name is no expression");
        assert!(of("(q_proj").unwrap_err().contains("`(q_proj` is not a valid regular expression"));
    }

    /// As in PEFT, `all-linear` and the names of Mixtral's first files mean the experts too.
    #[test]
    fn experts_and_their_router_get_no_adapter() {
        let of = |targets: Targets| selection(targets).places(&config_of("mixtral"));
        let attention = of(names(&["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])).unwrap();
        assert_eq!(attention.len(), 8);
        assert_eq!(attention[3].module(), "model.layers.0.self_attn.o_proj");
        assert_eq!(of(Targets::of_text(r".*(q|v)_proj")).unwrap().len(), 4);
        let patterns = [r".*\.w2", r".*layers\.1\..*\.(q_proj|gate)", "all-linear"];
        let patterns = patterns.map(Targets::of_text).into_iter();
        for targets in patterns.chain([names(&["q_proj", "w1"]), names(&["mlp.gate"])]) {
            let message = of(targets).unwrap_err().to_string();
            assert!(message.contains("match the experts or the router"), "{message}");
        }
    }

    #[test]
    fn head_and_embedding_get_no_adapter() {
        for name in ["lm_head", "embed_tokens"] {
            let message = places(&selection(names(&["q_proj", name]))).unwrap_err();
            assert!(message.contains("`lora_modules_to_save`"), "{message}");
            let mut whole = selection(names(&["q_proj", name]));
            whole.modules_to_save = vec![name.into()];
            assert_eq!(places(&whole).unwrap().len(), 2, "it is trained whole, as PEFT does");
        }
    }

    #[test]
    fn layers_and_modules_can_be_left_out() {
        let mut one = selection(names(&["q_proj", "v_proj"]));
        one.layers = Some(vec![1]);
        one.exclude = Some(names(&["v_proj"]));
        assert_eq!(places(&one).unwrap(), ["model.layers.1.self_attn.q_proj"]);
        let mut whole = selection(Targets::AllLinear);
        whole.modules_to_save = vec!["self_attn".into()];
        assert_eq!(places(&whole).unwrap().len(), 6);
    }

    #[test]
    fn a_saved_module_holds_its_parameters_and_those_of_its_parts() {
        let mut some = selection(Targets::AllLinear);
        some.modules_to_save = vec!["lm_head".into(), "norm".into(), "layers.1.mlp".into()];
        for name in ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"] {
            assert!(some.is_saved(name), "{name}");
        }
        assert!(some.is_saved("model.layers.0.input_layernorm.weight"), "PEFT compares ends");
        assert!(!some.is_saved("model.layers.0.mlp.up_proj.weight"));
        assert!(!some.is_saved("model.embed_tokens.weight"));
    }

    #[test]
    fn the_first_pattern_decides() {
        let patterns = [("layers.0.self_attn.q_proj".to_owned(), 2), ("q_proj".to_owned(), 3)];
        let of = |module: &str| of_pattern(&patterns, module).unwrap();
        assert_eq!(of("model.layers.0.self_attn.q_proj"), Some(2));
        assert_eq!(of("model.layers.1.self_attn.q_proj"), Some(3));
        assert_eq!(of("model.layers.1.self_attn.v_proj"), None);
    }
}
