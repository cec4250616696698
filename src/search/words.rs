//! Words as the index has them: in lower case and without accents.

use std::ops::Range;

use tantivy::tokenizer::{
    AsciiFoldingFilter, LowerCaser, RemoveLongFilter, TextAnalyzer, Token, TokenStream, Tokenizer,
};

use crate::article::{Words, words};

/// The name of the analyzer in the schema. What it does is part of the index's version.
pub(super) const ANALYZER: &str = "words";

/// Longer words are no words, and cannot be searched for.
const WORD_BYTES_MAX: usize = 100;

/// Takes texts apart for the index, and queries.
pub(super) fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(WordTokenizer)
        .filter(RemoveLongFilter::limit(WORD_BYTES_MAX))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .build()
}

/// The words of [`words`] as tokens.
#[derive(Clone, Copy, Debug)]
struct WordTokenizer;

/// The tokens of one text.
#[derive(Debug)]
struct WordStream<'a> {
    text: &'a str,
    words: Words<'a>,
    token: Token,
}

impl Tokenizer for WordTokenizer {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        WordStream {
            text,
            words: words(text),
            token: Token::default(),
        }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        let Some(place) = self.words.next() else {
            return false;
        };
        self.token.offset_from = place.start;
        self.token.offset_to = place.end;
        self.token.position = self.token.position.wrapping_add(1);
        self.token.text.clear();
        self.token
            .text
            .push_str(self.text.get(place).unwrap_or_default());
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

/// The places in a text of the words that a function picks.
pub(super) fn places(text: &str, pick: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut analyzer = analyzer();
    let mut stream = analyzer.token_stream(text);
    let mut places = Vec::new();
    while let Some(token) = stream.next() {
        if pick(&token.text) {
            places.push(token.offset_from..token.offset_to);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_folded() {
        let text = "The ÉLITE's 銀行, ".to_owned() + &"x".repeat(101);
        let mut analyzer = analyzer();
        let mut stream = analyzer.token_stream(&text);
        let mut found = Vec::new();
        while let Some(token) = stream.next() {
            found.push((token.text.clone(), token.position));
        }
        let expected = [("the", 0), ("elite", 1), ("s", 2), ("銀", 3), ("行", 4)];
        assert_eq!(
            found,
            expected.map(|(word, position)| (word.to_owned(), position))
        );
        assert_eq!(places("A b a", |word| word == "a"), [0..1, 4..5]);
    }
}
