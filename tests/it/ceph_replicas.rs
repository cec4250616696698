//! Replicas of an archive on the Ceph that `ceph.rs` has: how much more is read from four of them, and
//! how soon they have what was written.

use std::time::{Duration, Instant};

use pressmark::rpc::proto;

use crate::ceph::{new_place, options, turn};
use crate::replicas::{
    Writing, at_least, get_by_id, put, staleness, start, stop_the_writer, watch_across_a_failover,
};
use crate::server::{ServerProcess, articles, id_of, import_request, message};
use crate::slate::check_place;
use crate::support::TestResult;

/// As many as the goals are for.
const REPLICAS: usize = 4;

/// Articles that are read, at random.
const ARTICLES: usize = 2000;

/// How long is read from each number of replicas.
const READING: Duration = Duration::from_secs(6);

/// How many read at a time.
const READERS: usize = 16;

/// Writes whose way to the replicas is timed.
const TIMED: usize = 200;

/// The goal, and what a machine may add that has two slow threads for the storage, a writer, its
/// replicas and clients.
const STALENESS_GOAL: Duration = Duration::from_secs(2);
const SLOWNESS: Duration = Duration::from_secs(2);

/// The time that a share of all took at most.
fn percentile(sorted: &[Duration], share: usize) -> Duration {
    sorted[(sorted.len() - 1) * share / 100]
}

/// Reads articles for a while, and tells how many in a second.
async fn read_rate(replicas: &[ServerProcess]) -> f64 {
    let started = Instant::now();
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let address = replicas[reader % replicas.len()].address.clone();
            tokio::spawn(async move {
                let mut calls = articles(&address).await;
                let mut count = 0_u32;
                let mut number = reader;
                while started.elapsed() < READING {
                    number = (number * 31 + 7) % ARTICLES;
                    calls.get_article(get_by_id(id_of(number))).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for reader in readers {
        count += reader.await.unwrap();
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn four_replicas_are_read_and_follow_within_seconds() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let text = locator.to_string();
    let flags = cluster.flags(cluster.url());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let writer = start(&text, &flags, &[]);
    let mut there = articles(&writer.address).await;
    let all: Vec<_> = (0..ARTICLES).map(message).collect();
    let import = tokio_stream::iter(vec![import_request(&all)]);
    let mut results = there.import_articles(import).await?.into_inner();
    let mut last = 0;
    while let Some(some) = results.message().await? {
        last = some
            .results
            .iter()
            .map(|result| result.sequence)
            .fold(last, u64::max);
    }
    let replicas: Vec<_> = (0..REPLICAS)
        .map(|_| start(&text, &flags, &["--replica"]))
        .collect();
    for replica in &replicas {
        let mut here = articles(&replica.address).await;
        let count = proto::CountArticlesRequest::default();
        let count = here.count_articles(at_least(last, count)).await?;
        assert_eq!(count.into_inner().article_count(), ARTICLES as u64);
    }
    // Once before, so that everything is in memory.
    read_rate(&replicas).await;
    let one = read_rate(&replicas[..1]).await;
    let four = read_rate(&replicas).await;
    println!(
        "reads in a second: {one:.0} from one replica, {four:.0} from {REPLICAS}, {:.2} times as \
         many, all on the same two threads",
        four / one
    );
    let at_rest = time_writes(&writer, &replicas, 1_000_000).await?;
    tell("a write at a time for each", at_rest);
    // Others write meanwhile.
    let mut load: Vec<_> = (1..5)
        .map(|n| Writing::start(&writer.address, n * 100_000))
        .collect();
    load[0].more(20).await;
    let under_load = time_writes(&writer, &replicas, 2_000_000).await?;
    let mut acknowledged = Vec::new();
    for writing in load {
        acknowledged.extend(writing.finish().await.into_values());
    }
    tell("beside four other writers", under_load);
    drop(there);
    for replica in replicas {
        assert!(replica.terminate());
    }
    assert!(writer.terminate());
    check_place(&locator, options(), &acknowledged).await
}

/// Prints how long writes took to come to the replicas, and how stale those said that they were.
fn tell(what: &str, (mut seen_after, mut told): (Vec<Duration>, Vec<Duration>)) {
    seen_after.sort();
    told.sort();
    let of = |all: &[Duration]| [50, 99].map(|share| percentile(all, share));
    let ([seen_50, seen_99], [told_50, told_99]) = (of(&seen_after), of(&told));
    println!(
        "{what}: {TIMED} writes were read from {REPLICAS} replicas {seen_50:.0?} (p50) and \
         {seen_99:.0?} (p99) after they were acknowledged; the replicas told a staleness of \
         {told_50:.0?} (p50) and {told_99:.0?} (p99)"
    );
    for p99 in [seen_99, told_99] {
        assert!(p99 <= STALENESS_GOAL + SLOWNESS, "p99 is {p99:?}");
    }
}

/// Writes one by one for each replica, and follows each write there by its own sequence.
async fn time_writes(
    writer: &ServerProcess,
    replicas: &[ServerProcess],
    first: usize,
) -> Result<(Vec<Duration>, Vec<Duration>), Box<dyn std::error::Error>> {
    let times = replicas.iter().enumerate().map(|(at, replica)| async move {
        let mut there = articles(&writer.address).await;
        let mut here = articles(&replica.address).await;
        let (mut seen_after, mut told) = (Vec::new(), Vec::new());
        for number in (first..first + TIMED).skip(at).step_by(REPLICAS) {
            let stored = there.put_article(put(number)).await?.into_inner();
            let acknowledged = Instant::now();
            let request = at_least(stored.sequence, get_by_id(id_of(number)));
            here.get_article(request).await?;
            seen_after.push(acknowledged.elapsed());
            told.push(staleness(replica).await.unwrap());
        }
        Ok::<_, tonic::Status>((seen_after, told))
    });
    let (mut seen_after, mut told) = (Vec::new(), Vec::new());
    for (seen, stale) in futures_util::future::try_join_all(times).await? {
        seen_after.extend(seen);
        told.extend(stale);
    }
    Ok((seen_after, told))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_watch_goes_on_across_a_failover() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let flags = cluster.flags(cluster.url());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    watch_across_a_failover(&locator, options(), &flags).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_stopped_writer_never_acknowledges_again() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, locator) = new_place();
    let flags = cluster.flags(cluster.url());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    stop_the_writer(&locator, options(), &flags).await
}
