//! Tables of texts, aligned for a terminal or as CSV.

/// Aligns the rows of a table in columns; the first row is the header. Numbers are right-aligned.
pub fn aligned(table: &[Vec<String>]) -> String {
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column: usize| {
        table.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0)
    };
    let is_numeric = numeric_columns(table);
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, numeric) in is_numeric.iter().enumerate() {
            let (cell, width) = (cell(row, column), width(column));
            let gap = " ".repeat(width - cell.chars().count());
            let padded = if *numeric { gap + &cell } else { cell + &gap };
            line.push_str(if column > 0 { "  " } else { "" });
            line.push_str(&padded);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// For each column, whether all cells below the header are numbers or empty.
pub fn numeric_columns(table: &[Vec<String>]) -> Vec<bool> {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let is_number = |text: &str| {
        let first = text.trim_start_matches('-').chars().next();
        text == "–" || first.is_some_and(|c| c.is_ascii_digit())
    };
    let cell = |row: &Vec<String>, column: usize| row.get(column).is_some_and(|c| is_number(c));
    (0..columns).map(|column| table.iter().skip(1).all(|row| cell(row, column))).collect()
}

/// CSV as in RFC 4180, but with line feeds.
pub fn csv(table: &[Vec<String>]) -> String {
    let field = |text: &String| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.clone(),
    };
    let line = |row: &Vec<String>| row.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| cell.to_string()).collect()).collect()
    }

    #[test]
    fn numbers_are_right_aligned_and_words_left_aligned() {
        let table =
            table(&[&["loss", "beta", "status"], &["ipo", "0.1", "ok"], &["sppo", "–", "no"]]);
        assert_eq!(aligned(&table), "loss  beta  status\nipo    0.1  ok\nsppo     –  no\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let table = table(&[&["a", "b"], &["[x, y]", "say \"no\""]]);
        assert_eq!(csv(&table), "a,b\n\"[x, y]\",\"say \"\"no\"\"\"\n");
    }
}
