//! Articles of other formats: what is imported, what is refused, and what is told of it.

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use pressmark::article::{Article, ArticleFields, Timestamp};
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

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes.as_ref()).unwrap();
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
    assert!(ran.err.contains("the file is damaged here"), "{}", ran.err);

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

/// Articles that are hard to keep byte for byte, each in a way of its own.
fn hard_articles() -> Vec<Article> {
    let plain = ArticleFields {
        title: "Title".into(),
        source: "Source".into(),
        body: "Body".into(),
        ..ArticleFields::default()
    };
    let times = [
        "0001-01-01T00:00:00+00:00",
        "9999-12-31T23:59:59.999999999+00:00",
    ];
    let mut all = vec![plain.clone()];
    for body in [
        "",
        " ",
        "\n\n leading and trailing \n\n",
        "\r\nCRLF\r\rand CR\r",
        "\"quoted\", 'and', `more`\t|;,",
        "</script><!-- --> ]]> <![CDATA[ &amp; \\u003c {\"a\": [1]}",
        "control \u{1}\u{b}\u{1f}\u{7f}\u{85}\u{feff}\u{fffe}\u{10ffff} characters",
        "---\ntitle: no\n---\n# no\n",
        "WARC/1.0\r\n\r\nContent-Length: 9\r\n\r\n",
        "a\u{a0}b\u{2028}c\u{e9}\u{4e2d}\u{1f600}",
    ] {
        let body = body.to_owned();
        all.push(ArticleFields {
            body,
            ..plain.clone()
        });
    }
    for title in [
        " spaces ",
        "# \"a\", b; c\\",
        "</title><b>&lt;",
        "=1+1",
        "---",
        "null",
        "1e5",
    ] {
        let (title, author) = (title.to_owned(), title.to_owned());
        let source = title.clone();
        all.push(ArticleFields {
            title,
            author,
            source,
            ..plain.clone()
        });
    }
    for (number, time) in times.into_iter().enumerate() {
        let published_at = Some(Timestamp::parse("time", time).unwrap());
        let url = format!("https://a.example/\u{e9}?a=%20&b={number}#c");
        all.push(ArticleFields {
            published_at,
            url,
            ..plain.clone()
        });
    }
    all.into_iter()
        .map(|fields| Article::new(fields).unwrap())
        .collect()
}

