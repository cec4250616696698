//! What every storage engine must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pressmark::error::Kind;
use pressmark::store::{Batch, Chunk, Direction, Durability, Scan, Store};
use tempfile::TempDir;

use crate::support::{Engine, TestResult};

use Direction::{Ascending, Descending};
use Durability::{Buffered, Synced};

on_each_engine!(conformance);
on_engine!(replica, Replica, conformance);

pub async fn conformance(engine: Engine) -> TestResult {
    let folder = TempDir::new()?;
    let store = engine.open(folder.path()).await?;
    an_empty_store(&*store).await?;
    reads_keep_the_order_of_the_keys(&*store).await?;
    the_later_change_holds(&*store).await?;
    scans_keep_their_bounds(&*store).await?;
    scans_stop_at_rows_max(&*store).await?;
    scans_stop_at_bytes_max(&*store).await?;
    several_scans_answer_in_order(&*store).await?;
    batches_are_seen_whole(&store).await?;
    buffered_rows_are_seen_and_last(&*store).await?;
    reads_find_keys_side_by_side(&*store).await?;
    assert!(store.stats().await.is_ok());
    nothing_works_after_close(&*store).await
}

async fn an_empty_store(store: &dyn Store) -> TestResult {
    assert_eq!(store.get_many(vec![]).await?, []);
    assert_eq!(get(store, "a").await?, None);
    assert_eq!(store.scan_many(vec![]).await?, []);
    for direction in [Ascending, Descending] {
        let chunk = scan(store, "", "z", direction, 10).await?;
        assert_eq!(
            chunk,
            Chunk {
                rows: vec![],
                exhausted: true
            }
        );
        let chunk = scan(store, "", "z", direction, 0).await?;
        assert!(chunk.exhausted, "there is nothing to stop at");
    }
    store.write(Batch::new(), Synced).await?;
    store
        .write(batch(&[("never written", None)]), Synced)
        .await?;
    assert_eq!(get(store, "never written").await?, None);
    Ok(())
}

async fn reads_keep_the_order_of_the_keys(store: &dyn Store) -> TestResult {
    let rows = [
        ("g/a", Some("1")),
        ("g/b", Some("2")),
        ("g/empty", Some("")),
    ];
    store.write(batch(&rows), Synced).await?;
    let keys = ["g/b", "g/none", "g/a", "g/b", "g/empty"];
    let values = store.get_many(keys.map(bytes).into()).await?;
    let expected = [Some("2"), None, Some("1"), Some("2"), Some("")];
    assert_eq!(values, expected.map(|value| value.map(Bytes::from)));
    Ok(())
}

/// Keys that count up, of which some are missing, some were removed, and some have much between them.
async fn reads_find_keys_side_by_side(store: &dyn Store) -> TestResult {
    let key = |number: u64| [b"n".as_slice(), &number.to_be_bytes()].concat();
    let stored = |number: u64| number % 5 != 3 && number != 20;
    for numbers in [0..30, 30..60, 65_530..65_540] {
        let mut batch = Batch::new();
        for number in numbers.filter(|number| stored(*number)) {
            batch.put(key(number), number.to_string().into_bytes());
            let parts = if number == 41 { 8 } else { 1 };
            for part in 0..parts {
                batch.put([key(number), vec![0, part]].concat(), vec![part; 60_000]);
            }
        }
        batch.put(key(20), b"removed".to_vec());
        batch.remove(key(20));
        store.write(batch, Synced).await?;
    }
    let runs = [
        (0..60).collect::<Vec<u64>>(),
        (0..60).rev().collect(),
        (0..60).step_by(7).collect(),
        vec![40, 41, 42, 43, 41, 42],
        (65_525..65_545).chain([2, 1, 0]).collect(),
        vec![20, 23, 28, 33],
    ];
    for run in runs {
        let values = store
            .get_many(run.iter().copied().map(key).collect())
            .await?;
        let is_there =
            |number: u64| stored(number) && (number < 60 || (65_530..65_540).contains(&number));
        let expected = run
            .iter()
            .map(|number| is_there(*number).then(|| Bytes::from(number.to_string())));
        assert_eq!(values, expected.collect::<Vec<_>>(), "{run:?}");
    }
    Ok(())
}

async fn the_later_change_holds(store: &dyn Store) -> TestResult {
    store
        .write(batch(&[("o", Some("old")), ("r", Some("old"))]), Synced)
        .await?;
    store
        .write(batch(&[("o", Some("new")), ("r", None)]), Synced)
        .await?;
    assert_eq!(get(store, "o").await?.as_deref(), Some("new"));
    assert_eq!(get(store, "r").await?, None);
    let changes = [
        ("o", Some("1")),
        ("o", None),
        ("o", Some("2")), // ends written
        ("r", Some("1")),
        ("r", None), // ends removed
    ];
    store.write(batch(&changes), Synced).await?;
    assert_eq!(get(store, "o").await?.as_deref(), Some("2"));
    assert_eq!(get(store, "r").await?, None);
    Ok(())
}

