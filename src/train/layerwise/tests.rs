//! Frozen parameters: no gradient is computed for them, and those of the others keep their bits.

use std::convert::Infallible;
use std::path::Path;

use burn::tensor::{Device, TensorData};
use serde_json::json;

use super::*;
use crate::data::PreferencePair;
use crate::model::adapter::attach::Part;
use crate::model::adapter::lora::initial_a;
use crate::model::adapter::{AdapterError, LoraConfig};
use crate::model::parameter::Weight;
use crate::recipe::{Recipe, Stage};

/// A model of three layers whose weights are made up.
fn model(tied: bool) -> Decoder {
    model_of("qwen2", tied)
}

fn model_of(model_type: &str, tied: bool) -> Decoder {
    let raw = json!({"model_type": model_type, "vocab_size": 13, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": tied,
        "num_local_experts": 5});
    let config = ModelConfig::from_json(raw, Path::new("config.json")).unwrap();
    let mut made = 0u32;
    let built: Result<_, Infallible> = Decoder::build(Arc::new(config), |name, shape| {
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut value = || {
            made = made.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            centre + (made >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values = (0..shape.iter().product()).map(|_| value()).collect();
        Ok(Weight::from_values(values, &Device::flex(), DType::F32))
    });
    let Ok(model) = built;
    model
}

fn batch() -> RaggedBatch {
    let pair = |shift: u32| PreferencePair {
        prompt: vec![1 + shift, 2, 3],
        chosen: vec![4, 5 + shift, 6],
        rejected: vec![7, 8],
        gold: vec![],
    };
    RaggedBatch::preferences(&[pair(0), pair(4)])
}

type NamedGradient = (String, Option<Vec<f32>>);

/// The gradient of each parameter by name, and the log-probs. `knows_upstream`: the head's
/// gradients are computed in the forward pass.
fn gradients(model: &Decoder, keep: Keep, knows_upstream: bool) -> (Vec<NamedGradient>, Vec<f32>) {
    let batch = batch();
    let upstream: Vec<f32> = (0..batch.targets.len()).map(|i| 0.3 - 0.1 * i as f32).collect();
    let known = knows_upstream.then(|| upstream.clone());
    let pass = LayerwisePass::forward_towards(model, &batch, keep, known);
    let logp = pass.scores.logp.clone();
    let mut sum = GradientSum::default();
    pass.backward(&upstream, &mut sum);
    let values = |tensor: &Tensor<1>| tensor.to_data().try_to_vec::<f32>().unwrap();
    let all =
        model.parameters().into_iter().map(|p| (p.name.to_string(), sum.get(p.id).map(values)));
    (all.collect(), logp)
}

/// Freezes the parameters whose name `is_frozen` accepts, and compares with the gradients of the
/// whole model.
fn check(tied: bool, is_frozen: impl Fn(&str) -> bool) {
    let whole = model(tied);
    let mut frozen = whole.clone();
    for parameter in frozen.parameters_mut() {
        parameter.trainable = !is_frozen(&parameter.name);
    }
    for keep in [Keep::Inputs, Keep::Graphs] {
        for knows_upstream in [false, true] {
            let (expected, expected_logp) = gradients(&whole, keep, knows_upstream);
            let (found, logp) = gradients(&frozen, keep, knows_upstream);
            assert_eq!(logp, expected_logp);
            for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
                assert!(expected.as_ref().is_some_and(|all| all.iter().any(|x| *x != 0.0)));
                let expected = if is_frozen(&name) { None } else { expected };
                assert!(found == expected, "{name} ({keep:?}, {knows_upstream})");
            }
        }
    }
}

#[test]
fn one_frozen_layer_has_no_gradient_and_the_others_keep_their_bits() {
    for layer in ["model.layers.0.", "model.layers.1.", "model.layers.2."] {
        for tied in [false, true] {
            check(tied, |name| name.starts_with(layer));
        }
    }
}

#[test]
fn the_backward_pass_ends_before_the_frozen_bottom() {
    let is_bottom = |name: &str| name.contains("embed_tokens") || name.contains("layers.0.");
    check(false, is_bottom);
    check(true, is_bottom);
    // The lowest trained layer is trained in one matrix only.
    check(false, |name| {
        is_bottom(name) || name.contains("layers.1.") && !name.contains("v_proj.weight")
    });
    let mut model = model(false);
    model.embed_tokens.trainable = false;
    for parameter in model.layers[0].parameters_mut() {
        parameter.trainable = false;
    }
    let batch = batch();
    let pass = LayerwisePass::forward(&model, &batch, Keep::Graphs);
    assert_eq!(pass.kept.len(), 2, "the first layer keeps nothing");
}

#[test]
fn head_and_embedding_may_be_frozen_or_trained_alone() {
    check(false, |name| name.starts_with("lm_head"));
    check(false, |name| name.starts_with("model.embed_tokens"));
    check(true, |name| name.starts_with("model.embed_tokens"));
    check(false, |name| !name.starts_with("lm_head"));
    check(false, |name| name != "model.norm.weight");
    check(true, |name| !name.starts_with("model.embed_tokens"));
    check(false, |name| !name.starts_with("model.embed_tokens"));
}

#[test]
fn only_projections_may_be_trained() {
    check(true, |name| !name.contains("q_proj.weight") && !name.contains("down_proj.weight"));
}

/// The model with a new adapter whose B is not 0, so that every part of it has a gradient.
fn adapted(tied: bool, saved: &[&str], dropout: f64) -> Decoder {
    let text = format!(
        "model_name_or_path: m\ndataset_name: d\nuse_peft: true\nlora_r: 2\nlora_alpha: 2\nlora_dropout: {dropout}\n\
         lora_target_modules: [q_proj, v_proj, down_proj]\nlora_modules_to_save: {saved:?}\n"
    );
    let recipe = Recipe::parse(&text, Path::new("r.yaml"), Stage::Sft, &[]).unwrap();
    let config = LoraConfig::of_recipe(recipe.model.lora.as_ref().unwrap(), "m", None);
    let mut model = model(tied);
    model
        .attach(&config, |part, parameter| {
            let shape = || [parameter.shape[0], parameter.shape[1]];
            Ok::<_, AdapterError>(match part {
                Part::Whole => None,
                Part::A | Part::B => Some(initial_a(7, &parameter.name, shape())),
            })
        })
        .unwrap();
    model
}

#[test]
fn an_adapter_has_gradients_and_its_base_has_none() {
    for saved in [&[][..], &["lm_head"], &["embed_tokens"], &["norm"]] {
        for tied in [false, true] {
            let model = adapted(tied, saved, 0.0);
            let trained = |name: &str| {
                name.contains(".lora_")
                    || saved.iter().any(|end| name.contains(&format!("{end}.weight")))
            };
            for keep in [Keep::Inputs, Keep::Graphs] {
                let (found, _) = gradients(&model, keep, false);
                for (name, gradient) in &found {
                    assert_eq!(gradient.is_some(), trained(name), "{name} {saved:?} {tied}");
                    let is_zero = gradient.iter().flatten().all(|x| *x == 0.0);
                    assert!(!trained(name) || !is_zero, "{name} {saved:?} {tied}");
                }
                let named = |name: &str| found.iter().any(|(found, _)| found == name);
                assert_eq!(
                    named("lm_head.weight"),
                    !tied || saved.contains(&"lm_head") || saved.contains(&"embed_tokens")
                );
            }
        }
    }
}

#[test]
fn the_gradient_of_an_adapter_is_the_slope_of_the_loss() {
    let mut model = adapted(false, &[], 0.0);
    let (all, _) = gradients(&model, Keep::Graphs, false);
    let batch = batch();
    let loss = |model: &Decoder| -> f64 {
        let pass = LayerwisePass::forward(model, &batch, Keep::Nothing);
        let logps = pass.scores.logp.iter().enumerate();
        logps.map(|(i, logp)| f64::from(0.3 - 0.1 * i as f32) * f64::from(*logp)).sum()
    };
    for (index, (name, gradient)) in all.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        let step = 3e-3f32;
        let mut at = |sign: f32| {
            let parameter = &mut *model.parameters_mut()[index];
            let before = parameter.vector();
            let mut moved = vec![0.0; parameter.len()];
            moved[1] = sign * step;
            let moved =
                Tensor::from_data(TensorData::new(moved, [parameter.len()]), &before.device());
            parameter.value.set(before.clone() + moved);
            let loss = loss(&model);
            model.parameters_mut()[index].value.set(before);
            loss
        };
        let slope = (at(1.0) - at(-1.0)) / f64::from(2.0 * step);
        let difference = (slope - f64::from(gradient[1])).abs();
        assert!(difference < 2e-3 * (1.0 + slope.abs()), "{name}: {slope} {}", gradient[1]);
    }
}

