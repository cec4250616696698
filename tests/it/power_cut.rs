//! Power cuts, made on a file system of the test's own whose power is really cut: what was not
//! synced is gone when it is mounted again.

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::load::{break_under_load, check_acknowledged, rounds, seed};
use crate::server::ServerProcess;

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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, and xfsprogs, e2fsprogs and mount"]
async fn a_power_cut_loses_nothing_acknowledged() {
    let mut random = StdRng::seed_from_u64(seed());
    let cuts = rounds("PRESSMARK_TEST_CUTS", 5);
    let disk = Disk::new();
    let folder = disk.mount_point().join("archive");
    let mut acknowledged = Vec::new();
    for _ in 0..cuts {
        let server = ServerProcess::start(&folder);
        let target = random.random_range(1..3000);
        let point = disk.mount_point();
        let cut = move |server: ServerProcess| {
            Disk::cut(&point);
            server.kill();
        };
        let (more, ()) = break_under_load(server, random.random(), target, cut).await;
        acknowledged.extend(more);
        disk.unmount();
        disk.mount();
        check_acknowledged(&folder, &acknowledged).await;
    }
    println!(
        "{cuts} power cuts, {} articles acknowledged, 0 lost",
        acknowledged.len()
    );
    disk.unmount();
}
