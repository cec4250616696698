//! Sketches of bodies, by which near copies find each other, and how alike two bodies are.
//!
//! A body is the set of its shingles: every three words in a row, in lower case and without what
//! stands between them. How alike two bodies are is the Jaccard index of their sets, the share of all
//! their shingles that both have (Broder, "On the resemblance and containment of documents", 1997).
//!
//! A sketch has 128 bins, each of them the least of the shingles that a hash sends there. A bin of
//! two sketches is the same with the probability that is the Jaccard index. The bins are filled as in
//! "Fast Similarity Sketching" (Dahlgaard, Knudsen, Thorup, 2017): rounds of one hash over all
//! shingles until no bin is empty, which is one or two rounds for an article where classic `MinHash`
//! needs 128, and as exact for a short one. Of each bin one bit is kept ("b-Bit Minwise Hashing", Li
//! and König, 2010): two unrelated sketches then agree in half of their bits, give or take 6 of 128,
//! and equal ones in all.
//!
//! So a sketch is 16 bytes, and all of an archive's can be compared one after the other: a million
//! are 16 MB and take milliseconds. The bands of an LSH would ask for about eight more index rows an
//! article, at random places, beside the five that it has.
//!
//! Sketches are stored. A change to them, or to what a shingle is, needs a new archive format.

use super::words::words_from;

/// Bytes of a sketch.
pub const SKETCH_BYTES: usize = 16;

/// Bins, and bits, of a sketch.
const BINS: usize = SKETCH_BYTES * 8;

/// Words in a shingle.
const SHINGLE_WORDS: usize = 3;

/// The hash of a word starts from this number and multiplies by the other.
const WORD_START: u64 = 0xcbf2_9ce4_8422_2325;
const WORD_FACTOR: u64 = 0xff51_afd7_ed55_8ccd;

/// What tells one round from the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What tells the places of words in a shingle from each other.
const FACTORS: [u64; SHINGLE_WORDS] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
];

/// How far below its mean the number of equal bits may be for a pair to be looked at, in standard
/// deviations: of the pairs that are just alike enough, one in 160 is overlooked.
const DEVIATIONS: f64 = 2.5;

/// What 128 bits tell of the words of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sketch(u128);

impl Sketch {
    /// The sketch of a body without words, which is like no other.
    pub const EMPTY: Self = Self(0);

    /// Sketches a body.
    #[must_use]
    pub fn of(body: &str) -> Self {
        let shingles = shingles(body);
        if shingles.is_empty() {
            return Self::EMPTY;
        }
        let mut bins = [u64::MAX; BINS];
        let mut empty_count = BINS;
        for round in 0..2 * BINS {
            fill(&mut bins, &mut empty_count, &shingles, round);
            if empty_count == 0 {
                break;
            }
        }
        let add = |sketch, bin: &u64| sketch << 1 | u128::from(mix(*bin) & 1);
        // No body with words has the sketch of one without.
        Self(bins.iter().fold(0, add).max(1))
    }

    /// The bytes that are stored.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; SKETCH_BYTES] {
        self.0.to_be_bytes()
    }

    /// Reads stored bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SKETCH_BYTES]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// How many of the 128 bits two sketches have in common; none if a body has no words.
    #[must_use]
    pub const fn equal_bits(self, other: Self) -> u32 {
        if self.0 == 0 || other.0 == 0 {
            return 0;
        }
        (self.0 ^ other.0).count_zeros()
    }
}

/// How many equal bits two bodies of this similarity have at least, but for few.
#[must_use]
pub fn equal_bits_min(similarity: f64) -> u32 {
    let share = f64::midpoint(1.0, similarity);
    let bins = f64::from(u32::try_from(BINS).unwrap_or(u32::MAX));
    let deviation = (share * (1.0 - share) / bins).sqrt();
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of bits, and rounding down is meant"
    )]
    {
        (bins * (share - DEVIATIONS * deviation)) as u32
    }
}

/// The set of the shingles of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shingles(Vec<u64>);

impl Shingles {
    /// Takes a body apart.
    #[must_use]
    pub fn of(body: &str) -> Self {
        let mut shingles = shingles(body);
        shingles.sort_unstable();
        shingles.dedup();
        Self(shingles)
    }

    /// How alike two bodies are: the share of all their shingles that both have, from 0 to 1. Bodies
    /// without words are like no other.
    #[must_use]
    pub fn similarity(&self, other: &Self) -> f64 {
        let is_common = |shingle: &&u64| other.0.binary_search(shingle).is_ok();
        let common = self.0.iter().filter(is_common).count();
        let all = self.0.len() + other.0.len() - common;
        if all == 0 {
            return 0.0;
        }
        ratio(common, all)
    }
}

