//! The text of log lines: one line per row, with four significant digits as in TRL.

use crate::train::event::LogRow;

/// Formats a row: `step 10/100 | epoch 0.2 | loss 0.6931 | grad_norm 0.6989 | learning_rate 5e-07 |
/// rewards/chosen 0.0132 …`
pub fn row_line(row: &LogRow, max_steps: Option<u64>) -> String {
    let mut line = match max_steps {
        Some(max_steps) => format!("step {}/{max_steps}", row.step),
        None => format!("step {}", row.step),
    };
    line.push_str(&format!(" | epoch {}", short(row.epoch)));
    for (name, value) in &row.values {
        line.push_str(&format!(" | {name} {}", short(*value)));
    }
    line
}

/// The text after the bar of the training: loss, reward margin, speed.
pub fn step_message(loss: f64, margin: Option<f64>, tokens_per_second: f64) -> String {
    let margin = margin.map_or(String::new(), |margin| format!("  margin {}", short(margin)));
    format!("loss {}{margin}  {} tokens/s", short(loss), short(tokens_per_second.round()))
}

/// Python's `%.4g`, except that whole numbers are written in full.
pub fn short(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return format!("{}", number as i64);
    }
    let scientific = format!("{number:.3e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..4).contains(&exponent) {
        let decimals = usize::try_from(3 - exponent).unwrap_or(0);
        return without_zeros(&format!("{number:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs())
}

fn without_zeros(decimal: &str) -> &str {
    if decimal.contains('.') {
        decimal.trim_end_matches('0').trim_end_matches('.')
    } else {
        decimal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        let cases = [
            (std::f64::consts::LN_2, "0.6931"),
            (5e-7, "5e-07"),
            (-7.516_170_929e-5, "-7.516e-05"),
            (0.00075, "0.00075"),
            (0.0, "0"),
            (-0.0, "0"),
            (2.0, "2"),
            (-31.1039, "-31.1"),
            (129.3153, "129.3"),
            (9999.6, "1e+04"),
            (1_234_567.0, "1234567"),
            (12_345.6, "1.235e+04"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text, "{number}");
        }
    }

    #[test]
    fn a_row_is_one_line() {
        let values = vec![("loss".to_owned(), 0.69324), ("rewards/margins".to_owned(), 0.0)];
        let row = LogRow { step: 10, epoch: 0.2, values };
        assert_eq!(
            row_line(&row, Some(100)),
            "step 10/100 | epoch 0.2 | loss 0.6932 | rewards/margins 0"
        );
        assert_eq!(row_line(&row, None), "step 10 | epoch 0.2 | loss 0.6932 | rewards/margins 0");
        assert_eq!(step_message(0.5, Some(0.25), 1234.4), "loss 0.5  margin 0.25  1234 tokens/s");
    }
}
