//! Archives in Azure's object storage, for which its vendor's own imitation stands.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use pressmark::rpc::proto::{PutArticleRequest, PutOutcome};
use tempfile::TempDir;

use crate::cli::{Ran, program};
use crate::server::{ServerProcess, articles, message};
use crate::support::TestResult;

/// The account that Azurite has from the beginning, which is the same everywhere.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const PLACE: &str = "az://pressmark/desk/archive";

/// Articles that are put before each kill.
const ARTICLES: usize = 30;

/// A blob service with a container.
struct Azurite {
    child: Child,
    url: String,
    /// It ends when it cannot write.
    _output: BufReader<ChildStdout>,
    /// Kept until it has ended.
    _folder: TempDir,
}

impl Azurite {
    fn start() -> Self {
        let modules =
            std::env::var("NODE_PATH").expect("NODE_PATH names the folder of its packages");
        let program = PathBuf::from(modules).join("azurite/dist/src/blob/main.js");
        assert!(program.exists(), "{}", program.display());
        let folder = TempDir::new().unwrap();
        let mut child = Command::new("node")
            .arg(program)
            .args([
                "--blobPort",
                "0",
                "--disableTelemetry",
                "--silent",
                "--skipApiVersionCheck",
            ])
            .arg("--location")
            .arg(folder.path())
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node can be run");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let line = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains("successfully listens on"))
            .expect("it says where it listens");
        let (_, address) = line.trim().rsplit_once(' ').unwrap();
        let url = format!("{address}/{ACCOUNT}");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/container.js");
        let made = Command::new("node")
            .args([script, &url, KEY, "pressmark"])
            .status();
        assert!(made.unwrap().success());
        Self {
            child,
            url,
            _output: output,
            _folder: folder,
        }
    }

    /// The program under test, as it is told of the account.
    fn pressmark(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command
            .args(["--archive", PLACE, "--s3-endpoint", &self.url])
            .args(["--writer-lease", "500ms"])
            .args(arguments)
            .env("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
            .env("AZURE_STORAGE_ACCOUNT_KEY", KEY);
        command
    }

    fn serve(&self) -> ServerProcess {
        ServerProcess::of(self.pressmark(&["serve", "--listen", "127.0.0.1:0"]))
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
#[ignore = "needs node with azurite from npm"]
async fn an_archive_in_azure_outlives_kills() -> TestResult {
    let azurite = Azurite::start();
    let mut count = 0;
    for _ in 0..2 {
        let server = azurite.serve();
        let mut client = articles(&server.address).await;
        // Those of the round before first, which are all there.
        for number in 0..count + ARTICLES {
            let request = PutArticleRequest {
                article: Some(message(number)),
            };
            let put = client.put_article(request).await?.into_inner();
            let expected = if number < count {
                PutOutcome::Duplicate
            } else {
                PutOutcome::Created
            };
            assert_eq!(put.outcome(), expected, "{number}");
            assert_eq!(put.sequence, number as u64 + 1);
        }
        count += ARTICLES;
        let second = Ran::of(&mut azurite.pressmark(&["list"])).exits(2);
        assert!(
            second.err.contains("is open in another process"),
            "{}",
            second.err
        );
        server.kill();
    }
    let verified = Ran::of(&mut azurite.pressmark(&["verify"])).exits(0);
    let expected = format!("OK: {count} articles");
    assert!(verified.out.starts_with(&expected), "{}", verified.out);
    Ok(())
}
