//! The checkpoints of a training loop, the best of them, and the summary at its end.

use std::io;
use std::path::{Path, PathBuf};

use super::Trainer;
use crate::train::checkpoint::{self, Contents, Timed};
use crate::train::clock::Clock;
use crate::train::error::TrainError;
use crate::train::event::{Event, LogRow, Observer};
use crate::train::measured::{metric_for_best_model, with_tokens};

impl Trainer<'_> {
    /// Notes the step of an evaluation if it is better than all before it, and returns whether it
    /// is.
    pub(super) fn remember_best(&mut self, row: &LogRow) -> Result<bool, TrainError> {
        let Some(value) = metric_for_best_model(self.settings, row)? else { return Ok(false) };
        let better = match (self.state.best_metric, self.settings.greater_is_better) {
            (None, _) => !value.is_nan(),
            (Some(best), Some(false)) => value < best,
            (Some(best), _) => value > best,
        };
        if better {
            self.state.best_metric = Some(value);
            self.state.best_global_step = Some(row.step);
        }
        Ok(better)
    }

    /// Notes the checkpoint that is about to be written as the best one if its step is the best
    /// one. Until a better checkpoint is written, the previous best one is not removed.
    pub(super) fn remember_best_checkpoint(&mut self) {
        let step = self.state.global_step;
        if self.state.best_global_step == Some(step) {
            let path = checkpoint::folder(&self.settings.output_dir, step);
            self.state.best_model_checkpoint = Some(path.display().to_string());
        }
    }

    /// Writes a checkpoint and removes those beyond the limit.
    pub(super) fn save(
        &mut self,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.ranks.at_work(|| "writing the checkpoint".into());
        self.position.timed = clock.timed(self.position.global_step);
        let output_dir = &self.settings.output_dir;
        let was_removed = self.ranks.is_first() && !output_dir.is_dir();
        let beside = |folder: &Path| {
            // As in PEFT, an adapter has the configuration of its base.
            match self.model.adapter {
                Some(_) => self.tokenizer.save(folder)?,
                None => self.model_files.write(self.tokenizer, self.model.dtype(), folder)?,
            }
            self.task.save(folder).map_err(io::Error::other)
        };
        let path = checkpoint::write(
            output_dir,
            &Contents {
                model: &self.model,
                optimizer: (!self.settings.save_only_model).then_some(&self.optimizer),
                state: &self.state,
                position: &self.position,
                beside: &beside,
            },
            self.ranks,
        )?;
        if let (Some(limit), true) = (self.settings.save_total_limit, self.ranks.is_first()) {
            let best = self.state.best_model_checkpoint.as_deref().map(Path::new);
            checkpoint::prune(output_dir, self.state.global_step, limit, best)?;
        }
        observer.on(&Event::Saved { path: &path })?;
        match was_removed {
            true => Err(TrainError::FolderRemoved { folder: output_dir.clone(), checkpoint: path }),
            false => Ok(()),
        }
    }

    /// Adds the summary, the last row of the record. Its times are those of all starts of the run.
    pub(super) fn finish(
        &mut self,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Timed { seconds, steps } = clock.timed(self.position.global_step);
        // Over whole epochs each row counts once per epoch, although the last step of an epoch may
        // be short.
        let per_step = match self.settings.max_steps {
            Some(_) => self.schedule.rows_a_step() as f64,
            None => {
                let rows = self.schedule.rows_an_epoch() as f64;
                rows * self.state.epoch / self.position.global_step as f64
            }
        };
        let samples = steps as f64 * per_step;
        let flops = 6.0
            * self.model.config.parameters_beside_embedding() as f64
            * self.position.num_tokens as f64;
        self.state.total_flos = flops;
        let mut values = vec![
            ("train_runtime".into(), seconds),
            ("train_samples_per_second".into(), samples / seconds),
            ("train_steps_per_second".into(), steps as f64 / seconds),
            ("total_flos".into(), flops),
            ("train_loss".into(), self.position.total_loss / self.position.global_step as f64),
        ];
        // As in TRL, the summary includes the metrics since the last log row.
        if self.position.steps_since_log > 0 {
            let means = self.position.means_since_log.take("");
            values.extend(with_tokens(means, "", self.position.num_tokens));
        }
        self.record(values, observer)
    }

    /// The checkpoint that `load_best_model_at_end` asks for, if it is not the current model: the
    /// one in the run's folder, which may have been moved, otherwise the one at the path in the
    /// record.
    pub fn best_checkpoint(&self) -> Option<PathBuf> {
        let wanted = self.settings.load_best_model_at_end
            && self.state.best_global_step != Some(self.state.global_step);
        let noted =
            self.state.best_model_checkpoint.as_deref().map(Path::new).filter(|_| wanted)?;
        // The record may come from elsewhere; only a checkpoint is read as the best model.
        checkpoint::step_of(noted)?;
        let own = noted.file_name().map(|name| self.settings.output_dir.join(name));
        Some(own.filter(|path| path.is_dir()).unwrap_or_else(|| noted.to_path_buf()))
    }
}
