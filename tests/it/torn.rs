//! Database files that are cut or rot while nobody has them open: each time the archive opens with every
//! acknowledged article as it was, or it says that it is damaged, and its backup restores.
//!
//! The program under test runs in a process of its own, with a limit of time, because nobody knows what
//! an engine makes of such files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pressmark::article::{ArticleFields, ContentHash, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

use crate::backup::bytes_from;
use crate::load::{rounds, seed};
use crate::support::{Engine, TestArchive, TestResult, article, copy_folder, fields, noise, time};

/// Seconds after which a command is taken to hang.
const SECONDS_MAX: &str = "60";

/// The files that hold articles: sled's, and that of the frames.
const FILES: [&str; 2] = ["db", "values"];

/// How an archive was left: sled reads a log differently before and after it was opened once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Closed by the process that began it.
    Closed,
    /// Opened again, written on, and closed.
    Reopened,
    /// Not closed: the files as a kill leaves them.
    Killed,
}

/// An archive to be torn, what it holds, and a backup of it.
struct Subject {
    folder: TempDir,
    stored: BTreeSet<String>,
}

impl Subject {
    async fn new(left: Left) -> Self {
        let archive = TestArchive::open(Engine::Sled).await;
        archive.put_all((1..200).map(fields)).await;
        let archive = match left {
            Left::Reopened => archive.reopen().await,
            Left::Closed | Left::Killed => archive,
        };
        let large = |n| ArticleFields {
            body: noise(n, 200_000),
            ..fields(n)
        };
        let again = (150..200).map(fields);
        archive.put_all((200..300).map(fields).chain(again)).await;
        archive.put_all((300..303).map(large)).await;
        let deleted = article(7).id();
        archive.delete(deleted, "unwanted", time(1)).await.unwrap();
        let mut stored: BTreeSet<String> = (1..300).map(|n| article(n).id().to_string()).collect();
        stored.remove(&deleted.to_string());
        let large = (300..303).map(|n| pressmark::article::Article::new(large(n)).unwrap());
        stored.extend(large.map(|article| article.id().to_string()));

        let backup = bytes_from(&archive, 1).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (place, kept) = (
            archive.folder().join("archive"),
            folder.path().join("archive"),
        );
        if left == Left::Killed {
            copy_folder(&place, &kept).unwrap();
            archive.finish().await.unwrap();
        } else {
            let closed = archive.close_and_keep().await.unwrap();
            copy_folder(&place, &kept).unwrap();
            drop(closed);
        }
        std::fs::write(folder.path().join("backup.pmb"), backup).unwrap();
        Self { folder, stored }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of the archive of which one file is changed.
    fn torn(&self, file: &str, tear: impl FnOnce(&mut Vec<u8>)) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        let folder = copy.path().join("archive");
        copy_folder(&self.path("archive"), &folder).unwrap();
        let data = folder.join(file);
        let mut bytes = std::fs::read(&data).unwrap();
        tear(&mut bytes);
        std::fs::write(&data, bytes).unwrap();
        copy
    }
}

/// Runs the program on an archive.
fn run(archive: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_pressmark");
    let mut command = Command::new("timeout");
    let command = command.args([SECONDS_MAX, program, "--archive"]);
    let output = command.arg(archive).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(
        matches!(code, Some(0..=2)),
        "{arguments:?} hangs or is killed: {code:?} {complaint}"
    );
    for panic in ["panicked at", "a promise inside pressmark was broken"] {
        assert!(!complaint.contains(panic), "{complaint}");
    }
    output
}

#[derive(Debug, Default)]
struct Counts {
    whole: usize,
    findings: usize,
    refused: usize,
    restored: usize,
}

impl Counts {
    /// Looks at an archive that was torn: it is whole, or it says that it is not.
    fn count(&mut self, subject: &Subject, copy: &Path, what: &str) {
        let archive = copy.join("archive");
        let scan = run(&archive, &["scan", "--json"]);
        if scan.status.code() == Some(0) {
            let found: BTreeSet<String> = String::from_utf8(scan.stdout)
                .unwrap()
                .lines()
                .map(id_of)
                .collect();
            let lost: Vec<&String> = subject.stored.difference(&found).collect();
            assert!(lost.is_empty(), "{what}: {} lost in silence", lost.len());
            assert_eq!(found, subject.stored, "{what}");
            match run(&archive, &["verify"]).status.code() {
                Some(0) => self.whole += 1,
                _ => self.findings += 1,
            }
            return;
        }
        self.refused += 1;
        let complaint = String::from_utf8(scan.stderr).unwrap();
        assert!(complaint.contains("pressmark: "), "{what}: {complaint}");
        // What cannot be opened or read is restored, once in a while so that it does not take long.
        if self.refused % 10 == 1 {
            let backup = subject.path("backup.pmb");
            let restored = copy.join("restored");
            let output = run(&restored, &["restore", backup.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let scan = run(&restored, &["scan", "--json"]);
            let found = String::from_utf8(scan.stdout).unwrap();
            let found: BTreeSet<String> = found.lines().map(id_of).collect();
            assert_eq!(found, subject.stored, "the backup of {what}");
            self.restored += 1;
        }
    }
}

/// The id of a line of a scan, whose text must have it.
fn id_of(line: &str) -> String {
    let value: Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let date = value["published_at"].as_str();
    let article = pressmark::article::Article::new(ArticleFields {
        title: text("title"),
        published_at: date.map(|date| Timestamp::parse("published_at", date).unwrap()),
        author: text("author"),
        source: text("source"),
        url: text("url"),
        body: text("body"),
    });
    let found: ContentHash = article.unwrap().id();
    assert_eq!(
        found.to_string(),
        text("id"),
        "the text of an article is its own"
    );
    found.to_string()
}

async fn tear(
    name: &str,
    mut change: impl FnMut(&mut StdRng, &mut Vec<u8>) -> String,
) -> TestResult {
    let mut random = StdRng::seed_from_u64(seed());
    let tears = rounds("PRESSMARK_TEST_TEARS", 100);
    let ways = [Left::Closed, Left::Reopened, Left::Killed];
    for (number, left) in ways.into_iter().enumerate() {
        let subject = Subject::new(left).await;
        let mut counts = Counts::default();
        for _ in 0..(tears + number) / ways.len() {
            let mut what = String::new();
            let file = FILES[random.random_range(0..FILES.len())];
            let copy = subject.torn(file, |bytes| what = change(&mut random, bytes));
            counts.count(&subject, copy.path(), &format!("{left:?}, {file} {what}"));
        }
        println!("{name}, {left:?}: {counts:?}, 0 lost in silence, 0 panics seen");
    }
    Ok(())
}

/// The bytes of a database file before the zeros at its end.
fn used(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_is_noticed() -> TestResult {
    tear("cut", |random, bytes| {
        let end = random.random_range(0..used(bytes));
        bytes.truncate(end);
        format!("cut at {end}")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_is_flipped_is_noticed() -> TestResult {
    tear("flipped", |random, bytes| {
        let at = random.random_range(0..used(bytes));
        let bit = random.random_range(0..8);
        bytes[at] ^= 1 << bit;
        format!("bit {bit} of byte {at} flipped")
    })
    .await
}
