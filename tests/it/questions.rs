//! The questions of a news desk, as the command line asks them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::cli::{Ran, Scratch, program};
use crate::server::ServerProcess;

/// Writes an article in the canonical layout and stores it. Returns its id.
fn put(scratch: &Scratch, title: &str, day: &str, source: &str, url: &str, body: &str) -> String {
    let text = format!(
        "\n# {title}\n\nPublished at: **{day}T00:00:00+00:00**\n\nAuthor: ****\n\nOriginal: [{source}]({url})\n\n{body}"
    );
    let file = scratch.write("article.md", text);
    let put = scratch.run(&["--json", "put", &file]).exits(0);
    put.objects()[0]["id"].as_str().unwrap().to_owned()
}

fn text(ran: &Ran) -> Vec<&str> {
    ran.out.lines().collect()
}

/// Three articles: two revisions at one URL, and a copy of the first by another source.
fn desk() -> (Scratch, [String; 3]) {
    let scratch = Scratch::new();
    let body = "The bank left its rate where it was.\n\nMarkets were calm on Friday.\n";
    let corrected = body.replace("Friday", "Monday");
    let url = "https://news.example/rate?utm_source=feed";
    let ids = [
        put(&scratch, "Rates held", "2026-01-02", "Gazette", url, body),
        put(
            &scratch,
            "Rates held",
            "2026-01-03",
            "Gazette",
            "https://NEWS.example/rate",
            &corrected,
        ),
        put(
            &scratch,
            "Rate unchanged",
            "2026-02-04",
            "Herald",
            "https://herald.example/7",
            body,
        ),
    ];
    (scratch, ids)
}

#[test]
fn revisions_are_listed_and_compared() {
    let (scratch, ids) = desk();
    let url = "https://news.example/rate#top";
    let listed = scratch.run(&["revisions", url]).exits(0);
    let lines = text(&listed);
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with(&format!("   1  {}", ids[0])),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with(&format!("   2  {}", ids[1])),
        "{lines:?}"
    );
    let objects = scratch
        .run(&["--json", "revisions", url])
        .exits(0)
        .objects();
    assert_eq!(objects[1]["id"], ids[1].as_str());

    let diff = scratch.run(&["revisions", url, "--diff"]).exits(0);
    assert!(
        diff.out
            .starts_with(&format!("--- {}\n+++ {}\n@@", ids[0], ids[1])),
        "{}",
        diff.out
    );
    for line in [
        "-Markets were calm on Friday.",
        "+Markets were calm on Monday.",
        " The bank left its rate where it was.",
        "-Published at: **2026-01-02T00:00:00+00:00**",
    ] {
        assert!(text(&diff).contains(&line), "{line}: {}", diff.out);
    }
    let back = scratch.run(&["revisions", url, "--diff=2..1"]).exits(0);
    assert!(
        text(&back).contains(&"+Markets were calm on Friday."),
        "{}",
        back.out
    );
    let objects = scratch
        .run(&["--json", "revisions", url, "--diff=1..2"])
        .exits(0)
        .objects();
    let changes = objects[0]["changes"].as_array().unwrap();
    let inserted = changes.iter().filter(|change| change["change"] == "insert");
    assert_eq!(inserted.count(), 3, "date, URL and correction: {changes:?}");

    let wrong = scratch.run(&["revisions", url, "--diff=1..3"]).exits(2);
    assert!(
        wrong.err.contains("diff: the URL has 2 revisions"),
        "{}",
        wrong.err
    );
    let unknown = scratch
        .run(&["revisions", "https://nowhere.example/"])
        .exits(0);
    assert_eq!(unknown.out, "");
    let empty = scratch.run(&["revisions", ""]).exits(2);
    assert!(
        empty.err.contains("url: 0 bytes, it needs 1 to 8192"),
        "{}",
        empty.err
    );
}

#[test]
fn copies_are_listed_with_what_they_are() {
    let (scratch, ids) = desk();
    let found = scratch
        .run(&["copies", &ids[0], "--similarity", "0.5"])
        .exits(0);
    let lines = text(&found);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("near   0."), "{lines:?}");
    assert!(
        lines[1].starts_with(&format!("exact  1.000  {}", ids[2])),
        "{lines:?}"
    );
    let exact = scratch
        .run(&["--json", "copies", &ids[0], "--exact"])
        .exits(0)
        .objects();
    assert_eq!((exact.len(), &exact[0]["kind"]), (1, &Value::from("exact")));
    assert_eq!(exact[0]["article"]["source"], "Herald");
    let wrong = scratch
        .run(&["copies", &ids[0], "--similarity", "2"])
        .exits(2);
    assert!(
        wrong.err.contains("similarity_min: 2 is not 0.5 to 1"),
        "{}",
        wrong.err
    );

    // Without sketches there are exact copies only, and the archive says so.
    let archive = scratch.path("archive");
    let server = ServerProcess::start_with(&archive, &["--near-copies", "off"]);
    let ask = |arguments: &[&str]| {
        Ran::of(
            program()
                .args(["--server", &server.address])
                .args(arguments),
        )
    };
    let found = ask(&["copies", &ids[0]]).exits(0);
    assert!(
        found.out.starts_with("exact") && found.err.contains("switched off"),
        "{}",
        found.err
    );
    let refused = ask(&["copies", &ids[0], "--similarity", "0.7"]).exits(2);
    assert!(refused.err.contains("--near-copies on"), "{}", refused.err);
    assert!(server.terminate());
    scratch.run(&["verify"]).exits(0);
}

