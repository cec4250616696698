//! Load on a running server over gRPC. `cargo bench --bench load -- --help` tells the commands.
//!
//! Every result is one line of JSON on stdout, so that `> results.jsonl` keeps them and `plot` draws
//! them. The server is the release build of this tree, on a fresh archive in a scratch folder.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a benchmark stops at the first thing that is wrong, and prints"
)]

mod bare;
mod copies;
mod corpus;
mod growth;
mod measure;
mod plot;
mod process;
mod questions;
mod store;
mod subject;
mod workload;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use rustix::process::Signal;
use serde_json::{Value, json};

use self::corpus::{Corpus, Workload};
use self::measure::round;
use self::subject::{BATCH_ARTICLES, Pressmark, Running};

/// Puts that a loop of the suite sends.
const PUTS: u64 = 20_000;
/// How long an open loop sends at one rate.
const OPEN_LOOP_SECONDS: f64 = 8.0;

#[derive(Parser)]
#[command(about = "Load on a pressmark server, as lines of JSON")]
struct Arguments {
    /// Articles that are imported first.
    #[arg(long, global = true, default_value_t = 100_000)]
    articles: u64,
    /// The program to start as the server [default: the one of this build].
    #[arg(long, global = true, default_value = env!("CARGO_BIN_EXE_pressmark"), hide_default_value = true)]
    program: PathBuf,
    /// Where the server keeps its archive, which must be empty for all but `scan`, instead of a folder in
    /// scratch.
    #[arg(long, global = true)]
    archive: Option<PathBuf>,
    /// A flag of the server, such as `--flag=--s3-endpoint=http://127.0.0.1:7480`; may be repeated.
    #[arg(long, global = true, value_name = "FLAG", allow_hyphen_values = true)]
    flag: Vec<String>,
    /// Given by `cargo bench`.
    #[arg(long, global = true, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand, Clone)]
enum Task {
    /// All workloads in turn, as fast as they go [default].
    Suite,
    /// Import, the same again, and what is on disk.
    Import,
    /// Look-ups, gets and scans.
    Read,
    /// Puts and gets at fixed rates.
    Latency {
        /// Puts a second.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "500,1000,2000,3000,4000,5000"
        )]
        puts: Vec<f64>,
        /// Gets a second.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "2000,5000,10000,15000,20000"
        )]
        gets: Vec<f64>,
    },
    /// The archive without gRPC, and its batches fed to the engine alone.
    Store,
    /// One archive as it grows.
    Growth {
        /// Articles at which everything is measured.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "100000,300000,1000000,3000000"
        )]
        sizes: Vec<u64>,
    },
    /// An archive that is there already, by date for a minute.
    Scan,
    /// The questions of a news desk: timelines, copies and searches, and how long the search index
    /// takes.
    Questions,
    /// Imports with near copies and search on and off, in alternating rounds.
    Switches {
        /// Rounds.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// How many near copies are found, and how many of those found are some, among edited articles
    /// of the Reuters corpus.
    Copies {
        /// Articles that are edited.
        #[arg(long, default_value_t = 2000)]
        edited: usize,
    },
    /// Draws SVG plots of the lines that the other commands printed.
    Plot {
        /// A file of such lines.
        results: PathBuf,
        /// The folder for the plots.
        folder: PathBuf,
    },
    #[command(hide = true)]
    BareServer { body_bytes: usize },
}

/// Prints one result.
fn report(work: &str, mut figures: Value) {
    figures["work"] = json!(work);
    println!("{figures}");
}

/// A generated corpus, a scratch folder, and how to start a server in it.
pub struct Bench {
    corpus: Corpus,
    folder: tempfile::TempDir,
    program: PathBuf,
    /// Where the archive is, if not in the folder.
    place: Option<PathBuf>,
    /// Flags of the server.
    flags: Vec<String>,
}

impl Bench {
    fn archive(&self) -> PathBuf {
        let place = self.place.clone();
        place.unwrap_or_else(|| self.folder.path().join("archive"))
    }

    async fn start(&self) -> Running {
        self.start_known().await.1
    }

    /// The same, with the client that knows more than others.
    async fn start_known(&self) -> (Arc<Pressmark>, Running) {
        Pressmark::start(&self.program, &self.archive(), &self.flags).await
    }

    /// What an archive has on disk, or in object storage as its server says.
    async fn disk(&self, client: &Pressmark, text_bytes: u64, article_count: u64) -> Value {
        let bytes = match &self.place {
            None => process::disk_bytes(&self.archive()),
            Some(_) => client.stats().await.disk_bytes(),
        };
        workload::disk(bytes, text_bytes, article_count)
    }

    fn generate(&self, numbers: std::ops::Range<u64>) -> Workload {
        let batch = BATCH_ARTICLES as u64;
        self.corpus
            .write(numbers, self.folder.path(), workload::STREAMS, batch)
    }

