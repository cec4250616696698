//! PostgreSQL: one table with the indexes that pressmark has. An import is COPY in transactions of
//! 1,000 articles on one connection per file; again, it is INSERT with ON CONFLICT DO NOTHING from
//! arrays. Single requests go over 64 connections, pipelined where more are in flight.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pressmark::rpc::proto;
use prost::Message;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::corpus::Reading;
use crate::process::Process;
use crate::subject::{Running, Subject};

const CONNECTIONS: usize = 64;
const COPY_ARTICLES: usize = 1000;
const FETCH_ARTICLES: usize = 1000;
const USER: &str = "postgres";
const COLUMNS: &str = "hash, published_at, source, url, title, author, body";
const TYPES: [Type; 7] = [
    Type::BYTEA,
    Type::TIMESTAMPTZ,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
];
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS articles (
        hash bytea PRIMARY KEY, published_at timestamptz, source text NOT NULL, url text NOT NULL,
        title text NOT NULL, author text NOT NULL, body text COMPRESSION lz4 NOT NULL);
    CREATE INDEX IF NOT EXISTS by_date ON articles (published_at);
    CREATE INDEX IF NOT EXISTS by_source ON articles (source, published_at);
    CREATE INDEX IF NOT EXISTS by_url ON articles (url);";

struct Postgres {
    config: Config,
    pool: Vec<Pooled>,
    next: AtomicUsize,
}

struct Pooled {
    client: Client,
    insert: Statement,
    get: Statement,
    missing: Statement,
}

/// A PostgreSQL that runs as root refuses to; its user needs to get at the folder then.
pub fn let_in(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for folder in folder.ancestors().take(2) {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder, open).unwrap();
    }
}

/// A program of the newest PostgreSQL, run by its user if we are root.
fn program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Debian's postgresql package");
    let newest = versions
        .flatten()
        .map(|version| version.path())
        .max()
        .unwrap();
    let path = newest.join("bin").join(name);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", USER, "--regid", USER, "--init-groups"])
        .arg(path);
    command
}

pub async fn start(folder: &Path) -> Running {
    if !folder.exists() {
        std::fs::create_dir(folder).unwrap();
        if rustix::process::geteuid().is_root() {
            let owner = Command::new("chown").arg(USER).arg(folder).status();
            assert!(owner.unwrap().success());
        }
        let init = program("initdb")
            .args(["--no-locale", "-E", "UTF8", "-A", "trust", "-U", USER, "-D"])
            .arg(folder)
            .stdout(Stdio::null())
            .status();
        assert!(init.unwrap().success());
    }
    let port = crate::free_port();
    let started = Instant::now();
    let child = program("postgres")
        .arg("-D")
        .arg(folder)
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""])
        .args(["-c", "synchronous_commit=on"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process::watch(child);
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(USER).dbname(USER);
    let client = loop {
        match connect(&config).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    client.simple_query("SELECT 1").await.unwrap();
    let open = started.elapsed();
    client.batch_execute(SCHEMA).await.unwrap();
    let mut pool = Vec::new();
    for _ in 0..CONNECTIONS {
        pool.push(prepare(connect(&config).await.unwrap()).await);
    }
    let subject = Postgres {
        config,
        pool,
        next: AtomicUsize::new(0),
    };
    Running {
        subject: Arc::new(subject),
        process,
        open,
    }
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // It ends when the client or the server goes.
        let _ = connection.await;
    });
    Ok(client)
}

async fn prepare(client: Client) -> Pooled {
    let insert = format!(
        "INSERT INTO articles ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (hash) DO NOTHING"
    );
    let missing = "SELECT h FROM unnest($1::bytea[]) AS t(h) \
                   WHERE NOT EXISTS (SELECT 1 FROM articles WHERE hash = h)";
    let get = format!("SELECT {COLUMNS} FROM articles WHERE hash = $1");
    Pooled {
        insert: client.prepare(&insert).await.unwrap(),
        get: client.prepare(&get).await.unwrap(),
        missing: client.prepare(missing).await.unwrap(),
        client,
    }
}

fn id_of(article: &proto::Article) -> Vec<u8> {
    let id: pressmark::article::ContentHash = article.id.parse().unwrap();
    id.as_bytes().to_vec()
}

fn time_of(article: &proto::Article) -> SystemTime {
    let seconds = article.published_at.as_ref().unwrap().seconds;
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
}

