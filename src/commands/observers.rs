//! The screen and the reports of a run.

use crate::parallel::Ranks;
use crate::recipe::{Recipe, Reporter};
use crate::report::screen::Screen;
use crate::report::{ReporterOptions, Reporters};

/// The user's screen for rank 0. The other ranks print nothing.
pub fn screen_of(ranks: &Ranks, quiet: bool) -> Screen {
    match ranks.is_first() {
        true => Screen::detect(quiet),
        false => Screen::new(false, true, Box::new(std::io::sink())),
    }
}

/// The reports of a recipe's run: `screen`, and TensorBoard if the recipe wants it.
pub fn reporters(recipe: &Recipe, screen: Screen, ranks: &Ranks) -> Reporters {
    Reporters::new(ReporterOptions {
        output_dir: recipe.output_dir().into(),
        screen,
        tensorboard: ranks.is_first() && recipe.train.report_to.contains(&Reporter::TensorBoard),
        tensorboard_dir: recipe.train.logging_dir.clone(),
    })
}

/// The first GPU of a host, if tensors are in the memory of GPUs, which NCCL reaches.
pub fn first_gpu(recipe: &Recipe) -> Option<usize> {
    recipe.train.device.gpu()
}