async fn scans_keep_their_bounds(store: &dyn Store) -> TestResult {
    let keys = ["s/", "s/a", "s/aa", "s/ab", "s/b", "s/\u{7f}", "s0", "r/z"];
    let rows: Vec<_> = keys.iter().map(|key| (*key, Some("v"))).collect();
    store.write(batch(&rows), Synced).await?;
    let cases: [(&str, &str, &[&str]); 9] = [
        (
            "s/",
            "s0",
            &["s/", "s/a", "s/aa", "s/ab", "s/b", "s/\u{7f}"],
        ), // a prefix
        ("s/a", "s/b", &["s/a", "s/aa", "s/ab"]), // start is in, end is not
        ("s/a\0", "s/b", &["s/aa", "s/ab"]),      // behind a key
        ("s/a", "s/a\0", &["s/a"]),               // one key
        ("s/aaa", "s/ab\0", &["s/ab"]),           // start between two keys
        ("s/c", "s/d", &[]),                      // between two keys
        ("s/a", "s/a", &[]),                      // start is end
        ("s/b", "s/a", &[]),                      // start is behind end
        ("s/\u{7f}", "t", &["s/\u{7f}", "s0"]),   // to a key that is not there
    ];
    for (start, end, expected) in cases {
        let chunk = scan(store, start, end, Ascending, 100).await?;
        assert_eq!(keys_of(&chunk), expected, "{start:?}..{end:?}");
        assert!(chunk.exhausted, "{start:?}..{end:?}");
        let chunk = scan(store, start, end, Descending, 100).await?;
        let mut backward = expected.to_vec();
        backward.reverse();
        assert_eq!(keys_of(&chunk), backward, "{start:?}..{end:?} back");
        assert!(chunk.exhausted, "{start:?}..{end:?} back");
    }
    let whole = scan(store, "", "\u{7f}", Ascending, 100).await?;
    assert!(keys_of(&whole).is_sorted());
    assert_eq!(keys_of(&whole).first().map(String::as_str), Some("g/a"));
    assert_eq!(keys_of(&whole).last().map(String::as_str), Some("s0"));
    Ok(())
}

async fn scans_stop_at_rows_max(store: &dyn Store) -> TestResult {
    store
        .write(
            batch(&[("m/1", Some("")), ("m/2", Some("")), ("m/3", Some(""))]),
            Synced,
        )
        .await?;
    for direction in [Ascending, Descending] {
        // The last two differ: only a further row shows that the range goes on.
        for (rows_max, count, exhausted) in [
            (0, 0, false),
            (1, 1, false),
            (2, 2, false),
            (3, 3, true),
            (4, 3, true),
        ] {
            let chunk = scan(store, "m/", "m0", direction, rows_max).await?;
            assert_eq!(chunk.rows.len(), count, "rows_max {rows_max} {direction:?}");
            assert_eq!(
                chunk.exhausted, exhausted,
                "rows_max {rows_max} {direction:?}"
            );
        }
    }
    let first = scan(store, "m/", "m0", Descending, 1).await?;
    assert_eq!(keys_of(&first), ["m/3"]);
    Ok(())
}

async fn scans_stop_at_bytes_max(store: &dyn Store) -> TestResult {
    let value = "x".repeat(97);
    let rows: Vec<_> = ["b/1", "b/2", "b/3"]
        .map(|key| (key, Some(value.as_str())))
        .into();
    store.write(batch(&rows), Synced).await?;
    // Key and value of each row are 100 bytes.
    for (bytes_max, count) in [
        (0, 1),
        (99, 1),
        (100, 1),
        (199, 1),
        (200, 2),
        (299, 2),
        (300, 3),
    ] {
        for direction in [Ascending, Descending] {
            let range = bytes("b/")..bytes("b0");
            let scan = Scan {
                range,
                direction,
                rows_max: 10,
                bytes_max,
            };
            let chunk = store.scan_many(vec![scan]).await?.remove(0);
            assert_eq!(
                chunk.rows.len(),
                count,
                "bytes_max {bytes_max} {direction:?}"
            );
            assert_eq!(
                chunk.exhausted,
                count == 3,
                "bytes_max {bytes_max} {direction:?}"
            );
        }
    }
    Ok(())
}

async fn several_scans_answer_in_order(store: &dyn Store) -> TestResult {
    let scan = |start, end, direction| Scan {
        range: bytes(start)..bytes(end),
        direction,
        rows_max: 2,
        bytes_max: 1000,
    };
    let scans = vec![
        scan("s/", "s0", Descending),
        scan("x", "y", Ascending),
        scan("m/", "m0", Ascending),
        scan("m/", "m0", Ascending),
    ];
    let chunks = store.scan_many(scans).await?;
    let keys: Vec<_> = chunks.iter().map(keys_of).collect();
    assert_eq!(
        keys,
        [
            vec!["s/\u{7f}", "s/b"],
            vec![],
            vec!["m/1", "m/2"],
            vec!["m/1", "m/2"]
        ]
    );
    let exhausted: Vec<_> = chunks.iter().map(|chunk| chunk.exhausted).collect();
    assert_eq!(exhausted, [false, true, false, false]);
    Ok(())
}