/// All ids of an archive, in order.
fn ids(scratch: &Scratch, archive: &str) -> Vec<String> {
    let listed = scratch.run_on(&scratch.text(archive), &["list", "--all", "--json"]);
    let mut ids: Vec<String> = listed
        .exits(0)
        .objects()
        .iter()
        .map(|article| article["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

/// Exports everything into every format in every compression, and imports it again: plain into an
/// archive of the format's own, whose ids are compared, and compressed into the same, which has it all.
pub fn round_trip_all(scratch: &Scratch) -> TestResult {
    let expected = ids(scratch, "archive");
    let count = json!(expected.len());
    for format in ["markdown", "jsonl", "csv", "tsv", "parquet", "warc"] {
        let archive = scratch.text(&format!("of-{format}"));
        for (compression, ending) in [("none", ""), ("gzip", ".gz"), ("zstd", ".zst")] {
            let how = ["--format", format, "--compress", compression];
            let (exported, how) = if format == "markdown" {
                (scratch.text(&format!("tree-{compression}")), &how[..])
            } else {
                (scratch.text(&format!("all.{format}{ending}")), &[][..])
            };
            let started = std::time::Instant::now();
            let export = scratch.run(&[&["export", "--json", exported.as_str()], how].concat());
            assert_eq!(summary(&export.exits(0))["written"], count, "{exported}");
            let exporting = started.elapsed();
            let started = std::time::Instant::now();
            let import = scratch.run_on(&archive, &["import", "--json", &exported]);
            let importing = started.elapsed();
            let import = summary(&import.exits(0));
            let stored = import["new"].as_u64().unwrap() + import["revision"].as_u64().unwrap();
            if compression == "none" {
                assert_eq!(json!(stored), count, "{exported}: {import}");
                assert!(
                    ids(scratch, &format!("of-{format}")) == expected,
                    "{exported}"
                );
            } else {
                assert_eq!(import["duplicate"], count, "{exported}: {import}");
            }
            println!(
                "{format}, {compression}: {count} articles, exported in {exporting:.1?}, imported \
                 in {importing:.1?}: {stored} new, {} known",
                import["duplicate"]
            );
        }
        scratch.run_on(&archive, &["verify"]).exits(0);
    }
    Ok(())
}

#[test]
fn every_export_is_imported_to_the_same_ids() -> TestResult {
    let scratch = Scratch::new();
    for (number, article) in hard_articles().iter().enumerate() {
        scratch.write(&format!("hard/{number}.md"), article.render());
    }
    let stored = scratch
        .run(&["import", &scratch.text("hard"), "--json"])
        .exits(0);
    assert_eq!(summary(&stored)["refused"], 0);
    round_trip_all(&scratch)
}

#[test]
fn exports_go_where_they_are_told_and_overwrite_nothing() {
    let (scratch, lines) = scanned();
    let piped = scratch.run(&["export", "--format", "jsonl", "-"]).exits(0);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&piped.out), sorted(&lines));
    for (arguments, what) in [
        (&["export", "-"][..], "--format"),
        (&["export", "--format", "html", "x"], "not written"),
        (
            &["export", "--format", "jsonl", "--compress", "lzma", "x"],
            "is none of",
        ),
    ] {
        let ran = scratch.run(arguments).exits(2);
        assert!(ran.err.contains(what), "{}", ran.err);
        assert!(!std::path::Path::new("x.unfinished").exists());
    }
    let file = scratch.text("one.csv");
    scratch
        .run(&["export", "--source", "Source 1", &file])
        .exits(0);
    let again = scratch.run(&["export", &file]).exits(2);
    assert!(again.err.contains("is there already"), "{}", again.err);
    let rows = std::fs::read_to_string(&file).unwrap();
    assert!(rows.starts_with("id,title,published_at,"), "{rows}");
    assert!(!rows.contains("Source 0") && rows.contains("Source 1"));

    let feed = scratch.text("a.rss");
    scratch.run(&["export", &feed]).exits(0);
    let shown = scratch.run(&["import", "--dry-run=2", &feed]).exits(0).out;
    assert!(
        shown.contains("# Title 3\n") && shown.contains("Body 3\n\n# not a title"),
        "{shown}"
    );
}

/// A small file of each format, as others write it, and the article that it is.
#[test]
fn a_file_of_each_format_is_what_it_says() -> TestResult {
    let json_ld = r#"<script type="application/ld+json">{"@type": "NewsArticle", "headline": "T",
        "datePublished": "2020-01-02T03:04:05Z", "author": {"name": "A"},
        "publisher": {"name": "S"}, "url": "https://a.example/1", "articleBody": "B"}</script>"#;
    let page = format!("<!DOCTYPE html><html><head>{json_ld}</head><body></body></html>");
    let http = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}");
    let warc = format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://a.example/1\r\n\
         Content-Type: application/http; msgtype=response\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
        http.len()
    );
    let expected = "\n# T\n\nPublished at: **2020-01-02T03:04:05+00:00**\n\nAuthor: **A**\n\n\
        Original: [S](https://a.example/1)\n\nB";
    for (name, text) in [
        (
            "front.md",
            "---\ntitle: T\ndate: 2020-01-02T03:04:05Z\nauthor: A\nsource: S\n\
            link: https://a.example/1\n---\n\nB",
        ),
        (
            "a.csv",
            "headline;date;byline;publisher;link;text\n\
            T;2020-01-02 03:04:05+00:00;A;S;https://a.example/1;\"B\"\n",
        ),
        (
            "a.tsv",
            "title\tdate\tauthor\tsource\turl\tbody\r\n\
            T\t1577934245\tA\tS\thttps://a.example/1\tB\r\n",
        ),
        (
            "feed.json",
            r#"{"version": "https://jsonfeed.org/version/1.1", "title": "S", "items": [
            {"title": "T", "content_html": "<p>B</p>", "date_published": "2020-01-02T03:04:05Z",
             "url": "https://a.example/1", "authors": [{"name": "A"}]}]}"#,
        ),
        (
            "a.rss",
            r#"<rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/"><channel>
            <title>S</title><item><title>T</title><link>https://a.example/1</link>
            <pubDate>Thu, 02 Jan 2020 03:04:05 +0000</pubDate><dc:creator>A</dc:creator>
            <description>&lt;p&gt;B&lt;/p&gt;</description></item></channel></rss>"#,
        ),
        (
            "a.atom",
            r#"<feed xmlns="http://www.w3.org/2005/Atom"><title>S</title><entry>
            <title>T</title><link href="https://a.example/1"/><published>2020-01-02T03:04:05Z</published>
            <author><name>A</name></author><content type="html">B</content></entry></feed>"#,
        ),
        ("a.html", page.as_str()),
        ("a.warc", warc.as_str()),
    ] {
        let scratch = Scratch::new();
        let file = scratch.write(name, text);
        let shown = scratch
            .run(&["import", "--dry-run", "--strict", &file])
            .exits(0);
        assert!(
            shown.out.contains(expected),
            "{name}: {}\n{}",
            shown.out,
            shown.err
        );
        // From standard input the format is seen from the first bytes, compressed or not.
        for bytes in [
            text.as_bytes().to_vec(),
            gzip(text),
            zstd::encode_all(text.as_bytes(), 1)?,
        ] {
            let ran = piped(&scratch, "piped", &["import", "--json"], &bytes).exits(0);
            let counts = summary(&ran);
            assert_eq!(
                (&counts["new"], &counts["duplicate"]),
                (
                    &json!(u8::from(bytes == text.as_bytes())),
                    &json!(u8::from(bytes != text.as_bytes())),
                ),
                "{name}"
            );
        }
    }
    Ok(())
}

