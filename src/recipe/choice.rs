//! Values that are one word of a fixed list. To add a word, add a line to the table beside the
//! enum.

/// An enum that is written as one word.
pub(super) trait Choice: Sized + Copy + PartialEq + 'static {
    /// Every accepted spelling, its value, and whether messages list it.
    const WORDS: &'static [(&'static str, Self, bool)];
    /// Words that TRL or transformers accept, but whose meaning is not implemented here.
    const UNSUPPORTED: &'static [&'static str];

    /// The value of a spelling; case does not matter.
    fn from_word(word: &str) -> Option<Self> {
        let same = |known: &&(&'static str, Self, bool)| known.0.eq_ignore_ascii_case(word);
        Self::WORDS.iter().find(same).map(|known| known.1)
    }

    /// The canonical spelling.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|known| known.1 == self).map_or("", |known| known.0)
    }

    /// The words that messages list, separated by commas.
    fn listed() -> String {
        let listed = Self::WORDS.iter().filter(|known| known.2);
        listed.map(|known| known.0).collect::<Vec<_>>().join(", ")
    }
}

/// `choices!(Enum { "word" => Enum::Value, also "other spelling" => … } unsupported ["…"])`
/// implements [`Choice`] for an enum. `also` marks spellings that are accepted but not listed in
/// messages.
macro_rules! choices {
    (@listed) => { true };
    (@listed also) => { false };
    (
        $name:ident { $($($also:ident)? $word:literal => $value:expr),* $(,)? }
        unsupported [$($other:literal),* $(,)?]
    ) => {
        impl crate::recipe::choice::Choice for $name {
            const WORDS: &'static [(&'static str, Self, bool)] =
                &[$(($word, $value, crate::recipe::choice::choices!(@listed $($also)?))),*];
            const UNSUPPORTED: &'static [&'static str] = &[$($other),*];
        }
    };
}

pub(super) use choices;
