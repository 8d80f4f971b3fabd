//! The keys of the preference objectives, and checks that involve several of them. All other keys
//! are in `schema`.

use super::number::{AT_LEAST_1, BELOW_HALF, NOT_NEGATIVE, POSITIVE, SHARE};
use super::objectives::{
    CpoLoss, CpoSettings, DpoSettings, FDivergence, FDivergenceType, KtoLoss, KtoSettings, Lengths,
    LogitsOver, LossType, OrpoSettings, SyncRefModel, TpoLoss, TpoSettings, Truncation,
    WeightedLoss,
};
use super::reader::Reader;
use super::settings::{Sampling, TrainSettings};
use super::yaml::Value;

/// Reads the keys of a DPO recipe.
pub(super) fn dpo(r: &mut Reader) -> DpoSettings {
    let settings = DpoSettings {
        beta: r.float("beta", 0.1, POSITIVE),
        losses: losses(r),
        label_smoothing: r.float("label_smoothing", 0.0, BELOW_HALF),
        f_divergence: f_divergence(r),
        ld_alpha: r.optional_float("ld_alpha", SHARE),
        use_weighting: r.flag("use_weighting", false),
        reference_free: r.flag("reference_free", false),
        discopop_tau: r.float("discopop_tau", 0.05, POSITIVE),
        sync_ref_model: sync_ref_model(r),
        lengths: lengths(r),
        precompute_ref_log_probs: r.flag("precompute_ref_log_probs", false),
        logits_over: r.choice("logits_metric", LogitsOver::Response),
    };
    check_dpo(r, &settings);
    settings
}

/// Reads the keys of an ORPO recipe.
pub(super) fn orpo(r: &mut Reader) -> OrpoSettings {
    OrpoSettings {
        beta: r.float("beta", 0.1, POSITIVE),
        lengths: lengths(r),
        logits_over: r.choice("logits_metric", LogitsOver::All),
    }
}

/// Reads the keys of a CPO or SimPO recipe.
pub(super) fn cpo(r: &mut Reader) -> CpoSettings {
    let settings = CpoSettings {
        beta: r.float("beta", 0.1, POSITIVE),
        loss_type: r.choice("loss_type", CpoLoss::Sigmoid),
        label_smoothing: r.float("label_smoothing", 0.0, BELOW_HALF),
        cpo_alpha: r.float("cpo_alpha", 1.0, NOT_NEGATIVE),
        simpo_gamma: r.float("simpo_gamma", 0.5, NOT_NEGATIVE),
        alpha: r.float("alpha", 0.0, NOT_NEGATIVE),
        lengths: lengths(r),
        logits_over: r.choice("logits_metric", LogitsOver::All),
    };
    let smooth = matches!(settings.loss_type, CpoLoss::Sigmoid | CpoLoss::Simpo);
    no_effect(r, "label_smoothing", smooth, "only `loss_type` sigmoid and simpo read it");
    let simpo = settings.loss_type == CpoLoss::Simpo;
    no_effect(r, "simpo_gamma", simpo, "only `loss_type: simpo` reads it");
    if simpo && settings.cpo_alpha > 0.0 && !r.is_written("cpo_alpha") {
        r.note(
            "`cpo_alpha` is 1, TRL's default: the NLL of the chosen responses is added to SimPO; \
             the paper has `cpo_alpha: 0`"
                .to_owned(),
        );
    }
    settings
}

/// Reads the keys of a TPO recipe.
pub(super) fn tpo(r: &mut Reader) -> TpoSettings {
    let settings = TpoSettings {
        beta: r.float("beta", 0.01, POSITIVE),
        loss_type: r.choice("loss_type", TpoLoss::Sigmoid),
        label_smoothing: r.float("label_smoothing", 0.0, BELOW_HALF),
        tpo_alpha: r.float("tpo_alpha", 1.0, NOT_NEGATIVE),
        tpo_l_gamma: r.float("tpo_l_gamma", 0.5, NOT_NEGATIVE),
        lengths: Lengths {
            max_length: r.limit("max_length", 1024),
            max_prompt_length: None,
            max_completion_length: None,
            truncation_mode: r.choice("truncation_mode", Truncation::KeepStart),
        },
    };
    let smooth = settings.loss_type.reads_smoothing();
    no_effect(r, "label_smoothing", smooth, "only `loss_type` sigmoid and tpo-l read it");
    let is_tpo_l = settings.loss_type == TpoLoss::TpoL;
    no_effect(r, "tpo_l_gamma", is_tpo_l, "only `loss_type: tpo-l` reads it");
    settings
}