/// A file of each format that is exported, damaged, and read again: whatever is not in the damage is
/// there, and what is refused is told.
#[test]
fn damage_in_every_format_costs_only_what_is_damaged() -> TestResult {
    let (scratch, _) = scanned();
    for format in ["jsonl", "csv", "tsv", "warc", "rss"] {
        let file = scratch.text(&format!("whole.{format}"));
        scratch.run(&["export", &file]).exits(0);
        let whole = std::fs::read(&file)?;
        let middle = whole.len() / 2;
        let mut wrong_encoding = whole.clone();
        let wanted: &[u8] = if format == "warc" {
            b"e\":\"Title 20"
        } else {
            b"Title 20"
        };
        let place = whole
            .windows(wanted.len())
            .position(|window| window == wanted);
        wrong_encoding[place.map_or(middle, |at| at + wanted.len() - 3)] = 0xff;
        let cut = whole[..whole.len() * 9 / 10].to_vec();
        let hole = [&whole[..middle], &whole[middle + 200..]].concat();
        let zeros = [&whole[..middle], &[0; 200][..], &whole[middle + 200..]].concat();
        let cut_gzip = {
            let gz = gzip(&whole);
            gz[..gz.len() * 9 / 10].to_vec()
        };
        for (damage, bytes) in [
            ("encoding", wrong_encoding),
            ("cut", cut),
            ("hole", hole),
            ("zeros", zeros),
            ("gzip", cut_gzip),
        ] {
            let name = format!("{damage}.{format}");
            let ending = if damage == "gzip" { ".gz" } else { "" };
            let damaged = scratch.write(&format!("{name}{ending}"), bytes);
            let ran = scratch.run_on(
                &scratch.text(&format!("of-{name}")),
                &["import", "--json", &damaged],
            );
            let counts = summary(&ran);
            let count = |name: &str| counts[name].as_u64().unwrap();
            // The text of an XML item may be damaged without a sign. Behind the last text of a row of
            // a table there are only numbers that an import does not need.
            let may_be_whole =
                format == "rss" || matches!(format, "csv" | "tsv") && damage == "cut";
            let is_told = ran.code == 1 && count("refused") > 0;
            assert!(is_told || may_be_whole && ran.code == 0, "{name}: {counts}");
            let expected = if matches!(damage, "cut" | "gzip") {
                40
            } else {
                46
            };
            let new = count("new");
            assert!(new >= expected, "{name}: {counts} {}", ran.err);
        }
    }
    // Without its end nothing says where the rows of a Parquet file are.
    let file = scratch.text("whole.parquet");
    scratch.run(&["export", &file]).exits(0);
    let whole = std::fs::read(&file)?;
    let cut = scratch.write("cut.parquet", &whole[..whole.len() - 9]);
    let ran = scratch.run(&["import", "--json", &cut, &file]).exits(1);
    let counts = summary(&ran);
    assert_eq!(
        (&counts["refused"], &counts["duplicate"]),
        (&json!(1), &json!(COUNT))
    );
    assert!(ran.err.contains("no Parquet file"), "{}", ran.err);
    Ok(())
}

