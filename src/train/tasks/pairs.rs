//! Preference optimization over pairs.

use std::path::Path;

use super::reference::ReferenceSource;
use crate::data::DataError;
use crate::data::ragged::RaggedBatch;
use crate::data::{PreferencePair, RowList, Splits, TwoResponses};
use crate::model::decoder::Decoder;
use crate::model::weights::WeightsError;
use crate::objective::desirable_length::{token_weights, weighted_sums};
use crate::objective::preference::{PairLogps, PairObjective, PreferenceOutcome, preference_loss};
use crate::recipe::LogitsOver;
use crate::train::layerwise::LayerwisePass;
use crate::train::task::{Counted, Measured, Metric, Part, Split, Task, mean, mean_over, of_rows};

/// DPO and its variants, ORPO, CPO, SimPO, TPO.
pub struct PreferenceTask<'a> {
    pub pairs: &'a Splits<PreferencePair>,
    pub reference: ReferenceSource,
    pub objective: PairObjective,
}

impl PreferenceTask<'_> {
    fn split(&self, split: Split) -> &RowList<PreferencePair> {
        match split {
            Split::Train => &self.pairs.train,
            Split::Test => &self.pairs.test,
        }
    }

    fn logits_over(&self) -> LogitsOver {
        match &self.objective {
            PairObjective::Dpo(dpo) => dpo.logits_over,
            PairObjective::Orpo(orpo) => orpo.logits_over,
            PairObjective::Cpo(cpo) => cpo.logits_over,
            PairObjective::Tpo(_) => LogitsOver::Response,
        }
    }

    fn ld_alpha(&self) -> Option<f64> {
        match &self.objective {
            PairObjective::Dpo(dpo) => dpo.ld_alpha,
            PairObjective::Orpo(_) | PairObjective::Cpo(_) | PairObjective::Tpo(_) => None,
        }
    }

    /// The text of the NLL.
    fn text(&self) -> NllText {
        match self.objective {
            PairObjective::Dpo(_) | PairObjective::Cpo(_) => NllText::Chosen,
            PairObjective::Orpo(_) => NllText::PromptAndChosen,
            PairObjective::Tpo(_) => NllText::Gold,
        }
    }

    fn pair_logps(&self, split: Split, rows: &[usize], pass: &LayerwisePass) -> PairLogps {
        let batch = pass.batch();
        let pairs = rows.len();
        let plain = batch.sum_by_sequence(&pass.scores.logp);
        let weighted = weighted_sums(batch, &pass.scores.logp, self.ld_alpha());
        let tokens = batch.scored_by_sequence();
        let side = |sums: &[f64], side: usize| -> Vec<f64> {
            (0..pairs).map(|pair| sums[2 * pair + side]).collect()
        };
        let tokens_of = |side: usize| -> Vec<usize> {
            (0..pairs).map(|pair| tokens[2 * pair + side]).collect()
        };
        let (mut text, mut text_tokens) = match self.text() {
            NllText::Chosen | NllText::PromptAndChosen => (side(&plain, 0), tokens_of(0)),
            NllText::Gold => (vec![0.0; pairs], vec![0; pairs]),
        };
        if self.text() != NllText::Chosen {
            for pair in 0..pairs {
                text[pair] += plain[2 * pairs + pair];
                text_tokens[pair] += tokens[2 * pairs + pair];
            }
        }
        let [reference_chosen, reference_rejected] =
            self.reference.logps(split, rows, batch, self.ld_alpha());
        PairLogps {
            chosen: side(&weighted, 0),
            rejected: side(&weighted, 1),
            reference_chosen,
            reference_rejected,
            chosen_tokens: tokens_of(0),
            rejected_tokens: tokens_of(1),
            text,
            text_tokens,
            weights: self.wpo_weights(pairs, pass),
        }
    }

    /// WPO (arXiv 2406.11827), eq. 2: `exp(mean_t[ln p(y_t) − ln Σ_v p_v²])`, multiplied over both
    /// responses.
    fn wpo_weights(&self, pairs: usize, pass: &LayerwisePass) -> Option<Vec<f64>> {
        let PairObjective::Dpo(dpo) = &self.objective else { return None };
        if !dpo.use_weighting {
            return None;
        }
        let batch = pass.batch();
        let logp = batch.sum_by_sequence(&pass.scores.logp);
        let squares = batch.sum_by_sequence(&pass.scores.log_sum_squares);
        let tokens = batch.scored_by_sequence();
        let weight = |s: usize| ((logp[s] - squares[s]) / tokens[s].max(1) as f64).exp();
        Some((0..pairs).map(|pair| weight(2 * pair) * weight(2 * pair + 1)).collect())
    }

    /// Mean logits of the chosen and the rejected side: over the positions of the response, as in
    /// TRL today, or over all positions of the sequence, as in TRL until v0.11.
    fn mean_logits(&self, pairs: usize, pass: &LayerwisePass) -> [Counted; 2] {
        let batch = pass.batch();
        match self.logits_over() {
            LogitsOver::Response => [0, 1].map(|side| {
                let is_of_side = |s: usize| s < 2 * pairs && s % 2 == side;
                mean_over(batch, &pass.scores.mean_logit, is_of_side)
            }),
            LogitsOver::All => {
                let means = pass.mean_logits();
                let of_side = |side: usize| {
                    let groups = batch.segments.groups();
                    let tokens: Vec<usize> = groups
                        .iter()
                        .flat_map(|group| [group[0], group[1 + side]])
                        .flat_map(|segment| segment.start..segment.start + segment.len)
                        .collect();
                    mean(tokens.into_iter().map(|token| f64::from(means[token])))
                };
                [of_side(0), of_side(1)]
            }
        }
    }

    /// TRL's names and order. A tie counts as a wrong answer.
    fn metrics(
        &self,
        pairs: usize,
        outcome: &PreferenceOutcome,
        pass: &LayerwisePass,
    ) -> Vec<Metric> {
        let batch = pass.batch();
        let rewards = outcome.chosen_rewards.iter().zip(&outcome.rejected_rewards);
        let correct: Vec<f32> = pass.scores.correct.iter().map(|c| f32::from(*c)).collect();
        let [chosen_logits, rejected_logits] = self.mean_logits(pairs, pass);
        let of_chosen = |s: usize| s < 2 * pairs && s.is_multiple_of(2);
        let is_response = |s: usize| s < 2 * pairs || self.text() == NllText::Gold;
        let mut metrics = vec![
            ("entropy", mean_over(batch, &pass.scores.entropy, is_response)),
            ("logits/chosen", chosen_logits),
            ("logits/rejected", rejected_logits),
            ("mean_token_accuracy", mean_over(batch, &correct, of_chosen)),
            ("rewards/chosen", mean(outcome.chosen_rewards.iter().copied())),
            ("rewards/rejected", mean(outcome.rejected_rewards.iter().copied())),
            ("rewards/accuracies", mean(rewards.map(|(c, r)| if c > r { 1.0 } else { 0.0 }))),
            ("rewards/margins", (margin(outcome), pairs)),
            ("logps/chosen", mean(outcome.chosen_logps.iter().copied())),
            ("logps/rejected", mean(outcome.rejected_logps.iter().copied())),
        ];
        metrics.extend(outcome.metrics.iter().map(|(name, value)| (*name, (*value, pairs))));
        of_rows(metrics, pairs).collect()
    }

    /// Gradient with respect to each scored log-prob, `[n]`, from the gradients of the pairs'
    /// vectors.
    fn upstream(
        &self,
        pairs: usize,
        outcome: &PreferenceOutcome,
        pass: &LayerwisePass,
    ) -> Vec<f64> {
        let batch = pass.batch();
        let weights = token_weights(batch, self.ld_alpha());
        let sequences = batch.sequence.iter().zip(weights);
        let of_text = |pair: usize| match self.text() {
            NllText::Chosen | NllText::PromptAndChosen => outcome.d_text[pair],
            NllText::Gold => 0.0,
        };
        let gradient = |(sequence, weight): (&usize, f64)| match *sequence {
            s if s >= 2 * pairs => outcome.d_text[s - 2 * pairs],
            s if s % 2 == 0 => weight * outcome.d_chosen[s / 2] + of_text(s / 2),
            s => weight * outcome.d_rejected[s / 2],
        };
        sequences.map(gradient).collect()
    }
}