/// Reads the keys of a KTO recipe.
pub(super) fn kto(r: &mut Reader, train: &TrainSettings) -> KtoSettings {
    let settings = KtoSettings {
        beta: r.float("beta", 0.1, POSITIVE),
        loss_type: r.choice("loss_type", KtoLoss::Kto),
        desirable_weight: r.float("desirable_weight", 1.0, NOT_NEGATIVE),
        undesirable_weight: r.float("undesirable_weight", 1.0, NOT_NEGATIVE),
        sync_ref_model: sync_ref_model(r),
        lengths: Lengths {
            max_length: r.limit("max_length", 1024),
            max_prompt_length: None,
            max_completion_length: None,
            truncation_mode: Truncation::KeepStart,
        },
        precompute_ref_log_probs: r.flag("precompute_ref_log_probs", false),
        logits_over: LogitsOver::Response,
    };
    stored_or_synced(r, settings.precompute_ref_log_probs, settings.sync_ref_model);
    if settings.loss_type == KtoLoss::Kto && train.per_device_train_batch_size < 2 {
        r.error_on(
            "per_device_train_batch_size",
            "`loss_type: kto` needs a `per_device_train_batch_size` of at least 2".to_owned(),
        );
        r.help(
            "its KL is estimated from prompts paired with responses of other rows in the \
             micro-batch",
        );
    }
    let sequential = train.train_sampling_strategy == Sampling::Sequential;
    if settings.loss_type.has_kl() && !sequential {
        r.note(
            "`train_sampling_strategy`: the KL of `loss_type: kto` is estimated from responses \
             of neighbors in the file, \
             which a random order puts into other micro-batches; TRL only allows \
             sequential"
                .to_owned(),
        );
    }
    settings
}

fn lengths(r: &mut Reader) -> Lengths {
    let max_prompt_length = r.optional_count("max_prompt_length", AT_LEAST_1);
    // TRL truncated prompts at the start as long as it had this key.
    let truncation_mode = match max_prompt_length {
        Some(_) => Truncation::KeepEnd,
        None => Truncation::KeepStart,
    };
    let lengths = Lengths {
        max_length: r.limit("max_length", 1024),
        max_prompt_length,
        max_completion_length: r
            .optional_count("max_completion_length|max_target_length", AT_LEAST_1),
        truncation_mode: r.choice("truncation_mode", truncation_mode),
    };
    if let (Some(prompt), Some(whole)) = (lengths.max_prompt_length, lengths.max_length)
        && prompt >= whole
    {
        r.error_on(
            "max_prompt_length",
            format!(
                "`max_prompt_length` is {prompt}, which leaves no \
                 room for a response in `max_length` {whole}"
            ),
        );
        r.help("lower `max_prompt_length` or raise `max_length`");
    }
    lengths
}

/// `loss_type` is one loss or a list; `loss_weights` has one weight for each. TRL's old `rpo_alpha:
/// x` adds the loss `sft` with weight x.
fn losses(r: &mut Reader) -> Vec<WeightedLoss> {
    let mut types: Vec<LossType> = Vec::new();
    match r.take("loss_type") {
        None => {
            r.fill("loss_type", &"sigmoid");
            types.push(LossType::Sigmoid);
        }
        Some(entry) => match &entry.value.value {
            Value::List(items) if items.is_empty() => {
                r.error(entry.value.at, "`loss_type` is an empty list".to_owned());
            }
            Value::List(items) => {
                let choice = |item| r.as_choice::<LossType>("loss_type", item);
                types.extend(items.iter().filter_map(choice));
            }
            _ => types.extend(r.as_choice::<LossType>("loss_type", &entry.value)),
        },
    }
    let weights = weights(r, types.len());
    let mut losses: Vec<WeightedLoss> = types
        .into_iter()
        .zip(weights)
        .map(|(loss_type, weight)| WeightedLoss { loss_type, weight })
        .collect();
    if let Some(alpha) = r.optional_float("rpo_alpha", NOT_NEGATIVE) {
        losses.push(WeightedLoss { loss_type: LossType::Sft, weight: alpha });
    }
    losses
}

fn weights(r: &mut Reader, losses: usize) -> Vec<f64> {
    let ones = vec![1.0; losses];
    let Some(entry) = r.take("loss_weights") else {
        r.fill("loss_weights", &"null");
        return ones;
    };
    let (at, items) = match entry.value.value {
        Value::Null => return ones,
        Value::List(items) => (entry.value.at, items),
        _ => (entry.value.at, vec![entry.value]),
    };
    if items.len() != losses && losses > 0 {
        r.error(at, format!("`loss_weights` has {} weights for {losses} losses", items.len()));
        r.help("write one weight for each loss of `loss_type`, in the same order");
        return ones;
    }
    let weight = |item: &_| r.as_float("loss_weights", item, NOT_NEGATIVE).unwrap_or(1.0);
    items.iter().map(weight).collect()
}

