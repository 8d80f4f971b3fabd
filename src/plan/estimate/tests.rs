use std::path::Path;

use serde_json::json;

use super::*;
use crate::plan::traffic::Traffic;
use crate::recipe::{Recipe, Stage};

pub fn mistral() -> ModelConfig {
    let raw = json!({"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 4096});
    ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
}

/// DPO of Zephyr-7B-β on 16 ranks, two pairs a rank.
pub fn zephyr(config: &ModelConfig) -> Workload<'_> {
    Workload {
        config,
        dtype_bytes: 2,
        quantization: None,
        form: Form::Composed,
        keeps_scores: true,
        ranks: 16,
        batch: BatchSize::padded(4, 1024),
        accumulation: 1,
        reduce: DType::F32,
        gradient_checkpointing: true,
        upstream_is_known: false,
        moments: 2,
        reference_is_resident: true,
        evaluation: None,
        reference_pass: None,
        reference_has_own_weights: false,
        adapter: None,
    }
}

fn close(ours: f64, expected: f64, share: f64) {
    assert!((ours / expected - 1.0).abs() < share, "{ours:e} is not {expected:e}");
}

/// The state of ZeRO-2 with and without a resident reference, in GB, computed by hand for bf16
/// buffers. Our buffers are float32, hence the tolerance.
#[test]
fn state_of_a_7b_run_on_several_ranks() {
    let config = mistral();
    for (ranks, resident, alone) in
        [(16, 37.1, 22.6), (8, 44.3, 29.8), (4, 58.8, 44.3), (2, 87.8, 73.3)]
    {
        for (reference_is_resident, expected) in [(true, resident), (false, alone)] {
            let run = Workload { ranks, reference_is_resident, ..zephyr(&config) };
            close(run.memory().state() / 1e9, expected, 0.05);
        }
    }
}

/// LoRA with rank 16 on all seven linear layers of Mistral-7B: 41,943,040 weights.
#[test]
fn an_adapter_needs_state_for_its_own_weights_only() {
    let config = mistral();
    let text = "model_name_or_path: m\ndataset_name: d\nuse_peft: true\n\
                lora_target_modules: all-linear\n";
    let recipe = Recipe::parse(text, Path::new("r.yaml"), Stage::Sft, &[]).unwrap();
    let lora = LoraConfig::of_recipe(recipe.model.lora.as_ref().unwrap(), "m", None);
    let full = Workload { ranks: 1, reference_is_resident: false, ..zephyr(&config) };
    let run = Workload { adapter: Some(&lora), ..full.clone() };
    assert_eq!(run.trained(), 41_943_040.0);
    let (memory, all) = (run.memory(), full.memory());
    assert_eq!(memory.bytes_of("optimizer moments"), 8.0 * 41_943_040.0);
    assert_eq!(memory.bytes_of("float32 master weights"), 0.0);
    close(memory.state() / 1e9, 14.48 + 4.0 * 4.0 * 0.0419, 0.01);
    assert!(memory.state() < 0.15 * all.state());
    close(run.forward_passes(), 2.0 + 1.0 + 0.017, 0.01);
    assert_eq!(run.layout().buckets.len(), 32);
}

#[test]
fn operations_and_traffic_of_a_zephyr_step() {
    let config = mistral();
    let run = zephyr(&config);
    // 5 forward passes over 64 sequences of 1024 tokens.
    let forward = forward_flops(&config, 65536.0, 512.0);
    close(5.0 * forward, 4.84e15, 0.01);
    close(5.0 * forward / (16.0 * 312e12 * 0.4) * 5811.0 / 3600.0, 3.9, 0.02);
    // bf16 weights and gradients would be 27.2 GB, half of it gradients. Float32 gradients are
    // twice as large, and of the embedding's gradient only the used rows are sent.
    close(Traffic::of(&run).bytes(), 1.5 * 27.2e9, 0.02);
    let all_inputs = 32.0 * run.activation(4096);
    close(all_inputs, 1.07e9, 0.01);
    close(run.attention(), 2.0 * 0.54e9, 0.01);
}

#[test]
fn checkpointing_keeps_inputs_and_as_many_graphs_as_fit() {
    let config = mistral();
    let run = zephyr(&config);
    assert_eq!(run.kept_graphs(), 0);
    close(run.memory().bytes_of("layer inputs"), 1.07e9, 0.01);
    assert_eq!(run.forward_passes(), 4.0);
    let short = Workload { batch: BatchSize::padded(1, 64), ..run.clone() };
    assert_eq!(short.kept_graphs(), KEPT_GRAPH_BYTES / graph_bytes(&config, 64, 2));
    let plain = Workload { gradient_checkpointing: false, ..run.clone() };
    assert_eq!(plain.forward_passes(), 3.0);
    assert!(plain.memory().peak() > run.memory().peak() + 31.0 * run.layer_graph());
}

/// The scores of attention, and the values in float32 that composed operations keep.
#[test]
fn fused_forms_keep_less_than_the_composed_one() {
    let config = mistral();
    let composed = Workload { gradient_checkpointing: false, ..zephyr(&config) };
    let fused = Workload { form: Form::Cube, ..composed.clone() };
    assert_eq!(fused.attention(), 0.0);
    assert!(fused.layer_graph() < 0.7 * composed.layer_graph());
    let saved = 32.0 * (composed.attention() + composed.layer_graph() - fused.layer_graph());
    assert!(fused.memory().peak() < composed.memory().peak() - 0.9 * saved);
}

#[test]
fn the_peak_is_the_largest_of_step_evaluation_and_reference_pass() {
    let config = mistral();
    let step = Workload { reference_is_resident: false, ..zephyr(&config) };
    let training = step.memory().peak();
    assert_eq!(step.peak(), training);
    // An evaluation keeps nothing for a backward pass, so it needs less than a step.
    let like_a_step = Workload { evaluation: Some(step.batch), ..step.clone() };
    let evaluation = like_a_step.evaluation_peak().unwrap();
    assert!(step.memory().state() < evaluation && evaluation < training);
    assert_eq!(like_a_step.peak(), training);
    let large = Workload { evaluation: Some(BatchSize::padded(128, 1024)), ..step.clone() };
    assert_eq!(large.peak(), large.evaluation_peak().unwrap());
    assert!(large.peak() > 2.0 * training, "{:e} {training:e}", large.peak());
    // The reference pass comes before any gradient exists.
    let pass = Workload { reference_pass: Some(step.batch), ..step.clone() };
    let alone = pass.reference_peak().unwrap();
    assert!(alone < evaluation && pass.peak() == training);
    let separate = Workload { reference_has_own_weights: true, ..pass };
    close(separate.reference_peak().unwrap() - alone, 2.0 * 7.24e9, 0.01);
}

/// Sizes beyond 64 bits are infinite or very large, not small.
#[test]
fn no_product_of_sizes_wraps() {
    let config = mistral();
    for form in [Form::Flex, Form::Composed] {
        let huge = BatchSize::padded(usize::MAX / 2, usize::MAX / 2);
        let run = Workload { batch: huge, form, accumulation: 1_000_000, ..zephyr(&config) };
        let run = Workload { gradient_checkpointing: false, ranks: 1_000_000, ..run };
        let sent = Traffic::of(&run).bytes();
        assert!(run.peak() > 1e19 && sent > 1e15, "{:e} {sent:e}", run.peak());
    }
}

#[test]
fn the_size_of_a_batch_counts_shared_prompts_once() {
    use crate::data::PreferencePair;
    let [prompt, chosen, rejected] = [vec![1; 3], vec![1; 2], vec![1]];
    let pair = PreferencePair { prompt, chosen, rejected, gold: vec![] };
    let size = BatchSize::of(&RaggedBatch::preferences([&pair]));
    assert_eq!(size, BatchSize { tokens: 6, scored: 3, scores: 9 + 2 * 5 + 4 });
}
