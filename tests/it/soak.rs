//! A server in use for a long time: mixed load over TLS with tokens, while it is stopped, killed, started
//! again and given other certificates and tokens. Requests fail only around a restart, memory does not
//! grow, nothing acknowledged is lost, and a watch across all of it has every change once.
//!
//! `PRESSMARK_TEST_SOAK_SECONDS` says how long; 1,800 are a run by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pressmark::rpc::proto;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::cli::program;
use crate::desk::Desk;
use crate::load::{rounds, seed};
use crate::server::{ServerProcess, check_folder};
use crate::soak_load::{Soak, delete, import, put, read, visit, watch, within};
use crate::victim::memory_kb;

/// How long the test is, in seconds, unless somebody says otherwise.
const SECONDS: usize = 8;

/// Between two things that happen to the server.
const CHAOS: std::ops::Range<Duration> = Duration::from_millis(800)..Duration::from_millis(3000);

/// Memory is judged by what a process has when it is so old, if there are so many figures.
const GROWN_UP: Duration = Duration::from_secs(8);
const FIGURES_MIN: usize = 20;

/// How much more memory there may be in the last third of the time than in the first, in percent, and
/// for each article stored in between: the engine keeps a table of all its pages.
const GROWTH_MAX: u64 = 30;
const ARTICLE_KB: u64 = 1;

/// A server, and what reads its log.
struct Running {
    server: ServerProcess,
    log: JoinHandle<Vec<String>>,
    begun: Instant,
}

/// Starts the server, and keeps the lines of its log that tell of errors.
fn start(desk: &Desk, address: &str) -> Running {
    let mut command = program();
    command.args(["serve", "--listen", address, "--log-format", "json"]);
    for (flag, name) in [
        ("--tls-cert", "cert.pem"),
        ("--tls-key", "key.pem"),
        ("--tokens", "tokens.toml"),
        ("--archive", "archive"),
    ] {
        command.args([flag, &desk.text(name)]);
    }
    command.stderr(Stdio::piped()).env("PRESSMARK_LOG", "warn");
    let mut server = ServerProcess::of(command);
    let lines = BufReader::new(server.take_stderr()).lines();
    let is_error = |line: &String| line.contains("\"level\":\"ERROR\"");
    let log = std::thread::spawn(move || lines.map_while(Result::ok).filter(is_error).collect());
    let begun = Instant::now();
    Running { server, log, begun }
}

/// Does to the server what may happen to it, and looks at its memory.
async fn chaos(soak: Arc<Soak>, mut running: Running, end: Instant, mut random: StdRng) -> Running {
    let begun = Instant::now();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut stop_max, mut start_max) = (Duration::ZERO, Duration::ZERO);
    // The longer the test, the longer servers live: memory shows in those that do.
    let rarely = ((end - begun).as_secs() / 60).clamp(1, 8) as u32;
    while Instant::now() < end {
        tokio::time::sleep(random.random_range(CHAOS)).await;
        if running.begun.elapsed() > GROWN_UP {
            let memory = memory_kb(running.server.id(), "VmRSS");
            let articles = soak.numbers.load(Ordering::Relaxed);
            let figure = (begun.elapsed().as_secs(), memory, articles);
            soak.memory.lock().unwrap().push(figure);
        }
        let what = match random.random_range(0..4) {
            0 => {
                soak.desk.renew();
                "certificates renewed"
            }
            1 => {
                let (name, tokens) = ("guest", soak.desk.text("tokens.toml"));
                soak.desk.add(name, "reader");
                soak.desk
                    .run(&["token", "revoke", name, "--tokens", &tokens])
                    .exits(0);
                "tokens added and revoked"
            }
            _ if !random.random_ratio(1, rarely) => "nothing",
            restart => {
                *soak.restart.lock().unwrap() = (Instant::now(), None);
                let Running { server, log, .. } = running;
                let is_kill = restart == 2;
                let ending = tokio::task::spawn_blocking(move || {
                    if is_kill {
                        server.kill();
                    } else {
                        assert!(server.terminate(), "it stops in good order");
                    }
                });
                let ended = Instant::now();
                ending.await.unwrap();
                stop_max = stop_max.max(ended.elapsed());
                let errors = log.join().unwrap();
                assert!(errors.is_empty(), "{errors:#?}");
                let started = Instant::now();
                running = start(&soak.desk, soak.address.trim_start_matches("https://"));
                start_max = start_max.max(started.elapsed());
                soak.restart.lock().unwrap().1 = Some(Instant::now());
                if is_kill { "killed" } else { "stopped" }
            }
        };
        *counts.entry(what).or_default() += 1;
    }
    println!("{counts:?}, a stop took {stop_max:?} at most, a start {start_max:?}");
    running
}