#[test]
fn a_timeline_is_drawn_as_bars() {
    let (scratch, _) = desk();
    let months = scratch.run(&["timeline", "--bucket", "month"]).exits(0);
    let expected = format!(
        "2026-01          2  {}\n2026-02          1  {}\n",
        "#".repeat(50),
        "#".repeat(25)
    );
    assert_eq!(months.out, expected);
    let days = scratch
        .run(&[
            "--json",
            "timeline",
            "--by-source",
            "--before",
            "2026-02-01",
        ])
        .exits(0)
        .objects();
    let expected = [
        serde_json::json!({"source": "Gazette", "start": "2026-01-02T00:00:00+00:00", "article_count": 1}),
        serde_json::json!({"source": "Gazette", "start": "2026-01-03T00:00:00+00:00", "article_count": 1}),
    ];
    assert_eq!(days, expected);
    let by_source = scratch
        .run(&["timeline", "--by-source", "--bucket", "year"])
        .exits(0);
    assert!(
        by_source
            .out
            .starts_with("Gazette\n2026             2  ####"),
        "{}",
        by_source.out
    );
    assert!(by_source.out.contains("Herald\n"), "{}", by_source.out);
}

#[test]
fn words_are_searched_with_and_without_a_server() {
    let (scratch, ids) = desk();
    let found = scratch
        .run(&["search", "--", "markets", "monday", "-friday"])
        .exits(0);
    assert_eq!(found.err, "pressmark: 1 found\n");
    assert!(found.out.starts_with(&ids[1]), "{}", found.out);
    assert!(
        found.out.contains("*Markets* were calm on *Monday*"),
        "{}",
        found.out
    );
    let server = ServerProcess::start(&scratch.path("archive"));
    let ask = |arguments: &[&str]| {
        Ran::of(
            program()
                .args(["--server", &server.address])
                .args(arguments),
        )
    };
    let hits = ask(&[
        "--json",
        "search",
        "title:rates",
        "--order",
        "published-asc",
        "--source",
        "Gazette",
    ])
    .exits(0)
    .objects();
    let found: Vec<&str> = hits
        .iter()
        .map(|hit| hit["article"]["id"].as_str().unwrap())
        .collect();
    assert_eq!(found, [&ids[0], &ids[1]]);
    let title = &hits[0]["title"];
    assert_eq!(
        *title,
        serde_json::json!([{"text": "Rates", "is_match": true}, {"text": " held", "is_match": false}])
    );
    let wrong = ask(&["search", "x:y"]).exits(2);
    assert!(
        wrong.err.contains("none of title, body, author and source"),
        "{}",
        wrong.err
    );
    let reindexed = ask(&["--json", "reindex"]).exits(0).objects();
    assert_eq!(reindexed[0]["last_sequence"], 3);
    assert!(server.terminate());
    scratch.run(&["verify"]).exits(0);
    let without = ServerProcess::start_with(&scratch.path("archive"), &["--search", "off"]);
    let refused =
        Ran::of(program().args(["--server", &without.address, "search", "bank"])).exits(2);
    assert!(refused.err.contains("--search on"), "{}", refused.err);
    assert!(without.terminate());
}

/// A `pressmark watch` at work.
struct Watching {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watching {
    fn start(arguments: &[&str]) -> Self {
        let mut child = program()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn changes_are_watched_across_a_restart_of_the_server() {
    let (scratch, ids) = desk();
    let archive = scratch.path("archive");
    let server = ServerProcess::start(&archive);
    let ask = |server: &ServerProcess, arguments: &[&str]| {
        Ran::of(
            program()
                .args(["--server", &server.address])
                .args(arguments),
        )
        .exits(0)
    };
    let mut watching = Watching::start(&["--server", &server.address, "watch", "--from", "2"]);
    assert!(
        watching
            .next()
            .starts_with(&format!("         2  + {}", ids[1]))
    );
    assert!(
        watching
            .next()
            .starts_with(&format!("         3  + {}", ids[2]))
    );
    ask(&server, &["delete", &ids[2], "--reason", "unwanted"]);
    assert_eq!(
        watching.next(),
        format!("         4  - {}  unwanted", ids[2])
    );
    // The watcher outlives its server.
    let address = server.host_and_port().to_owned();
    assert!(server.terminate());
    let server = ServerProcess::start_at(&archive, &address);
    let file = scratch.write(
        "article.md",
        "\n# Next\n\nPublished at: ****\n\nAuthor: ****\n\nOriginal: [Post]()\n\nMore.\n",
    );
    ask(&server, &["put", &file]);
    assert!(watching.next().starts_with("         5  + "));
    drop(watching);
    // With an end there is no need to interrupt it.
    let all = ask(
        &server,
        &["--json", "watch", "--from", "1", "--max-sequence", "5"],
    )
    .objects();
    let seen: Vec<(&str, u64)> = all
        .iter()
        .map(|change| {
            (
                change["change"].as_str().unwrap(),
                change["sequence"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [("stored", 1), ("stored", 2), ("deleted", 4), ("stored", 5)]
    );
    assert_eq!(all[3]["article"]["body"], "More.\n");
    let ahead =
        Ran::of(program().args(["--server", &server.address, "watch", "--from", "9"])).exits(2);
    assert!(
        ahead.err.contains("from_sequence: 9 is not 1 to 6"),
        "{}",
        ahead.err
    );
    assert!(server.terminate());
    scratch.run(&["verify"]).exits(0);
}
