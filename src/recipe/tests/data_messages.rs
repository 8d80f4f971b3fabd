//! The messages about data keys.

use super::*;

/// The errors of `data` in a recipe with nothing else; `data` begins on line 2.
#[track_caller]
fn check_data(data: &str, first: &str) {
    let shown = parse(&format!("model_name_or_path: m\n{data}\n"), Stage::Dpo, &[])
        .expect_err("broken")
        .to_string();
    let heads: Vec<&str> = shown.lines().filter(|line| line.starts_with("r.yaml")).collect();
    assert_eq!(heads, [first], "{shown}");
}

#[test]
fn data_that_cannot_be_read() {
    check_data(
        "dataset_mixer: {a: -0.5}\ndataset_splits: [train]",
        "r.yaml:2:20: `dataset_mixer.a` must be above 0 and at most 1, not `-0.5`",
    );
    check_data(
        "dataset_mixer: {a: 1, a: 1}\ndataset_splits: [train]",
        "r.yaml:2:23: `dataset_mixer.a` is given twice",
    );
    check_data(
        "dataset_mixer: [a]",
        "r.yaml:2:16: `dataset_mixer` must be a mapping of data set ids to fractions, not a list",
    );
    check_data("dataset_mixer: {}", "r.yaml:2:16: `dataset_mixer` names no data set");
    check_data(
        "dataset_mixer: {a: 1}\ndataset_splits: [train, validation]",
        "r.yaml:3:25: `dataset_splits`: `validation` has neither `train` nor `test` in its name",
    );
    check_data(
        "dataset_mixer: {a: 1}\ndataset_splits: [test_prefs]",
        "r.yaml:3:17: `dataset_splits` has no train split for `dataset_mixer`",
    );
    check_data(
        "dataset_mixer: {a: 1}\ndataset_splits: [train]\neval_strategy: epoch",
        "r.yaml:3:17: `dataset_splits` has no test split, but the recipe evaluates",
    );
    check_data(
        "dataset_mixer: {a: 1}\ndataset_configs: [x, y]",
        "r.yaml:3:18: `dataset_configs` has 2 entries for the 1 of `dataset_mixer`",
    );
    check_data(
        "dataset_name: a\ndataset_mixer: {a: 1}",
        "r.yaml:2:1: `dataset_name` and `dataset_mixer` both choose the data sets",
    );
    check_data("dataset_mixture: {seed: 0}", "r.yaml:2:18: `dataset_mixture` has no `datasets`");
    check_data(
        "dataset_mixture: {datasets: []}",
        "r.yaml:2:29: `dataset_mixture.datasets` needs a list of data sets, not a list",
    );
    check_data(
        "dataset_mixture: {datasets: [{split: x}]}",
        "r.yaml:2:30: this data set has no `id`",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a, wieght: 1}]}",
        "r.yaml:2:38: `dataset_mixture.datasets.0.wieght` is not a known key",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a, weight: 2}]}",
        "r.yaml:2:46: `dataset_mixture.datasets.0.weight` must be above 0 and at most 1, not `2`",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a, columns: [x]}, {id: b, columns: [y]}]}",
        "r.yaml:2:53: the data sets of the mixture have different `columns`",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a}], test_split_size: 0}",
        "r.yaml:2:57: `dataset_mixture.test_split_size` needs a number of rows, or a share above 0 and below 1, not `0`",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a}], seed: 0.5}",
        "r.yaml:2:46: `dataset_mixture.seed` needs a whole number, not `0.5`",
    );
    check_data(
        "dataset_mixture: {datasets: [{id: a}]}\ndo_eval: true",
        "r.yaml:2:1: `dataset_mixture` has no `test_split_size`, but the recipe evaluates",
    );
}

#[test]
fn lists_of_data_sets_that_cannot_be_read() {
    check_data("datasets: a", "r.yaml:2:11: `datasets` needs a list of data sets, not `a`");
    check_data("datasets: [{split: x}]", "r.yaml:2:12: this data set has no `path`");
    check_data(
        "datasets: [{path: a, fraction: 0.5}, {path: b}]",
        "r.yaml:2:11: `fraction` is given for 1 of 2 data sets; it must be given for all or for none",
    );
    check_data(
        "datasets: [{path: a, fraction: 0}]",
        "r.yaml:2:11: every `fraction` of `datasets` is 0",
    );
    check_data(
        "datasets: [{path: a, weight: 0.5}]",
        "r.yaml:2:30: `weight` is a key of `dataset_mixture`, not of `datasets`",
    );
    check_data(
        "datasets: [{path: a}]\ntest_split_size: 1.5",
        "r.yaml:3:18: `test_split_size` needs a number of rows, or a share above 0 and below 1, not `1.5`",
    );
    check_data(
        "datasets: [{path: a}]\ndo_eval: true",
        "r.yaml:2:1: `datasets` has no `test_split_size` beside it, but the recipe evaluates",
    );
}
