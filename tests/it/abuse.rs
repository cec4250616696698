//! Abuse of a server in a process of its own: while it lasts a client that means well is served, and
//! afterwards the memory is what it was, the server serves and its archive is whole.
//!
//! Each test prints the latency of that client before and during the abuse, and the server's memory.
//! They run one after the other, so that they measure the abuse and not each other.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::desk::Desk;
use crate::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    call, connect, flood, frame, hello, message,
};
use crate::server::ServerProcess;
use crate::victim::{Victim, cpu_time};

/// One abuse at a time.
pub static ALONE: Mutex<()> = Mutex::const_new(());

/// What the allocator may keep of 500 scans, in kilobytes: at their most they hold ten times as much.
const SCANS_KEPT_KB: u64 = 40_000;

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);

/// Longer than anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the allocator may keep of each of many connections, in kilobytes.
const KEPT_KB: u64 = 5;

const SCAN: &str = "/pressmark.v1.ArticleService/ScanArticles";
pub const IMPORT: &str = "/pressmark.v1.ArticleService/ImportArticles";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections() {
    let _alone = ALONE.lock().await;
    let victim = Victim::start(&["--connections-max", "10100"]).await;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = limit.map_or(10_000, |limit| 10_000.min(limit as usize - 600));
    let connect_all = async || {
        let mut open = JoinSet::new();
        let mut all = Vec::new();
        for number in 0..count {
            let address = victim.address().to_owned();
            open.spawn(async move {
                let mut stream = connect(&address, number).await.unwrap();
                stream.write_all(&hello()).await.unwrap();
                // Whoever is served hears of it.
                let mut byte = [0];
                let heard = timeout(PATIENCE, stream.read(&mut byte)).await;
                (stream, matches!(heard, Ok(Ok(1))))
            });
            while open.len() > 200 {
                all.push(open.join_next().await.unwrap().unwrap());
            }
        }
        all.extend(open.join_all().await);
        all.iter().filter(|(_, is_served)| *is_served).count()
    };
    // Of what the first of them took, the allocator keeps pages on which something else is, too. The
    // next ones add nothing to that.
    let kept_kb = KEPT_KB * count as u64;
    let name = format!("{count} connections");
    let served = victim.abused_within(&name, kept_kb, &connect_all).await;
    assert_eq!(served, count);
    let served = victim.abused(&format!("{name} again"), &connect_all).await;
    assert_eq!(served, count);
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_scans_that_nobody_reads() {
    let _alone = ALONE.lock().await;
    let victim = Victim::start(&[]).await;
    let scan_all = async || {
        let mut all = Vec::new();
        for number in 0..50 {
            let mut stream = connect(victim.address(), number).await.unwrap();
            let mut bytes = hello();
            for request in 0..10 {
                let id = 1 + 2 * request;
                bytes.extend(frame(HEADERS, END_HEADERS, id, &call(SCAN, &[])));
                bytes.extend(frame(DATA, END_STREAM, id, &message(false, &[])));
            }
            stream.write_all(&bytes).await.unwrap();
            all.push(stream);
        }
        // The first bytes of each are there, and nobody takes more.
        let mut begun = 0;
        for stream in &mut all {
            let mut some = vec![0; 1000];
            let read = timeout(PATIENCE, stream.read_exact(&mut some)).await;
            begun += usize::from(matches!(read, Ok(Ok(_))));
        }
        tokio::time::sleep(FLOOD).await;
        begun
    };
    // As with connections: the next ones add nothing to what the allocator keeps of the first.
    let name = "500 scans that nobody reads";
    let begun = victim.abused_within(name, SCANS_KEPT_KB, &scan_all).await;
    assert_eq!(begun, 50);
    let begun = victim.abused(&format!("{name} again"), &scan_all).await;
    assert_eq!(begun, 50);
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn connections_that_begin_and_say_no_more() {
    let _alone = ALONE.lock().await;
    let desk = Desk::new();
    let server = desk.serve_tls(&[]);
    let victim = Victim::start(&[]).await;
    // A TLS record that claims 512 bytes of a ClientHello, and has some of them.
    let hello_cut = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 60]].concat();
    let closed = victim
        .abused("1,500 half-open connections", async || {
            let mut open = JoinSet::new();
            for number in 0..1500 {
                let first = match number % 5 {
                    0 => Vec::new(),
                    1 => PREFACE[..10].to_vec(),
                    2 => PREFACE.to_vec(),
                    3 => hello_cut.clone(),
                    _ => hello_cut[..1].to_vec(),
                };
                // Two of five do not begin TLS with the end.
                let address = if number % 5 < 3 {
                    victim.address()
                } else {
                    &server.address
                };
                let mut stream = connect(address, number).await.unwrap();
                open.spawn(async move {
                    stream.write_all(&first).await.unwrap();
                    let mut rest = Vec::new();
                    // The server ends it, by a reset or in good order.
                    let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
                    usize::from(end.is_ok())
                });
            }
            let mut closed = 0;
            while let Some(done) = open.join_next().await {
                closed += done.unwrap();
            }
            closed
        })
        .await;
    assert_eq!(closed, 1500, "the server ends each of them");
    victim.finish().await;
    assert!(server.terminate());
    desk.finish().await;
}

