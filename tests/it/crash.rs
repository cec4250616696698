//! `kill -9` of a server: under load, while it opens its archive, and while it closes it. What was
//! acknowledged is there, and nothing is half there.
//!
//! `PRESSMARK_TEST_KILLS` says how many kills there are; 200 are a run of a few minutes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::load::{Deck, break_under_load, check_acknowledged, rounds, seed};
use crate::server::{ServerProcess, check_folder, message};

/// Kills of one archive before the next one is begun.
const KILLS_PER_ARCHIVE: usize = 6;

/// The longest moment between the request to stop and the kill: somewhat more than a stop takes.
const STOP_MAX: Duration = Duration::from_millis(120);

/// What the server does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Load,
    Open,
    Close,
}

/// How often each comes up: a start that follows a kill is killed as often as the load after it.
const MOMENTS: [Moment; 5] = [
    Moment::Load,
    Moment::Load,
    Moment::Open,
    Moment::Open,
    Moment::Close,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_acknowledged() {
    let mut random = StdRng::seed_from_u64(seed());
    let kills = rounds("PRESSMARK_TEST_KILLS", 30);
    let mut acknowledged_count = 0;
    // Of each kind: all kills, and those that came when opening or closing was already over.
    let mut counts: BTreeMap<Moment, (usize, usize)> = BTreeMap::new();
    let mut moments = Deck::new(&MOMENTS);
    let mut start_time = Duration::ZERO;
    for first in (0..kills).step_by(KILLS_PER_ARCHIVE) {
        let folder = tempfile::tempdir().unwrap();
        let mut acknowledged = Vec::new();
        for kill in first..kills.min(first + KILLS_PER_ARCHIVE) {
            let mut moment = moments.draw(&mut random);
            if kill == 0 {
                // How long opening takes is not known before the first start.
                moment = Moment::Load;
            }
            let mut start = || {
                let started = Instant::now();
                let server = ServerProcess::start(folder.path());
                start_time = started.elapsed();
                server
            };
            let target = random.random_range(1..300);
            let was_over = match moment {
                Moment::Load => {
                    let server = start();
                    let load = random.random();
                    let kill = ServerProcess::kill;
                    let (more, ()) = break_under_load(server, load, target, kill).await;
                    acknowledged.extend(more);
                    false
                }
                Moment::Open => {
                    // Nothing tells from outside how far opening has come, and the moment of the
                    // kill is what this test varies, so here it may wait for a time.
                    let after = random.random_range(Duration::ZERO..start_time * 5 / 4);
                    let server = ServerProcess::spawn(folder.path());
                    tokio::time::sleep(after).await;
                    server.kill_starting()
                }
                Moment::Close => {
                    let after = random.random_range(Duration::ZERO..STOP_MAX);
                    let stop = move |server: ServerProcess| server.terminate_and_kill(after);
                    let server = start();
                    let load = random.random();
                    let (more, ended) = break_under_load(server, load, target, stop).await;
                    acknowledged.extend(more);
                    ended
                }
            };
            let count = counts.entry(moment).or_default();
            count.0 += 1;
            count.1 += usize::from(was_over);
            check_acknowledged(folder.path(), &acknowledged).await;
        }
        // What was checked were copies.
        check_folder(folder.path(), async |_| ()).await;
        acknowledged_count += acknowledged.len();
    }
    for (moment, (count, over_count)) in counts {
        println!("{moment:?}: {count} kills, {over_count} of them when it was over");
    }
    println!("{kills} kills, {acknowledged_count} articles acknowledged, 0 lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_server_loses_nothing_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path());
    let stop = |server: ServerProcess| assert!(server.terminate(), "the exit code is 0");
    let (acknowledged, ()) = break_under_load(server, seed(), 500, stop).await;
    check_acknowledged(folder.path(), &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let server = ServerProcess::start(folder.path());
        let mut client = crate::server::articles(&server.address).await;
        for number in 0..=round {
            let request = pressmark::rpc::proto::PutArticleRequest {
                article: Some(message(number)),
            };
            let put = client.put_article(request).await.unwrap().into_inner();
            assert_eq!(put.sequence, number as u64 + 1);
        }
        drop(client);
        assert!(server.terminate());
    }
    let last = check_folder(folder.path(), async |archive| archive.committed()).await;
    assert_eq!(last, 3);
}
