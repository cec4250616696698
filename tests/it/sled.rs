//! What only sled can do wrong: its files, its locks, and what a kill or a bad disk leaves of them.

use std::fs;
use std::os::unix::fs::FileExt;

use pressmark::article::{Article, ArticleFields};
use pressmark::error::{Kind, Reason};
use pressmark::key;
use pressmark::store::Durability::{Buffered, Synced};
use pressmark::store::{self, Batch, Direction, Locator, Scan, StoreOptions};
use tempfile::TempDir;

use crate::store::{batch, bytes, get};
use crate::support::{
    Engine, TestArchive, TestResult, article, check_error, copy_folder, fields, noise, prepared,
    small_cache, time,
};

#[tokio::test]
async fn keeps_its_rows_over_many_openings() -> TestResult {
    let folder = TempDir::new()?;
    for cycle in 0..6_u32 {
        let store = Engine::Sled.open(folder.path()).await?;
        for earlier in 0..cycle {
            let value = get(&*store, &format!("cycle/{earlier}")).await?;
            assert_eq!(value, Some(format!("{earlier}")), "in cycle {cycle}");
        }
        assert_eq!(
            get(&*store, "latest").await?,
            cycle.checked_sub(1).map(|n| n.to_string())
        );
        let value = cycle.to_string();
        // Closing makes durable what was only buffered.
        let rows = [
            (&*format!("cycle/{cycle}"), Some(&*value)),
            ("latest", Some(&*value)),
        ];
        store
            .write(batch(&rows), if cycle % 2 == 0 { Buffered } else { Synced })
            .await?;
        store.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn never_keeps_a_value_in_a_file_of_its_own() -> TestResult {
    const VALUE_BYTES_MAX: usize = 64 * 1024;
    let folder = TempDir::new()?;
    let store = Engine::Sled.open(folder.path()).await?;
    for round in 0..3_u8 {
        // The third round overwrites the first.
        for group in 0..8_u8 {
            let mut batch = Batch::new();
            for n in 0..17_u8 {
                batch.put(vec![round % 2, group, n], vec![round ^ n; VALUE_BYTES_MAX]);
            }
            store
                .write(batch, if group % 4 == 3 { Synced } else { Buffered })
                .await?;
        }
    }
    let value = store
        .get_many(vec![vec![0, 7, 16]])
        .await?
        .remove(0)
        .unwrap();
    assert_eq!(value, vec![2 ^ 16; VALUE_BYTES_MAX]);

    let mut batch = Batch::new();
    batch.put(bytes("fits"), vec![0; VALUE_BYTES_MAX]);
    batch.put(bytes("too large"), vec![0; VALUE_BYTES_MAX + 1]);
    let refused = store.write(batch, Synced).await;
    check_error(refused, Reason::Internal, &["65537 bytes", "65536"]);
    assert_eq!(get(&*store, "fits").await?, None, "all or nothing");
    store
        .write(self::batch(&[("after", Some("the refusal"))]), Synced)
        .await?;
    store.close().await?;
    let blobs: Vec<_> = fs::read_dir(folder.path().join("archive/blobs"))?.collect();
    assert!(blobs.is_empty(), "{blobs:?}");
    Ok(())
}

#[tokio::test]
async fn is_opened_once_at_a_time() -> TestResult {
    let folder = TempDir::new()?;
    let store = Engine::Sled.open(folder.path()).await?;
    let path = folder.path().join("archive").display().to_string();
    let error = check_error(
        Engine::Sled.open(folder.path()).await,
        Reason::ArchiveLocked,
        &[&path, "--server"],
    );
    assert_eq!(error.resource(), Some(&*path));
    // The refused opening must not have let go of the lock of the first.
    check_error(
        Engine::Sled.open(folder.path()).await,
        Reason::ArchiveLocked,
        &[&path],
    );
    store.write(batch(&[("a", Some("1"))]), Synced).await?;
    store.close().await?;
    Engine::Sled.open(folder.path()).await?.close().await?;
    Ok(())
}

#[tokio::test]
async fn opens_after_a_kill_during_open() -> TestResult {
    let folder = TempDir::new()?;
    let store = Engine::Sled.open(folder.path()).await?;
    store.write(batch(&[("a", Some("1"))]), Synced).await?;
    store.close().await?;
    let left_over = folder
        .path()
        .join("archive/snap.0000000000000000.generating");
    fs::write(&left_over, b"half a snap")?;
    let store = Engine::Sled.open(folder.path()).await?;
    assert!(!left_over.exists());
    assert_eq!(get(&*store, "a").await?.as_deref(), Some("1"));
    store.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_file_is_no_archive() -> TestResult {
    let folder = TempDir::new()?;
    let path = folder.path().join("file");
    fs::write(&path, b"a letter")?;
    let opened = store::open(&Locator::Folder(path.clone()), small_cache()).await;
    check_error(opened, Reason::FileFailed, &[&path.display().to_string()]);
    assert_eq!(fs::read(&path)?, b"a letter");
    Ok(())
}

/// Damage at any place of the log either goes unnoticed by the engine, which the checksums of the
/// records are there for, or is answered with an error. It never ends the process.
#[tokio::test]
async fn survives_garbage_in_its_file() -> TestResult {
    let folder = TempDir::new()?;
    let store = Engine::Sled.open(folder.path()).await?;
    for n in 0..40_u8 {
        let mut batch = Batch::new();
        (0..20).for_each(|m| batch.put(vec![n, m], vec![n; 500]));
        store.write(batch, Synced).await?;
    }
    store.close().await?;
    let data = fs::read(folder.path().join("archive/db"))?;
    let used = data.iter().rposition(|byte| *byte != 0).unwrap();
    for part in 0..8 {
        let copy = TempDir::new()?;
        copy_folder(&folder.path().join("archive"), &copy.path().join("archive"))?;
        let mut damaged = data.clone();
        let start = used / 8 * part;
        let end = (start + 400).min(damaged.len());
        damaged[start..end]
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte ^= 0xa5 ^ at as u8);
        fs::write(copy.path().join("archive/db"), damaged)?;
        match Engine::Sled.open(copy.path()).await {
            Ok(store) => {
                let keys = (0..40).map(|n| vec![n, 19]).collect();
                // Rows may be gone or the read may fail, but there is an answer.
                if let Err(error) = store.get_many(keys).await {
                    assert_eq!(error.reason(), Reason::StoreFailed, "{error}");
                }
                // The last sync may find the damage too; the folder is thrown away anyway.
                let _ = store.close().await;
            }
            Err(error) => {
                assert_eq!(error.reason(), Reason::ArchiveDamaged, "{error}");
                assert!(error.message().contains("backup"), "{error}");
            }
        }
    }
    Ok(())
}

/// sled by itself panics on the way back over a leaf whose keys have four `ff` behind the byte at
/// which it is cut off from the next leaf, as the times just before 1970 have in a key.
#[tokio::test]
async fn scans_go_back_over_any_keys() -> TestResult {
    let folder = TempDir::new()?;
    let store = Engine::Sled.open(folder.path()).await?;
    // Under each prefix the leaves are cut off at other places.
    let mut keys = Vec::new();
    for prefix in 0..60_u8 {
        for n in 0..20 + prefix {
            keys.push(vec![prefix, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, n]);
            keys.push(vec![prefix, 0x80, 0, 0, 0, 0, 0, n]);
        }
        keys.push(vec![prefix, 0xff]);
        keys.push([&[prefix][..], &[0xff; 9]].concat());
    }
    let mut batch = Batch::new();
    for key in &keys {
        batch.put(key.clone(), vec![]);
    }
    store.write(batch, Synced).await?;
    keys.sort();
    keys.reverse();
    let mut found: Vec<Vec<u8>> = Vec::new();
    loop {
        let end = found.last().cloned().unwrap_or(vec![0xff; 20]);
        let scan = Scan {
            range: vec![]..end,
            direction: Direction::Descending,
            rows_max: 7,
            bytes_max: 1000,
        };
        let chunk = store.scan_many(vec![scan]).await?.remove(0);
        found.extend(chunk.rows.iter().map(|row| row.key.to_vec()));
        if chunk.exhausted {
            break;
        }
    }
    assert_eq!(found, keys);
    store.close().await?;
    Ok(())
}

/// An archive of 40 synced batches, of which sled has forgotten the second half.
async fn forgetful(folder: &TempDir) -> TestResult {
    let store = Engine::Sled.open(folder.path()).await?;
    for n in 0..40 {
        let value = noise(n, 5000);
        let rows = [(&*format!("row/{n:02}"), Some(&*value))];
        store.write(batch(&rows), Synced).await?;
    }
    store.close().await?;
    let data = folder.path().join("archive/db");
    let mut bytes = fs::read(&data)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[used / 2] ^= 1;
    Ok(fs::write(&data, bytes)?)
}

/// sled opens a log that rots in silence, with the end of it gone. It is told again.
#[tokio::test]
async fn what_sled_forgets_is_read_from_the_frames() -> TestResult {
    let folder = TempDir::new()?;
    forgetful(&folder).await?;
    for _ in 0..2 {
        let store = Engine::Sled.open(folder.path()).await?;
        for n in 0..40 {
            assert_eq!(
                get(&*store, &format!("row/{n:02}")).await?,
                Some(noise(n, 5000))
            );
        }
        store.close().await?;
    }
    Ok(())
}

/// A database and frames that end earlier than what was synced are no crash's work.
#[tokio::test]
async fn lost_batches_are_noticed() -> TestResult {
    let folder = TempDir::new()?;
    forgetful(&folder).await?;
    let frames = folder.path().join("archive/values");
    let mut bytes = fs::read(&frames)?;
    // More than one frame, so that it hits what is no value.
    let middle = bytes.len() / 4;
    bytes[middle..middle + 6000].fill(7);
    fs::write(&frames, bytes)?;

    for _ in 0..2 {
        let refused = Engine::Sled.open(folder.path()).await;
        let parts = ["lost its last", "restore a backup", "verify --repair"];
        check_error(refused.map(drop), Reason::ArchiveDamaged, &parts);
    }
    let options = StoreOptions {
        accept_loss: true,
        ..small_cache()
    };
    let locator = Locator::Folder(folder.path().join("archive"));
    let left = store::open(&locator, options).await?;
    assert_eq!(get(&*left, "row/00").await?, Some(noise(0, 5000)));
    assert_eq!(get(&*left, "row/39").await?, None);
    left.write(batch(&[("new", Some("row"))]), Synced).await?;
    left.close().await?;
    // What was accepted once is no loss any more.
    let store = Engine::Sled.open(folder.path()).await?;
    assert_eq!(get(&*store, "new").await?, Some("row".into()));
    Ok(store.close().await?)
}

/// What was deleted cannot be dug out of the files.
#[tokio::test]
async fn a_deleted_text_is_gone_from_the_disk() -> TestResult {
    let archive = TestArchive::open(Engine::Sled).await;
    let long = |n| ArticleFields {
        body: noise(n, 50_000),
        ..fields(n)
    };
    let puts = archive.put_all((1..=3).map(long)).await;
    let keys = puts.iter().map(|put| key::log(put.sequence)).collect();
    let rows = archive.store().get_many(keys).await?;
    let holds = |row: &Option<bytes::Bytes>| -> bool {
        let row = row.as_ref().unwrap();
        let part = &row[row.len() / 2..][..64];
        let files = fs::read_dir(archive.folder().join("archive")).unwrap();
        let mut files = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.is_file());
        files.any(|path| {
            let bytes = fs::read(path).unwrap();
            bytes.windows(part.len()).any(|some| some == part)
        })
    };
    assert!(rows.iter().all(holds), "all are there");
    archive.delete(puts[1].id, "unwanted", time(1)).await?;
    let left: Vec<bool> = rows.iter().map(holds).collect();
    assert_eq!(left, [true, false, true]);
    archive.finish().await
}

/// Before a crash sled may have been given batches that it does not know any more to have: they are given
/// to it again, and what they replaced before must not be taken for what they replace.
#[tokio::test]
async fn batches_that_are_applied_twice_erase_nothing_of_their_own() -> TestResult {
    const PROGRESS_KEY: [u8; 2] = [0xff, 1];
    let open = |folder: &std::path::Path| {
        let config = sled::Config::new().path(folder.join("archive"));
        config.segment_size(2 * 1024 * 1024).open().unwrap()
    };
    let archive = TestArchive::open(Engine::Sled).await;
    let puts = archive.put_all((1..=20).map(fields)).await;
    let kept = archive.close_and_keep().await?;
    let db = open(kept.path());
    let progress = db.get(PROGRESS_KEY)?.unwrap();
    drop(db);

    let limits = pressmark::archive::Limits::default();
    let opened = async || {
        let store = Engine::Sled.open(kept.path()).await.unwrap();
        pressmark::archive::Archive::open(store, limits)
            .await
            .unwrap()
    };
    let (archive, guard) = opened().await;
    for put in &puts[5..10] {
        archive.delete(put.id, "unwanted", time(1)).await?;
    }
    archive.put(prepared(&article(21))).await?;
    drop(archive);
    guard.close().await?;
    let db = open(kept.path());
    db.insert(PROGRESS_KEY, progress)?;
    db.flush()?;
    drop(db);

    let (archive, guard) = opened().await;
    for put in &puts[5..10] {
        let again = archive.delete(put.id, "again", time(2)).await?;
        assert_eq!(again.reason, "unwanted");
    }
    crate::server::check(&archive).await;
    drop(archive);
    Ok(guard.close().await?)
}

/// A file of values that ends too early is no crash's work either.
#[tokio::test]
async fn values_that_are_cut_off_are_noticed() -> TestResult {
    let archive = TestArchive::open(Engine::Sled).await;
    let long = |n| ArticleFields {
        body: noise(n, 5000),
        ..fields(n)
    };
    archive.put_all((1..=9).map(long)).await;
    let kept = archive.close_and_keep().await?;
    let path = kept.path().join("archive/values");
    let values = fs::OpenOptions::new().write(true).open(&path)?;
    let size = values.metadata()?.len();
    values.set_len(size - 1)?;
    let error = Engine::Sled.open(kept.path()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ArchiveDamaged, "{error}");
    assert!(error.message().contains("1 bytes"), "{error}");
    // What a crash leaves behind the last batch is dropped.
    values.set_len(size + 4000)?;
    let store = Engine::Sled.open(kept.path()).await?;
    assert_eq!(fs::metadata(&path)?.len(), size);
    Ok(store.close().await?)
}

/// The disk goes bad under an open archive: every read is right or says that data is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_goes_bad_gives_no_wrong_article() -> TestResult {
    let archive = TestArchive::open(Engine::Sled).await;
    let long = |n| ArticleFields {
        body: noise(n, 30_000),
        ..fields(n)
    };
    let puts = archive.put_all((1..=600).map(long)).await;
    // Opened anew, it has nothing in its cache, which is smaller than the archive besides.
    let archive = archive.reopen().await;
    for file in ["archive/db", "archive/values"] {
        let data = fs::OpenOptions::new()
            .write(true)
            .open(archive.folder().join(file))?;
        for at in (0..data.metadata()?.len()).step_by(1_500_007) {
            data.write_all_at(b"rust", at)?;
        }
    }
    let (mut right, mut lost) = (0, 0);
    for (n, put) in (1..).zip(&puts) {
        match archive.get(&put.id).await {
            Ok(found) => {
                assert_eq!(found.article, Article::new(long(n))?);
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::DataLoss, "{error}");
                assert_eq!(error.resource(), Some(&*put.id.to_string()), "{error}");
                lost += 1;
            }
        }
    }
    println!(
        "of {} articles {right} were right, {lost} were lost",
        puts.len()
    );
    assert!(lost > 0 && right > 0, "some was hit, some was not");
    assert!(archive.metrics().damaged.get() >= lost, "and counted");
    let report = archive.verify().await?;
    assert!(report.finding_count > 0, "{report:#?}");
    // What sled makes of its files at close is not what this is about.
    let _ = archive.close().await;
    Ok(())
}
