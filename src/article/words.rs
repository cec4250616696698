//! What a word is: for search, and for telling how alike two bodies are.

use std::ops::Range;
use std::str::CharIndices;

/// The places of the words of a text, in order.
///
/// A word is a run of letters and digits; in scripts that do not part words, every character is one.
#[must_use]
pub fn words(text: &str) -> Words<'_> {
    Words {
        characters: text.char_indices(),
        end: text.len(),
        single: None,
    }
}

/// The places of the words of a text.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    characters: CharIndices<'a>,
    end: usize,
    /// A character that is a word and came right behind another one.
    single: Option<Range<usize>>,
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if let Some(single) = self.single.take() {
            return Some(single);
        }
        let mut start = None;
        for (at, character) in self.characters.by_ref() {
            if !character.is_alphanumeric() {
                if let Some(start) = start {
                    return Some(start..at);
                }
            } else if stands_alone(character) {
                let single = at..at + character.len_utf8();
                let Some(start) = start else {
                    return Some(single);
                };
                self.single = Some(single);
                return Some(start..at);
            } else if start.is_none() {
                start = Some(at);
            }
        }
        start.map(|start| start..self.end)
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
