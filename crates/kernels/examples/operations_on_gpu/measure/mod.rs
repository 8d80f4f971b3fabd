//! Times of each operation and matrix product on one device.

mod clock;
mod failures;
mod operations;
mod setting;

use std::time::Duration;

use burn::tensor::DType;

use clock::Timing;
use failures::Failures;
use operations::{OPERATIONS, Operation};
use setting::{MISTRAL_7B, Setting, TINY};

use super::device;

struct Arguments {
    device: String,
    is_tiny: bool,
    tokens: Vec<usize>,
    dtype: DType,
    only: String,
    budget: Duration,
}

impl Arguments {
    /// Reads the command line.
    ///
    /// # Errors
    /// An argument is not known, or its value cannot be read.
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let device = words.next().ok_or("the first argument is a device, such as `cuda`")?;
        let mut arguments = Self {
            device,
            is_tiny: false,
            tokens: Vec::new(),
            dtype: DType::BF16,
            only: String::new(),
            budget: Duration::from_millis(300),
        };
        while let Some(word) = words.next() {
            if word == "--tiny" {
                arguments.is_tiny = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("`{word}` needs a value"))?;
            let wrong = || format!("`{word}` cannot be `{value}`");
            match word.as_str() {
                "--tokens" => {
                    let counts = value.split(',').map(|count| count.parse().map_err(|_| wrong()));
                    arguments.tokens = counts.collect::<Result<_, _>>()?;
                }
                "--dtype" => {
                    arguments.dtype = match value.as_str() {
                        "bfloat16" => DType::BF16,
                        "float32" => DType::F32,
                        _ => return Err(wrong()),
                    };
                }
                "--only" => arguments.only = value,
                "--seconds" => {
                    let seconds: f64 = value.parse().map_err(|_| wrong())?;
                    arguments.budget = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
                }
                _ => return Err(format!("`{word}` is not known")),
            }
        }
        Ok(arguments)
    }

    /// The token counts to measure.
    fn token_counts(&self) -> Vec<usize> {
        match (self.tokens.is_empty(), self.is_tiny) {
            (false, _) => self.tokens.clone(),
            (true, false) => vec![4096, 8192],
            (true, true) => vec![48, 96],
        }
    }
}

/// Prints a line for each operation; `words` are the arguments of the example.
///
/// # Errors
/// An argument is not known, or the device is not in the build or not in the machine.
pub fn measure_all(words: impl Iterator<Item = String>) -> Result<(), String> {
    let arguments = Arguments::read(words)?;
    let device = device::named(&arguments.device)?;
    let failures = Failures::begin();
    let shape = if arguments.is_tiny { &TINY } else { &MISTRAL_7B };
    for tokens in arguments.token_counts() {
        let setting = Setting { shape, tokens, device: device.clone(), dtype: arguments.dtype };
        for operation in OPERATIONS {
            if operation.name.starts_with(&arguments.only) {
                println!("{}", line(operation, &setting, arguments.budget, &failures));
            }
        }
    }
    Ok(())
}

/// The line of one operation.
fn line(operation: &Operation, setting: &Setting, budget: Duration, failures: &Failures) -> String {
    let timing = failures.watch(|| {
        let run = (operation.prepare)(setting);
        Timing::of(&setting.device, budget, run)
    });
    let result = match timing {
        Ok(timing) => format!(
            "\"ms\": {:.5}, \"least_ms\": {:.5}, \"first_ms\": {:.1}, \"repeats\": {}",
            timing.median_ms, timing.least_ms, timing.first_ms, timing.repeats
        ),
        Err(error) => format!("\"error\": \"{error}\""),
    };
    let dtype = if operation.is_float32 { DType::F32 } else { setting.dtype };
    let dtype = if dtype == DType::BF16 { "bfloat16" } else { "float32" };
    format!(
        "{{\"operation\": \"{}\", \"dtype\": \"{dtype}\", \"tokens\": {}, {result}}}",
        operation.name, setting.tokens
    )
}
