//! Tests of the record: golden bytes, every length around a row, and every flipped bit found.

use proptest::prelude::*;

use super::*;
use crate::article::ArticleFields;

fn article(body: String) -> Article {
    Article::new(ArticleFields {
        title: "t".into(),
        source: "s".into(),
        body,
        ..ArticleFields::default()
    })
    .unwrap()
}

fn encoded(article: &Article) -> Vec<Bytes> {
    encoded_with(article, &Dictionaries::default())
}

fn encoded_with(article: &Article, dictionaries: &Dictionaries) -> Vec<Bytes> {
    let rows = encode_article(article.id(), time(), &article.render(), dictionaries).unwrap();
    rows.into_values().into_iter().map(Bytes::from).collect()
}

fn time() -> Timestamp {
    Timestamp::new("t", 1, 2).unwrap()
}

/// Text that zstd can hardly shrink.
fn noise(length: usize) -> String {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
        .iter()
        .map(|byte| char::from(byte % 94 + 33))
        .collect()
}

/// These bytes are on disk in every archive of format 1.
#[test]
fn records_are_golden() {
    let rows = encoded(&article(String::new()));
    let hex = rows
        .concat()
        .iter()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let header = "0101008130784404278ce9000000000000000100000002794a91beea9718ba08be96f45461c9481c0cb5a6009e5e5f1b05de9efd3694770000003900000039";
    let text = "0a2320740a0a5075626c69736865642061743a202a2a2a2a0a0a417574686f723a202a2a2a2a0a0a4f726967696e616c3a205b735d28290a0a";
    assert_eq!(hex, [header, text].concat());
}

#[test]
fn records_of_every_size_come_back_whole() {
    const SIZES: &[usize] = &[
        0,                 // an empty body
        1,                 // the shortest
        1024,              // one BLAKE3 chunk
        1025,              // one more
        65_000,            // one row
        ROW_BYTES_MAX,     // just over one row
        ROW_BYTES_MAX * 2, // three rows
        TEXT_BYTES_MAX - 200,
    ];
    for size in SIZES {
        for body in [noise(*size), "a".repeat(*size)] {
            let article = article(body);
            let rows = encoded(&article);
            assert!(rows.iter().all(|row| row.len() <= ROW_BYTES_MAX));
            assert_eq!(
                usize::from(extent(7, &rows[0]).unwrap().row_count),
                rows.len()
            );
            let record = decode(7, &rows, &Dictionaries::default()).unwrap();
            assert_eq!(record.id, article.id());
            assert_eq!(record.archived_at, time());
            assert_eq!(record.content, Content::Article(article));
        }
    }
}

#[test]
fn noise_is_cut_into_rows() {
    assert_eq!(encoded(&article(noise(ROW_BYTES_MAX * 3 / 2))).len(), 2);
    let largest = encoded(&article(noise(TEXT_BYTES_MAX - 200)));
    assert!(largest.len() > 32, "{}", largest.len());
}

#[test]
fn a_delete_makes_two_records_that_name_each_other() {
    let id = ContentHash::of(b"x");
    let halves = encode_delete(id, time(), "withdrawn", 3, 9).unwrap();
    let [deletion, tombstone] = halves.map(|rows| {
        let rows: Vec<Bytes> = rows.into_values().into_iter().map(Bytes::from).collect();
        decode(1, &rows, &Dictionaries::default()).unwrap()
    });
    let reason = "withdrawn".to_owned();
    assert_eq!(
        deletion.content,
        Content::Deletion {
            article: 3,
            reason: reason.clone()
        }
    );
    assert_eq!(
        tombstone.content,
        Content::Tombstone {
            deletion: 9,
            reason
        }
    );
    assert_eq!((deletion.id, tombstone.id), (id, id));
}

#[track_caller]
fn check_damaged(rows: &[Bytes]) {
    let error = decode(7, rows, &Dictionaries::default()).unwrap_err();
    assert_eq!(error.reason(), Reason::RecordDamaged, "{error}");
    assert!(error.message().contains("log record 7"), "{error}");
}

#[test]
fn missing_rows_are_damage() {
    let rows = encoded(&article(noise(ROW_BYTES_MAX * 3)));
    for cut in 0..rows.len() {
        check_damaged(&rows[..cut]);
    }
    let mut swapped = rows.clone();
    swapped.swap(1, 2);
    check_damaged(&swapped);
}

#[test]
fn every_flipped_bit_is_found() {
    let rows = encoded(&article("some words, some words, some words".into()));
    for bit in 0..rows[0].len() * 8 {
        let mut row = rows[0].to_vec();
        row[bit / 8] ^= 1 << (bit % 8);
        check_damaged(&[row.into()]);
    }
}

/// A dictionary of texts that share what the seed says, and a set of it alone.
fn trained(seed: &str) -> Dictionaries {
    let sample = |n: usize| {
        let word = noise(n % 7 + 9);
        article(format!("{seed} says {word} of {n}, and {seed} is not {word}. ").repeat(4)).render()
    };
    let samples: Vec<String> = (0..100).map(sample).collect();
    let lengths: Vec<usize> = samples.iter().map(String::len).collect();
    let dictionary = Dictionary::train(samples.concat().as_bytes(), &lengths).unwrap();
    let dictionaries = Dictionaries::default();
    dictionaries.add(dictionary.into());
    dictionaries
}

