//! The same articles and the same work on pressmark, PostgreSQL, etcd and Redis, run by run in turn.
//! `benches/peers/run --help` tells the flags. Every result is one line of JSON on stdout; the table
//! at the end is Markdown, on stderr.
//!
//! Every server syncs its disk before it acknowledges a write, and otherwise has the settings that
//! Debian's package gives it. What is done for each is told at its own file.

mod etcd;
mod postgres;
mod redis;
mod table;

#[allow(dead_code, reason = "the load tool makes duplicates too")]
#[path = "../../load/corpus.rs"]
mod corpus;
#[path = "../../load/measure.rs"]
mod measure;
#[path = "../../load/process.rs"]
mod process;
#[path = "../../load/subject.rs"]
mod subject;
#[allow(dead_code, reason = "the load tool has more workloads")]
#[path = "../../load/workload.rs"]
mod workload;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use rustix::process::Signal;
use serde_json::{Value, json};

use self::corpus::{Corpus, Workload};
use self::subject::{BATCH_ARTICLES, Pressmark, Running};
use self::table::Table;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "The same work on pressmark and what could be run instead")]
struct Arguments {
    /// Articles that are imported.
    #[arg(long, default_value_t = 50_000)]
    articles: u64,
    /// Articles that each loop of single puts stores.
    #[arg(long, default_value_t = 10_000)]
    puts: u64,
    /// How often everything is run.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which servers.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "pressmark,postgres,etcd,redis"
    )]
    only: Vec<Peer>,
    /// The pressmark program.
    #[arg(long)]
    program: PathBuf,
    /// The folder in which the servers keep their files, all on one disk.
    #[arg(long)]
    scratch: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Pressmark,
    Postgres,
    Etcd,
    Redis,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Pressmark => "pressmark",
            Self::Postgres => "PostgreSQL",
            Self::Etcd => "etcd",
            Self::Redis => "Redis",
        }
    }

    async fn start(self, program: &Path, folder: &Path) -> Running {
        match self {
            Self::Pressmark => Pressmark::start(program, folder, &[]).await.1,
            Self::Postgres => postgres::start(folder).await,
            Self::Etcd => etcd::start(folder).await,
            Self::Redis => redis::start(folder).await,
        }
    }

    /// The signal that ends it in good order and soon.
    fn stop_signal(self) -> Signal {
        match self {
            Self::Postgres => Signal::INT,
            Self::Pressmark | Self::Etcd | Self::Redis => Signal::TERM,
        }
    }

    /// The files that hold the data, without the logs that a peer deletes by itself.
    fn data(self, folder: &Path) -> PathBuf {
        match self {
            Self::Postgres => folder.join("base"),
            Self::Etcd => folder.join("member/snap/db"),
            Self::Pressmark | Self::Redis => folder.to_owned(),
        }
    }
}

/// What every round is given.
struct Work {
    corpus: Corpus,
    /// The articles to import, without exact duplicates, which COPY does not take.
    import: Workload,
    arguments: Arguments,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let files = tempfile::tempdir_in(&arguments.scratch).unwrap();
    let corpus = Corpus::load();
    let batch = BATCH_ARTICLES as u64;
    let import = corpus.write_new(
        0..arguments.articles,
        files.path(),
        workload::STREAMS,
        batch,
    );
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!(
        "{}",
        json!({
            "work": "conditions", "articles": import.article_count, "text_bytes": import.text_bytes,
            "sentences_of": corpus.origin, "load": load.trim(), "puts": arguments.puts,
            "cores": std::thread::available_parallelism().unwrap(),
            "body_bytes_median": import.body_percentile(50), "body_bytes_p95": import.body_percentile(95),
        })
    );
    let work = Work {
        corpus,
        import,
        arguments,
    };
    let mut table = Table::default();
    for round in 0..work.arguments.rounds {
        let mut peers = work.arguments.only.clone();
        let peer_count = peers.len();
        peers.rotate_left(round % peer_count);
        for peer in peers {
            run(peer, &work, &mut table).await;
        }
    }
    eprintln!(
        "{}",
        table.render(
            &work
                .arguments
                .only
                .iter()
                .map(|peer| peer.name())
                .collect::<Vec<_>>()
        )
    );
}

/// Prints one result and keeps it for the table.
fn report(table: &mut Table, peer: Peer, name: &str, mut figures: Value) {
    figures["work"] = json!(name);
    figures["server"] = json!(peer.name());
    println!("{figures}");
    table.add(peer.name(), name, figures);
}

/// All the work on one server, from an empty folder.
async fn run(peer: Peer, work: &Work, table: &mut Table) {
    let scratch = tempfile::tempdir_in(&work.arguments.scratch).unwrap();
    postgres::let_in(scratch.path());
    let folder = scratch.path().join(peer.name());
    let program = work.arguments.program.as_path();
    let mut running = peer.start(program, &folder).await;
    let figures = workload::import(&running, &work.import, false).await;
    report(table, peer, "import", figures);
    let figures = workload::import(&running, &work.import, true).await;
    report(table, peer, "import again", figures);
    running.process.stop(peer.stop_signal());
    let (text_bytes, count) = (work.import.text_bytes, work.import.article_count);
    let figures = workload::disk(process::disk_bytes(&peer.data(&folder)), text_bytes, count);
    report(table, peer, "disk", figures);
    running = peer.start(program, &folder).await;
    let figures = json!({ "open_ms": running.open.as_millis() as u64 });
    report(table, peer, "open after stop", figures);

    let mut number = work.arguments.articles;
    for in_flight in [64, 256] {
        let numbers = number..number + work.arguments.puts;
        number = numbers.end;
        let articles = workload::new_articles(&work.corpus, numbers, scratch.path());
        let figures = workload::put(&running, articles, in_flight).await;
        report(table, peer, &format!("put, {in_flight} in flight"), figures);
    }
    let ids = &work.import.ids;
    let figures = workload::missing(&running, ids).await;
    report(table, peer, "find missing", figures);
    report(
        table,
        peer,
        "get, in cache",
        workload::get(&running, ids).await,
    );
    report(table, peer, "scan by date", workload::scan(&running).await);
    running.process.kill();
    let mut running = peer.start(program, &folder).await;
    let figures = json!({ "open_ms": running.open.as_millis() as u64 });
    report(table, peer, "open after kill", figures);
    running.process.stop(peer.stop_signal());
}
