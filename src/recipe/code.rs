//! Recipes that are built in code. Every default is the one that a YAML recipe gets: these
//! functions read a recipe that names nothing but its model, its data and its folder.

use std::path::{Path, PathBuf};

use super::{
    CpoSettings, DatasetSpec, DpoSettings, KtoSettings, Mixture, Objective, OrpoSettings, Recipe,
    SftSettings, Stage, TpoSettings, TrainSettings,
};

/// The shortest recipe. Its three values are replaced at once.
const SHORTEST: &str = "model_name_or_path: model\ndataset_name: data\noutput_dir: out\n";

impl Recipe {
    /// A recipe with the defaults of its stage, which trains `model` (a hub id or a folder) on the
    /// rows of `train` and writes into `output_dir`. Set the fields of `train`, `data`, `model` and
    /// `objective` for everything else.
    ///
    /// ```
    /// use favonius::recipe::{DatasetSpec, Objective, Recipe, Stage};
    ///
    /// let rows = DatasetSpec::new("HuggingFaceH4/ultrafeedback_binarized", "train_prefs");
    /// let mut recipe = Recipe::new(Stage::Dpo, "my/sft-model", rows, "out/dpo");
    /// recipe.train.learning_rate = 5e-7;
    /// if let Objective::Dpo(dpo) = &mut recipe.objective {
    ///     dpo.beta = 0.01;
    /// }
    /// ```
    pub fn new(
        stage: Stage,
        model: impl Into<String>,
        train: DatasetSpec,
        output_dir: impl Into<PathBuf>,
    ) -> Self {
        let mut recipe = shortest(stage);
        recipe.model.model_name_or_path = model.into();
        recipe.train.output_dir = output_dir.into();
        recipe.written = vec![
            ("model_name_or_path".into(), recipe.model.model_name_or_path.clone()),
            ("dataset_name".into(), train.id.clone()),
            ("output_dir".into(), recipe.train.output_dir.display().to_string()),
        ];
        recipe.data.mixture = Mixture::Named { train, test: None };
        recipe
    }

    /// The same recipe with held-out rows. They are evaluated at the end, and as `train.eval` says.
    pub fn with_held_out(mut self, test: DatasetSpec) -> Self {
        if let Mixture::Named { test: held_out, .. } = &mut self.data.mixture {
            *held_out = Some(test);
        }
        self.train.do_eval = true;
        self
    }
}

impl DatasetSpec {
    /// All rows and columns of a split of `id`: a hub id, a folder or a file.
    pub fn new(id: impl Into<String>, split: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            config: None,
            revision: None,
            split: split.into(),
            data_dir: None,
            data_files: Vec::new(),
            columns: None,
            fraction: 1.0,
        }
    }
}

fn shortest(stage: Stage) -> Recipe {
    let recipe = Recipe::parse(SHORTEST, Path::new("(built in code)"), stage, &[]);
    recipe.expect("a test reads the shortest recipe of every stage")
}

impl Default for TrainSettings {
    /// The defaults of SFT.
    fn default() -> Self {
        shortest(Stage::Sft).train
    }
}

/// The defaults of an objective are those of the shortest recipe of its stage.
macro_rules! objective_defaults {
    ($($settings:ident: $stage:ident),* $(,)?) => {
        $(impl Default for $settings {
            fn default() -> Self {
                match shortest(Stage::$stage).objective {
                    Objective::$stage(settings) => settings,
                    other => unreachable!("the stage has the objective {other:?}"),
                }
            }
        })*
    };
}

objective_defaults!(
    SftSettings: Sft,
    DpoSettings: Dpo,
    OrpoSettings: Orpo,
    CpoSettings: Cpo,
    TpoSettings: Tpo,
    KtoSettings: Kto,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_in_code_is_the_yaml_with_the_same_values() {
        for stage in Stage::ALL {
            let built = Recipe::new(stage, "a/model", DatasetSpec::new("a/set", "train"), "runs/x");
            let text = "model_name_or_path: a/model\ndataset_name: a/set\noutput_dir: runs/x\n";
            let read = Recipe::parse(text, Path::new("r.yaml"), stage, &[]).unwrap();
            assert_eq!(built.train, read.train, "{stage:?}");
            assert_eq!(built.model, read.model, "{stage:?}");
            assert_eq!(built.data, read.data, "{stage:?}");
            assert_eq!(built.objective, read.objective, "{stage:?}");
            assert_eq!(built.written, read.written, "{stage:?}");
        }
    }

    #[test]
    fn held_out_rows_are_evaluated() {
        let set = |split: &str| DatasetSpec::new("a/set", split);
        let recipe = Recipe::new(Stage::Sft, "m", set("train"), "o").with_held_out(set("test"));
        assert!(recipe.train.do_eval);
        let Mixture::Named { test, .. } = recipe.data.mixture else { panic!("one set is named") };
        assert_eq!(test, Some(set("test")));
    }

    #[test]
    fn settings_have_defaults() {
        assert_eq!(DpoSettings::default().beta, 0.1);
        assert_eq!(TrainSettings::default().seed, 42);
        let _ = (SftSettings::default(), OrpoSettings::default(), CpoSettings::default());
        let _ = KtoSettings::default();
        assert_eq!(TpoSettings::default().beta, 0.01);
    }
}
