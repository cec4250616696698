//! Values of the index tables and of table `m`: fixed-width, big-endian.
//!
//! ```text
//! h  sequence:8  state:1 (0 stored, 1 deleted, 2 quarantined)
//! d  source:8 (first bytes of its BLAKE3 hash)  sketch:16 (unless the archive does without)
//! m  format          version:1
//! m  near_copies     0 without sketches, 1 with
//! m  archive_id      random:16   (chosen once, tells this archive and its backups from others)
//! m  restoring       sequence:8  (only while a restore is not finished: where it will end)
//! m  scrub           finished:12 (as archived_at of a record)  duration ms:8  records:8  findings:8
//! m  next_sequence   sequence:8
//! m  totals          articles:8  deleted:8  text bytes:8  stored bytes:8
//! m  dictionary/{id}/0 and /1: the two copies of a dictionary, see `record/dictionary.rs`
//! m  source/{name}   articles:8  first date:12  last date:12   (times as in keys)
//! ```

use crate::article::{ContentHash, SKETCH_BYTES, Sketch, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::{IndexFacts, NearCopies, Sequence, SortTime, TABLE_DATE};

/// The format of archives that have a dictionary: an older version would take the records that name
/// it for damaged.
pub const ARCHIVE_FORMAT: u8 = 3;

/// The format of archives that have none yet. Those of format 1, whose table `d` has no values, are
/// brought to this one when they are opened.
pub const ARCHIVE_FORMAT_PLAIN: u8 = 2;

/// What became of an article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It is stored.
    Stored,
    /// It was deleted, and cannot be stored again.
    Deleted,
    /// Its record was damaged and set aside. Storing it again heals it.
    Quarantined,
}

impl EntryState {
    /// The byte that stands for it.
    #[must_use]
    pub const fn as_byte(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Deleted => 1,
            Self::Quarantined => 2,
        }
    }

    /// Reads the byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stored),
            1 => Some(Self::Deleted),
            2 => Some(Self::Quarantined),
            _ => None,
        }
    }
}

/// What table `h` says of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashEntry {
    /// Where the article's record, or what keeps its place, stands in the log.
    pub sequence: Sequence,
    /// What became of the article.
    pub state: EntryState,
}

impl HashEntry {
    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [
            self.sequence.to_be_bytes().as_slice(),
            &[self.state.as_byte()],
        ]
        .concat()
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let read = || {
            let (sequence, state) = value.split_first_chunk()?;
            let [state] = state else { return None };
            Some(Self {
                sequence: Sequence::from_be_bytes(*sequence),
                state: EntryState::from_byte(*state)?,
            })
        };
        read().ok_or_else(|| damaged("table h", value))
    }
}

/// What stands for a source where there is no room for its name. Two names of one archive are not
/// expected to share one by chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceMark(u64);

impl SourceMark {
    /// The mark of a source.
    #[must_use]
    pub fn of(source: &str) -> Self {
        let hash = ContentHash::of(source.as_bytes());
        let (first, _) = hash
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 8], &[]));
        Self(u64::from_be_bytes(*first))
    }
}

/// What table `d` says of an article besides its date: enough to count articles, and to find near
/// copies, without reading one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its source.
    pub source: SourceMark,
    /// By what its near copies are found, unless the archive does without.
    pub sketch: Option<Sketch>,
}

impl Digest {
    /// The digest of an article.
    #[must_use]
    pub fn of(facts: &IndexFacts) -> Self {
        Self {
            source: SourceMark::of(&facts.source),
            sketch: facts.sketch,
        }
    }

    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let mut value = self.source.0.to_be_bytes().to_vec();
        value.extend(self.sketch.iter().flat_map(|sketch| sketch.to_bytes()));
        value
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let read = || {
            let (source, sketch) = value.split_first_chunk()?;
            let sketch = match sketch {
                [] => None,
                sketch => {
                    let bytes: [u8; SKETCH_BYTES] = sketch.try_into().ok()?;
                    Some(Sketch::from_bytes(bytes))
                }
            };
            Some(Self {
                source: SourceMark(u64::from_be_bytes(*source)),
                sketch,
            })
        };
        read().ok_or_else(|| damaged("table d", value))
    }
}

