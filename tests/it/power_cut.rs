//! Power cuts, made on a file system of the test's own whose power is really cut: what was not
//! synced is gone when it is mounted again. They come under imports, while an archive is opened or
//! begun, and right after that.
//!
//! `PRESSMARK_TEST_CUTS` says how many cuts there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pressmark::article::ContentHash;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::load::{Damage, Deck, break_under_load, check_acknowledged, damage, rounds, seed};
use crate::server::{ServerProcess, check_folder};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} is needed and cannot be run: {error}");
        });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// An ext4 file system in a file, mounted as long as this lives.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self { folder };
        std::fs::create_dir(disk.mount_point()).unwrap();
        run("truncate", &["-s", "2G", &disk.image()]);
        run("mkfs.ext4", &["-q", "-F", &disk.image()]);
        disk.mount();
        disk
    }

    fn image(&self) -> String {
        let image = self.folder.path().join("image");
        image.into_os_string().into_string().unwrap()
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Mounts it so that it writes nothing by itself for as long as any test takes.
    fn mount(&self) {
        let point = self.mount_point();
        run(
            "mount",
            &[
                "-o",
                "loop,commit=600",
                &self.image(),
                point.to_str().unwrap(),
            ],
        );
    }

    /// Cuts the power: from now on nothing reaches the disk.
    fn cut(point: &Path) {
        run("xfs_io", &["-x", "-c", "shutdown", point.to_str().unwrap()]);
    }

    fn unmount(&self) {
        run("umount", &[self.mount_point().to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A failed test may have left it unmounted or busy; a lazy unmount leaves nothing behind.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.mount_point())
            .output();
    }
}

/// What the server does when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// It takes imports.
    Import,
    /// It opens its archive, after another cut.
    Open,
    /// It opens an archive that was not there before.
    Create,
    /// It has just begun an archive, and acknowledged a few articles or none.
    Created,
}

const MOMENTS: [Moment; 7] = [
    Moment::Import,
    Moment::Import,
    Moment::Import,
    Moment::Open,
    Moment::Open,
    Moment::Create,
    Moment::Created,
];

/// An archive on a disk, and what clients know of it.
struct Victim {
    folder: PathBuf,
    acknowledged: Vec<ContentHash>,
    /// How long its last start took, or that of another new archive.
    start_time: Duration,
}

impl Victim {
    fn start(&mut self) -> ServerProcess {
        let started = Instant::now();
        let server = ServerProcess::start(&self.folder);
        self.start_time = started.elapsed();
        server
    }
}

impl Disk {
    fn new_victim(&self, number: usize) -> Victim {
        Victim {
            folder: self.mount_point().join(format!("archive-{number}")),
            acknowledged: Vec::new(),
            start_time: Duration::ZERO,
        }
    }

    /// Cuts the power under imports once `target` articles are acknowledged.
    async fn cut_under_load(
        &self,
        server: ServerProcess,
        seed: u64,
        target: usize,
    ) -> Vec<ContentHash> {
        let point = self.mount_point();
        let cut = move |server: ServerProcess| {
            server.freeze();
            Self::cut(&point);
            server.kill();
        };
        let (acknowledged, ()) = break_under_load(server, seed, target, cut).await;
        self.remount();
        acknowledged
    }

    /// Cuts the power some time after the start. Returns whether the server served by then.
    async fn cut_start(&self, server: ServerProcess, after: Duration) -> bool {
        // Nothing tells from outside how far opening has come, and the moment of the cut is what
        // the test varies, so here it may wait for a time.
        tokio::time::sleep(after).await;
        server.freeze();
        Self::cut(&self.mount_point());
        let served = server.kill_starting();
        self.remount();
        served
    }

