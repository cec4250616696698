//! An archive that moves from a folder to a Ceph of three OSDs while it is in use: no put is lost, and
//! clients go on at the new place.

use std::path::Path;
use std::time::Instant;

use crate::ceph::{new_place, options, turn};
use crate::cli::Scratch;
use crate::migrate::{Load, Running, check_outcome};
use crate::server::ServerProcess;
use crate::support::TestResult;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ceph-mon, ceph-osd, ceph-mgr, radosgw and ceph-common from Debian"]
async fn a_folder_moves_to_ceph_under_load_without_losing_a_put() -> TestResult {
    let (_turn, cluster) = turn().await;
    let (_folder, to) = new_place();
    let place = to.to_string();
    let scratch = Scratch::new();
    let server = ServerProcess::start_with(&scratch.path("archive"), &["--search", "off"]);
    let load = Load::start(&server.address, 8);
    load.more(2000).await;
    let flags = cluster.flags(&cluster.url);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // The last one is the server's alone.
    let server_flags = flags.split_off(flags.len() - 2);

    let started = Instant::now();
    let arguments = [&[&*server.address, &place], flags.as_slice()].concat();
    let mut command = crate::cli::program();
    command.arg("migrate").args(arguments);
    let mut running = Running::start(command);
    running.follows(2000);
    println!("caught up after {:?}", started.elapsed());
    // A gateway that is gone for a while is waited for.
    cluster.change("kill", "gateway");
    load.more(300).await;
    cluster.change("start", "gateway");
    let last = load.more(300).await;
    running.follows(last);
    drop(running);

    let started = Instant::now();
    let mut command = crate::cli::program();
    command.args(["migrate", "--switch", &server.address, &place]);
    command.args(&flags);
    let (end, code) = loop {
        // The one that was killed has its lease for a moment.
        let mut again = crate::cli::program();
        again.args(command.get_args());
        let running = Running::start(again);
        match tokio::task::spawn_blocking(|| running.try_end()).await? {
            (Some(end), code) => break (end, code),
            (None, code) => assert_eq!(code, 2),
        }
    };
    println!("switched after {:?}: {end}", started.elapsed());
    assert_eq!((&end["event"], code), (&"complete".into(), 0));
    let flags = [flags, server_flags].concat();
    let next = ServerProcess::start_with(Path::new(&place), &flags);
    load.address.send(next.address.clone())?;
    load.more(300).await;
    let outcome = load.finish().await;
    assert!(server.terminate() && next.terminate());
    check_outcome(&to, options(), &outcome).await?;
    println!(
        "{} puts and {} deletes acknowledged, 0 lost",
        outcome.stored.len(),
        outcome.deleted.len()
    );
    Ok(())
}