fn f_divergence(r: &mut Reader) -> FDivergence {
    let kind = r.choice("f_divergence_type", FDivergenceType::ReverseKl);
    let alpha = r.float("f_alpha_divergence_coef", 0.5, NOT_NEGATIVE);
    let is_alpha = kind == FDivergenceType::AlphaDivergence;
    no_effect(
        r,
        "f_alpha_divergence_coef",
        is_alpha,
        "only `f_divergence_type: alpha_divergence` reads it",
    );
    match kind {
        FDivergenceType::ReverseKl => FDivergence::ReverseKl,
        FDivergenceType::ForwardKl => FDivergence::ForwardKl,
        FDivergenceType::JsDivergence => FDivergence::JsDivergence,
        FDivergenceType::AlphaDivergence => FDivergence::AlphaDivergence(alpha),
    }
}

fn sync_ref_model(r: &mut Reader) -> Option<SyncRefModel> {
    let on = r.flag("sync_ref_model", false);
    let sync = SyncRefModel {
        mixup_alpha: r.float("ref_model_mixup_alpha", 0.6, SHARE),
        steps: r.count("ref_model_sync_steps", 512, AT_LEAST_1) as u64,
    };
    for key in ["ref_model_mixup_alpha", "ref_model_sync_steps"] {
        no_effect(r, key, on, "`sync_ref_model` is false");
    }
    on.then_some(sync)
}

/// Notes that a key has no effect if the user wrote it although nothing reads it.
fn no_effect(r: &mut Reader, key: &str, is_read: bool, why: &str) {
    if !is_read && r.is_written(key) {
        r.note(format!("`{key}` has no effect: {why}"));
    }
}

fn stored_or_synced(r: &mut Reader, precompute: bool, sync: Option<SyncRefModel>) {
    if precompute && sync.is_some() {
        r.error_on(
            "sync_ref_model",
            "`sync_ref_model` cannot be used with `precompute_ref_log_probs`".to_owned(),
        );
        r.help(
            "precomputed log-probs are those of the initial reference: set one of the two to false",
        );
    }
}

fn check_dpo(r: &mut Reader, dpo: &DpoSettings) {
    let has = |wanted: LossType| dpo.losses.iter().any(|loss| loss.loss_type == wanted);
    stored_or_synced(r, dpo.precompute_ref_log_probs, dpo.sync_ref_model);
    if dpo.reference_free && dpo.sync_ref_model.is_some() {
        r.error_on(
            "sync_ref_model",
            "`sync_ref_model` cannot be used with `reference_free`, which has no reference"
                .to_owned(),
        );
    }
    if has(LossType::ExoPair) && dpo.label_smoothing == 0.0 {
        r.error_on(
            "loss_type",
            "`loss_type: exo_pair` needs a `label_smoothing` above 0: its loss contains ln ε"
                .to_owned(),
        );
        r.help("the paper uses label_smoothing: 1e-3");
    }
    if dpo.use_weighting && (has(LossType::Aot) || has(LossType::AotUnpaired)) {
        r.error_on(
            "use_weighting",
            "`use_weighting` cannot be used with the losses aot and aot_unpaired".to_owned(),
        );
        r.help(
            "they sort the pairs of a micro-batch, so a weight would apply to another pair's loss",
        );
    }
    let others: Vec<LossType> = dpo.losses.iter().map(|loss| loss.loss_type).collect();
    if dpo.f_divergence != FDivergence::ReverseKl && !others.iter().all(|l| l.reads_scores()) {
        r.error_on(
            "f_divergence_type",
            "this `f_divergence_type` cannot be used with every loss of `loss_type`".to_owned(),
        );
        r.help(
            "supported with it: sigmoid, sigmoid_norm, hinge, ipo, exo_pair, robust, discopop, sft",
        );
    }
    let smooth = others.iter().any(|loss| loss.reads_smoothing());
    no_effect(
        r,
        "label_smoothing",
        smooth,
        "only the losses sigmoid, robust, exo_pair, aot and aot_unpaired read it",
    );
    if has(LossType::Sigmoid) && dpo.label_smoothing > 0.0 {
        r.note(
            "`label_smoothing` with `loss_type: sigmoid` is conservative DPO; TRL since 1.0 only reads \
             it for robust, exo_pair, aot \
             and aot_unpaired"
                .to_owned(),
        );
    }
    no_effect(r, "discopop_tau", has(LossType::Discopop), "only `loss_type: discopop` reads it");
    if dpo.reference_free {
        no_effect(r, "ref_model_name_or_path", false, "`reference_free` is true");
    }
}