/// A share of two counts, which are far below the numbers that an `f64` cannot hold.
fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(part) / number(whole)
}

/// One round: every shingle goes to the bin that this round's hash names, and in the second half of
/// the rounds to the one bin of the round. What an earlier round has put into a bin is less than
/// whatever comes later.
fn fill(bins: &mut [u64; BINS], empty_count: &mut usize, shingles: &[u64], round: usize) {
    const ROUND_SHIFT: u32 = 55;
    let number = u64::try_from(round).unwrap_or(u64::MAX);
    let seed = mix(number.wrapping_add(1).wrapping_mul(STEP));
    for shingle in shingles {
        let hash = mix(shingle ^ seed);
        let (value, place) = (hash >> 9, hash & 0x7f);
        let at = match round.checked_sub(BINS) {
            None => usize::try_from(place).unwrap_or_default(),
            Some(at) => at,
        };
        if let Some(bin) = bins.get_mut(at) {
            *empty_count -= usize::from(*bin == u64::MAX);
            *bin = (*bin).min(number << ROUND_SHIFT | value);
        }
    }
}

/// The hashes of all shingles of a body, repeated ones as often as they are. A body of fewer words
/// than a shingle has is one shingle.
fn shingles(body: &str) -> Vec<u64> {
    let words = word_hashes(body);
    if words.len() < SHINGLE_WORDS {
        return (!words.is_empty())
            .then(|| shingle(&words))
            .into_iter()
            .collect();
    }
    words.windows(SHINGLE_WORDS).map(shingle).collect()
}

/// The hash of a shingle: its words' hashes, each times an odd number of its place.
fn shingle(words: &[u64]) -> u64 {
    let numbered = words.iter().zip(FACTORS);
    let sum = numbered.fold(0_u64, |sum, (word, factor)| {
        sum.wrapping_add(word.wrapping_mul(factor))
    });
    mix(sum)
}

/// The hashes of the words of a body in lower case. ASCII, which most of most bodies is, is hashed as
/// it is looked at; that halves what a sketch costs.
fn word_hashes(body: &str) -> Vec<u64> {
    let bytes = body.as_bytes();
    let mut hashes = Vec::with_capacity(body.len() / 4);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if byte.is_ascii() && !byte.is_ascii_alphanumeric() {
            at += 1;
            continue;
        }
        if let Some((hash, length)) = ascii_word(bytes.get(at..).unwrap_or_default()) {
            hashes.push(hash);
            at += length;
            continue;
        }
        let Some(word) = words_from(body, at).next() else {
            break;
        };
        at = word.end;
        hashes.extend(body.get(word).map(word_hash));
    }
    hashes
}

/// The hash and length of the word at the start of some bytes, unless it is not or may not be all ASCII.
fn ascii_word(bytes: &[u8]) -> Option<(u64, usize)> {
    let (mut hash, mut chunk, mut shift, mut length) = (WORD_START, 0, 0, 0);
    for byte in bytes {
        if !byte.is_ascii_alphanumeric() {
            if byte.is_ascii() {
                break;
            }
            return None;
        }
        // This bit makes letters lower case and leaves digits as they are.
        chunk |= u64::from(byte | 0x20) << shift;
        shift += 8;
        length += 1;
        if shift == 64 {
            hash = add_chunk(hash, chunk);
            (chunk, shift) = (0, 0);
        }
    }
    Some((mix(add_chunk(hash, chunk)), length))
}

/// The hash of the bytes of a word in lower case, eight at a time.
fn word_hash(word: &str) -> u64 {
    let word = word.to_lowercase();
    let (chunks, rest) = word.as_bytes().as_chunks();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let hash = chunks.iter().fold(WORD_START, |hash, chunk| {
        add_chunk(hash, u64::from_le_bytes(*chunk))
    });
    mix(add_chunk(hash, u64::from_le_bytes(last)))
}

const fn add_chunk(hash: u64, chunk: u64) -> u64 {
    (hash ^ chunk).wrapping_mul(WORD_FACTOR).rotate_left(29)
}

