//! The second port, over HTTP for programs that do not speak gRPC: figures for Prometheus, and whether
//! the server lives and serves.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
use crate::archive::Archive;
use crate::error::{Error, Reason, Result};
use crate::search::Search;

/// The media type of what Prometheus reads.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of all else.
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What the pages tell of.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) archive: Archive,
    pub(super) search: Option<Search>,
    pub(super) metrics: RequestMetrics,
    pub(super) stop: CancellationToken,
}

impl Serve for Pages {
    type Service = Self;

    fn serve(&self, _connection: Arc<Connection>) -> Self {
        self.clone()
    }
}

impl Service<Request<Body>> for Pages {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let pages = self.clone();
        Box::pin(async move { Ok(pages.answer(request.method(), request.uri().path()).await) })
    }
}

impl Pages {
    async fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, TEXT_TYPE, "GET or HEAD\n");
        }
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match path {
            "/healthz" => page(StatusCode::OK, TEXT_TYPE, "lives\n"),
            "/readyz" if self.stop.is_cancelled() => page(unavailable, TEXT_TYPE, "stops\n"),
            "/readyz" => match self.archive.check_writes() {
                Ok(()) => page(StatusCode::OK, TEXT_TYPE, "serves\n"),
                Err(error) => page(unavailable, TEXT_TYPE, &format!("{error}\n")),
            },
            "/metrics" => match self.figures().await {
                Ok(text) => page(StatusCode::OK, METRICS_TYPE, &text),
                Err(error) => page(unavailable, TEXT_TYPE, &format!("{error}\n")),
            },
            _ => page(
                StatusCode::NOT_FOUND,
                TEXT_TYPE,
                "/metrics, /healthz and /readyz are here\n",
            ),
        }
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
        gauge(
            "disk_bytes",
            "Bytes of the engine's files",
            stats.store.disk_bytes,
        );
        let queued = u64::try_from(stats.queued_count).unwrap_or(u64::MAX);
        gauge("queued_articles", "Articles waiting for the writer", queued);
        let takes_writes = u64::from(self.archive.check_writes().is_ok());
        gauge("takes_writes", "1, or 0 after a write failed", takes_writes);
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
        if let Some(requests) = stats.store.requests {
            let counts = [
                ("storage_puts", "Objects written", requests.put_count),
                ("storage_gets", "Objects read", requests.get_count),
                (
                    "storage_lists",
                    "Pages of lists of objects",
                    requests.list_count,
                ),
                ("storage_deletes", "Objects removed", requests.delete_count),
            ];
            for (name, what, count) in counts {
                registry.register(name, what, ConstCounter::new(count));
            }
        }
        let opened = ConstCounter::new(stats.store.open_micros / 1000);
        registry.register(
            "open_milliseconds",
            "How long the engine took to open",
            opened,
        );
        Ok(())
    }
}

fn page(status: StatusCode, kind: &'static str, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::new(text.to_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
