//! Adafactor's update (arXiv 1804.04235), computed on the host.
//!
//! Of the running mean of the squared gradient of a matrix only the means of rows and columns are
//! kept. Sums are computed in double precision, row by row and in blocks of rows, so that they do
//! not depend on the number of threads.
//!
//! Legend: `r` rows, `c` columns, `n` elements.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::host;

/// Rows whose squares are summed by column together.
const ROWS: usize = 256;

/// The running means of the squared gradient of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum FactoredMeans {
    /// Of a matrix: of each row, `[r]`, and of each column, `[c]`.
    Matrix {
        /// Means of rows, `[r]`.
        rows: Vec<f32>,
        /// Means of columns, `[c]`.
        columns: Vec<f32>,
    },
    /// Of a vector: of each element, `[n]`.
    Vector(Vec<f32>),
}

/// The numbers of a step of Adafactor.
#[derive(Debug, Clone, Copy)]
pub struct FactoredRule {
    /// Factor on the gradient, from gradient clipping.
    pub gradient_scale: f32,
    /// Decay of the running means, `1 − t^−0.8` in step `t`.
    pub decay: f64,
    /// Term added to the squared gradient.
    pub epsilon: f64,
    /// The root mean square that an update may have at most.
    pub clip_threshold: f64,
    /// The learning rate.
    pub step_size: f64,
}

impl FactoredMeans {
    /// Means of 0 for a parameter of this shape.
    pub fn zeros(shape: &[usize]) -> Self {
        match *shape {
            [r, c] => Self::Matrix { rows: vec![0.0; r], columns: vec![0.0; c] },
            _ => Self::Vector(vec![0.0; shape.iter().product()]),
        }
    }

    /// Adds the gradient `g` (`[n]`) to the means and returns what the step subtracts from the
    /// parameter, `[n]`:
    /// `s · u / max(1, rms(u) / threshold)` with `u = g / √v`. For a matrix
    /// `v_ij = rows_i · columns_j / mean(rows)`.
    ///
    /// # Panics
    /// If `g` has another number of elements than the means describe.
    pub fn step(&mut self, g: Tensor<1>, rule: FactoredRule) -> Tensor<1> {
        let device = g.device();
        let values = host::read(g.cast(DType::F32)).try_into_vec::<f32>();
        let mut g: Vec<f32> = values.expect("the gradient was cast to float32");
        g.par_iter_mut().for_each(|g| *g *= rule.gradient_scale);
        match self {
            Self::Matrix { rows, columns } => matrix_step(&mut g, rows, columns, rule),
            Self::Vector(means) => vector_step(&mut g, means, rule),
        }
        on_device(g, &device)
    }
}

fn on_device(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    host::upload(TensorData::new(values, [len]), device, DType::F32)
}

/// Replaces the gradient by the step.
fn matrix_step(g: &mut [f32], rows: &mut [f32], columns: &mut [f32], rule: FactoredRule) {
    let (r, c) = (rows.len(), columns.len());
    assert_eq!(g.len(), r * c, "the gradient has the shape of the parameter");
    if g.is_empty() {
        return;
    }
    let of_rows: Vec<f64> = g.par_chunks(c).map(|row| sum_of_squares(row, rule)).collect();
    let of_columns = column_squares(g, c, rule);
    decay_towards(rows, &of_rows, c, rule);
    decay_towards(columns, &of_columns, r, rule);
    let mean = rows.iter().map(|x| f64::from(*x)).sum::<f64>() / r as f64;
    let factor = |x: &f32| (1.0 / f64::from(*x).sqrt()) as f32;
    let columns: Vec<f32> = columns.iter().map(factor).collect();
    let squares = g.par_chunks_mut(c).zip(&*rows).map(|(row, of_row)| {
        let of_row = (1.0 / (f64::from(*of_row) / mean).sqrt()) as f32;
        for (g, of_column) in row.iter_mut().zip(&columns) {
            *g *= of_row * of_column;
        }
        row.iter().map(|u| f64::from(*u) * f64::from(*u)).sum()
    });
    let squares: Vec<f64> = squares.collect();
    limit(g, squares.into_iter().sum(), rule);
}

/// Replaces the gradient by the step.
fn vector_step(g: &mut [f32], means: &mut [f32], rule: FactoredRule) {
    assert_eq!(g.len(), means.len(), "the gradient has the shape of the parameter");
    let squares: Vec<f64> = g.iter().map(|g| square(*g, rule)).collect();
    decay_towards(means, &squares, 1, rule);
    for (g, mean) in g.iter_mut().zip(&*means) {
        *g = (f64::from(*g) / f64::from(*mean).sqrt()) as f32;
    }
    let squares = g.iter().map(|u| f64::from(*u) * f64::from(*u)).sum();
    limit(g, squares, rule);
}

