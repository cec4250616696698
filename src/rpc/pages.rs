//! The second port, over HTTP for programs that do not speak gRPC: figures for Prometheus, whether the
//! server lives and serves, and the page in a browser.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::connection::Serve;
use super::gate::Connection;
use super::observe::RequestMetrics;
use super::replica::check_serves;
use super::web::{self, Web};
use crate::archive::{Archive, Stats};
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// The media type of what Prometheus reads.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of all else.
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What the second port tells of.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) archive: Archive,
    pub(super) search: Option<Search>,
    /// How far a replica may be behind.
    pub(super) staleness_max: Duration,
    pub(super) metrics: RequestMetrics,
    /// The page, unless the server does without.
    pub(super) web: Option<Web>,
    pub(super) stop: CancellationToken,
}

/// The second port, for one connection.
#[derive(Clone)]
pub(super) struct Reader {
    pages: Pages,
    connection: Arc<Connection>,
}

impl Serve for Pages {
    type Service = Reader;

    fn serve(&self, connection: Arc<Connection>) -> Reader {
        let pages = self.clone();
        Reader { pages, connection }
    }
}

impl Service<Request<Body>> for Reader {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { pages, connection } = self.clone();
        let (head, _) = request.into_parts();
        Box::pin(async move { Ok(pages.answer(&head, &connection).await) })
    }
}

impl Pages {
    async fn answer(&self, head: &Parts, connection: &Arc<Connection>) -> Response<Body> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT_TYPE, "GET or HEAD\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            refusal.headers_mut().insert(header::ALLOW, allowed);
            return refusal;
        }
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match head.uri.path() {
            "/healthz" => return page(StatusCode::OK, TEXT_TYPE, "lives\n"),
            "/readyz" if self.stop.is_cancelled() => {
                return page(unavailable, TEXT_TYPE, "stops\n");
            }
            "/readyz" => {
                return match check_serves(&self.archive, self.staleness_max) {
                    Ok(()) => page(StatusCode::OK, TEXT_TYPE, "serves\n"),
                    Err(error) => page(unavailable, TEXT_TYPE, &format!("{error}\n")),
                };
            }
            "/metrics" => {
                return match self.figures().await {
                    Ok(text) => page(StatusCode::OK, METRICS_TYPE, &text),
                    Err(error) => page(unavailable, TEXT_TYPE, &format!("{error}\n")),
                };
            }
            _ => {}
        }
        if let Some(web) = &self.web
            && let Some(response) = web.answer(&head.uri, &head.headers, connection).await
        {
            return response;
        }
        let here = "/metrics, /healthz and /readyz are here\n";
        page(StatusCode::NOT_FOUND, TEXT_TYPE, here)
    }

    async fn figures(&self) -> Result<String> {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        self.register_archive(&mut registry).await?;
        let mut text = String::new();
        encode(&mut text, &registry).map_err(|error| {
            Error::new(Reason::Internal, "the figures cannot be written").with_source(error)
        })?;
        Ok(text)
    }

    async fn register_archive(&self, registry: &mut Registry) -> Result<()> {
        let stats = self.archive.stats().await?;
        let metrics = self.archive.metrics();
        let registry = registry.sub_registry_with_prefix("pressmark");
        metrics.register(registry);
        let mut gauge = |name: &str, help: &str, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            registry.register(name, help, ConstGauge::new(value));
        };
        let totals = &stats.totals;
        gauge(
            "articles",
            "Articles stored and not deleted",
            totals.article_count,
        );
        gauge("deletions", "Articles deleted", totals.deleted_count);
        gauge(
            "text_bytes",
            "Bytes of the canonical texts",
            totals.text_bytes,
        );
        gauge("stored_bytes", "Bytes of the records", totals.stored_bytes);
        gauge(
            "last_sequence",
            "The last sequence given",
            stats.last_sequence,
        );
        let queued = u64::try_from(stats.queued_count).unwrap_or(u64::MAX);
        gauge("queued_articles", "Articles waiting for the writer", queued);
        let staleness = self.archive.staleness();
        let what = "1 on a replica, 0 on the server that writes";
        gauge("is_replica", what, u64::from(staleness.is_some()));
        if staleness.is_none() {
            let takes_writes = u64::from(self.archive.check_writes().is_ok());
            gauge("takes_writes", "1, or 0 after a write failed", takes_writes);
        }
        if let Some(scrub) = stats.last_scrub {
            let at = u64::try_from(scrub.finished_at.seconds()).unwrap_or_default();
            let name = "scrub_finished_timestamp_seconds";
            gauge(name, "When the last scrub ended", at);
            let what = "What the last scrub found";
            gauge("scrub_findings", what, scrub.finding_count);
        }
        if let Some(backup) = self.archive.backup_status() {
            let what = "The last sequence on the disk of the backup";
            gauge("backup_sequence", what, backup.sequence);
            let what = "1 while the backup cannot go on";
            gauge("backup_failing", what, u64::from(backup.error.is_some()));
            let behind = ConstGauge::new(backup.behind.as_secs_f64());
            let what = "How long records have been waiting for the backup";
            registry.register_with_unit("backup_behind", what, Unit::Seconds, behind);
        }
        if let Some(staleness) = staleness {
            let staleness = ConstGauge::new(staleness.as_secs_f64());
            let what = "The most that the replica can lag behind";
            registry.register_with_unit("staleness", what, Unit::Seconds, staleness);
        }
        if let Some(search) = &self.search {
            let indexed = search.status();
            let lag = stats.last_sequence.saturating_sub(indexed.sequence);
            let name = "search_behind_sequences";
            let what = "Sequences that the search index lacks";
            registry.register(
                name,
                what,
                ConstGauge::new(i64::try_from(lag).unwrap_or(i64::MAX)),
            );
        }
        register_engine(registry, &stats);
        Ok(())
    }
}

/// What the engine tells of itself.
fn register_engine(registry: &mut Registry, stats: &Stats) {
    let store = &stats.store;
    let narrow = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let disk = ConstGauge::new(narrow(store.disk_bytes));
    registry.register("disk_bytes", "Bytes of the engine's files", disk);
    let cache = ConstGauge::new(narrow(store.cache_bytes));
    let what = "Bytes that the engine's cache may take";
    registry.register("cache_bytes", what, cache);
    let mut count = |name: &str, what: &str, value: u64| {
        registry.register(name, what, ConstCounter::new(value));
    };
    let what = "Small reads of the engine that were as fast as memory is";
    count("engine_reads_fast", what, store.reads_fast_count);
    let what = "Small reads of the engine that waited for the disk or for a write";
    count("engine_reads_slow", what, store.reads_slow_count);
    let what = "How long the engine took to open";
    count("open_milliseconds", what, store.open_micros / 1000);
    if let Some(requests) = store.requests {
        count("storage_puts", "Objects written", requests.put_count);
        count("storage_gets", "Objects read", requests.get_count);
        let what = "Pages of lists of objects";
        count("storage_lists", what, requests.list_count);
        count("storage_deletes", "Objects removed", requests.delete_count);
    }
}

fn page(status: StatusCode, kind: &'static str, text: &str) -> Response<Body> {
    web::answer(status, kind, Body::new(text.to_owned()))
}