/// An import that runs, and what it reads.
fn importing(scratch: &Scratch, format: &str) -> (Child, ChildStdin) {
    let mut command = program();
    command.args(["--archive", &scratch.text("archive")]);
    command.args(["import", "--json", "--format", format]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    (child, input)
}

/// Standard input that goes on for two GiB without the end of a record.
#[test]
fn a_record_of_two_gib_is_skipped() {
    for (format, before, after) in [("jsonl", "{\"title\": \"", "\"}\n"), ("csv", "\"", "\"\n")] {
        let scratch = Scratch::new();
        let good = |number: u32| match format {
            "jsonl" => {
                format!("{{\"title\": \"T{number}\", \"body\": \"B\", \"source\": \"S\"}}\n")
            }
            _ => format!("T{number},B,S\n"),
        };
        let head = if format == "csv" {
            "title,body,source\n"
        } else {
            ""
        };
        let (child, mut input) = importing(&scratch, format);
        let text = vec![b'x'; 1 << 20];
        write!(input, "{head}{}{before}", good(1)).unwrap();
        for _ in 0..2048 {
            input.write_all(&text).unwrap();
        }
        write!(input, "{after}{}", good(2)).unwrap();
        let peak = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = peak
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap()
            .to_owned();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let ran = Ran::of_output(output).exits(1);
        assert_eq!(
            (&summary(&ran)["new"], &summary(&ran)["refused"]),
            (&json!(2), &json!(1)),
            "{format}"
        );
        assert!(ran.err.contains("33554432"), "{}", ran.err);
        let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!(
            "{format}: a record of 2 GiB was skipped, {} MiB of memory at most",
            kib / 1024
        );
        assert!(kib < 300 * 1024, "{format}: {peak}");
    }
}

/// Ctrl-C: what is answered is safe, and the next import stores only the rest.
#[test]
fn an_import_that_is_interrupted_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let line = |number: u32| {
        format!("{{\"title\": \"T {number}\", \"body\": \"B\", \"source\": \"S\"}}\n")
    };
    let (mut child, mut input) = importing(&scratch, "jsonl");
    for number in 0..500 {
        input.write_all(line(number).as_bytes()).unwrap();
    }
    // A record that is refused is told when everything before it is answered.
    input.write_all(b"no\n").unwrap();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    std::io::BufRead::read_line(&mut errors, &mut told).unwrap();
    assert!(told.contains("is not valid JSON"), "{told}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::io::Read::read_to_string(&mut errors, &mut told).unwrap();
    let output = child.wait_with_output().unwrap();
    let ran = Ran::of_output(output).exits(2);
    assert!(told.contains("run it again for the rest"), "{told}");
    assert_eq!(summary(&ran)["new"], 500);
    drop(input);

    let all: String = (0..600).map(line).collect();
    let again = piped(
        &scratch,
        "archive",
        &["import", "--json", "--format", "jsonl"],
        all.as_bytes(),
    );
    let counts = summary(&again.exits(0));
    assert_eq!(
        (&counts["new"], &counts["duplicate"]),
        (&json!(100), &json!(500))
    );
}

/// An archive that has what is imported is asked for it and not sent it.
#[test]
fn what_is_stored_is_not_sent_again() {
    let scratch = Scratch::new();
    let server = crate::server::ServerProcess::start(&scratch.path("archive"));
    let address = format!("http://{}", server.host_and_port());
    let tree = scratch.write_tree(COUNT);
    let run = |arguments: &[&str]| Ran::of(program().args(["--server", &address]).args(arguments));
    let puts = || {
        run(&["stats", "--json"]).exits(0).objects()[0]["duplicate_count"]
            .as_u64()
            .unwrap()
    };
    run(&["import", &tree]).exits(0);
    let before = puts();
    let again = run(&["import", &tree, "--json"]).exits(0);
    assert_eq!(summary(&again)["duplicate"], COUNT);
    assert_eq!(puts(), before, "nothing was sent");
    // Of new articles between known ones, each is answered in its place.
    scratch.write(
        "tree/new.jsonl",
        "{\"title\": \"N\", \"body\": \"B\", \"source\": \"S\"}\nno\n",
    );
    let mixed = run(&["import", &tree, "--json"]).exits(1);
    let counts = summary(&mixed);
    assert_eq!(
        (&counts["new"], &counts["duplicate"], &counts["refused"]),
        (&json!(1), &json!(COUNT), &json!(1))
    );
    assert!(server.terminate());
}

#[test]
fn patterns_and_folders_find_files() {
    let scratch = Scratch::new();
    for (name, number) in [
        ("a/b/1.jsonl", 1),
        ("a/2.jsonl", 2),
        ("a/3.csv", 3),
        ("[4].jsonl", 4),
    ] {
        let text = if number == 3 {
            "title,body,source\nT3,B,S\n".to_owned()
        } else {
            format!("{{\"title\": \"T{number}\", \"body\": \"B\", \"source\": \"S\"}}\n")
        };
        scratch.write(name, text);
    }
    for (pattern, expected) in [
        ("a/**/*.jsonl", 2),
        ("a/?.csv", 1),
        ("a", 3),
        ("[4].jsonl", 1),
    ] {
        let found = scratch.text(pattern);
        let ran = scratch.run_on(
            &scratch.text(&format!("of-{expected}-{}", pattern.len())),
            &["import", "--json", &found],
        );
        assert_eq!(summary(&ran.exits(0))["new"], expected, "{pattern}");
    }
    let none = scratch.run(&["import", &scratch.text("x*.jsonl")]).exits(1);
    assert!(
        none.err.contains("x*.jsonl: cannot be read"),
        "{}",
        none.err
    );
}

/// Reads exports with the programs that others read them with, and writes files with them.
const FOREIGN: &str = r#"
import csv, io, json, sys
import feedparser, pyarrow as pa, pyarrow.parquet as pq
from datetime import datetime
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

rows = [json.loads(line) for line in open("all.jsonl")]
ids = [row["id"] for row in rows]
csv.field_size_limit(1 << 30)
for name, delimiter in [("all.csv", ","), ("all.tsv", "\t")]:
    with open(name, newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file, delimiter=delimiter))
    assert [row["id"] for row in read] == ids, name
    assert [row["body"] for row in read] == [row["body"] for row in rows], name