/// Two keys that every batch writes alike are never seen to go backwards: what is read of the
/// second, after the first, is of the same batch or a later one.
async fn batches_are_seen_whole(store: &Arc<dyn Store>) -> TestResult {
    const BATCHES: u32 = 200;
    let done = Arc::new(AtomicBool::new(false));
    let (begun, reading) = tokio::sync::oneshot::channel();
    let reader = {
        let (store, done) = (Arc::clone(store), Arc::clone(&done));
        tokio::spawn(async move {
            let mut seen = 0_u32;
            begun.send(()).unwrap();
            while seen == 0 || !done.load(Ordering::Acquire) {
                let range = bytes("w/")..bytes("w0");
                let scan = Scan {
                    range,
                    direction: Ascending,
                    rows_max: 10,
                    bytes_max: 10_000,
                };
                let chunk = store.scan_many(vec![scan]).await.unwrap().remove(0);
                let values: Vec<u32> = chunk.rows.iter().map(|row| number(&row.value)).collect();
                // A first batch that is seen is seen with both rows.
                assert!(
                    values.is_empty() || values.len() == 2,
                    "half a batch: {values:?}"
                );
                assert!(
                    values.is_sorted(),
                    "the second row is of an older batch: {values:?}"
                );
                let both = store
                    .get_many(vec![bytes("w/1"), bytes("w/2")])
                    .await
                    .unwrap();
                let both: Vec<u32> = both.iter().flatten().map(|value| number(value)).collect();
                assert!(
                    both.is_sorted(),
                    "the second key is of an older batch: {both:?}"
                );
                seen += 1;
                tokio::task::yield_now().await;
            }
        })
    };
    reading.await?;
    for round in 1..=BATCHES {
        let value = round.to_string();
        // Written against the order in which they are read, with rows between them.
        let mut batch = Batch::new();
        batch.put(bytes("w/2"), bytes(&value));
        (0..30).for_each(|n| batch.put(bytes(&format!("filler/{n}")), bytes(&value)));
        batch.put(bytes("w/1"), bytes(&value));
        store.write(batch, Buffered).await?;
    }
    done.store(true, Ordering::Release);
    reader.await?;
    assert_eq!(get(&**store, "w/1").await?.as_deref(), Some("200"));
    Ok(())
}

async fn buffered_rows_are_seen_and_last(store: &dyn Store) -> TestResult {
    store
        .write(batch(&[("d/1", Some("buffered"))]), Buffered)
        .await?;
    assert_eq!(get(store, "d/1").await?.as_deref(), Some("buffered"));
    store
        .write(batch(&[("d/2", Some("synced"))]), Synced)
        .await?;
    assert_eq!(get(store, "d/1").await?.as_deref(), Some("buffered"));
    assert_eq!(get(store, "d/2").await?.as_deref(), Some("synced"));
    Ok(())
}

async fn nothing_works_after_close(store: &dyn Store) -> TestResult {
    store.close().await?;
    let errors = [
        store.get_many(vec![bytes("o")]).await.unwrap_err(),
        scan(store, "", "z", Ascending, 1).await.unwrap_err(),
        store
            .write(batch(&[("o", Some("3"))]), Buffered)
            .await
            .unwrap_err(),
        store.stats().await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.message().contains("closed"), "{error}");
    }
    store.close().await?;
    Ok(())
}

pub fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn number(value: &[u8]) -> u32 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// A batch of rows to write, and of keys without a value to remove.
pub fn batch(rows: &[(&str, Option<&str>)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in rows {
        match value {
            Some(value) => batch.put(bytes(key), bytes(value)),
            None => batch.remove(bytes(key)),
        }
    }
    batch
}

pub async fn get(store: &dyn Store, key: &str) -> pressmark::error::Result<Option<String>> {
    let value = store.get_many(vec![bytes(key)]).await?.remove(0);
    Ok(value.map(|value| String::from_utf8(value.to_vec()).unwrap()))
}

async fn scan(
    store: &dyn Store,
    start: &str,
    end: &str,
    direction: Direction,
    rows_max: usize,
) -> pressmark::error::Result<Chunk> {
    let scan = Scan {
        range: bytes(start)..bytes(end),
        direction,
        rows_max,
        bytes_max: usize::MAX,
    };
    Ok(store.scan_many(vec![scan]).await?.remove(0))
}

fn keys_of(chunk: &Chunk) -> Vec<String> {
    chunk
        .rows
        .iter()
        .map(|row| String::from_utf8(row.key.to_vec()).unwrap())
        .collect()
}
