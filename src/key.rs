//! Keys of the one ordered keyspace. The first byte is the table; integers are big-endian, so that
//! byte order is meaning order. Pure: no I/O, no clock.
//!
//! ```text
//! l  sequence:8                               the log: a record, or the first row of a large one
//! l  sequence:8  row:2                        the further rows of a large record, from 1
//! h  id:32                                    -> sequence and state (record::HashEntry)
//! d  time:12     sequence:8                   by date -> source and sketch (record::Digest)
//! s  source:1..256  00  time:12  sequence:8   by source and date
//! u  blake3(canonical URL):16  sequence:8     revisions of a URL
//! b  blake3(body):16  sequence:8              copies of a body
//! m  name                                     format, next sequence, totals, per-source figures
//! q  sequence:8  row:2                        rows of damaged records that were set aside
//!
//! time = seconds since 1970 as i64 with its sign bit flipped, then nanoseconds as u32;
//!        an undated article has twelve zero bytes and so stands before every date
//! ```
//!
//! The `u` and `b` keys hold the first 16 bytes of a hash: two texts that share 128 bits of BLAKE3
//! are not expected in any archive, and the article itself holds what is compared in the end.

use std::ops::Range;

use crate::article::{
    Article, ContentHash, HASH_HEX_DIGITS, SECONDS_MIN, Sketch, Timestamp, canonical_url, hex_value,
};

/// The position of a record in the log. Counts from 1, dense, never reused.
pub type Sequence = u64;

/// The log.
pub const TABLE_LOG: u8 = b'l';
/// Articles by id.
pub const TABLE_HASH: u8 = b'h';
/// Articles by date.
pub const TABLE_DATE: u8 = b'd';
/// Articles by source and date.
pub const TABLE_SOURCE: u8 = b's';
/// Articles by URL.
pub const TABLE_URL: u8 = b'u';
/// Articles by body.
pub const TABLE_BODY: u8 = b'b';
/// Figures about the archive.
pub const TABLE_META: u8 = b'm';
/// Rows of damaged records, kept for whoever wants to try what is left of them.
pub const TABLE_QUARANTINE: u8 = b'q';

/// The tables that are an index of the log, with one row per article (`u` has none for an empty URL).
pub const INDEX_TABLES: [u8; 5] = [TABLE_HASH, TABLE_DATE, TABLE_SOURCE, TABLE_URL, TABLE_BODY];

const TAG_BYTES: usize = 1;
const SEQUENCE_BYTES: usize = 8;
const ROW_BYTES: usize = 2;
const TIME_BYTES: usize = 12;
const SHORT_HASH_BYTES: usize = 16;
const LOG_KEY_BYTES: usize = TAG_BYTES + SEQUENCE_BYTES;
const LOG_ROW_KEY_BYTES: usize = LOG_KEY_BYTES + ROW_BYTES;
const DATED_TAIL_BYTES: usize = TIME_BYTES + SEQUENCE_BYTES;
const _: () = assert!(LOG_ROW_KEY_BYTES == 11 && DATED_TAIL_BYTES == 20);

/// Ends the source in a key of table `s`; a source has no control characters, so none of its own.
const SOURCE_END: u8 = 0;

/// A time as it stands in a key: byte order is time order, undated first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SortTime([u8; TIME_BYTES]);

impl SortTime {
    /// The time of an undated article.
    pub const UNDATED: Self = Self([0; TIME_BYTES]);

    /// Converts a date, or the lack of one.
    #[must_use]
    pub fn of(time: Option<Timestamp>) -> Self {
        let Some(time) = time else {
            return Self::UNDATED;
        };
        let mut bytes = [0; TIME_BYTES];
        let (seconds, nanos) = bytes.split_at_mut(SEQUENCE_BYTES);
        seconds.copy_from_slice(&(time.seconds() ^ i64::MIN).to_be_bytes());
        nanos.copy_from_slice(&time.nanos().to_be_bytes());
        Self(bytes)
    }

