//! Clients that are told all servers of one archive: reads go to the replicas, writes to whoever
//! writes, also after a standby has taken over.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use pressmark::client::{ArticleCalls, Client, SERVERS_MAX, Server, Target};
use pressmark::rpc::proto;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::cli::{Ran, program};
use crate::guard::get;
use crate::limits::within;
use crate::replicas::{SOON, at_least, get_by_id, put, start};
use crate::server::{ServerProcess, id_of};
use crate::slate::check_place;
use crate::support::{TestResult, bucket_in, small_cache};

/// How often a request is sent again that meets a server at its end, and the pause between.
const TRIES_MAX: usize = 600;
const PAUSE: Duration = Duration::from_millis(50);

/// Reads after which each replica has had some.
const READS: usize = 60;

fn target(urls: &[&str]) -> Target {
    Target::Server(Server {
        urls: urls.iter().map(|&url| url.to_owned()).collect(),
        ..Server::default()
    })
}

/// Starts a server whose figures can be asked for, and tells where.
fn start_counted(place: &str, flags: &[&str]) -> (ServerProcess, String) {
    let more = [flags, &["--http-listen", "127.0.0.1:0"]].concat();
    let mut server = start(place, &SOON, &more);
    let http = server.figures_address();
    (server, http)
}

/// How many requests for one article a server has answered.
async fn gets(http: &str) -> u64 {
    let figures = get(http, "/metrics").await;
    let name = "grpc_server_handled_total{";
    let lines = figures.lines().filter(|line| line.starts_with(name));
    let of_gets = lines.filter(|line| line.contains("\"GetArticle\"") && line.contains("\"OK\""));
    of_gets
        .map(|line| {
            let (_, count) = line.rsplit_once(' ').unwrap();
            count.parse::<u64>().unwrap()
        })
        .sum()
}

async fn put_until_stored(calls: &ArticleCalls, number: usize) -> proto::PutArticleResponse {
    for _ in 0..TRIES_MAX {
        match calls.clone().put_article(put(number)).await {
            Ok(stored) => return stored.into_inner(),
            Err(status) => check_is_passing(&status),
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("article {number} was never stored");
}

async fn get_until_read(calls: &ArticleCalls, number: usize, sequence: u64) {
    for _ in 0..TRIES_MAX {
        let request = at_least(sequence, get_by_id(id_of(number)));
        match calls.clone().get_article(request).await {
            Ok(_) => return,
            Err(status) => check_is_passing(&status),
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("article {number} was never read");
}

/// A server that goes away ends its connections.
pub fn check_is_passing(status: &Status) {
    let codes = [Code::Unavailable, Code::Unknown, Code::Cancelled];
    assert!(codes.contains(&status.code()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_to_replicas_and_writes_to_whoever_writes() -> TestResult {
    let folder = TempDir::new()?;
    let place = bucket_in(folder.path());
    let text = place.to_string();
    let (writer, writer_http) = start_counted(&text, &[]);
    let (first, first_http) = start_counted(&text, &["--replica"]);
    let (second, second_http) = start_counted(&text, &["--replica"]);
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let flags: Vec<&str> = SOON.into_iter().chain(["--standby"]).collect();
    let standby = ServerProcess::spawn_at(Path::new(&text), &free, &flags);
    let standby_url = format!("http://{free}");
    let urls = [
        &first.address,
        &standby_url,
        &second.address,
        &writer.address,
    ];
    let client = Client::connect(&target(&urls.map(String::as_str))).await?;
    let calls = client.articles();
    let stored = calls.clone().put_article(put(1)).await?.into_inner();
    for _ in 0..READS {
        let request = at_least(stored.sequence, get_by_id(id_of(1)));
        calls.clone().get_article(request).await?;
    }
    let counts = [gets(&first_http).await, gets(&second_http).await];
    assert_eq!(counts.iter().sum::<u64>(), READS as u64, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(gets(&writer_http).await, 0);
    // The server that the administration is about is the writer.
    let mut admin = client.admin();
    let info = admin
        .get_server_info(proto::GetServerInfoRequest {})
        .await?;
    assert_eq!(info.into_inner().role(), proto::ServerRole::Writer);
    drop(admin);

    // The command line is given the same list.
    let list = urls.map(String::as_str).join(",");
    let at_one = ["--server", &list, "--wait-for", "1"];
    let counted = Ran::of(program().arg("count").args(at_one)).exits(0);
    assert_eq!(counted.out.trim(), "1");

    // A replica that is gone is asked no more, and a writer that is gone is replaced.
    first.kill();
    for _ in 0..READS {
        get_until_read(&calls, 1, stored.sequence).await;
    }
    writer.kill();
    let stored = put_until_stored(&calls, 2).await;
    assert_eq!(stored.sequence, 2);
    let standby = tokio::task::block_in_place(|| standby.ready());
    assert_eq!(standby.address, standby_url);
    get_until_read(&calls, 2, 2).await;

    // Without a replica the writer is read from.
    assert!(second.terminate());
    get_until_read(&calls, 2, 2).await;
    drop(calls);
    client.close().await?;
    assert!(standby.terminate());
    check_place(&place, small_cache(), &[id_of(1), id_of(2)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_servers_are_checked() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let list = [closed.as_str(); 2];
    let error = within(Client::connect(&target(&list))).await.unwrap_err();
    assert!(error.message().contains(&closed), "{error}");
    let many = vec![closed.as_str(); SERVERS_MAX + 1].join(",");
    for (list, part) in [
        (many.as_str(), "more than 32"),
        ("http://127.0.0.1:1,,", "is not a URL"),
    ] {
        let ran = Ran::of(program().args(["count", "--server", list])).exits(2);
        assert!(ran.err.contains(part), "{}", ran.err);
    }
}