/// Floods a server over some connections at a time, each begun anew when the server ends it.
async fn flood_all(
    address: &str,
    first: &[u8],
    next: impl Fn(u64) -> Vec<u8> + Clone + Send + 'static,
) -> (u64, u64) {
    let mut floods = JoinSet::new();
    for number in 0..8 {
        let (address, next, first) = (address.to_owned(), next.clone(), first.to_vec());
        floods.spawn(async move {
            let begun = Instant::now();
            let (mut sent, mut ended) = (0, 0);
            while begun.elapsed() < FLOOD {
                let mut stream = connect(&address, number).await.unwrap();
                if stream.write_all(&hello()).await.is_err() {
                    continue;
                }
                // It may be ended by then.
                let _ = stream.write_all(&first).await;
                let left = FLOOD.saturating_sub(begun.elapsed());
                let (count, is_ended) = flood(stream, left, next.clone()).await;
                sent += count;
                ended += u64::from(is_ended);
            }
            (sent, ended)
        });
    }
    let mut total = (0, 0);
    while let Some(done) = floods.join_next().await {
        let (sent, ended) = done.unwrap();
        total = (total.0 + sent, total.1 + ended);
    }
    total
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn floods_of_frames() {
    let _alone = ALONE.lock().await;
    let victim = Victim::start(&[]).await;
    let address = victim.address();
    let (sent, ended) = victim
        .abused("rapid reset", async || {
            let headers = call(SCAN, &[]);
            flood_all(address, &[], move |number| {
                let id = u32::try_from(2 * number + 1).unwrap() & 0x7fff_ffff;
                let mut bytes = frame(HEADERS, END_HEADERS, id, &headers);
                bytes.extend(frame(DATA, END_STREAM, id, &message(false, &[])));
                bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
                bytes
            })
            .await
        })
        .await;
    println!("{sent} requests begun and reset, {ended} connections ended for it");
    assert!(ended > 0, "nobody may go on with that");

    let (sent, ended) = victim
        .abused("CONTINUATION without end", async || {
            let first = frame(HEADERS, 0, 1, &call(SCAN, &[]));
            let part = call(SCAN, &[("x-more", "y")])[3..].repeat(100);
            flood_all(address, &first, move |_| frame(CONTINUATION, 0, 1, &part)).await
        })
        .await;
    println!("{sent} frames sent, {ended} connections ended for it");
    assert!(ended > 0, "nobody may go on with that");

    for (name, bytes) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
    ] {
        let bytes = bytes.repeat(100);
        let (sent, ended) = victim
            .abused(name, async || {
                flood_all(address, &[], move |_| bytes.clone()).await
            })
            .await;
        println!(
            "{} frames sent, {ended} connections ended for it",
            sent * 100
        );
    }

    let (sent, ended) = victim
        .abused("empty DATA", async || {
            let first = frame(HEADERS, END_HEADERS, 1, &call(IMPORT, &[]));
            let empty = frame(DATA, 0, 1, &[]).repeat(100);
            flood_all(address, &first, move |_| empty.clone()).await
        })
        .await;
    println!(
        "{} frames sent, {ended} connections ended for it",
        sent * 100
    );
    victim.finish().await;
}