    /// The first time that is a date.
    #[must_use]
    pub fn first_dated() -> Self {
        let mut bytes = [0; TIME_BYTES];
        let (seconds, _) = bytes.split_at_mut(SEQUENCE_BYTES);
        seconds.copy_from_slice(&(SECONDS_MIN ^ i64::MIN).to_be_bytes());
        Self(bytes)
    }

    /// The bytes in a key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; TIME_BYTES] {
        &self.0
    }

    /// Reads the bytes of a key; any twelve bytes have a place in the order.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; TIME_BYTES]) -> Self {
        Self(bytes)
    }

    /// The date, or nothing for the undated time and for bytes that are no date.
    #[must_use]
    pub fn timestamp(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.split_first_chunk()?;
        let seconds = i64::from_be_bytes(*seconds) ^ i64::MIN;
        let nanos = u32::from_be_bytes(nanos.try_into().ok()?);
        Timestamp::new("time", seconds, i64::from(nanos)).ok()
    }
}

/// The first 16 bytes of the hash of a body or of a URL's canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortHash([u8; SHORT_HASH_BYTES]);

impl ShortHash {
    /// Shortens a hash.
    #[must_use]
    pub fn of(hash: &ContentHash) -> Self {
        let mut bytes = [0; SHORT_HASH_BYTES];
        bytes
            .iter_mut()
            .zip(hash.as_bytes())
            .for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// The key under which the revisions of a URL stand; none for an empty URL, because articles
    /// without one are not revisions of each other.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        (!url.is_empty()).then(|| Self::of(&ContentHash::of(canonical_url(url).as_bytes())))
    }
}

/// What the index rows of one article are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFacts {
    /// The article's id.
    pub id: ContentHash,
    /// Its date as it sorts.
    pub time: SortTime,
    /// Its source.
    pub source: String,
    /// Its URL, unless empty.
    pub url: Option<ShortHash>,
    /// Its body.
    pub body: ShortHash,
    /// By what its near copies are found, unless the archive does without.
    pub sketch: Option<Sketch>,
}

/// Whether an archive can be asked for near copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearCopies {
    /// It can.
    On,
    /// It cannot, and articles are stored a little faster.
    Off,
}

impl IndexFacts {
    /// Takes the facts from an article whose id is known.
    #[must_use]
    pub fn of(article: &Article, id: ContentHash, near: NearCopies) -> Self {
        Self {
            id,
            time: SortTime::of(article.published_at()),
            source: article.source().to_owned(),
            url: ShortHash::of_url(article.url()),
            body: ShortHash::of(&article.body_hash()),
            sketch: (near == NearCopies::On).then(|| Sketch::of(article.body())),
        }
    }

    /// The keys that exist as long as the article does: all but the one in table `h`.
    #[must_use]
    pub fn rows(&self, sequence: Sequence) -> Vec<Vec<u8>> {
        let mut rows = vec![
            date(self.time, sequence),
            dated(source_prefix(&self.source), self.time, sequence),
            [body_prefix(self.body), sequence.to_be_bytes().to_vec()].concat(),
        ];
        rows.extend(
            self.url
                .map(|url| [url_prefix(url), sequence.to_be_bytes().to_vec()].concat()),
        );
        rows
    }
}

/// The key of a record, and of the first row of a large one.
#[must_use]
pub fn log(sequence: Sequence) -> Vec<u8> {
    [[TABLE_LOG].as_slice(), &sequence.to_be_bytes()].concat()
}

/// The key of a row of a record. Row 0 is the first, whose key is the record's own.
#[must_use]
pub fn log_row(sequence: Sequence, row: u16) -> Vec<u8> {
    match row {
        0 => log(sequence),
        row => [log(sequence).as_slice(), &row.to_be_bytes()].concat(),
    }
}