fn square(g: f32, rule: FactoredRule) -> f64 {
    f64::from(g) * f64::from(g) + rule.epsilon
}

fn sum_of_squares(row: &[f32], rule: FactoredRule) -> f64 {
    row.iter().map(|g| square(*g, rule)).sum()
}

/// The sum of squares of each column, `[c]`.
fn column_squares(g: &[f32], c: usize, rule: FactoredRule) -> Vec<f64> {
    let of_block = |block: &[f32]| {
        let mut sums = vec![0.0; c];
        for row in block.chunks_exact(c) {
            sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += square(*g, rule));
        }
        sums
    };
    let blocks: Vec<Vec<f64>> = g.par_chunks(ROWS * c).map(of_block).collect();
    let mut total = vec![0.0; c];
    for block in blocks {
        total.iter_mut().zip(block).for_each(|(total, sum)| *total += sum);
    }
    total
}

/// `mean ← decay · mean + (1 − decay) · sum / count`.
fn decay_towards(means: &mut [f32], sums: &[f64], count: usize, rule: FactoredRule) {
    for (mean, sum) in means.iter_mut().zip(sums) {
        let new = rule.decay * f64::from(*mean) + (1.0 - rule.decay) * sum / count as f64;
        *mean = new as f32;
    }
}

/// Scales updates whose squares add up to `squares` down to the threshold, and by the learning
/// rate.
fn limit(updates: &mut [f32], squares: f64, rule: FactoredRule) {
    let rms = (squares / updates.len().max(1) as f64).sqrt();
    let factor = (rule.step_size / (rms / rule.clip_threshold).max(1.0)) as f32;
    updates.par_iter_mut().for_each(|u| *u *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(t: f64) -> FactoredRule {
        FactoredRule {
            gradient_scale: 0.5,
            decay: 1.0 - t.powf(-0.8),
            epsilon: 1e-30,
            clip_threshold: 1.0,
            step_size: 0.1,
        }
    }

    fn tensor(values: &[f32]) -> Tensor<1> {
        on_device(values.to_vec(), &Device::flex())
    }

    fn step(means: &mut FactoredMeans, g: &[f32], t: f64) -> Vec<f32> {
        means.step(tensor(g), rule(t)).into_data().try_into_vec().unwrap()
    }

    /// A matrix whose squares are a product of rows and columns has exact factors: the first update
    /// is the sign of the gradient, with a root mean square of 1.
    #[test]
    fn a_matrix_of_rank_one_has_updates_of_the_learning_rate() {
        let mut means = FactoredMeans::zeros(&[2, 3]);
        let steps = step(&mut means, &[1.0, -2.0, 4.0, -3.0, 6.0, 12.0], 1.0);
        for (step, sign) in steps.iter().zip([1.0, -1.0, 1.0, -1.0, 1.0, 1.0]) {
            assert!((step - 0.1 * sign).abs() < 1e-7, "{steps:?}");
        }
        let FactoredMeans::Matrix { rows, columns } = means else { panic!("it is a matrix") };
        // Means of the squares of the halved gradient.
        assert_eq!((rows, columns), (vec![1.75, 15.75], vec![1.25, 5.0, 20.0]));
    }

    #[test]
    fn a_large_update_is_limited_and_means_decay() {
        let mut means = FactoredMeans::zeros(&[2]);
        assert_eq!(step(&mut means, &[2.0, -2.0], 1.0), [0.1, -0.1]);
        // v = decay · 1 + (1 − decay) · 25 and u = 5 / √v, which has a root mean square above 1.
        let decay = 1.0 - 2f64.powf(-0.8);
        let limited = step(&mut means, &[10.0, 10.0], 2.0);
        assert!(limited.iter().all(|step| (step - 0.1).abs() < 1e-7), "{limited:?}");
        let FactoredMeans::Vector(means) = means else { panic!("it is a vector") };
        assert!((f64::from(means[0]) - (decay + (1.0 - decay) * 25.0)).abs() < 1e-5);
    }

    #[test]
    fn the_step_does_not_depend_on_the_number_of_threads() {
        let g: Vec<f32> = (0..700 * 33).map(|i| ((i * 7919) % 1013) as f32 - 500.0).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| step(&mut FactoredMeans::zeros(&[700, 33]), &g, 1.0))
        };
        assert_eq!(on(1), on(3));
    }
}
