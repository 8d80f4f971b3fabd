//! Times each operation and matrix product of a decoder on one device, at the shapes of a 7B model,
//! and prints a line of JSON for each. `scripts/gpu/run.py` compares them with torch.
//!
//! ```text
//! operations_on_gpu DEVICE [--tiny] [--tokens 4096,8192] [--dtype bfloat16]
//!                   [--only PREFIX] [--seconds 0.3]
//! ```
//!
//! `DEVICE` is `cuda`, `cuda:N` or `cube-cpu`. `--tiny` takes small shapes, to try the program
//! without a GPU. An operation that fails has an `error` in place of its time.

#[path = "../../tests/device/mod.rs"]
mod device;
mod measure;

use std::process::ExitCode;

fn main() -> ExitCode {
    match measure::measure_all(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