impl Task for PreferenceTask<'_> {
    fn rows(&self, split: Split) -> usize {
        self.split(split).len()
    }

    fn wait(&self, split: Split, window: &[&[usize]]) -> Result<(), DataError> {
        self.split(split).wait(window)
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        let pairs = self.split(split).select(rows);
        let pairs = pairs.iter().map(|pair| &**pair);
        let batch = match self.text() {
            NllText::Chosen => RaggedBatch::preferences(pairs),
            NllText::PromptAndChosen => RaggedBatch::preferences_with_prompts(pairs),
            NllText::Gold => RaggedBatch::triples(pairs),
        };
        RaggedBatch { reads_everywhere: self.logits_over() == LogitsOver::All, ..batch }
    }

    /// The number of micro-batches: the loss is the mean over their means.
    fn divisor(&self, _: Split, window: &[&[usize]]) -> usize {
        window.len()
    }

    fn measure(&self, split: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured {
        let pairs = part.rows.len();
        let logps = self.pair_logps(split, part.rows, pass);
        let outcome = preference_loss(&logps, &self.objective);
        let share = part.share() / divisor as f64;
        let upstream = self.upstream(pairs, &outcome, pass);
        Measured {
            loss: outcome.loss * share,
            upstream: upstream.into_iter().map(|gradient| (gradient * share) as f32).collect(),
            metrics: self.metrics(pairs, &outcome, pass),
            margin: Some(margin(&outcome)),
        }
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split).get(row).tokens()
    }

    /// A prompt counts for both responses.
    fn occurrences(&self, split: Split, rows: &[usize]) -> Vec<f32> {
        let of_row = |row: &usize| {
            let pair = self.split(split).get(*row);
            let responses = pair.chosen.len() + pair.rejected.len();
            [vec![2.0; pair.prompt.len()], vec![1.0; responses]].concat()
        };
        rows.iter().flat_map(of_row).collect()
    }

    fn padded_length(&self, rows: &[usize]) -> usize {
        let tokens = rows.iter().map(|row| {
            let pair = self.pairs.train.get(*row);
            let [prompt, responses @ ..] = pair.parts().map(<[u32]>::len);
            prompt + responses.into_iter().max().unwrap_or(0)
        });
        tokens.max().unwrap_or(0)
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        let pairs = rows.iter().map(|row| self.split(split).get(*row));
        pairs.map(|pair| pair.unshared_tokens()).sum()
    }

    fn after_update(&self, step: u64, policy: &Decoder) {
        self.reference.follow(step, policy);
    }

    fn save(&self, checkpoint: &Path) -> Result<(), WeightsError> {
        self.reference.save(checkpoint)
    }
}

/// The text of an objective's NLL. If it is not in the responses of the pairs, the batch has one
/// more sequence for each pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NllText {
    Chosen,
    PromptAndChosen,
    Gold,
}

fn margin(outcome: &PreferenceOutcome) -> f64 {
    let rewards = outcome.chosen_rewards.iter().zip(&outcome.rejected_rewards);
    mean(rewards.map(|(chosen, rejected)| chosen - rejected)).0
}