#[test]
fn records_with_and_without_dictionaries_do_not_mix() {
    let sets = ["alpha", "omega"].map(trained);
    let ids = sets.each_ref().map(|set| set.current().unwrap().id());
    assert_ne!(ids[0], ids[1]);
    for size in [0, 1, 40, 4000, ROW_BYTES_MAX * 2] {
        let article = article(format!("alpha says this of omega. {}", noise(size)));
        let plain = encoded(&article);
        let made = sets.each_ref().map(|set| encoded_with(&article, set));
        for (rows, (set, other)) in made.iter().zip([(0, 1), (1, 0)]) {
            assert!(rows.concat().len() < plain.concat().len() + 8);
            assert_eq!(peek_dictionary(&rows[0]), Some(ids[set]));
            assert!(rows.iter().all(|row| row.len() <= ROW_BYTES_MAX));
            let record = decode(7, rows, &sets[set]).unwrap();
            assert_eq!(record.content, Content::Article(article.clone()));
            // Any other set, and then one that has it again.
            for set in [&sets[other], &Dictionaries::default()] {
                let error = decode(7, rows, set).unwrap_err();
                assert_eq!(error.reason(), Reason::DictionaryLost);
                let parts = [
                    peek_dictionary(&rows[0]).unwrap().to_string(),
                    "record 7".into(),
                ];
                for part in parts {
                    assert!(error.message().contains(&part), "{error}");
                }
                // The thread decodes what needs none, whatever came before.
                let record = decode(7, &plain, set).unwrap();
                assert_eq!(record.content, Content::Article(article.clone()));
            }
            assert!(decode(7, rows, &sets[set]).is_ok());
        }
    }
}

#[test]
fn a_flipped_bit_is_damage_and_no_lost_dictionary() {
    let set = trained("alpha");
    let rows = encoded_with(&article("alpha says nothing".into()), &set);
    for bit in 0..rows[0].len() * 8 {
        let mut row = rows[0].to_vec();
        row[bit / 8] ^= 1 << (bit % 8);
        let error = decode(7, &[row.into()], &set).unwrap_err();
        assert_eq!(error.reason(), Reason::RecordDamaged, "{error}");
    }
}

/// One sample more can change the tables of a dictionary alone, of which zstd's own id says nothing.
#[test]
fn dictionaries_that_differ_have_different_ids() {
    let sample = |n: usize| format!("One of {} cases, and {n} of those, go on. ", n % 7).repeat(9);
    let train = |count| {
        let samples: Vec<String> = (0..count).map(sample).collect();
        let lengths: Vec<usize> = samples.iter().map(String::len).collect();
        Dictionary::train(samples.concat().as_bytes(), &lengths).unwrap()
    };
    let mut known = std::collections::BTreeMap::new();
    for count in 80..120 {
        let dictionary = train(count);
        assert_eq!(dictionary.id(), train(count).id(), "the same samples");
        assert!((1 << 15..1 << 31).contains(&dictionary.id()));
        let bytes = known
            .entry(dictionary.id())
            .or_insert(dictionary.bytes().to_vec());
        assert_eq!(bytes, dictionary.bytes(), "one id, one dictionary");
    }
    assert!(known.len() > 1);
}

#[test]
fn copies_of_a_dictionary_prove_themselves() {
    let dictionary = trained("alpha").current().unwrap();
    let copy = dictionary.encode();
    assert!(copy.len() <= ROW_BYTES_MAX);
    let read = Dictionary::decode(dictionary.id(), &copy).unwrap();
    assert_eq!(
        (read.id(), read.bytes()),
        (dictionary.id(), dictionary.bytes())
    );
    assert!(Dictionary::decode(dictionary.id() ^ 1, &copy).is_err());
    for bit in (0..copy.len() * 8).step_by(7) {
        let mut wrong = copy.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(
            Dictionary::decode(dictionary.id(), &wrong).is_err(),
            "{bit}"
        );
    }
    for length in [0, 1, 15, 16, 24, copy.len() - 1] {
        assert!(Dictionary::decode(dictionary.id(), &copy[..length]).is_err());
    }
}

proptest! {
    #[test]
    fn any_body_comes_back_with_a_dictionary(body in "(alpha |says |\\PC){0,200}") {
        thread_local!(static SET: Dictionaries = trained("alpha"));
        let set = SET.with(Clone::clone);
        let article = article(body);
        let rows = encoded_with(&article, &set);
        prop_assert_eq!(decode(1, &rows, &set).unwrap().content, Content::Article(article));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), as_format in any::<bool>()) {
        let mut bytes = bytes;
        if let (true, Some(first)) = (as_format, bytes.first_mut()) {
            *first = FORMAT;
        }
        prop_assert!(extent(1, &bytes).map_or(true, |extent| extent.row_count <= 50));
        prop_assert!(decode(1, &[bytes.into()], &Dictionaries::default()).is_err());
    }
}