/// Gradients and log-probs with dropout; the batch's tokens have these keys.
fn with_dropout(model: &Decoder, keep: Keep, keys: &[u64]) -> (Vec<f32>, Vec<Option<Vec<f32>>>) {
    let batch = batch();
    let upstream: Vec<f32> = (0..batch.targets.len()).map(|i| 0.3 - 0.1 * i as f32).collect();
    let pass = {
        let inputs = StepInputs { dropout: Some(Arc::new(keys.into())), ..StepInputs::default() };
        LayerwisePass::forward_step(model, &batch, keep, inputs)
    };
    let logp = pass.scores.logp.clone();
    let mut sum = GradientSum::default();
    pass.backward(&upstream, &mut sum);
    let values = |tensor: &Tensor<1>| tensor.to_data().try_to_vec::<f32>().unwrap();
    (logp, model.parameters().into_iter().map(|p| sum.get(p.id).map(values)).collect())
}

#[test]
fn a_layer_that_is_computed_again_drops_the_same_elements() {
    let model = adapted(false, &[], 0.3);
    let keys: Vec<u64> = (0..batch().tokens() as u64).collect();
    let kept = with_dropout(&model, Keep::Graphs, &keys);
    // A model of this size keeps all its graphs, so a layer is computed again by hand.
    let layout = AttentionLayout::new(&model.config.attention_shape(), &batch().segments);
    let layer = model.layers[1].with_masks(&Arc::new(keys.as_slice().into()));
    let x_td = model.embed(&batch().ids);
    let once = layer.forward(x_td.clone(), &layout).into_data();
    let graph = LayerGraph::new(&layer, x_td.clone(), true, &layout);
    assert_eq!(graph.output_td.inner().into_data(), once);
    assert_eq!(with_dropout(&model, Keep::Inputs, &keys), kept);
    assert_ne!(with_dropout(&model, Keep::Graphs, &vec![9; keys.len()]).0, kept.0);
    let plain = LayerwisePass::forward(&model, &batch(), Keep::Graphs).scores.logp.clone();
    assert_ne!(plain, kept.0, "evaluation drops nothing");
}