table = pq.read_table("all.parquet")
assert table.column("id").to_pylist() == ids
assert table.column("body").to_pylist() == [row["body"] for row in rows]
dated = [row["published_at"] for row in rows if row["published_at"]]
published = [time for time in table.column("published").to_pylist() if time]
assert [datetime.fromisoformat(date) for date in dated] == published
with open("all.warc.gz", "rb") as file:
    pages = [record.content_stream().read() for record in ArchiveIterator(file) if record.rec_type == "resource"]
assert len(pages) == len(rows)
feed = feedparser.parse("all.rss")
assert not feed.bozo and [entry.id for entry in feed.entries] == ids
assert [entry.title for entry in feed.entries] == [row["title"] for row in rows]

for unit in ["s", "ms", "us", "ns"]:
    dates = [row["published_at"] and datetime.fromisoformat(row["published_at"]) for row in rows]
    columns = {
        "headline": [row["title"] for row in rows],
        "text": pa.array([row["body"] for row in rows], pa.large_string()),
        "date": pa.array(dates, pa.timestamp(unit, "UTC")),
        "publication": pa.array([row["source"] for row in rows]).dictionary_encode(),
        "authors": [[row["author"]] if row["author"] else [] for row in rows],
        "url": [row["url"] for row in rows],
        "more": [{"x": 1} for row in rows],
    }
    for codec in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]:
        pq.write_table(pa.table(columns), f"{unit}-{codec}.parquet", compression=codec, row_group_size=20)
