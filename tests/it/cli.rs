//! The command line as a person or a script meets it: the real program, its output and exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pressmark::article::{Article, ArticleFields, ContentHash, Timestamp};
use serde_json::Value;
use tempfile::TempDir;

use crate::server::ServerProcess;

/// A folder of the test's own, and an archive in it that each command opens in its own process.
pub struct Scratch {
    folder: TempDir,
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Scratch {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Runs a command on the archive of a name.
    pub fn run_on(&self, archive: &str, arguments: &[&str]) -> Ran {
        Ran::of(
            program()
                .arg("--archive")
                .arg(self.path(archive))
                .args(arguments),
        )
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_on("archive", arguments)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        self.text(name)
    }

    /// Writes a tree with so many articles, one of them undated, and something hidden.
    pub fn write_tree(&self, count: usize) -> String {
        for number in 0..count {
            let name = format!("tree/{}/{number:04}.md", number % 3);
            self.write(&name, article(number).render());
        }
        self.write("tree/.hidden/broken.md", "not looked at");
        self.write("tree/picture.png", "not looked at");
        std::os::unix::fs::symlink(self.path("tree"), self.path("tree/link")).unwrap();
        self.text("tree")
    }
}

impl Ran {
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        Self::of_reading(command, Stdio::null())
    }

    /// Runs a command that reads this.
    #[track_caller]
    pub fn of_reading(command: &mut Command, input: impl Into<Stdio>) -> Self {
        Self::of_output(command.stdin(input).output().unwrap())
    }

    /// What a command did that has ended.
    pub fn of_output(output: Output) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = output;
        Self {
            code: status.code().expect("no signal ended it"),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    /// The output, if the command exited with a code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.out, self.err
        );
        self
    }

    /// The objects printed, one a line.
    pub fn objects(&self) -> Vec<Value> {
        let object = |line| serde_json::from_str(line).unwrap();
        self.out.lines().map(object).collect()
    }
}

/// The program, untouched by the variables of whoever runs the tests.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pressmark"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PRESSMARK_") {
            command.env_remove(name);
        }
    }
    command
}

/// Article 0 is undated; each has a day and a URL of its own.
pub fn article(number: usize) -> Article {
    let seconds = i64::try_from(number).unwrap() * 86_400;
    Article::new(ArticleFields {
        title: format!("Title {number}"),
        published_at: (number > 0).then(|| Timestamp::new("t", seconds, 0).unwrap()),
        source: format!("Source {}", number % 2),
        url: format!("https://news.example/{number}"),
        body: format!("Body {number}\n\n# not a title\n"),
        ..ArticleFields::default()
    })
    .unwrap()
}

pub fn id(number: usize) -> String {
    article(number).id().to_string()
}

/// All exported files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_put_is_got_byte_for_byte() {
    let scratch = Scratch::new();
    let file = scratch.write("one.md", article(1).render());
    let put = scratch.run(&["put", &file]).exits(0);
    assert_eq!(put.out, format!("created {} {file}\n", id(1)));
    let again = scratch.run(&["put", &file]).exits(0);
    assert_eq!(again.out, format!("duplicate {} {file}\n", id(1)));

    for name in [&id(1), &id(1)[..8], "https://NEWS.example/1?utm_source=x"] {
        let got = scratch.run(&["get", name]).exits(0);
        assert_eq!(got.out, article(1).render(), "{name}");
    }
    let got = scratch.run(&["--json", "get", &id(1)]).exits(0).objects();
    assert_eq!(got[0]["id"], id(1));
    assert_eq!(got[0]["published_at"], "1970-01-02T00:00:00+00:00");
    assert_eq!(got[0]["body"], article(1).body());

    let unknown = scratch.run(&["get", &id(2)]).exits(2);
    assert!(unknown.err.contains(&id(2)), "{}", unknown.err);
    assert!(unknown.out.is_empty());
}