/// The key under which a row of a damaged record is kept.
#[must_use]
pub fn quarantine(sequence: Sequence, row: u16) -> Vec<u8> {
    [
        [TABLE_QUARANTINE].as_slice(),
        &sequence.to_be_bytes(),
        &row.to_be_bytes(),
    ]
    .concat()
}

/// All rows that are kept of a damaged record.
#[must_use]
pub fn quarantine_range(sequence: Sequence) -> Range<Vec<u8>> {
    prefix_range(&[[TABLE_QUARANTINE].as_slice(), &sequence.to_be_bytes()].concat())
}

/// All rows of the records `first..=last`.
#[must_use]
pub fn log_range(first: Sequence, last: Sequence) -> Range<Vec<u8>> {
    log(first)..last.checked_add(1).map_or_else(|| vec![TABLE_LOG + 1], log)
}

/// Reads a key of the log: the sequence, and the row, which is 0 for the first.
#[must_use]
pub fn parse_log(key: &[u8]) -> Option<(Sequence, u16)> {
    let (sequence, row) = key.strip_prefix(&[TABLE_LOG])?.split_first_chunk()?;
    let sequence = Sequence::from_be_bytes(*sequence);
    if row.is_empty() {
        return Some((sequence, 0));
    }
    let row = u16::from_be_bytes(row.try_into().ok()?);
    (row > 0).then_some((sequence, row))
}

/// The sequence at which a key stands in the log, whatever key it is.
#[must_use]
pub fn log_position(key: &[u8]) -> Sequence {
    let mut sequence = [0; size_of::<Sequence>()];
    let given = key.iter().skip(1);
    sequence
        .iter_mut()
        .zip(given)
        .for_each(|(byte, given)| *byte = *given);
    Sequence::from_be_bytes(sequence)
}

/// The key of an id.
#[must_use]
pub fn hash(id: &ContentHash) -> Vec<u8> {
    [[TABLE_HASH].as_slice(), id.as_bytes()].concat()
}

/// Reads a key of table `h`.
#[must_use]
pub fn parse_hash(key: &[u8]) -> Option<ContentHash> {
    let bytes = key.strip_prefix(&[TABLE_HASH])?.try_into().ok()?;
    Some(ContentHash::from_bytes(bytes))
}

/// The keys of all ids that start with these lower-case hex digits; none if one is no digit or
/// there are more than an id has.
#[must_use]
pub fn hash_prefix_range(digits: &str) -> Option<Range<Vec<u8>>> {
    if digits.len() > HASH_HEX_DIGITS {
        return None;
    }
    let padded = |fill: u8| {
        let mut key = vec![TABLE_HASH];
        let mut nibbles = digits
            .bytes()
            .map(hex_value)
            .chain(std::iter::repeat(Some(fill)));
        for _ in 0..HASH_HEX_DIGITS / 2 {
            key.push(nibbles.next()?? << 4 | nibbles.next()??);
        }
        Some(key)
    };
    let (first, mut last) = (padded(0)?, padded(0xf)?);
    last.push(0);
    Some(first..last)
}

/// The key of an article in table `d`.
#[must_use]
pub fn date(time: SortTime, sequence: Sequence) -> Vec<u8> {
    dated(vec![TABLE_DATE], time, sequence)
}

/// What all keys of one source in table `s` start with.
#[must_use]
pub fn source_prefix(source: &str) -> Vec<u8> {
    [[TABLE_SOURCE].as_slice(), source.as_bytes(), &[SOURCE_END]].concat()
}

/// What all keys of one URL in table `u` start with.
#[must_use]
pub fn url_prefix(url: ShortHash) -> Vec<u8> {
    [[TABLE_URL].as_slice(), &url.0].concat()
}

/// What all keys of one body in table `b` start with.
#[must_use]
pub fn body_prefix(body: ShortHash) -> Vec<u8> {
    [[TABLE_BODY].as_slice(), &body.0].concat()
}