with open("by-warcio.warc.gz", "wb") as file:
    writer = WARCWriter(file, gzip=True)
    for row in rows:
        page = f"""<html><head><title>{row["title"]}</title><meta name="author" content="A">
            <meta property="article:published_time" content="2020-01-02T03:04:05Z"></head><body>
            <nav>Home, News, Sport</nav><article><h1>{row["title"]}</h1><p>{row["body"][:11]} and a text,
            long enough, to be taken for one, by its looks.</p><p>It has a second paragraph, too.</p>
            </article></body></html>""".encode()
        head = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
        request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "news.example")], is_http_request=True)
        writer.write_record(writer.create_warc_record(row["url"], "request", http_headers=request))
        writer.write_record(writer.create_warc_record(row["url"], "response", payload=io.BytesIO(page), http_headers=head))
"#;

#[test]
#[ignore = "needs the Python packages pyarrow, warcio and feedparser"]
fn other_programs_read_exports_and_write_imports() {
    let python = std::env::var("PRESSMARK_TEST_PYTHON");
    let python = python.expect("PRESSMARK_TEST_PYTHON names a Python that has the packages");
    let (scratch, _) = scanned();
    let expected = ids(&scratch, "archive");
    for name in [
        "all.jsonl",
        "all.csv",
        "all.tsv",
        "all.parquet",
        "all.warc.gz",
        "all.rss",
    ] {
        scratch.run(&["export", &scratch.text(name)]).exits(0);
    }
    let mut command = std::process::Command::new(python);
    Ran::of(command.args(["-c", FOREIGN]).current_dir(scratch.path("."))).exits(0);
    for unit in ["s", "ms", "us", "ns"] {
        for codec in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"] {
            let (file, into) = (
                format!("{unit}-{codec}.parquet"),
                format!("of-{unit}-{codec}"),
            );
            let import = ["import", &scratch.text(&file)];
            scratch.run_on(&scratch.text(&into), &import).exits(0);
            assert_eq!(ids(&scratch, &into), expected, "{file}");
        }
    }
    let file = scratch.text("by-warcio.warc.gz");
    let shown = scratch
        .run(&["import", "--dry-run=100", &file])
        .exits(0)
        .out;
    assert_eq!(
        shown
            .matches("Published at: **2020-01-02T03:04:05+00:00**")
            .count(),
        COUNT
    );
    assert!(
        shown.contains("by its looks.\n\nIt has a second"),
        "{shown}"
    );
    assert!(!shown.contains("Home, News"), "{shown}");
}