    fn new_articles(&self, numbers: std::ops::Range<u64>) -> Vec<pressmark::rpc::proto::Article> {
        workload::new_articles(&self.corpus, numbers, self.folder.path())
    }
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or(Task::Suite);
    if let Task::BareServer { body_bytes } = &command {
        return bare::serve(*body_bytes).await;
    }
    if let Task::Plot { results, folder } = &command {
        return plot::draw(results, folder);
    }
    if let Task::Copies { edited } = &command {
        return copies::run(*edited).await;
    }
    let bench = Bench {
        corpus: Corpus::load(),
        folder: tempfile::tempdir().unwrap(),
        program: arguments.program,
        place: arguments.archive,
        flags: arguments.flag,
    };
    conditions(&bench, arguments.articles);
    if let Task::Scan = &command {
        return growth::scan(&bench).await;
    }
    if let Task::Growth { sizes } = &command {
        return growth::run(&bench, sizes).await;
    }
    let work = bench.generate(0..arguments.articles);
    report(
        "generated",
        json!({
            "articles": work.article_count, "kinds": work.kinds, "text_bytes": work.text_bytes,
            "body_bytes_median": work.body_percentile(50),
            "body_bytes_p95": work.body_percentile(95),
        }),
    );
    match command {
        Task::Suite => suite(&bench, &work).await,
        Task::Import => import(&bench, &work).await,
        Task::Read => {
            let mut running = bench.start().await;
            workload::import(&running, &work, false).await;
            read(&running, &work).await;
            running.process.stop(Signal::TERM);
        }
        Task::Latency { puts, gets } => latency(&bench, &work, &puts, &gets).await,
        Task::Store => report("store", store::compare(&work, bench.folder.path()).await),
        Task::Questions => questions::run(&bench, &work).await,
        Task::Switches { rounds } => questions::switches(&bench, &work, rounds).await,
        Task::Copies { .. }
        | Task::Growth { .. }
        | Task::Scan
        | Task::Plot { .. }
        | Task::BareServer { .. } => {}
    }
}

fn conditions(bench: &Bench, articles: u64) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    report(
        "conditions",
        json!({
            "articles": articles, "sentences_of": bench.corpus.origin, "load": load.trim(),
            "cores": std::thread::available_parallelism().unwrap(),
        }),
    );
}

async fn import(bench: &Bench, work: &Workload) {
    let mut running = bench.start().await;
    report("import", workload::import(&running, work, false).await);
    report("import_again", workload::import(&running, work, true).await);
    let stored = work.article_count - work.duplicates;
    running.process.stop(Signal::TERM);
    let (client, mut running) = bench.start_known().await;
    let disk = bench.disk(&client, work.text_bytes, stored).await;
    report("disk", disk);
    running.process.stop(Signal::TERM);
}

async fn suite(bench: &Bench, work: &Workload) {
    import(bench, work).await;
    let mut running = bench.start().await;
    report(
        "open_after_stop",
        json!({ "ms": round(running.open.as_secs_f64() * 1e3) }),
    );
    let mut number = work.article_count;
    for in_flight in [64, 256] {
        let articles = bench.new_articles(number..number + PUTS);
        number += PUTS;
        let figures = workload::put(&running, articles, in_flight).await;
        report(&format!("put_{in_flight}"), figures);
    }
    read(&running, work).await;
    running.process.kill();
    let mut running = bench.start().await;
    report(
        "open_after_kill",
        json!({ "ms": round(running.open.as_secs_f64() * 1e3) }),
    );
    running.process.stop(Signal::TERM);
}

async fn read(running: &Running, work: &Workload) {
    report("missing", workload::missing(running, &work.ids).await);
    report("get_64", workload::get(running, &work.ids).await);
    report("get_any_64", workload::get_any(running, &work.ids).await);
    report("get_64_bare", bare_gets(work).await);
    report("scan", workload::scan(running).await);
}

/// Gets from a server that only answers, with an article as long as they are on average.
async fn bare_gets(work: &Workload) -> Value {
    let body_bytes = work.body_bytes.iter().sum::<usize>() / work.body_bytes.len();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("bare-server").arg(body_bytes.to_string());
    let running = Pressmark::run(command).await;
    workload::get(&running, &work.ids).await
}

async fn latency(bench: &Bench, work: &Workload, puts: &[f64], gets: &[f64]) {
    let mut running = bench.start().await;
    workload::import(&running, work, false).await;
    let mut number = work.article_count;
    for &per_second in puts {
        let count = (per_second * OPEN_LOOP_SECONDS) as u64;
        let articles = bench.new_articles(number..number + count);
        number += count;
        let mut figures = workload::put_at(&running, articles, per_second).await;
        figures["wanted_per_s"] = json!(per_second);
        report("put_open", figures);
    }
    for &per_second in gets {
        let count = (per_second * OPEN_LOOP_SECONDS) as u64;
        let mut figures = workload::get_at(&running, &work.ids, count, per_second).await;
        figures["wanted_per_s"] = json!(per_second);
        report("get_open", figures);
    }
    running.process.stop(Signal::TERM);
}

/// The folder of an archive that a growth run may delete between its steps.
pub fn empty(folder: &Path) {
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        if file.path().is_file() {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
}
