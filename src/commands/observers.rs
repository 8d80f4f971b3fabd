//! The screen and the reports of a run.

use crate::parallel::Ranks;
use crate::recipe::Recipe;
use crate::report::loggers::logger::config_value;
use crate::report::screen::Screen;
use crate::report::{ReporterOptions, Reporters};

/// The user's screen for rank 0. The other ranks print nothing.
pub fn screen_of(ranks: &Ranks, quiet: bool) -> Screen {
    match ranks.is_first() {
        true => Screen::detect(quiet),
        false => Screen::new(false, true, Box::new(std::io::sink())),
    }
}

/// The reports of a recipe's run: `screen`, and on rank 0 the loggers that the recipe names.
pub fn reporters(recipe: &Recipe, screen: Screen, ranks: &Ranks) -> Reporters {
    let train = &recipe.train;
    let keys = recipe.filled.iter().chain(&recipe.written);
    Reporters::new(ReporterOptions {
        report_to: if ranks.is_first() { train.report_to.clone() } else { Vec::new() },
        logging_dir: train.logging_dir.clone(),
        run_name: train.run_name.clone(),
        project: train.project.clone(),
        config: keys.map(|(key, text)| (key.clone(), config_value(text))).collect(),
        ..ReporterOptions::screen_only(recipe.output_dir().into(), screen)
    })
}

/// The first GPU of a host, if tensors are in the memory of GPUs, which NCCL reaches.
pub fn first_gpu(recipe: &Recipe) -> Option<usize> {
    recipe.train.device.gpu()
}
