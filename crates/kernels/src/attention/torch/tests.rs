//! Torch's own attention, on LibTorch's CPU device, agrees with the composed form, forward and
//! backward.

use burn::tensor::TensorData;

use super::*;
use crate::attention::{AttentionShape, LayerKind, Segments, fused, segment_attention_composed};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const WIDTH: usize = 8;

type Matrix = burn::tensor::Tensor<2>;

/// The output of `attention` on `device`, and the gradients of the sum of its squares with respect
/// to queries, keys and values, one after another.
fn differentiate(
    device: &Device,
    tokens: usize,
    attention: impl Fn([Matrix; 3]) -> Matrix,
) -> [Vec<f32>; 2] {
    let leaf = |seed: u64, heads: usize| {
        let len = tokens * heads * WIDTH;
        let numbers: Vec<f32> =
            (0..len).map(|i| 3.0 * ((7 * i + 3) as f32 * (1.0 + seed as f32)).sin()).collect();
        let data = TensorData::new(numbers, [tokens, heads * WIDTH]);
        Matrix::from_data(data, device).autodiff().require_grad()
    };
    let leaves = [leaf(1, HEADS), leaf(2, KV_HEADS), leaf(3, KV_HEADS)];
    let out = attention(leaves.clone());
    let mut gradients = out.clone().square().sum().backward();
    let values = |x: Matrix| x.into_data().try_into_vec::<f32>().expect("float32");
    let of = |x: &Matrix| values(x.grad_remove(&mut gradients).expect("a gradient"));
    let gradients: Vec<Vec<f32>> = leaves.iter().map(of).collect();
    [values(out.inner()), gradients.concat()]
}

fn compare(segments: &Segments, window: Option<usize>, angles: usize) {
    let rotary_frequencies = (0..angles).map(|i| 0.1f64.powi(i as i32)).collect();
    let kinds = vec![LayerKind { window, rotary_frequencies, rotary_factor: 1.0, long: None }];
    let shape =
        AttentionShape { heads: HEADS, kv_heads: KV_HEADS, head_dim: WIDTH, softcap: None, kinds };
    let layout = AttentionLayout::new(&shape, segments);
    let tokens = segments.tokens();
    let ours = differentiate(&Device::libtorch(), tokens, |[q, k, v]| fused(q, k, v, &layout));
    let composed = differentiate(&Device::flex(), tokens, |[q, k, v]| {
        segment_attention_composed(q, k, v, &layout)
    });
    for (index, (ours, composed)) in ours.iter().zip(&composed).enumerate() {
        // The gradients of queries and keys may consist of rounding alone, as those of a softmax
        // over one key: all three are compared relative to the largest of them.
        let largest = composed.iter().fold(0.0, |largest, x| f32::max(largest, x.abs()));
        let differences = ours.iter().zip(composed).map(|(ours, composed)| (ours - composed).abs());
        let difference = differences.fold(0.0, f32::max) / largest;
        assert!(difference < 1e-5, "{window:?}, {angles} angles, tensor {index}: {difference}");
    }
}

/// A prompt with two responses of which one is empty, one without tokens, and a turn that continues
/// a response.
fn segments() -> Segments {
    let mut segments = Segments::default();
    let prompt = segments.push(7, None);
    segments.push(0, Some(prompt));
    let response = segments.push(5, Some(prompt));
    segments.push(3, Some(response));
    segments.push(0, None);
    segments.push(11, None);
    segments
}

#[test]
fn agrees_with_the_composed_form() {
    for window in [None, Some(1), Some(6), Some(100)] {
        for angles in [WIDTH / 2, 1] {
            compare(&segments(), window, angles);
        }
    }
}
