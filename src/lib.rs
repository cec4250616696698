//! pressmark is an archive for news articles: an embedded key-value store with a gRPC interface.
//!
//! Every article is immutable and is named by the BLAKE3 hash of its text, so storing it twice
//! stores it once. It is no crawler and no search engine, and it never changes what it was given.
//!
//! # Layout
//!
//! - [`error`]: the one error type, with what a caller should do about each kind.
//! - [`article`]: the six fields, their rules, and the canonical text that an id is the hash of.
//! - [`key`]: the keys of all tables, so that byte order is meaning order.
//! - [`record`]: the values of all tables, the log's with proof that they are intact.
//! - [`store`]: ordered rows of bytes in atomic batches, kept by sled or in memory.
//! - [`metrics`]: what an archive counts while it is open.
//! - [`archive`]: the log, its indexes, the one writer and the readers.
//! - [`search`]: full-text search, an index of the log beside the archive.
//! - [`rpc`]: the gRPC service around an archive, and the page in a browser.
//! - [`client`]: a connection to a server, or to an archive opened in this process.
//! - [`format`](mod@format): files that articles come from and go to.
//! - [`cli`]: the command line.
//!
//! # Invariants
//!
//! - Only `archive/commit` builds a write batch; one holds every row of each article in it.
//! - A row of the log is written once. The exceptions are a delete, which leaves a tombstone, and a
//!   repair, which leaves a quarantine.
//! - A dictionary is durable, in two copies, before a record needs it, and is never removed.
//! - No lock and no engine iterator lives across an await or a slow client.
//! - Only the engine files name their engine.
//! - Only `rpc` and `client` name tonic.
//! - The wall clock is read in `rpc` and `cli` and passed down as a value.
//! - Every queue, page, message and loop has a named limit.
//! - An index row exists if and only if its row of the log does.
//! - A replica writes nothing, and shows nothing that is not durable.
//!
//! # Example
//!
//! ```
//! use pressmark::archive::{Archive, Limits, Prepared, PutOutcome};
//! use pressmark::article::{Article, ArticleFields, Timestamp};
//! use pressmark::store::{self, StoreOptions};
//!
//! # #[tokio::main] async fn main() -> pressmark::error::Result<()> {
//! let store = store::open(&"memory:".parse()?, StoreOptions::default()).await?;
//! let (archive, guard) = Archive::open(store, Limits::default()).await?;
//!
//! let article = Article::new(ArticleFields {
//!     title: "Rates held".into(),
//!     source: "Gazette".into(),
//!     body: "The bank left its rate where it was.".into(),
//!     ..ArticleFields::default()
//! })?;
//! let put = archive.put(Prepared::new(article.clone(), Timestamp::EPOCH, None)?).await?;
//! assert_eq!(put.outcome, PutOutcome::Created);
//! assert_eq!(archive.get(&article.id()).await?.article, article);
//! guard.close().await
//! # }
//! ```

pub mod archive;
pub mod article;
pub mod cli;
pub mod client;
pub mod error;
pub mod format;
pub mod key;
pub mod metrics;
pub mod record;
pub mod rpc;
pub mod search;
pub mod store;
