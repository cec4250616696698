//! `kill -9` of a server under load: what was acknowledged is there, and nothing is half there.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::load::{break_under_load, check_acknowledged, rounds, seed};
use crate::server::{ServerProcess, check_folder, message};

/// Kills of one archive before the next one is begun.
const KILLS_PER_ARCHIVE: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_acknowledged() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let kills = rounds("PRESSMARK_TEST_KILLS", 50);
    let mut acknowledged_count = 0;
    for archive in 0..kills.div_ceil(KILLS_PER_ARCHIVE) {
        let folder = tempfile::tempdir().unwrap();
        let mut acknowledged = Vec::new();
        for _ in 0..KILLS_PER_ARCHIVE.min(kills - archive * KILLS_PER_ARCHIVE) {
            let server = ServerProcess::start(folder.path());
            let target = random.random_range(1..300);
            let more = break_under_load(server, random.random(), target, ServerProcess::kill).await;
            acknowledged.extend(more);
            check_acknowledged(folder.path(), &acknowledged).await;
        }
        acknowledged_count += acknowledged.len();
    }
    println!("{kills} kills, {acknowledged_count} articles acknowledged, 0 lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_server_loses_nothing_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path());
    let stop = |server: ServerProcess| assert!(server.terminate(), "the exit code is 0");
    let acknowledged = break_under_load(server, seed(), 500, stop).await;
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
