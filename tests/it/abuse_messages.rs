//! Abuse by what is sent: messages that claim or become too much, and random bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::abuse::{ALONE, IMPORT, PATIENCE};
use crate::limits::{ByHand, final_code};
use crate::load::{rounds, seed};
use crate::raw::{connect, hello, message};
use crate::victim::Victim;

const PUT: &str = "/pressmark.v1.ArticleService/PutArticle";
const COUNT: &str = "/pressmark.v1.ArticleService/CountArticles";
const FIND: &str = "/pressmark.v1.ArticleService/FindMissingArticles";

/// Reads what a server says until it says no more for a while, and returns it.
async fn heard(stream: &mut TcpStream, pause: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(Ok(count)) = timeout(pause, stream.read(&mut buffer)).await {
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
    bytes
}

/// Sends requests of one message each, ten over each connection, and counts the codes of the answers.
async fn codes(
    address: &str,
    count: usize,
    path: &'static str,
    encoding: Option<&'static str>,
    bytes: &[u8],
) -> BTreeMap<i32, usize> {
    let mut asking = JoinSet::new();
    for _ in 0..count / 10 {
        let mut client = ByHand::connect(address, &h2::client::Builder::new()).await;
        let bytes = Bytes::copy_from_slice(bytes);
        asking.spawn(async move {
            let mut codes = Vec::new();
            let mut begun = Vec::new();
            for _ in 0..10 {
                client.ready().await;
                let (response, mut body) = client.begin_encoded(path, encoding);
                body.send_data(bytes.clone(), false).unwrap();
                begun.push((response, body));
            }
            for (response, _body) in begun {
                codes.push(
                    timeout(PATIENCE, final_code(response))
                        .await
                        .expect("it hangs"),
                );
            }
            codes
        });
    }
    let mut all = BTreeMap::new();
    while let Some(codes) = asking.join_next().await {
        for code in codes.unwrap() {
            *all.entry(code).or_default() += 1;
        }
    }
    all
}

/// A frame of zstd of zeros: 60 MB of them in two kilobytes, which needs a window of 2^`window_log`.
fn zstd_bomb(window_log: u8) -> Vec<u8> {
    const BLOCK: u32 = 128 * 1024;
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    for number in 0..480 {
        // A block that repeats one byte.
        let head = u32::from(number == 479) | 1 << 1 | BLOCK << 3;
        bytes.extend(&head.to_le_bytes()[..3]);
        bytes.push(0);
    }
    bytes
}

fn gzip_bomb() -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(&vec![0; 60_000_000]).unwrap();
    writer.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn messages_that_claim_or_become_too_much() {
    let _alone = ALONE.lock().await;
    let victim = Victim::start(&[]).await;
    let address = victim.address();
    let claim = [0, 255, 255, 255, 255, 1, 2, 3];
    for path in [PUT, IMPORT, FIND, COUNT] {
        let codes = victim
            .abused(&format!("4 GiB claimed, {path}"), async || {
                codes(address, 100, path, None, &claim).await
            })
            .await;
        assert_eq!(
            codes,
            BTreeMap::from([(Code::ResourceExhausted as i32, 100)]),
            "{path}"
        );
    }
    let bombs = [
        ("gzip", gzip_bomb(), Code::ResourceExhausted),
        ("zstd", zstd_bomb(20), Code::ResourceExhausted),
        // The most that a reader takes unless it is told otherwise, and more than that.
        ("zstd", zstd_bomb(27), Code::ResourceExhausted),
        ("zstd", zstd_bomb(31), Code::InvalidArgument),
    ];
    for (encoding, bomb, code) in bombs {
        println!("a bomb of {encoding} in {} bytes", bomb.len());
        let bytes = message(true, &bomb);
        for path in [PUT, IMPORT, COUNT] {
            let codes = victim
                .abused(&format!("100 bombs of {encoding}, {path}"), async || {
                    codes(address, 100, path, Some(encoding), &bytes).await
                })
                .await;
            assert_eq!(
                codes,
                BTreeMap::from([(code as i32, 100)]),
                "{encoding} {path}"
            );
        }
    }
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn streams_of_random_bytes() {
    let _alone = ALONE.lock().await;
    let seed = seed();
    let count = rounds("PRESSMARK_TEST_STREAMS", 100_000);
    let victim = Victim::start(&[]).await;
    let name = format!("{count} streams of random bytes");
    victim
        .abused(&name, async || {
            let mut workers = JoinSet::new();
            for worker in 0..16 {
                let address = victim.address().to_owned();
                workers.spawn(async move {
                    let mut random = StdRng::seed_from_u64(seed ^ worker as u64);
                    for number in (worker..count).step_by(16) {
                        let length = random.random_range(1..600);
                        let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
                        // Half of them get past the first check.
                        if random.random() {
                            bytes.splice(0..0, hello());
                        }
                        let mut stream = connect(&address, number).await.unwrap();
                        // The server may have ended it before all was sent.
                        let _ = stream.write_all(&bytes).await;
                        if random.random_ratio(1, 20) {
                            heard(&mut stream, Duration::from_millis(20)).await;
                        }
                    }
                });
            }
            workers.join_all().await;
        })
        .await;
    victim.finish().await;
}
