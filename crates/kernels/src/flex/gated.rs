//! The CPU form of a gated linear unit `act(gate) · up` with `act(x) = x · share(x)`: SwiGLU,
//! GeGLU.

/// Elements of a unit of work.
pub(crate) const CHUNK: usize = 1 << 14;

/// Implements a unit and its gradients in passes over slices. It is a macro because the vectorized
/// loops are compiled for each processor with `share` inlined, and cannot be generic.
///
/// `share(x)` is the factor of `x`; `gradient(gate, up, d, share(gate))` is the gradient of the
/// gate.
macro_rules! gated_unit {
    (
        $Unit:ident::$unit:ident = $name:literal,
        $Grad:ident::$grad:ident = $backward:literal,
        $share:ident, $gradient:ident
    ) => {
        use burn::backend::{Flex, tensor::FloatTensor};
        use rayon::prelude::*;

        use $crate::flex::exp::vectorized;
        use $crate::flex::fresh::{Fresh, filled};
        use $crate::flex::gated::CHUNK;
        use $crate::flex::{contiguous, slice, tensor};
        use $crate::timed;

        impl $Unit for Flex {
            fn $unit(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                timed!($name);
                let shape = gate.layout().shape().to_vec();
                let (gate, up) = (contiguous(gate), contiguous(up));
                let (gate, up) = (slice(&gate), slice(&up));
                let out = filled(gate.len(), CHUNK, |index, out| {
                    let place = index * CHUNK..index * CHUNK + out.len();
                    forward(out, &gate[place.clone()], &up[place]);
                });
                tensor(out, &shape)
            }
        }

        impl $Grad for Flex {
            fn $grad(
                gate: FloatTensor<Self>,
                up: FloatTensor<Self>,
                d: FloatTensor<Self>,
                wanted: [bool; 2],
            ) -> [Option<FloatTensor<Self>>; 2] {
                timed!($backward);
                let shape = gate.layout().shape().to_vec();
                let [gate, up, d] = [gate, up, d].map(contiguous);
                let (gate, up, d) = (slice(&gate), slice(&up), slice(&d));
                let gradients = match wanted {
                    [true, true] => both_gradients(gate, up, d).map(Some),
                    [gate_wanted, up_wanted] => [
                        gate_wanted.then(|| {
                            filled(d.len(), CHUNK, |index, d_gate| {
                                let place = index * CHUNK..index * CHUNK + d_gate.len();
                                gate_backward(d_gate, &gate[place.clone()], &up[place.clone()], &d[place]);
                            })
                        }),
                        up_wanted.then(|| {
                            filled(d.len(), CHUNK, |index, d_up| {
                                let place = index * CHUNK..index * CHUNK + d_up.len();
                                up_backward(d_up, &gate[place.clone()], &d[place]);
                            })
                        }),
                    ],
                };
                gradients.map(|gradient| gradient.map(|gradient| tensor(gradient, &shape)))
            }
        }

        /// Both gradients in one pass.
        fn both_gradients(gate: &[f32], up: &[f32], d: &[f32]) -> [Vec<f32>; 2] {
            let (mut d_gate, mut d_up) = (Fresh::new(d.len()), Fresh::new(d.len()));
            let outputs = d_gate.chunks(CHUNK).zip(d_up.chunks(CHUNK));
            let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(d.par_chunks(CHUNK));
            outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), d))| {
                backward(d_gate, d_up, gate, up, d);
            });
            // SAFETY: `for_each` took all chunks of both.
            unsafe { [d_gate.written(), d_up.written()] }
        }

        vectorized!(fn forward(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_plain);
        vectorized!(
            fn backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32])
                = backward_plain
        );
        vectorized!(
            fn gate_backward(d_gate: &mut [f32], gate: &[f32], up: &[f32], d: &[f32])
                = gate_backward_plain
        );
        vectorized!(fn up_backward(d_up: &mut [f32], gate: &[f32], d: &[f32]) = up_backward_plain);

        #[inline(always)]
        fn forward_plain(out: &mut [f32], gate: &[f32], up: &[f32]) {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate * $share(*gate) * up;
            }
        }

        #[inline(always)]
        fn backward_plain(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32]) {
            let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
            for ((d_gate, d_up), ((gate, up), d)) in outputs.zip(gate.iter().zip(up).zip(d)) {
                let s = $share(*gate);
                *d_gate = $gradient(*gate, *up, *d, s);
                *d_up = d * gate * s;
            }
        }

        #[inline(always)]
        fn gate_backward_plain(d_gate: &mut [f32], gate: &[f32], up: &[f32], d: &[f32]) {
            for (d_gate, ((gate, up), d)) in d_gate.iter_mut().zip(gate.iter().zip(up).zip(d)) {
                *d_gate = $gradient(*gate, *up, *d, $share(*gate));
            }
        }

        #[inline(always)]
        fn up_backward_plain(d_up: &mut [f32], gate: &[f32], d: &[f32]) {
            for (d_up, (gate, d)) in d_up.iter_mut().zip(gate.iter().zip(d)) {
                *d_up = d * gate * $share(*gate);
            }
        }
    };
}

pub(crate) use gated_unit;
