//! What a word is: for search, and for telling how alike two bodies are.

use std::ops::Range;

/// The places of the words of a text, in order.
///
/// A word is a run of letters and digits; in scripts that do not part words, every character is one.
#[must_use]
pub const fn words(text: &str) -> Words<'_> {
    words_from(text, 0)
}

/// The places of the words behind a place that is in none.
pub(super) const fn words_from(text: &str, at: usize) -> Words<'_> {
    Words { text, at }
}

/// The places of the words of a text.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    text: &'a str,
    /// Where the next word is looked for.
    at: usize,
}

/// What a character is to words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is part of one.
    Part,
    /// It is one.
    Whole,
    /// It is between them.
    Between,
}

impl Words<'_> {
    /// What stands at a place, and how many bytes it has; none at the end.
    fn role_at(&self, at: usize) -> Option<(Role, usize)> {
        let byte = self.text.as_bytes().get(at)?;
        if byte.is_ascii() {
            // Most of most texts is, and need not be decoded.
            let role = if byte.is_ascii_alphanumeric() {
                Role::Part
            } else {
                Role::Between
            };
            return Some((role, 1));
        }
        let character = self.text.get(at..)?.chars().next()?;
        let role = match (character.is_alphanumeric(), stands_alone(character)) {
            (false, _) => Role::Between,
            (true, false) => Role::Part,
            (true, true) => Role::Whole,
        };
        Some((role, character.len_utf8()))
    }
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = loop {
            let (role, bytes) = self.role_at(self.at)?;
            let start = self.at;
            self.at += bytes;
            match role {
                Role::Between => {}
                Role::Whole => return Some(start..self.at),
                Role::Part => break start,
            }
        };
        let bytes = self.text.as_bytes();
        while let Some((Role::Part, count)) = self.role_at(self.at) {
            self.at += count;
            let rest = bytes.get(self.at..).unwrap_or_default();
            let letters = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric());
            self.at += letters.count();
        }
        Some(start..self.at)
    }
}

/// Whether a character is of a script without spaces between words: Thai, Lao, Burmese, Khmer,
/// Japanese and Chinese.
const fn stands_alone(character: char) -> bool {
    matches!(
        character,
        '\u{0e00}'..='\u{0eff}'
            | '\u{1000}'..='\u{109f}'
            | '\u{1780}'..='\u{17ff}'
            | '\u{2e80}'..='\u{9fff}'
            | '\u{20000}'..='\u{3ffff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found: Vec<&str> = words(text).map(|word| &text[word]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        check("", &[]);
        check(" .,-\n", &[]);
        check(
            "The bank's rate: 4.5%",
            &["The", "bank", "s", "rate", "4", "5"],
        );
        check("Übung, œuvre", &["Übung", "œuvre"]);
        check("은행은 금리를", &["은행은", "금리를"]);
    }

    #[test]
    fn characters_of_scripts_without_spaces_are_words() {
        check("銀行は。", &["銀", "行", "は"]);
        check("rate銀行 rate", &["rate", "銀", "行", "rate"]);
    }
}
