//! Values of the index tables and of table `m`: fixed-width, big-endian.
//!
//! ```text
//! h  sequence:8  state:1 (0 stored, 1 deleted)
//! m  format          version:1
//! m  next_sequence   sequence:8
//! m  totals          articles:8  deleted:8  text bytes:8  stored bytes:8
//! m  source/{name}   articles:8  first date:12  last date:12   (times as in keys)
//! ```

use crate::article::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::key::{Sequence, SortTime};

/// What table `h` says of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashEntry {
    /// Where the article's record, or its tombstone, stands in the log.
    pub sequence: Sequence,
    /// Whether the article was deleted.
    pub deleted: bool,
}

impl HashEntry {
    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [
            self.sequence.to_be_bytes().as_slice(),
            &[u8::from(self.deleted)],
        ]
        .concat()
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        match value.split_first_chunk() {
            Some((sequence, [state @ (0 | 1)])) => Ok(Self {
                sequence: Sequence::from_be_bytes(*sequence),
                deleted: *state == 1,
            }),
            _ => Err(damaged("table h", value)),
        }
    }
}

/// Figures about the whole archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Articles stored and not deleted.
    pub article_count: u64,
    /// Articles deleted.
    pub deleted_count: u64,
    /// Bytes of the canonical texts of the stored articles.
    pub text_bytes: u64,
    /// Bytes of their records, compressed.
    pub stored_bytes: u64,
}

impl Totals {
    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [
            self.article_count,
            self.deleted_count,
            self.text_bytes,
            self.stored_bytes,
        ]
        .map(u64::to_be_bytes)
        .concat()
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let (numbers, rest) = value.as_chunks();
        match (numbers, rest) {
            ([articles, deleted, text, stored], []) => Ok(Self {
                article_count: u64::from_be_bytes(*articles),
                deleted_count: u64::from_be_bytes(*deleted),
                text_bytes: u64::from_be_bytes(*text),
                stored_bytes: u64::from_be_bytes(*stored),
            }),
            _ => Err(damaged("the totals", value)),
        }
    }
}

/// Figures about one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStats {
    /// Articles stored and not deleted.
    pub article_count: u64,
    /// The first date; undated if no article has one.
    pub first: SortTime,
    /// The last date; undated if no article has one.
    pub last: SortTime,
}

impl SourceStats {
    /// The figures of a source without articles.
    pub const EMPTY: Self = Self {
        article_count: 0,
        first: SortTime::UNDATED,
        last: SortTime::UNDATED,
    };

    /// Counts one more article.
    pub fn add(&mut self, time: SortTime) {
        self.article_count += 1;
        if time == SortTime::UNDATED {
            return;
        }
        if self.first == SortTime::UNDATED || time < self.first {
            self.first = time;
        }
        self.last = self.last.max(time);
    }

    /// The first date.
    #[must_use]
    pub fn first_published_at(&self) -> Option<Timestamp> {
        self.first.timestamp()
    }

    /// The last date.
    #[must_use]
    pub fn last_published_at(&self) -> Option<Timestamp> {
        self.last.timestamp()
    }

    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [
            self.article_count.to_be_bytes().as_slice(),
            self.first.as_bytes(),
            self.last.as_bytes(),
        ]
        .concat()
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let read = || {
            let (count, times) = value.split_first_chunk()?;
            let (first, last) = times.split_first_chunk()?;
            Some(Self {
                article_count: u64::from_be_bytes(*count),
                first: SortTime::from_bytes(*first),
                last: SortTime::from_bytes(last.try_into().ok()?),
            })
        };
        read().ok_or_else(|| damaged("the figures of a source", value))
    }
}

/// Reads the value of `next_sequence`.
///
/// # Errors
/// `IndexDamaged` if it is not one.
pub fn decode_sequence(value: &[u8]) -> Result<Sequence> {
    let bytes = value
        .try_into()
        .map_err(|_| damaged("the next sequence", value))?;
    Ok(Sequence::from_be_bytes(bytes))
}

/// Reads the value of `format`.
///
/// # Errors
/// `IndexDamaged` if it is not one.
pub fn decode_format(value: &[u8]) -> Result<u8> {
    match value {
        [format] => Ok(*format),
        _ => Err(damaged("the format", value)),
    }
}

fn damaged(what: &str, value: &[u8]) -> Error {
    Error::new(
        Reason::IndexDamaged,
        format!(
            "a row of {what} has {} bytes that cannot be read",
            value.len()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_golden_and_read_back() {
        let entry = HashEntry {
            sequence: 0x0102,
            deleted: true,
        };
        assert_eq!(entry.encode(), [0, 0, 0, 0, 0, 0, 1, 2, 1]);
        assert_eq!(HashEntry::decode(&entry.encode()).unwrap(), entry);

        let totals = Totals {
            article_count: 1,
            deleted_count: 2,
            text_bytes: 3,
            stored_bytes: 4,
        };
        let words: Vec<u8> = (1..=4).flat_map(|n| [0, 0, 0, 0, 0, 0, 0, n]).collect();
        assert_eq!(totals.encode(), words);
        assert_eq!(Totals::decode(&words).unwrap(), totals);

        let mut stats = SourceStats::EMPTY;
        let time = |seconds| SortTime::of(Some(Timestamp::new("t", seconds, 0).unwrap()));
        stats.add(SortTime::UNDATED);
        assert_eq!(
            (stats.first_published_at(), stats.last_published_at()),
            (None, None)
        );
        stats.add(time(7));
        stats.add(time(-7));
        assert_eq!(
            (stats.article_count, stats.first, stats.last),
            (3, time(-7), time(7))
        );
        assert_eq!(stats.encode().len(), 32);
        assert_eq!(SourceStats::decode(&stats.encode()).unwrap(), stats);
        assert_eq!(decode_sequence(&5_u64.to_be_bytes()).unwrap(), 5);
        assert_eq!(decode_format(&[1]).unwrap(), 1);
    }

    #[test]
    fn other_lengths_are_damage() {
        for length in 0..64 {
            let value = vec![0; length];
            let read = [
                HashEntry::decode(&value).is_ok() == (length == 9),
                Totals::decode(&value).is_ok() == (length == 32),
                SourceStats::decode(&value).is_ok() == (length == 32),
                decode_sequence(&value).is_ok() == (length == 8),
                decode_format(&value).is_ok() == (length == 1),
            ];
            assert_eq!(read, [true; 5], "{length}");
        }
    }
}