/// Mixes all bits into all bits, as the finalizer of `SplitMix64` does.
const fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn similarity(one: &str, other: &str) -> f64 {
        Shingles::of(one).similarity(&Shingles::of(other))
    }

    /// A text of different words.
    fn text(first: u32, count: u32) -> String {
        let words: Vec<String> = (first..first + count).map(|n| format!("w{n}")).collect();
        words.join(" ")
    }

    proptest! {
        #[test]
        fn words_are_hashed_one_way(body in "([a-zA-Z0-9]{0,20}|[ .,\n]|[é’ß銀行Ü]|\\PC){0,40}") {
            let one_by_one = super::super::words::words(&body).map(|word| word_hash(&body[word]));
            prop_assert_eq!(word_hashes(&body), one_by_one.collect::<Vec<u64>>());
        }
    }

    /// These bytes are on disk in every archive.
    #[test]
    fn sketches_are_golden() {
        let hex = |body| format!("{:032x}", Sketch::of(body).0);
        let sketches = [
            hex(""),
            hex("One"),
            hex("The bank left its rate where it was."),
            hex("銀行は金利を据え置いた"),
        ];
        let expected = [
            "00000000000000000000000000000000",
            "fe9ae3b699c62f94bfccd729ef6e8b8c",
            "6cab756544c84915f2c88485025d0720",
            "1510d72fff503cc48e07ed6ea53f831c",
        ];
        assert_eq!(sketches, expected);
    }

    #[test]
    fn words_hash_by_their_lower_case() {
        for (one, other) in [
            ("Rates", "rATES"),
            ("Abcdefgh", "aBCDEFGH"),
            ("Abcdefghi9", "abcdefghi9"),
            ("ÜBER", "über"),
        ] {
            assert_eq!(word_hash(one), word_hash(other), "{one}");
        }
        let words = ["", "a", "b", "aa", "abcdefgh", "abcdefghi", "über", "uber"];
        let hashes: std::collections::HashSet<u64> = words.map(word_hash).into();
        assert_eq!(hashes.len(), words.len());
    }

    #[test]
    fn case_and_punctuation_do_not_count() {
        let same = ["The bank, left its RATE!", "the  bank left\nits rate"];
        assert_eq!(Sketch::of(same[0]), Sketch::of(same[1]));
        assert_eq!(Shingles::of(same[0]), Shingles::of(same[1]));
        assert!(similarity("", "") < 0.1);
        assert_eq!(Sketch::of(" .,- "), Sketch::EMPTY);
        assert_eq!(Sketch::EMPTY.equal_bits(Sketch::EMPTY), 0);
    }

    /// The estimate is the Jaccard index, whatever the length of the texts.
    #[test]
    fn equal_bits_tell_the_jaccard_index() {
        for words in [40, 100, 400, 2000] {
            for changed in [0, 5, 20, 50, 100] {
                let mut equal = 0;
                let rounds = 50;
                let kept = words - words * changed / 100;
                let mut alike = 0.0;
                for round in 0..rounds {
                    let first = round * 10_000;
                    let (one, other) = (text(first, words), text(first + words - kept, words));
                    equal += Sketch::of(&one).equal_bits(Sketch::of(&other));
                    alike = similarity(&one, &other);
                }
                let share = f64::from(equal) / f64::from(rounds * 128);
                let expected = f64::midpoint(1.0, alike);
                assert!(
                    (share - expected).abs() < 0.03,
                    "{words} words, {changed} % changed: {share} of the bits, {expected} expected"
                );
            }
        }
    }

    #[test]
    fn few_alike_pairs_are_overlooked() {
        assert_eq!(equal_bits_min(1.0), 128);
        assert_eq!(equal_bits_min(0.0), 49);
        let mut overlooked = 0;
        for round in 0..400 {
            let (one, other) = (text(round * 1000, 300), text(round * 1000 + 75, 300));
            let alike = similarity(&one, &other);
            let equal = Sketch::of(&one).equal_bits(Sketch::of(&other));
            overlooked += u32::from(equal < equal_bits_min(alike));
        }
        assert!(overlooked <= 12, "{overlooked} of 400");
    }

    proptest! {
        #[test]
        fn any_text_has_a_sketch(one in "\\PC{0,80}", other in "\\PC{0,80}") {
            let (a, b) = (Sketch::of(&one), Sketch::of(&other));
            prop_assert_eq!(Sketch::from_bytes(a.to_bytes()), a);
            prop_assert_eq!(a.equal_bits(b), b.equal_bits(a));
            let (there, back) = (similarity(&one, &other), similarity(&other, &one));
            prop_assert!((there - back).abs() < 1e-12 && (0.0..=1.0).contains(&there));
            prop_assert_eq!(a == Sketch::EMPTY, shingles(&one).is_empty());
        }
    }
}
