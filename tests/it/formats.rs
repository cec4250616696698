//! Articles of other formats: what is imported, what is refused, and what is told of it.

use std::io::Write;

use serde_json::{Value, json};

use crate::cli::{Ran, Scratch, program};
use crate::support::TestResult;

const COUNT: usize = 50;

/// An archive of some articles, and all of them as the JSON lines of a scan.
fn scanned() -> (Scratch, String) {
    let scratch = Scratch::new();
    let tree = scratch.write_tree(COUNT);
    scratch.run(&["import", &tree]).exits(0);
    let lines = scratch.run(&["scan", "--json"]).exits(0).out;
    assert_eq!(lines.lines().count(), COUNT);
    (scratch, lines)
}

fn gzip(bytes: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Runs the program on an archive of its own, with bytes on standard input.
fn piped(scratch: &Scratch, archive: &str, arguments: &[&str], input: &[u8]) -> Ran {
    let file = std::fs::File::open(scratch.write("input", input)).unwrap();
    let mut command = program();
    command.args(["--archive", &scratch.text(archive)]);
    Ran::of_reading(command.args(arguments), file)
}

fn summary(ran: &Ran) -> Value {
    serde_json::from_str(ran.out.lines().last().unwrap()).unwrap()
}

#[test]
fn the_output_of_a_scan_is_imported_in_every_form() -> TestResult {
    let (scratch, lines) = scanned();
    let rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let array = serde_json::to_string_pretty(&rows)?;
    let zstd = zstd::encode_all(lines.as_bytes(), 1)?;
    let (first, second) = lines.split_at(lines.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    for (name, bytes) in [
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", members),
        ("a.ndjson.zst", zstd),
        ("a.json", array.clone().into_bytes()),
        ("b.json", serde_json::to_vec(&rows)?),
        ("a.json.gz", gzip(&array)),
    ] {
        let file = scratch.write(name, bytes);
        let ran = scratch.run_on(&scratch.text(&format!("of-{name}")), &["import", &file]);
        let expected = "50 new, 0 duplicate, 0 revision, 0 deleted before, 0 refused\n";
        assert_eq!(ran.exits(0).out, expected, "{name}");
        let again = scratch.run(&["import", &file, "--json"]).exits(0);
        assert_eq!(summary(&again)["duplicate"], COUNT, "{name}");
    }
    // From standard input the format is seen from the first bytes.
    for (number, bytes) in [gzip(&lines), array.into_bytes()].iter().enumerate() {
        let ran = piped(
            &scratch,
            &format!("piped-{number}"),
            &["import", "--json"],
            bytes,
        );
        assert_eq!(summary(&ran.exits(0))["new"], COUNT);
    }
    Ok(())
}

#[test]
fn damage_costs_only_what_is_damaged_and_is_told() -> TestResult {
    let (scratch, lines) = scanned();
    let mut rows: Vec<Vec<u8>> = lines.lines().map(|line| line.as_bytes().to_vec()).collect();
    rows[9] = b"{\"title\": \"cut".to_vec();
    rows[19] = b"{\"title\": \"\xff\", \"body\": \"b\"}".to_vec();
    rows[29] = b"[]".to_vec();
    rows[39] =
        b"{\"title\": \"T\", \"body\": \"B\", \"source\": \"S\", \"url\": \"not a URL\"}".to_vec();
    let damaged = scratch.write("damaged.jsonl", rows.join(&b'\n'));
    let rejects = scratch.text("rejects.jsonl");
    let archive = scratch.text("of-damaged");
    let ran = scratch.run_on(&archive, &["import", &damaged, "--rejects", &rejects]);
    assert!(ran.exits(1).out.starts_with("46 new, "));
    let told = std::fs::read_to_string(rejects)?;
    let told: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let places: Vec<&Value> = told.iter().map(|told| &told["line"]).collect();
    assert_eq!(places, [10, 20, 30, 40]);
    assert_eq!(told[3]["field"], "url");
    for told in &told {
        assert_eq!(
            (&told["file"], &told["reason"]),
            (&json!(damaged), &json!("ARTICLE_INVALID"))
        );
    }

    let whole = gzip(&lines);
    let cut = scratch.write("cut.jsonl.gz", &whole[..whole.len() * 9 / 10]);
    let ran = scratch
        .run_on(&scratch.text("of-cut"), &["import", &cut, "--json"])
        .exits(1);
    let summary = summary(&ran);
    assert_eq!(summary["refused"], 1, "{summary}");
    assert!(summary["new"].as_u64() > Some(30), "{summary}");
    assert!(
        ran.err.contains("cannot be read from here on"),
        "{}",
        ran.err
    );

    for (name, bytes, what) in [
        ("wide.jsonl", &b"\xff\xfe{\0"[..], "UTF-16"),
        ("odd", b"PK", "--format"),
    ] {
        let file = scratch.write(name, bytes);
        let ran = scratch.run(&["import", &file]).exits(1);
        assert!(ran.err.contains(what), "{}", ran.err);
    }
    Ok(())
}

#[test]
fn names_dates_and_profiles_are_told_and_shown() {
    let scratch = Scratch::new();
    let record = r#"{"kop": "T", "text": "B", "date": "2020-01-02", "source": "S"}"#;
    let late = r#"{"kop": "U", "text": "B", "date": "soon", "source": "S"}"#;
    let file = scratch.write("a.jsonl", format!("{record}\n{late}\n"));
    let import = |more: &[&str]| scratch.run(&[&["import", file.as_str()], more].concat());

    let shown = import(&["--map", "title=kop", "--dry-run"]).exits(0);
    assert!(shown.out.contains("# T\n"), "{}", shown.out);
    assert!(shown.err.contains("soon"), "{}", shown.err);
    assert!(!scratch.path("archive").exists(), "nothing was stored");

    let refused = import(&[]).exits(1);
    assert!(
        refused.err.contains("name it with --map title=NAME"),
        "{}",
        refused.err
    );
    let strict = import(&["--map", "title=kop", "--strict"]).exits(1);
    assert!(
        strict.err.contains(":2: published_at: \"soon\""),
        "{}",
        strict.err
    );
    let stored = import(&["--map", "title=kop"]).exits(0);
    let expected = "1 new, 1 duplicate, 0 revision, 0 deleted before, 0 refused\n\
        1 dates had no time zone and were taken as UTC, 1 could not be read and were left out\n";
    assert_eq!(stored.out, expected);

    for wrong in [
        ["--profile", "nobody"],
        ["--map", "titel=a"],
        ["--format", "xml"],
    ] {
        let ran = import(&wrong).exits(2);
        assert!(ran.err.contains("is none of"), "{}", ran.err);
    }
}
