//! Text from files, and answers of models, as a terminal may show it.

use std::io::{self, Write};

/// The text without characters that control the terminal: names from files and answers of models
/// may hold escape sequences. They are shown as Rust writes them, such as `\u{1b}`. Line ends and
/// tabs stay.
pub fn printable(text: &str) -> String {
    let is_harmless = |c: char| match c {
        '\n' | '\t' => true,
        // These change the direction of the text around them.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_harmless(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_unicode()),
        }
    }
    shown
}

/// A writer to a terminal that writes all text [`printable`].
pub struct Printable<W>(pub W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = printable(&String::from_utf8_lossy(bytes));
        self.0.write_all(text.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_as_text() {
        let text = "a\x1b]0;title\x07\x1b[2J\r\u{9b}1m\u{202e}b";
        let shown = r"a\u{1b}]0;title\u{7}\u{1b}[2J\u{d}\u{9b}1m\u{202e}b";
        assert_eq!(printable(text), shown);
        assert_eq!(printable("one\n\ttwo é 🪁"), "one\n\ttwo é 🪁");
        let mut out = Vec::new();
        writeln!(Printable(&mut out), "{text}").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{shown}\n"));
    }
}
