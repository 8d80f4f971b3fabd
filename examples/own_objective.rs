//! An objective of one's own: preference pairs without a reference, `−ln σ(β (ln π_w − ln π_l))`,
//! where `π_w` and `π_l` are the policy's probabilities of the chosen and the rejected response.
//!
//! The library brings the rows as ragged batches and the log-probs of the response tokens. The
//! objective returns the loss and its gradient with respect to each log-prob. The backward pass,
//! the optimizer, evaluations and checkpoints are the library's.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use favonius::data::ragged::RaggedBatch;
use favonius::data::{PreferencePair, RowList, Splits, TwoResponses};
use favonius::parallel::Ranks;
use favonius::plan::{Plan, Rows};
use favonius::recipe::{DatasetSpec, Recipe, Stage};
use favonius::run::{Context, Run, Training};
use favonius::toy::world;
use favonius::train::layerwise::LayerwisePass;
use favonius::train::steps::Sharing;
use favonius::train::task::{Measured, Metric, Part, Split, Task};

struct PairLogistic<'a> {
    pairs: &'a Splits<PreferencePair>,
    beta: f64,
}

impl PairLogistic<'_> {
    fn split(&self, split: Split) -> &RowList<PreferencePair> {
        match split {
            Split::Train => &self.pairs.train,
            Split::Test => &self.pairs.test,
        }
    }
}

impl Task for PairLogistic<'_> {
    fn rows(&self, split: Split) -> usize {
        self.split(split).len()
    }

    /// Three segments a pair: the prompt once, then both responses.
    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::preferences(self.split(split).select(rows).iter().map(|pair| &**pair))
    }

    /// The loss of a step is the mean over its micro-batches.
    fn divisor(&self, _: Split, window: &[&[usize]]) -> usize {
        window.len()
    }

    fn measure(&self, _: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured {
        // `[2 p]`: the log-probs of the chosen and the rejected response of each pair, in nats.
        let logps = pass.batch().sum_by_sequence(&pass.scores.logp);
        let pairs = part.rows.len();
        let share = part.share() / divisor as f64 / pairs as f64;
        let differences: Vec<f64> = logps.chunks(2).map(|pair| pair[0] - pair[1]).collect();
        let losses = differences.iter().map(|x| (-self.beta * x).exp().ln_1p());
        let right = differences.iter().filter(|x| **x > 0.0).count() as f64 / pairs as f64;
        // `d loss / d ln π_w = −β σ(−β x)`, and the opposite for the rejected response.
        let slope = |x: f64| -self.beta / (1.0 + (self.beta * x).exp()) * share;
        let upstream = pass.batch().sequence.iter().map(|sequence| {
            let sign = if sequence % 2 == 0 { 1.0 } else { -1.0 };
            (sign * slope(differences[sequence / 2])) as f32
        });
        Measured {
            loss: losses.sum::<f64>() * share,
            upstream: upstream.collect(),
            metrics: vec![Metric { name: "accuracy", value: right, of: pairs, rows: pairs }],
            margin: None,
        }
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split).get(row).tokens()
    }

    /// As TRL counts them: the prompt once for each response.
    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        let pairs = rows.iter().map(|row| self.split(split).get(*row));
        pairs.map(|pair| pair.tokens() + pair.prompt.len()).sum()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let world = world::write(Path::new("favonius-own-objective"), 42)?;
    let pairs = DatasetSpec::new(world.preferences.to_string_lossy(), "train_prefs");
    let (model, out) = (world.base_model.to_string_lossy(), world.root.join("policy"));
    let mut recipe = Recipe::new(Stage::Cpo, model, pairs, out);
    recipe.train.learning_rate = 1e-4;
    recipe.train.max_steps = Some(20);

    let sharing = Sharing::of(&recipe.train, 1);
    let plan = Plan::new(recipe, sharing, &mut ())?;
    let Rows::Pairs(pairs) = &plan.rows else { return Err("CPO trains on pairs".into()) };
    let context = Context { ranks: &Ranks::one(), stop: &AtomicBool::new(false) };
    let mut observer = ();
    let run = Run::new(&plan, &context, &mut observer)?;
    if let Training::Done(trained) = run.train_on(Box::new(PairLogistic { pairs, beta: 0.1 }))? {
        let first = trained.state().log_history.iter().find_map(|row| row.get("loss"));
        let last = trained.state().log_history.iter().rev().find_map(|row| row.get("loss"));
        println!("loss {first:?} → {last:?}");
        trained.finish()?;
    }
    Ok(())
}