/// The columns of an article, in their order.
fn row<'a>(
    id: &'a Vec<u8>,
    time: &'a SystemTime,
    article: &'a proto::Article,
) -> [&'a (dyn ToSql + Sync); 7] {
    [
        id,
        time,
        &article.source,
        &article.url,
        &article.title,
        &article.author,
        &article.body,
    ]
}

impl Postgres {
    fn pooled(&self) -> &Pooled {
        &self.pool[self.next.fetch_add(1, Ordering::Relaxed) % self.pool.len()]
    }

    async fn copy(&self, client: &Client, articles: &[proto::Article]) {
        let copy = format!("COPY articles ({COLUMNS}) FROM STDIN BINARY");
        let sink = client.copy_in(&copy).await.unwrap();
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &TYPES));
        for article in articles {
            let (id, time) = (id_of(article), time_of(article));
            writer
                .as_mut()
                .write(&row(&id, &time, article))
                .await
                .unwrap();
        }
        writer.finish().await.unwrap();
    }

    async fn insert_missing(&self, client: &Client, articles: &[proto::Article]) {
        let insert = format!(
            "INSERT INTO articles ({COLUMNS}) SELECT * FROM unnest($1::bytea[], $2::timestamptz[], \
             $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) ON CONFLICT (hash) DO NOTHING"
        );
        let ids: Vec<Vec<u8>> = articles.iter().map(id_of).collect();
        let times: Vec<SystemTime> = articles.iter().map(time_of).collect();
        let texts =
            |field: fn(&proto::Article) -> &str| articles.iter().map(field).collect::<Vec<_>>();
        let row: [&(dyn ToSql + Sync); 7] = [
            &ids,
            &times,
            &texts(|article| &article.source),
            &texts(|article| &article.url),
            &texts(|article| &article.title),
            &texts(|article| &article.author),
            &texts(|article| &article.body),
        ];
        let insert = client.prepare(&insert).await.unwrap();
        client.execute(&insert, &row).await.unwrap();
    }
}

#[async_trait]
impl Subject for Postgres {
    async fn put(&self, article: proto::Article) {
        let pooled = self.pooled();
        let (id, time) = (id_of(&article), time_of(&article));
        let row = row(&id, &time, &article);
        pooled.client.execute(&pooled.insert, &row).await.unwrap();
    }

    async fn import(&self, file: PathBuf, again: bool) -> u64 {
        let client = connect(&self.config).await.unwrap();
        let mut reading = Reading::open(&file);
        let mut count = 0;
        loop {
            let batch = reading.batch(COPY_ARTICLES);
            if batch.is_empty() {
                return count;
            }
            count += batch.len() as u64;
            let decode = |article| proto::Article::decode(article).unwrap();
            let articles: Vec<proto::Article> = batch.into_iter().map(decode).collect();
            if again {
                self.insert_missing(&client, &articles).await;
            } else {
                self.copy(&client, &articles).await;
            }
        }
    }

    async fn missing(&self, ids: &[[u8; 32]]) -> usize {
        let pooled = self.pooled();
        let ids: Vec<&[u8]> = ids.iter().map(<[u8; 32]>::as_slice).collect();
        pooled
            .client
            .query(&pooled.missing, &[&ids])
            .await
            .unwrap()
            .len()
    }

    async fn get(&self, id: &[u8; 32]) -> usize {
        let pooled = self.pooled();
        let row = pooled
            .client
            .query_one(&pooled.get, &[&id.as_slice()])
            .await;
        row.unwrap().get::<_, String>(6).len()
    }

    async fn scan(&self) -> (u64, u64) {
        let client = connect(&self.config).await.unwrap();
        let cursor = format!(
            "BEGIN; DECLARE scan CURSOR FOR SELECT {COLUMNS} FROM articles ORDER BY published_at"
        );
        client.batch_execute(&cursor).await.unwrap();
        let fetch = format!("FETCH {FETCH_ARTICLES} FROM scan");
        let fetch = client.prepare(&fetch).await.unwrap();
        let (mut count, mut bytes) = (0, 0);
        loop {
            let rows = client.query(&fetch, &[]).await.unwrap();
            if rows.is_empty() {
                return (count, bytes);
            }
            for row in rows {
                count += 1;
                for field in 2..6 {
                    std::hint::black_box(row.get::<_, String>(field));
                }
                bytes += row.get::<_, String>(6).len() as u64;
            }
        }
    }
}
