//! Load for tests that break the server under it: clients that import until it is gone and keep
//! what was acknowledged.

use std::path::Path;

use pressmark::archive::Finding;
use pressmark::article::ContentHash;
use pressmark::error::Error;
use pressmark::rpc::proto;
use pressmark::rpc::proto::article_service_client::ArticleServiceClient;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::server::{ServerProcess, articles, import_request, message, open_folder};
use crate::support::copy_folder;

/// Streams that import at the same time.
const STREAMS: u64 = 4;

/// The code of a result that may be sent again.
const UNAVAILABLE: i32 = 14;

/// The seed of a test's random choices: printed, and taken from `PRESSMARK_TEST_SEED` if set.
pub fn seed() -> u64 {
    let seed = std::env::var("PRESSMARK_TEST_SEED").map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|_| rand::random());
    println!("PRESSMARK_TEST_SEED={seed}");
    seed
}

/// How often a test does something: a default, or what a variable says.
pub fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |rounds| rounds.parse().unwrap())
}

/// Kinds of breaks in random order, each of which comes up as often as it stands in the list.
pub struct Deck<T: 'static> {
    all: &'static [T],
    left: Vec<T>,
}

impl<T: Clone> Deck<T> {
    pub fn new(all: &'static [T]) -> Self {
        Self {
            all,
            left: Vec::new(),
        }
    }

    pub fn draw(&mut self, random: &mut StdRng) -> T {
        if self.left.is_empty() {
            self.left = self.all.to_vec();
            self.left.shuffle(random);
        }
        self.left.pop().expect("a deck holds cards")
    }
}

/// Sends articles until the server is gone. Tells every acknowledged id.
async fn import_until_gone(
    mut client: ArticleServiceClient<Channel>,
    seed: u64,
    acknowledged: mpsc::Sender<ContentHash>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let (requests, stream) = mpsc::channel(2);
    let sending = tokio::spawn(async move {
        loop {
            let mut some = Vec::new();
            for _ in 0..random.random_range(1..20) {
                let mut article = message(random.random_range(0..1_000_000));
                article.body = format!("{} {seed}", article.body);
                if random.random_ratio(1, 50) {
                    let noise = (0..20_000).map(|_| format!("{:x}", random.random::<u64>()));
                    article.body.extend(noise);
                }
                some.push(article);
            }
            if requests.send(import_request(&some)).await.is_err() {
                return;
            }
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    if let Ok(answers) = client.import_articles(stream).await {
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            for result in answer.results {
                if let Some(error) = result.error {
                    // Broken while the article was on its way: it was not acknowledged.
                    assert_eq!(error.code, UNAVAILABLE, "{error:?}");
                    continue;
                }
                assert_ne!(result.outcome, i32::from(proto::PutOutcome::Unspecified));
                acknowledged.send(result.id.parse().unwrap()).await.unwrap();
            }
        }
    }
    sending.abort();
}

/// Loads a server until `target` articles are acknowledged, breaks it, and returns all that were,
/// and what breaking it returned.
pub async fn break_under_load<T: Send + 'static>(
    server: ServerProcess,
    seed: u64,
    target: usize,
    break_it: impl FnOnce(ServerProcess) -> T + Send + 'static,
) -> (Vec<ContentHash>, T) {
    let (sender, mut receiver) = mpsc::channel(1);
    // Connected before the first article is sent, as the server may be gone right after it.
    let mut clients = Vec::new();
    for _ in 0..STREAMS {
        clients.push(articles(&server.address).await);
    }
    let import = |(client, stream)| import_until_gone(client, seed ^ stream, sender.clone());
    let clients: Vec<_> = clients
        .into_iter()
        .zip(1..)
        .map(|client| tokio::spawn(import(client)))
        .collect();
    drop(sender);
    let mut acknowledged = Vec::new();
    while acknowledged.len() < target {
        acknowledged.push(
            receiver
                .recv()
                .await
                .expect("the server stays until it is broken"),
        );
    }
    let breaking = tokio::task::spawn_blocking(|| break_it(server));
    while let Some(id) = receiver.recv().await {
        acknowledged.push(id);
    }
    let broken = breaking.await.unwrap();
    for client in clients {
        client.await.unwrap();
    }
    (acknowledged, broken)
}

/// What a broken server left of its archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Articles that were acknowledged and are not there.
    pub lost_count: usize,
    /// What the full check found.
    pub findings: Vec<Finding>,
}

/// Proves a copy of the archive that a broken server left, so that the next server starts on what
/// the break left and not on what a clean close made of it.
///
/// # Errors
/// Those of opening it.
pub async fn damage(folder: &Path, acknowledged: &[ContentHash]) -> Result<Damage, Error> {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy");
    if folder.exists() {
        copy_folder(folder, &copy).unwrap();
    }
    let (archive, guard) = open_folder(&copy).await?;
    let mut damage = Damage {
        lost_count: 0,
        findings: archive.verify().await?.findings,
    };
    for some in acknowledged.chunks(1000) {
        let missing = archive.find_missing(some).await?;
        damage.lost_count += missing.missing.len() + missing.deleted.len();
    }
    guard.close().await?;
    Ok(damage)
}

/// Fails if anything is wrong with the archive that a broken server left.
pub async fn check_acknowledged(folder: &Path, acknowledged: &[ContentHash]) {
    let damage = damage(folder, acknowledged).await.unwrap();
    assert_eq!(damage, Damage::default(), "of {}", acknowledged.len());
}
