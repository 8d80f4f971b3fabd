//! Checks of `streaming: true`, which reads the training rows while the run trains.

use super::objectives::{Objective, SftSettings};
use super::reader::Reader;
use super::settings::{DataSettings, Mixture, Sampling, TrainSettings};

/// Refuses settings that need all rows before the first step.
pub(super) fn check(
    r: &mut Reader,
    data: &DataSettings,
    train: &TrainSettings,
    objective: &Objective,
) {
    if !data.streaming {
        return;
    }
    if train.max_steps.is_none() {
        refuse(r, "needs `max_steps`", "usable rows are only known once they have been read");
    }
    if !in_file_order(&data.mixture) {
        refuse(
            r,
            "reads rows in the order of the files, but this mixture has another order",
            "name the data with `dataset_name`, or with `datasets` without `test_split_size`",
        );
    }
    match objective {
        Objective::Kto(_) => refuse(
            r,
            "cannot be used with KTO",
            "each row of KTO has the completion of another row, so all are read first",
        ),
        Objective::Sft(SftSettings { shuffle_dataset: true, .. }) => refuse(
            r,
            "cannot be used with `shuffle_dataset`",
            "shuffle the files, or train without `streaming`",
        ),
        _ => {}
    }
    match train.train_sampling_strategy {
        Sampling::Sequential => {}
        Sampling::GroupByLength => refuse(
            r,
            "cannot be used with rows that are grouped by length",
            "the lengths of all rows are only known once they have been read",
        ),
        // As in transformers, which does not shuffle a data set without a length.
        Sampling::Random => refuse(
            r,
            "reads rows in the order of the files, but `train_sampling_strategy` is random",
            "remove `train_sampling_strategy`, and shuffle the files",
        ),
    }
}

fn refuse(r: &mut Reader, problem: &str, help: &str) {
    r.error_on("streaming", format!("`streaming: true` {problem}"));
    r.help(help);
}

/// Whether the training rows are those of the files, one file after the other.
fn in_file_order(mixture: &Mixture) -> bool {
    match mixture {
        Mixture::Named { .. } => true,
        Mixture::Listed { test_split_size, .. } => test_split_size.is_none(),
        Mixture::Mixer { .. } | Mixture::Pooled { .. } => false,
    }
}