#[test]
fn put_reads_stdin_and_stores_the_rest_when_a_file_is_refused() {
    let scratch = Scratch::new();
    let bad = scratch.write("bad.md", b"\n# Title\xff\n");
    let good = scratch.write("good.md", article(1).render());
    let none = scratch.text("none.md");
    let put = scratch.run(&["put", &bad, &none, &good]).exits(1);
    assert_eq!(put.out, format!("created {} {good}\n", id(1)));
    assert!(
        put.err.contains("text: ") && put.err.contains("bad.md"),
        "{}",
        put.err
    );
    assert!(put.err.contains("none.md"), "{}", put.err);

    let mut child = program()
        .args(["put", "-", "--archive"])
        .arg(scratch.path("archive"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(article(2).render().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains(&id(2)));
}

#[test]
fn a_tree_with_a_bad_file_is_imported_once() {
    let scratch = Scratch::new();
    let tree = scratch.write_tree(600);
    let date = article(1).render().replace("1970-01-02T", "1970-01-02 ");
    scratch.write("tree/1/bad.md", date);
    let first = scratch.run(&["import", &tree]).exits(1);
    assert!(
        first.out.contains("600 new, 0 duplicate, 0 revision"),
        "{}",
        first.out
    );
    assert!(first.out.trim_end().ends_with("1 refused"), "{}", first.out);
    assert!(
        first.err.contains("bad.md") && first.err.contains("published_at"),
        "{}",
        first.err
    );

    let again = scratch.run(&["--json", "import", &tree]).exits(1).objects();
    let [refused, summary] = again.as_slice() else {
        panic!("one refused file and the summary, not {again:?}");
    };
    assert!(refused["file"].as_str().unwrap().ends_with("bad.md"));
    assert!(refused.to_string().contains("published_at"));
    let numbers = ["new", "duplicate", "revision", "refused"].map(|name| summary[name].as_u64());
    assert_eq!(numbers, [Some(0), Some(600), Some(0), Some(1)]);

    std::fs::remove_file(scratch.path("tree/1/bad.md")).unwrap();
    scratch.run(&["import", &tree]).exits(0);
    let count = scratch.run(&["count"]).exits(0);
    assert_eq!(count.out, "600\n");
}

#[test]
fn a_tree_of_bad_files_alone_does_not_hold_up_the_import() {
    let scratch = Scratch::new();
    for number in 0..3000 {
        scratch.write(&format!("tree/{number}.md"), "no article");
    }
    let import = scratch.run(&["import", &scratch.text("tree")]).exits(1);
    assert!(
        import.out.trim_end().ends_with("3000 refused"),
        "{}",
        import.out
    );
}

#[test]
fn lists_select_order_and_limit() {
    let scratch = Scratch::new();
    scratch.run(&["import", &scratch.write_tree(10)]).exits(0);
    let ids = |arguments: &[&str]| -> Vec<String> {
        let ran = scratch.run(arguments).exits(0);
        ran.out
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&["list", "--limit", "2"]), [id(9), id(8)]);
    assert_eq!(
        ids(&["list", "--order", "published-asc", "--limit", "2"]),
        [id(0), id(1)]
    );
    assert_eq!(ids(&["list", "--all"]).len(), 10);
    let days = [
        "list",
        "--after",
        "1970-01-03",
        "--before",
        "1970-01-05T00:00:00Z",
    ];
    assert_eq!(ids(&days), [id(3), id(2)]);
    assert_eq!(ids(&["list", "--source", "Source 1"]).len(), 5);
    let both = ["scan", "--source", "Source 1", "--source", "Source 0"];
    assert_eq!(ids(&both).len(), 10);
    assert_eq!(ids(&["scan", "--max-sequence", "4"]).len(), 4);

    let line = scratch
        .run(&["list", "--url", "https://news.example/0"])
        .exits(0)
        .out;
    assert!(
        line.contains("undated") && line.trim_end().ends_with("Source 0  Title 0"),
        "{line}"
    );
    let heads = scratch.run(&["--json", "list"]).exits(0).objects();
    assert!(heads.len() == 10 && heads.iter().all(|head| head.get("body").is_none()));
    let whole = scratch.run(&["--json", "scan"]).exits(0).objects();
    assert!(whole.len() == 10 && whole.iter().all(|article| article["body"].is_string()));

    let count = scratch
        .run(&["count", "--source", "Source 0", "--after", "1970-01-02"])
        .exits(0);
    assert_eq!(count.out, "4\n");
    scratch.run(&["list", "--after", "yesterday"]).exits(2);
    scratch.run(&["list", "--body-hash", "x"]).exits(2);
}

#[test]
fn an_export_is_named_by_its_hashes_and_makes_the_same_archive() {
    let scratch = Scratch::new();
    scratch.run(&["import", &scratch.write_tree(40)]).exits(0);
    let exported = scratch.text("exported");
    let first = scratch.run(&["export", &exported]).exits(0);
    assert_eq!(
        first.out.lines().last().unwrap(),
        "40 written, 0 already there"
    );
    let files = files_below(Path::new(&exported));
    assert_eq!(files.len(), 40);
    for file in &files {
        let hash = ContentHash::of(&std::fs::read(file).unwrap()).to_string();
        assert_eq!(file.file_stem().unwrap().to_str().unwrap(), hash);
    }
    let undated = format!("undated/{}.md", id(0));
    let dated = format!("1970/01/02/{}.md", id(1));
    for path in [undated, dated.clone()] {
        assert!(Path::new(&exported).join(&path).is_file(), "{path}");
    }

    std::fs::write(Path::new(&exported).join(dated), "cut off").unwrap();
    let again = scratch.run(&["export", &exported]).exits(0);
    assert_eq!(
        again.out.lines().last().unwrap(),
        "1 written, 39 already there"
    );
    assert_eq!(files_below(Path::new(&exported)), files);

    scratch.run_on("other", &["import", &exported]).exits(0);
    let [original, copy] = ["archive", "other"].map(|archive| {
        let list = scratch.run_on(archive, &["list", "--all"]).exits(0);
        let mut lines: Vec<String> = list.out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    });
    assert_eq!(original, copy);
}

#[test]
fn deleted_articles_are_missed_and_stay_deleted() {
    let scratch = Scratch::new();
    let tree = scratch.write_tree(4);
    scratch.run(&["import", &tree]).exits(0);
    let deleted = scratch
        .run(&["delete", &id(1), "--reason", "wrong"])
        .exits(0);
    assert!(
        deleted.out.contains(&id(1)) && deleted.out.contains("wrong"),
        "{}",
        deleted.out
    );
    let again = scratch
        .run(&["delete", &id(1), "--reason", "other"])
        .exits(0);
    assert!(
        again.out.contains("wrong"),
        "the first reason stays: {}",
        again.out
    );
    scratch.run(&["delete", &id(2)]).exits(2);
    scratch
        .run(&["delete", &id(9), "--reason", "never stored"])
        .exits(2);
    let gone = scratch.run(&["get", &id(1)]).exits(2);
    assert!(gone.err.contains("deleted"), "{}", gone.err);

    let import = scratch.run(&["import", &tree]).exits(0);
    assert!(
        import
            .out
            .contains("0 new, 3 duplicate, 0 revision, 1 deleted"),
        "{}",
        import.out
    );

    let asked = [0, 1, 7, 8].map(|number| id(number) + "\n").concat();
    let missing = scratch.run(&["missing", &scratch.write("ids", asked)]);
    assert_eq!(missing.out, [7, 8].map(|number| id(number) + "\n").concat());
    assert!(
        missing.err.contains(&id(1)) && missing.err.contains("deleted"),
        "{}",
        missing.err
    );
    let wrong = scratch
        .run(&["missing", &scratch.write("ids", "no id\n")])
        .exits(2);
    assert!(wrong.err.contains("no"), "{}", wrong.err);
}

#[test]
fn sources_and_stats_tell_the_figures() {
    let scratch = Scratch::new();
    scratch.run(&["import", &scratch.write_tree(10)]).exits(0);
    let table = scratch.run(&["sources"]).exits(0);
    let row = table
        .out
        .lines()
        .find(|line| line.contains("Source 1"))
        .unwrap();
    assert!(
        row.contains('5') && row.contains("1970-01-02") && row.contains("1970-01-10"),
        "{row}"
    );
    let sources = scratch.run(&["--json", "sources"]).exits(0).objects();
    let names: Vec<&Value> = sources.iter().map(|source| &source["name"]).collect();
    assert_eq!(names, ["Source 0", "Source 1"]);
    assert_eq!(sources[0]["article_count"], 5);

    let stats = &scratch.run(&["--json", "stats"]).exits(0).objects()[0];
    assert_eq!(
        (&stats["article_count"], &stats["engine"]),
        (&10.into(), &"sled".into())
    );
    let lines = scratch.run(&["stats"]).exits(0).out;
    let line = lines
        .lines()
        .find(|line| line.starts_with("article_count"))
        .unwrap();
    assert!(line.ends_with(" 10"), "{line}");
}

#[test]
fn a_closed_pipe_is_success() {
    let scratch = Scratch::new();
    scratch.run(&["import", &scratch.write_tree(3000)]).exits(0);
    let mut child = program()
        .args(["--json", "scan", "--archive"])
        .arg(scratch.path("archive"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with('{'));
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{err}");
    assert_eq!(err, "");
}

#[test]
fn errors_exit_with_2_and_name_their_object() {
    let scratch = Scratch::new();
    // Nobody listens on the port of a listener that is gone.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let dead = Ran::of(program().args(["--server", &url, "list"])).exits(2);
    assert!(
        dead.err.starts_with("pressmark: ") && dead.err.contains(&url),
        "{}",
        dead.err
    );
    assert!(
        dead.err.contains("pressmark serve") && dead.err.contains("--archive"),
        "{}",
        dead.err
    );
    assert!(dead.err.contains("onnection refused"), "{}", dead.err);

    scratch.run(&["--server", &url, "list"]).exits(2);
    let mistyped = scratch.run_on("archvie", &["list"]).exits(2);
    assert!(mistyped.err.contains("archvie"), "{}", mistyped.err);
    assert!(
        !scratch.path("archvie").exists(),
        "reading begins no archive"
    );
    scratch.run(&["no-such-command"]).exits(2);
    Ran::of(program().args(["--archive", "s3://bucket", "list"])).exits(2);
    Ran::of(program().args(["--help"])).exits(0);
}

#[test]
fn an_explicit_flag_wins_over_the_variable_of_the_other_target() {
    let scratch = Scratch::new();
    scratch.run(&["import", &scratch.write_tree(2)]).exits(0);
    let count = Ran::of(
        program()
            .env("PRESSMARK_SERVER", "http://127.0.0.1:1")
            .args(["count", "--archive"])
            .arg(scratch.path("archive")),
    );
    assert_eq!(count.exits(0).out, "2\n");
}

#[test]
fn a_served_archive_is_held_and_used_through_the_server() {
    let scratch = Scratch::new();
    let server = ServerProcess::start(&scratch.path("archive"));
    let held = scratch.run(&["list"]).exits(2);
    assert!(held.err.contains(&scratch.text("archive")), "{}", held.err);

    let through = |arguments: &[&str]| {
        Ran::of(
            program()
                .args(["--server", &server.address])
                .args(arguments),
        )
        .exits(0)
    };
    let import = through(&["import", &scratch.write_tree(20)]);
    assert!(import.out.starts_with("20 new"), "{}", import.out);
    assert_eq!(through(&["get", &id(5)]).out, article(5).render());
    let exported = through(&["export", &scratch.text("exported")]);
    assert!(exported.out.contains("20 written"), "{}", exported.out);
    assert!(server.terminate(), "SIGTERM is a good end");
    assert_eq!(scratch.run(&["count"]).exits(0).out, "20\n");
}

#[test]
fn serve_prints_one_line_and_ends_well_on_sigterm() {
    let scratch = Scratch::new();
    let mut child = program()
        .args(["serve", "--listen", "127.0.0.1:0", "--archive"])
        .arg(scratch.path("archive"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let expected = format!(
        "pressmark serves {} on http://127.0.0.1:",
        scratch.text("archive")
    );
    let port = line.trim_end().strip_prefix(&expected).expect(&line);
    assert_ne!(port.parse::<u16>().unwrap(), 0);

    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line is all that serve prints");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("stopped"), "{log}");
}

#[test]
fn shells_and_manuals_get_what_they_take() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = scratch.run(&["completions", shell]).exits(0).out;
        assert!(
            script.contains("pressmark") && script.contains("timeline"),
            "{shell}"
        );
    }
    let page = scratch.run(&["man"]).exits(0).out;
    assert!(
        page.contains(".TH pressmark 1") && page.contains("import"),
        "{page}"
    );
    scratch
        .run(&["man", "--dir", &scratch.text("man1")])
        .exits(0);
    let pages = std::fs::read_dir(scratch.path("man1")).unwrap().count();
    assert!(pages > 20, "{pages}");
    let import = std::fs::read_to_string(scratch.path("man1/pressmark-import.1")).unwrap();
    assert!(
        import.contains("Examples:") && import.contains("rejects"),
        "{import}"
    );
}

#[test]
fn a_file_of_configuration_gives_way_to_variables_and_flags() {
    let bench = Scratch::new();
    let file = bench.write(
        "pressmark.toml",
        "archive = \"memory:\"\ncache-mib = 8\n\n[serve]\nstreams-max = 5\nrequests-max = 6\n\
         drain-seconds = 7\nsearch = \"off\"\n\n[list]\nlimit = 3\n",
    );
    let mut command = program();
    command.args(["config", "--config", &file, "--drain-seconds", "9"]);
    let ran = Ran::of(command.env("PRESSMARK_REQUESTS_MAX", "8")).exits(0);
    for line in [
        "archive = \"memory:\"  # file",
        "cache-mib = 8  # file",
        "streams-max = 5  # file",
        "requests-max = 8  # PRESSMARK_REQUESTS_MAX",
        "drain-seconds = 9  # flag",
        "search = \"off\"  # file",
        "connections-max = 4096  # default",
        "# tokens is not set",
    ] {
        assert!(
            ran.out.lines().any(|found| found == line),
            "{line} is not in {}",
            ran.out
        );
    }
    // What it prints is such a file itself.
    let printed = bench.write("printed.toml", &ran.out);
    let again = Ran::of(program().args(["config", "--config", &printed])).exits(0);
    assert!(
        again.out.contains("requests-max = 8  # file"),
        "{}",
        again.out
    );
    // A flag for the server wins over the file's archive, and a variable does.
    let mut command = program();
    command.args(["config", "--config", &file]);
    let ran = Ran::of(command.env("PRESSMARK_ARCHIVE", "elsewhere")).exits(0);
    assert!(
        ran.out
            .contains("archive = \"elsewhere\"  # PRESSMARK_ARCHIVE"),
        "{}",
        ran.out
    );
    for (content, part) in [
        ("chache-mib = 8\n", "chache-mib"),
        ("[serv]\nlisten = \"a\"\n", "serv"),
        ("[serve]\nlisten = \"a\"\n", "listen"),
        ("[serve]\nlisten-on = \"a\"\n", "serve.listen-on"),
        ("[serve]\nsearch = { on = true }\n", "serve.search"),
        ("[serve\n", "config"),
    ] {
        let file = bench.write("wrong.toml", content);
        let ran = Ran::of(program().args(["config", "--config", &file])).exits(2);
        assert!(ran.err.contains(part), "{content}: {}", ran.err);
    }
    Ran::of(program().args(["config", "--config", &bench.text("none.toml")])).exits(2);
}