/// Compares the memory of the first third with that of the last.
fn check_memory(figures: &[(u64, u64, u64)]) {
    let third = figures.len() / 3;
    if figures.len() < FIGURES_MIN {
        println!("{} figures of memory are too few to judge", figures.len());
        return;
    }
    let middle = |some: &[(u64, u64, u64)]| {
        let mut memory: Vec<_> = some.iter().map(|(_, memory, _)| *memory).collect();
        memory.sort_unstable();
        (memory[memory.len() / 2], some[some.len() / 2].2)
    };
    let (early, articles_early) = middle(&figures[..third]);
    let (late, articles_late) = middle(&figures[figures.len() - third..]);
    println!(
        "RSS in MB, the median of {third} figures: {} in the first third, {} in the last, with {} \
         articles more",
        early / 1024,
        late / 1024,
        articles_late - articles_early
    );
    let most = early * (100 + GROWTH_MAX) / 100 + ARTICLE_KB * (articles_late - articles_early);
    assert!(late <= most, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_time_with_everything() {
    let seconds = rounds("PRESSMARK_TEST_SOAK_SECONDS", SECONDS);
    let seed = seed();
    let random = |stream: u64| StdRng::seed_from_u64(seed ^ stream);
    let desk = Desk::new();
    let writer = desk.add("importer", "writer");
    let admin = desk.add("chief", "admin");
    let running = start(&desk, "127.0.0.1:0");
    let now = Instant::now();
    let soak = Arc::new(Soak {
        address: running.server.address.clone(),
        desk,
        writer,
        admin,
        is_over: AtomicBool::new(false),
        restart: Mutex::new((now, Some(now))),
        acknowledged: Mutex::default(),
        deleted: Mutex::default(),
        maybe_deleted: Mutex::default(),
        seen: Mutex::default(),
        requests: AtomicU64::new(0),
        failures: Mutex::default(),
        memory: Mutex::default(),
        numbers: AtomicU64::new(0),
    });
    let mut workers = JoinSet::new();
    for stream in 0..2 {
        workers.spawn(put(Arc::clone(&soak), random(10 + stream)));
        workers.spawn(import(Arc::clone(&soak), random(20 + stream)));
        workers.spawn(read(Arc::clone(&soak), random(30 + stream)));
    }
    workers.spawn(delete(Arc::clone(&soak), random(40)));
    workers.spawn(visit(Arc::clone(&soak)));
    // The watch goes on until it has seen all that the others did.
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let until = Arc::clone(&last);
    let watching = tokio::spawn(watch(Arc::clone(&soak), move |seen| {
        seen >= until.load(Ordering::Relaxed)
    }));
    let end = now + Duration::from_secs(seconds as u64);
    let chaos = tokio::spawn(chaos(Arc::clone(&soak), running, end, random(50)));
    let running = tokio::select! {
        running = chaos => running.unwrap(),
        // Only a failure ends a worker before that.
        worker = workers.join_next() => panic!("{worker:?}"),
    };
    soak.is_over.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    let mut calls = soak.articles();
    let count = proto::CountArticlesRequest::default();
    let counted = calls
        .count_articles(soak.write(count))
        .await
        .unwrap()
        .into_inner();
    last.store(counted.as_of_sequence.unwrap(), Ordering::Relaxed);
    within("the watch", watching).await.unwrap();
    drop(calls);
    let Running { server, log, .. } = running;
    assert!(server.terminate());
    let errors = log.join().unwrap();
    assert!(errors.is_empty(), "{errors:#?}");
    println!(
        "{seconds} s, {} requests, failed around restarts: {:?}",
        soak.requests.load(Ordering::Relaxed),
        soak.failures.lock().unwrap()
    );
    check_memory(&soak.memory.lock().unwrap());
    check_folder(&soak.desk.path("archive"), async |archive| {
        check_archive(&soak, archive).await;
    })
    .await;
}

/// Nothing acknowledged is lost, and the watch saw all of it.
async fn check_archive(soak: &Soak, archive: &pressmark::archive::Archive) {
    let acknowledged = soak.acknowledged.lock().unwrap().clone();
    let deleted = soak.deleted.lock().unwrap().clone();
    let maybe_deleted = soak.maybe_deleted.lock().unwrap().clone();
    let seen = soak.seen.lock().unwrap().clone();
    let ids: Vec<_> = acknowledged.values().copied().collect();
    for some in ids.chunks(1000) {
        let missing = archive.find_missing(some).await.unwrap();
        assert!(missing.missing.is_empty(), "lost: {:?}", missing.missing);
        for id in missing.deleted {
            assert!(maybe_deleted.contains(&id), "{id} was deleted by nobody");
        }
    }
    for id in &deleted {
        let missing = archive.find_missing(&[*id]).await.unwrap();
        assert_eq!(missing.deleted, [*id], "a delete was lost");
    }
    let last = archive.committed();
    let mut skipped = 0;
    for sequence in 1..=last {
        match seen.get(&sequence) {
            Some(Some(id)) => assert_eq!(archive.id_at(sequence).await.unwrap(), *id),
            Some(None) => {}
            // It was deleted before the watch came by.
            None => {
                let id = archive.id_at(sequence).await.unwrap();
                assert!(maybe_deleted.contains(&id), "the watch missed {sequence}");
                skipped += 1;
            }
        }
    }
    println!(
        "{} articles acknowledged, {} deletes, {last} changes, of which the watch saw {} and {skipped} \
         were deleted before it came: 0 lost",
        acknowledged.len(),
        deleted.len(),
        seen.len()
    );
    assert!(!acknowledged.is_empty() && !seen.is_empty());
}