    fn remount(&self) {
        self.unmount();
        self.mount();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, and xfsprogs, e2fsprogs and mount"]
async fn a_power_cut_loses_nothing_acknowledged() {
    let mut random = StdRng::seed_from_u64(seed());
    let cuts = rounds("PRESSMARK_TEST_CUTS", 20);
    let disk = Disk::new();
    let mut victims = vec![disk.new_victim(0)];
    // Of each kind: all cuts, and those that came when the server served already.
    let mut counts: BTreeMap<Moment, (usize, usize)> = BTreeMap::new();
    let mut moments = Deck::new(&MOMENTS);
    let mut creation_time = Duration::ZERO;
    for cut in 0..cuts {
        let mut moment = moments.draw(&mut random);
        if cut == 0 {
            // How long opening takes is not known before the first start.
            moment = Moment::Import;
        }
        // The first archive grows through all cuts, the newest one is cut again after its creation.
        let is_new = matches!(moment, Moment::Create | Moment::Created);
        if is_new {
            let victim = disk.new_victim(victims.len());
            victims.push(Victim {
                start_time: creation_time,
                ..victim
            });
        }
        let first = !is_new && random.random_bool(0.7);
        let at = if first { 0 } else { victims.len() - 1 };
        let victim = &mut victims[at];
        let mut served = true;
        match moment {
            Moment::Import => {
                let (server, target) = (victim.start(), random.random_range(1..700));
                let more = disk.cut_under_load(server, random.random(), target);
                victim.acknowledged.extend(more.await);
            }
            Moment::Created => {
                let (server, target) = (victim.start(), random.random_range(0..3));
                let more = disk.cut_under_load(server, random.random(), target);
                victim.acknowledged.extend(more.await);
            }
            Moment::Open | Moment::Create => {
                let after = random.random_range(Duration::ZERO..victim.start_time);
                served = disk
                    .cut_start(ServerProcess::spawn(&victim.folder), after)
                    .await;
            }
        }
        if cut == 0 {
            creation_time = victim.start_time;
        }
        let count = counts.entry(moment).or_default();
        count.0 += 1;
        count.1 += usize::from(served);
        check_acknowledged(&victim.folder, &victim.acknowledged).await;
    }
    let (mut acknowledged_count, archive_count) = (0, victims.len());
    for victim in victims {
        check_acknowledged(&victim.folder, &victim.acknowledged).await;
        check_folder(&victim.folder, async |_| ()).await;
        acknowledged_count += victim.acknowledged.len();
    }
    for (moment, (count, served_count)) in counts {
        println!("{moment:?}: {count} cuts, {served_count} of them of a server that served");
    }
    println!(
        "{cuts} power cuts, {archive_count} archives, \
         {acknowledged_count} articles acknowledged, 0 lost"
    );
    disk.unmount();
}

/// The control: the same cut under a server whose syncs do nothing has to lose what it
/// acknowledged. If it does not, the test above proves nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, and eatmydata, xfsprogs, e2fsprogs and mount"]
async fn a_power_cut_without_syncs_loses_articles() {
    const CUTS: usize = 3;
    let mut random = StdRng::seed_from_u64(seed());
    let disk = Disk::new();
    let (mut acknowledged_count, mut lost_count, mut unreadable_count) = (0, 0, 0);
    for cut in 0..CUTS {
        let folder = disk.new_victim(cut).folder;
        let server = ServerProcess::spawn_under(&["eatmydata"], &folder).ready();
        let target = random.random_range(100..1500);
        let acknowledged = disk.cut_under_load(server, random.random(), target).await;
        acknowledged_count += acknowledged.len();
        match damage(&folder, &acknowledged).await {
            Ok(damage) => {
                assert_ne!(damage, Damage::default(), "cut {cut} lost nothing");
                lost_count += damage.lost_count;
            }
            Err(error) => {
                println!("cut {cut}: {error}");
                unreadable_count += 1;
            }
        }
    }
    println!(
        "{CUTS} power cuts without syncs, {acknowledged_count} articles acknowledged, \
         {lost_count} lost, {unreadable_count} archives unreadable"
    );
    disk.unmount();
}