/// A key that ends in a time and a sequence, as in tables `d` and `s`.
#[must_use]
pub fn dated(prefix: Vec<u8>, time: SortTime, sequence: Sequence) -> Vec<u8> {
    let mut key = prefix;
    key.extend_from_slice(&time.0);
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// Reads the time and sequence that a key of table `d` or `s` ends in.
#[must_use]
pub fn parse_dated(key: &[u8]) -> Option<(SortTime, Sequence)> {
    let (rest, sequence) = key.split_last_chunk()?;
    let (_, time) = rest.split_last_chunk()?;
    Some((SortTime(*time), Sequence::from_be_bytes(*sequence)))
}

/// Reads the sequence that a key of any index table but `h` ends in.
#[must_use]
pub fn parse_sequence(key: &[u8]) -> Option<Sequence> {
    key.split_last_chunk()
        .map(|(_, sequence)| Sequence::from_be_bytes(*sequence))
}

/// All keys that start with a prefix.
#[must_use]
pub fn prefix_range(prefix: &[u8]) -> Range<Vec<u8>> {
    prefix.to_vec()..prefix_end(prefix)
}

/// The first key behind all that start with a prefix, which must not be all `0xff`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

/// Names in table `m`.
pub mod meta {
    use super::{Range, TABLE_META, prefix_range};

    const SOURCE: &[u8] = b"source/";
    const DICTIONARY: &str = "dictionary/";

    /// Copies that are kept of each dictionary.
    pub const DICTIONARY_COPIES: usize = 2;

    /// The version of the archive's format.
    #[must_use]
    pub fn format() -> Vec<u8> {
        named(b"format")
    }

    /// The sequence that the next record gets.
    #[must_use]
    pub fn next_sequence() -> Vec<u8> {
        named(b"next_sequence")
    }

    /// Figures about the whole archive.
    #[must_use]
    pub fn totals() -> Vec<u8> {
        named(b"totals")
    }

    /// Whether the archive can be asked for near copies.
    #[must_use]
    pub fn near_copies() -> Vec<u8> {
        named(b"near_copies")
    }

    /// Random bytes that tell this archive, and the backups of it, from others.
    #[must_use]
    pub fn archive_id() -> Vec<u8> {
        named(b"archive_id")
    }

    /// The sequence at which an unfinished restore will end.
    #[must_use]
    pub fn restoring() -> Vec<u8> {
        named(b"restoring")
    }

    /// The archive that a migration, which is not finished, fills this one from.
    #[must_use]
    pub fn migrating() -> Vec<u8> {
        named(b"migrating")
    }

    /// The place that the archive was moved to.
    #[must_use]
    pub fn moved() -> Vec<u8> {
        named(b"moved")
    }

    /// How many batches repairs have written, so that whoever follows the archive notices each: the log
    /// tells nothing of what they change in other tables.
    #[must_use]
    pub fn mends() -> Vec<u8> {
        named(b"mends")
    }

    /// How the last scrub went.
    #[must_use]
    pub fn scrub() -> Vec<u8> {
        named(b"scrub")
    }

    /// A copy of a dictionary.
    #[must_use]
    pub fn dictionary(id: u32, copy: usize) -> Vec<u8> {
        named(format!("{DICTIONARY}{id}/{copy}").as_bytes())
    }

    /// The rows of all dictionaries.
    #[must_use]
    pub fn dictionaries() -> Range<Vec<u8>> {
        prefix_range(&named(DICTIONARY.as_bytes()))
    }

    /// Reads the id and the number of the copy from the key of a copy.
    #[must_use]
    pub fn parse_dictionary(key: &[u8]) -> Option<(u32, usize)> {
        let name = std::str::from_utf8(key.strip_prefix(&[TABLE_META])?).ok()?;
        let (id, copy) = name.strip_prefix(DICTIONARY)?.split_once('/')?;
        let (id, copy) = (id.parse().ok()?, copy.parse().ok()?);
        // Only what this version would write itself.
        (copy < DICTIONARY_COPIES && dictionary(id, copy) == key).then_some((id, copy))
    }

    /// Figures about one source.
    #[must_use]
    pub fn source(name: &str) -> Vec<u8> {
        named(&[SOURCE, name.as_bytes()].concat())
    }

    /// The rows of all sources, in byte order of their names.
    #[must_use]
    pub fn sources() -> Range<Vec<u8>> {
        prefix_range(&named(SOURCE))
    }

    /// Reads the source from the key of its figures.
    #[must_use]
    pub fn parse_source(key: &[u8]) -> Option<&str> {
        let name = key.strip_prefix(&[TABLE_META])?.strip_prefix(SOURCE)?;
        std::str::from_utf8(name).ok()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        [[TABLE_META].as_slice(), name].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::article::{ArticleFields, SECONDS_MAX};

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    fn facts() -> IndexFacts {
        let fields = ArticleFields {
            title: "t".into(),
            published_at: Some(Timestamp::new("t", 1, 2).unwrap()),
            source: "Ab".into(),
            url: "HTTPS://a.example/?utm_source=x".into(),
            body: "body".into(),
            ..ArticleFields::default()
        };
        let article = Article::new(fields).unwrap();
        IndexFacts::of(&article, ContentHash::of(b"id"), NearCopies::On)
    }

    /// These bytes are on disk in every archive.
    #[test]
    fn keys_are_golden() {
        let rows: Vec<String> = facts().rows(0x0102).iter().map(|row| hex(row)).collect();
        assert_eq!(
            rows,
            [
                "648000000000000001000000020000000000000102",
                "734162008000000000000001000000020000000000000102",
                "620be9c598ae63835518e7fb422dc3027f0000000000000102",
                "751bf35010293b645c28e7b2e7cde623870000000000000102",
            ]
        );
        assert_eq!(hex(&log(0x0102)), "6c0000000000000102");
        assert_eq!(hex(&log_row(0x0102, 3)), "6c00000000000001020003");
        assert_eq!(
            hex(&hash(&ContentHash::of(b""))),
            "68af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(meta::format(), b"mformat");
        assert_eq!(meta::next_sequence(), b"mnext_sequence");
        assert_eq!(meta::totals(), b"mtotals");
        assert_eq!(meta::source("Ab"), b"msource/Ab");
        assert_eq!(meta::archive_id(), b"marchive_id");
        assert_eq!(meta::restoring(), b"mrestoring");
        assert_eq!(meta::migrating(), b"mmigrating");
        assert_eq!(meta::moved(), b"mmoved");
        assert_eq!(meta::mends(), b"mmends");
        assert_eq!(meta::scrub(), b"mscrub");
        assert_eq!(meta::dictionary(40_000, 1), b"mdictionary/40000/1");
        assert_eq!(hex(&quarantine(0x0102, 3)), "7100000000000001020003");
    }

    #[test]
    fn an_empty_url_has_no_row() {
        assert_eq!(
            IndexFacts {
                url: None,
                ..facts()
            }
            .rows(1)
            .len(),
            3
        );
        assert_eq!(ShortHash::of_url(""), None);
        assert_eq!(
            ShortHash::of_url("https://A.example"),
            ShortHash::of_url("https://a.example/#x")
        );
    }

    #[test]
    fn prefixes_of_ids_cover_just_their_ids() {
        let id = ContentHash::of(b"x");
        let digits = id.to_string();
        for length in 0..=HASH_HEX_DIGITS {
            assert!(
                hash_prefix_range(&digits[..length])
                    .unwrap()
                    .contains(&hash(&id)),
                "{length}"
            );
        }
        assert!(!hash_prefix_range("00000000").unwrap().contains(&hash(&id)));
        assert_eq!(hash_prefix_range("xyz"), None);
        assert_eq!(hash_prefix_range(&"0".repeat(65)), None);
    }

    #[test]
    fn copies_of_dictionaries_are_named_in_one_way() {
        for (id, copy) in [(1, 0), (u32::MAX, 1)] {
            let key = meta::dictionary(id, copy);
            assert!(meta::dictionaries().contains(&key));
            assert_eq!(meta::parse_dictionary(&key), Some((id, copy)));
        }
        for wrong in [
            "1/2",
            "1",
            "01/0",
            "+1/0",
            "1/00",
            "x/0",
            "4294967296/0",
            "1/0/",
        ] {
            let key = format!("mdictionary/{wrong}");
            assert_eq!(meta::parse_dictionary(key.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(prefix_end(b"a"), b"b");
        assert_eq!(prefix_end(&[1, 0xff, 0xff]), [2]);
        assert_eq!(log_range(5, Sequence::MAX).end, [TABLE_LOG + 1]);
    }

    #[test]
    fn every_key_stands_somewhere_in_the_log() {
        for key in [
            log(0x0102),
            log_row(0x0102, 3),
            [log(0x0102), vec![0]].concat(),
        ] {
            assert_eq!(log_position(&key), 0x0102, "{key:?}");
        }
        assert_eq!(log_position(&[TABLE_LOG]), 0);
        assert_eq!(log_position(&[TABLE_LOG, 1, 2]), 0x0102 << 48);
    }

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        let near = prop_oneof![
            Just(SECONDS_MIN),
            Just(-1),
            Just(0),
            Just(1),
            Just(SECONDS_MAX),
            SECONDS_MIN..=SECONDS_MAX
        ];
        prop::option::of(
            (near, prop_oneof![Just(0), 0..1_000_000_000_i64])
                .prop_map(|(seconds, nanos)| Timestamp::new("t", seconds, nanos).unwrap()),
        )
    }

    fn sequence() -> impl Strategy<Value = Sequence> {
        prop_oneof![Just(1), Just(255), Just(256), Just(u64::MAX), any::<u64>()]
    }

    proptest! {
        #[test]
        fn byte_order_of_dates_is_their_order(a in (time(), sequence()), b in (time(), sequence())) {
            let key = |(time, sequence): (Option<Timestamp>, u64)| date(SortTime::of(time), sequence);
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
            prop_assert_eq!(parse_dated(&key(a)), Some((SortTime::of(a.0), a.1)));
            prop_assert_eq!(SortTime::of(a.0).timestamp(), a.0);
            prop_assert!(a.0.is_none() || SortTime::of(a.0) >= SortTime::first_dated());
        }

        #[test]
        fn byte_order_of_sources_is_their_order(
            a in ("[ab]{1,3}\\PC?", time(), sequence()),
            b in ("[ab]{1,3}\\PC?", time(), sequence()),
        ) {
            let key = |(source, time, sequence): &(String, Option<Timestamp>, u64)| {
                dated(source_prefix(source), SortTime::of(*time), *sequence)
            };
            prop_assert_eq!(a.cmp(&b), key(&a).cmp(&key(&b)));
            let own = prefix_range(&source_prefix(&a.0)).contains(&key(&b));
            prop_assert_eq!(own, a.0 == b.0);
        }

        #[test]
        fn byte_order_of_the_log_is_its_order(a in (sequence(), 0..3_u16), b in (sequence(), 0..3_u16)) {
            let key = |(sequence, row)| if row == 0 { log(sequence) } else { log_row(sequence, row) };
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
            prop_assert_eq!(parse_log(&key(a)), Some(a));
            prop_assert_eq!(log_range(a.0, a.0).contains(&key(b)), a.0 == b.0);
        }

        #[test]
        fn byte_order_of_ids_is_their_order(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            let (a, b) = (ContentHash::from_bytes(a), ContentHash::from_bytes(b));
            prop_assert_eq!(a.cmp(&b), hash(&a).cmp(&hash(&b)));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
            prop_assert_eq!(parse_hash(&hash(&a)), Some(a));
        }
    }
}