/// The index rows that exist as long as an article does, with their values: all but the one in
/// table `h`.
#[must_use]
pub fn index_rows(facts: &IndexFacts, sequence: Sequence) -> Vec<(Vec<u8>, Vec<u8>)> {
    let digest = Digest::of(facts);
    let rows = facts.rows(sequence).into_iter();
    rows.map(|key| {
        let value = if key.first() == Some(&TABLE_DATE) {
            digest.encode()
        } else {
            Vec::new()
        };
        (key, value)
    })
    .collect()
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

/// How the last full check of the archive went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubResult {
    /// When it ended.
    pub finished_at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Records that it read.
    pub record_count: u64,
    /// What it found.
    pub finding_count: u64,
}

impl ScrubResult {
    /// Writes the value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [
            self.finished_at.seconds().to_be_bytes().as_slice(),
            &self.finished_at.nanos().to_be_bytes(),
            &self.duration_ms.to_be_bytes(),
            &self.record_count.to_be_bytes(),
            &self.finding_count.to_be_bytes(),
        ]
        .concat()
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `IndexDamaged` if it is not one.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let read = || {
            let (seconds, rest) = value.split_first_chunk()?;
            let (nanos, rest) = rest.split_first_chunk()?;
            let ([duration, records, findings], []) = rest.as_chunks() else {
                return None;
            };
            let (seconds, nanos) = (i64::from_be_bytes(*seconds), u32::from_be_bytes(*nanos));
            Some(Self {
                finished_at: Timestamp::new("finished_at", seconds, i64::from(nanos)).ok()?,
                duration_ms: u64::from_be_bytes(*duration),
                record_count: u64::from_be_bytes(*records),
                finding_count: u64::from_be_bytes(*findings),
            })
        };
        read().ok_or_else(|| damaged("the result of the last scrub", value))
    }
}

/// Reads a value that is one sequence: `next_sequence` or `restoring`.
///
/// # Errors
/// `IndexDamaged` if it is not one.
pub fn decode_sequence(value: &[u8]) -> Result<Sequence> {
    let bytes = value.try_into().map_err(|_| damaged("a sequence", value))?;
    Ok(Sequence::from_be_bytes(bytes))
}

/// Writes the value of `near_copies`.
#[must_use]
pub fn encode_near_copies(near: NearCopies) -> Vec<u8> {
    vec![u8::from(near == NearCopies::On)]
}

/// Reads the value of `near_copies`.
///
/// # Errors
/// `IndexDamaged` if it is not one.
pub fn decode_near_copies(value: &[u8]) -> Result<NearCopies> {
    match value {
        [0] => Ok(NearCopies::Off),
        [1] => Ok(NearCopies::On),
        _ => Err(damaged("the switch of near copies", value)),
    }
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
            state: EntryState::Deleted,
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
        let scrub = ScrubResult {
            finished_at: Timestamp::new("t", -5, 6).unwrap(),
            duration_ms: 7,
            record_count: 8,
            finding_count: 9,
        };
        assert_eq!(ScrubResult::decode(&scrub.encode()).unwrap(), scrub);
        assert_eq!(decode_sequence(&5_u64.to_be_bytes()).unwrap(), 5);
        assert_eq!(decode_format(&[1]).unwrap(), 1);

        let mut digest = Digest {
            source: SourceMark::of(""),
            sketch: None,
        };
        assert_eq!(
            digest.encode(),
            [0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6]
        );
        assert_eq!(Digest::decode(&digest.encode()).unwrap(), digest);
        digest.sketch = Some(Sketch::of("body"));
        assert_eq!(Digest::decode(&digest.encode()).unwrap(), digest);
        for near in [NearCopies::On, NearCopies::Off] {
            assert_eq!(decode_near_copies(&encode_near_copies(near)).unwrap(), near);
        }
    }

    #[test]
    fn other_lengths_are_damage() {
        for length in 0..64 {
            let value = vec![0; length];
            let read = [
                HashEntry::decode(&value).is_ok() == (length == 9),
                Totals::decode(&value).is_ok() == (length == 32),
                SourceStats::decode(&value).is_ok() == (length == 32),
                Digest::decode(&value).is_ok() == (length == 8 || length == 24),
                ScrubResult::decode(&value).is_ok() == (length == 36),
                decode_sequence(&value).is_ok() == (length == 8),
                decode_format(&value).is_ok() == (length == 1),
            ];
            assert_eq!(read, [true; 7], "{length}");
        }
    }
}