/// The gradients of the load-balancing loss alone. Each token of a prompt counts twice.
fn balance_gradients(model: &Decoder, keep: Keep) -> (Vec<NamedGradient>, f64) {
    let batch = RaggedBatch { reads_everywhere: true, ..batch() };
    let occurrences: Vec<f32> = [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0].repeat(2);
    let balance = BalanceInputs { occurrences: occurrences.into(), upstream: 1.0 };
    let inputs = StepInputs { balance: Some(balance), ..StepInputs::default() };
    let pass = LayerwisePass::forward_step(model, &batch, keep, inputs);
    let loss = pass.balance_loss().expect("the step has the loss");
    let mut sum = GradientSum::default();
    if !matches!(keep, Keep::Nothing) {
        pass.backward(&vec![0.0; batch.targets.len()], &mut sum);
    }
    let values = |tensor: &Tensor<1>| tensor.to_data().try_to_vec::<f32>().unwrap();
    let all =
        model.parameters().into_iter().map(|p| (p.name.to_string(), sum.get(p.id).map(values)));
    (all.collect(), loss)
}

#[test]
fn the_load_balancing_loss_is_differentiated_through_all_layers() {
    let model = model_of("mixtral", false);
    let (kept, loss) = balance_gradients(&model, Keep::Graphs);
    assert!(loss > 1.0, "{loss}: the loss of a balanced load is the number of experts of a token");
    assert_eq!(balance_gradients(&model, Keep::Inputs), (kept.clone(), loss));
    for (index, (name, gradient)) in kept.iter().enumerate() {
        let gradient = gradient.as_ref().expect("every parameter is trained");
        let norm = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if name == "lm_head.weight" || norm == 0.0 {
            continue; // the loss does not see the head, nor experts that are not chosen
        }
        // Along the gradient; the step is so small that no token changes its experts.
        let moved = |step: f64| {
            let mut model = model.clone();
            let target = model.parameters_mut().remove(index);
            let values: Vec<f32> = target.vector().to_data().try_to_vec().unwrap();
            let moved = values.iter().zip(gradient);
            let moved: Vec<f32> =
                moved.map(|(v, g)| v + (step * f64::from(*g) / norm) as f32).collect();
            target.value = Weight::from_values(moved, &Device::flex(), DType::F32);
            balance_gradients(&model, Keep::Nothing).1
        };
        let numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!((numeric - norm).abs() < 0.02 * norm.max(0.01), "{name}: {numeric} {norm}");
    }
}
