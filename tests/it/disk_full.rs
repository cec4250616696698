//! A disk without room, without permission, and one that does not sync: writes are refused with what to
//! do, reads go on, and nothing acknowledged is lost.

use std::path::{Path, PathBuf};
use std::process::Command;

use pressmark::rpc::proto;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::cli::program;
use crate::load::check_acknowledged;
use crate::server::{ServerProcess, articles, message};

/// Bytes of body that make a full disk near.
const BODY_BYTES: usize = 100_000;

/// Puts article after article until one is refused, and returns the ids of the others.
async fn fill(
    client: &mut ArticleServiceClient<Channel>,
    first: usize,
    acknowledged: &mut Vec<String>,
) -> (usize, Status) {
    for number in first.. {
        match put(client, number).await {
            Ok(id) => acknowledged.push(id),
            Err(status) => return (number, status),
        }
    }
    unreachable!("the disk has an end")
}

async fn put(client: &mut ArticleServiceClient<Channel>, number: usize) -> Result<String, Status> {
    let mut article = message(number);
    article.body = crate::support::noise(number as u32, BODY_BYTES);
    let article = Some(article);
    let put = client.put_article(proto::PutArticleRequest { article });
    Ok(put.await?.into_inner().id)
}

async fn get(client: &mut ArticleServiceClient<Channel>, id: &str) -> Result<(), Status> {
    let name = proto::get_article_request::Name::Id(id.to_owned());
    let request = proto::GetArticleRequest {
        name: Some(name),
        ..Default::default()
    };
    client.get_article(request).await.map(|_| ())
}

#[track_caller]
fn check_refused(status: &Status, code: Code, reason: &str, part: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().expect("a reason");
    assert_eq!(info.reason, reason, "{status:?}");
    assert!(status.message().contains(part), "{status:?}");
}

async fn check_all(folder: &Path, acknowledged: &[String]) {
    let ids: Vec<_> = acknowledged.iter().map(|id| id.parse().unwrap()).collect();
    check_acknowledged(folder, &ids).await;
}

/// A file system in memory, mounted as long as this lives.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "mount works");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A failed test may have left it busy; a lazy unmount leaves nothing behind.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and mount"]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let disk = SmallDisk::new("300M");
    let folder = disk.path("archive");
    let ballast = disk.path("ballast");
    let server = ServerProcess::start(&folder);
    let mut client = articles(&server.address).await;
    let mut acknowledged = Vec::new();
    let mut next = 0;
    for round in 1..=3 {
        for _ in 0..20 {
            acknowledged.push(put(&mut client, next).await.unwrap());
            next += 1;
        }
        // Something else fills the disk up to a few MiB, so that the reserve is what is left.
        std::fs::write(&ballast, vec![0_u8; 200_000_000]).unwrap();
        let (_, status) = fill(&mut client, next, &mut acknowledged).await;
        let path = folder.to_str().unwrap();
        check_refused(&status, Code::ResourceExhausted, "DISK_FULL", path);
        for id in &acknowledged {
            get(&mut client, id).await.unwrap();
        }
        next = 1000 * round;
        let (_, again) = fill(&mut client, next, &mut acknowledged).await;
        check_refused(&again, Code::ResourceExhausted, "DISK_FULL", path);
        std::fs::remove_file(&ballast).unwrap();
    }
    acknowledged.push(put(&mut client, next).await.unwrap());
    drop(client);
    server.kill();
    check_all(&folder, &acknowledged).await;
    println!(
        "3 times full, {} articles acknowledged, 0 lost",
        acknowledged.len()
    );
}

/// What a disk has left is not known to be enough for an archive to be begun or opened.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and mount"]
async fn opening_on_a_full_disk_is_an_error() {
    let disk = SmallDisk::new("1M");
    std::fs::write(disk.path("ballast"), vec![0_u8; 1_040_000]).unwrap();
    let output = program()
        .arg("--archive")
        .arg(disk.path("archive"))
        .args(["put", "-"])
        .output();
    check_failed(&output.unwrap(), disk.path("archive").to_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and mount"]
async fn a_folder_that_cannot_be_written_is_an_error() {
    let disk = SmallDisk::new("100M");
    let folder = disk.path("archive");
    let mut put = program();
    let put = put
        .arg("--archive")
        .arg(&folder)
        .args(["put", "tests/data/rates-held.md"]);
    assert!(put.output().unwrap().status.success());
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.folder.path())
        .status();
    assert!(remounted.unwrap().success());
    let path = folder.to_str().unwrap();
    check_failed(&put.output().unwrap(), path);
    let mut serve = program();
    let serve = serve
        .arg("--archive")
        .arg(&folder)
        .args(["serve", "--listen", "127.0.0.1:0"]);
    check_failed(&serve.output().unwrap(), path);
}

#[track_caller]
fn check_failed(output: &std::process::Output, path: &str) {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains(path), "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
}

/// The process may write files up to a size: the server refuses writes before it gets there.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_file_refuses_writes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("archive");
    // 60,000 blocks of 1 KiB or of 512 bytes, as the shell has it.
    let limited = ["sh", "-c", "ulimit -f 90000; exec \"$@\"", "sh"];
    let server = ServerProcess::spawn_under(&limited, &folder).ready();
    let mut client = articles(&server.address).await;
    let mut acknowledged = Vec::new();
    let (next, status) = fill(&mut client, 0, &mut acknowledged).await;
    check_refused(
        &status,
        Code::ResourceExhausted,
        "DISK_FULL",
        folder.to_str().unwrap(),
    );
    for id in &acknowledged {
        get(&mut client, id).await.unwrap();
    }
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    drop(client);
    assert!(server.terminate(), "it ends in good order");
    check_all(&folder, &acknowledged).await;
    let server = ServerProcess::start(&folder);
    let mut client = articles(&server.address).await;
    acknowledged.push(put(&mut client, next).await.unwrap());
    drop(client);
    server.kill();
    check_all(&folder, &acknowledged).await;
    println!("{} articles acknowledged, 0 lost", acknowledged.len());
}

/// A sync that fails stops all writes; what was acknowledged before is there after a restart.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs strace"]
async fn a_failed_sync_stops_all_writes() {
    for number in [2, 5, 9] {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("archive");
        let inject = format!("inject=fdatasync:error=EIO:when={number}");
        // -D keeps the server the child of this process, so that a kill hits it.
        let strace = [
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
        ];
        let strace = [strace.as_slice(), &["-e", &inject]].concat();
        let server = ServerProcess::spawn_under(&strace, &folder).ready();
        let mut client = articles(&server.address).await;
        let mut acknowledged = Vec::new();
        let (failed, status) = fill(&mut client, 0, &mut acknowledged).await;
        check_refused(
            &status,
            Code::Unavailable,
            "STORE_FAILED",
            "Input/output error",
        );
        for again in [failed, failed + 1] {
            let status = put(&mut client, again).await.unwrap_err();
            check_refused(
                &status,
                Code::Unavailable,
                "WRITES_STOPPED",
                "Input/output error",
            );
        }
        for id in &acknowledged {
            get(&mut client, id).await.unwrap();
        }
        drop(client);
        server.kill();
        check_all(&folder, &acknowledged).await;
        println!(
            "sync {number} failed, {} articles acknowledged, 0 lost",
            acknowledged.len()
        );
    }
}