/// The paths of all methods.
fn paths() -> Vec<String> {
    use prost::Message;
    let files = prost_types::FileDescriptorSet::decode(pressmark::rpc::DESCRIPTORS).unwrap();
    let mut paths = Vec::new();
    for file in files.file {
        for service in &file.service {
            let methods = service.method.iter();
            let path = |name| format!("/{}.{}/{name}", file.package(), service.name());
            paths.extend(methods.map(|method| path(method.name())));
        }
    }
    paths
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_millisecond_for_everything() {
    let _alone = ALONE.lock().await;
    let victim = Victim::start(&[]).await;
    let address = victim.address();
    let paths = paths();
    assert_eq!(paths.len(), 21);
    victim
        .abused("1 ms for each of 21 methods, 2,000 times", async || {
            let mut asking = JoinSet::new();
            for number in 0..100 {
                let mut bytes = hello();
                let mut ids = Vec::new();
                for (path, place) in paths.iter().zip(0_u32..) {
                    let id = 1 + 2 * place;
                    ids.push(id);
                    let headers = call(path, &[("grpc-timeout", "1m")]);
                    bytes.extend(frame(HEADERS, END_HEADERS, id, &headers));
                    bytes.extend(frame(DATA, END_STREAM, id, &message(false, &[])));
                }
                let mut stream = connect(address, number).await.unwrap();
                asking.spawn(async move {
                    stream.write_all(&bytes).await.unwrap();
                    let ended = timeout(PATIENCE, ended_streams(&mut stream, ids.len())).await;
                    ended.expect("a request that has a millisecond hangs")
                });
            }
            while let Some(done) = asking.join_next().await {
                done.unwrap();
            }
        })
        .await;
    victim.finish().await;
}

/// Reads frames until so many streams have ended.
async fn ended_streams(stream: &mut TcpStream, count: usize) {
    let mut ended = BTreeSet::new();
    while ended.len() < count {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let is_end = [DATA, HEADERS].contains(&kind) && flags & END_STREAM != 0;
        if is_end || kind == RST_STREAM {
            ended.insert(id);
        }
    }
}

/// File descriptors of a server that is to have too few.
const FILES: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_descriptor_left() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let script = format!("ulimit -n {FILES}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_pressmark"),
        "serve",
    ]);
    command.args(["--listen", "127.0.0.1:0", "--search", "off", "--archive"]);
    command.arg(folder.path().join("archive"));
    command.env("PRESSMARK_LOG", "error").process_group(0);
    let victim = Victim::of(folder, ServerProcess::of(command)).await;
    let spent = victim
        .abused("no file descriptor left", async || {
            let mut open = Vec::new();
            for number in 0..500 {
                open.push(connect(victim.address(), number).await.unwrap());
            }
            tokio::time::sleep(FLOOD).await;
            open.len()
        })
        .await;
    assert_eq!(spent, 500);
    // Nobody but the attacker is there: how busy is the server with him?
    let mut open = Vec::new();
    for number in 0..500 {
        open.push(connect(victim.address(), number).await.unwrap());
    }
    let before = cpu_time(victim.process());
    tokio::time::sleep(FLOOD).await;
    let busy = cpu_time(victim.process()) - before;
    println!("{busy:?} of CPU in {FLOOD:?} without a file descriptor left");
    assert!(busy < FLOOD / 4, "{busy:?}");
    drop(open);
    victim.finish().await;
}
