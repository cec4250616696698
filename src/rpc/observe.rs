//! What is counted of every request: rate, errors and duration per method, under the names that
//! gRPC servers use for Prometheus.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::methods::Method;
use super::trace::Traced;

/// Seconds at which the histogram of durations counts.
const DURATION_BUCKETS: [f64; 13] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the labels have these names")]
struct MethodLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the labels have these names")]
struct OutcomeLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
    grpc_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PageLabels {
    question: &'static str,
    status: u16,
}

type Durations = Family<MethodLabels, Histogram, fn() -> Histogram>;

/// The figures of all requests.
#[derive(Clone, Debug)]
pub(super) struct RequestMetrics {
    started: Family<MethodLabels, Counter>,
    handled: Family<OutcomeLabels, Counter>,
    received: Family<MethodLabels, Counter>,
    sent: Family<MethodLabels, Counter>,
    durations: Durations,
    pages: Family<PageLabels, Counter>,
    /// Connections that are open.
    pub(super) connections: Gauge,
    /// Connections that were closed at once, because there were as many as may be.
    pub(super) connections_refused: Counter,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            started: Family::default(),
            handled: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            durations: Durations::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            pages: Family::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
        }
    }
}

impl RequestMetrics {
    /// Counts a question of the page.
    pub(super) fn asked(&self, method: &'static Method, status: u16) {
        let question = method.name;
        let labels = PageLabels { question, status };
        self.pages.get_or_create(&labels).inc();
    }

    /// Gives the figures their names. The registry adds `_total` to counters.
    pub(super) fn register(&self, registry: &mut Registry) {
        let started = "Requests that began";
        registry.register("grpc_server_started", started, self.started.clone());
        let handled = "Requests that ended, by status code";
        registry.register("grpc_server_handled", handled, self.handled.clone());
        let received = "Messages received";
        registry.register("grpc_server_msg_received", received, self.received.clone());
        let sent = "Messages sent";
        registry.register("grpc_server_msg_sent", sent, self.sent.clone());
        let durations = "Time from the first header of a request to its status";
        let name = "grpc_server_handling_seconds";
        registry.register(name, durations, self.durations.clone());
        let pages = "Questions of the page, by the method that answers them, with HTTP's status";
        registry.register("pressmark_page_questions", pages, self.pages.clone());
        let name = "pressmark_connections";
        registry.register(name, "Open connections", self.connections.clone());
        let refused = "Connections closed at once, because there were as many as may be";
        let name = "pressmark_connections_refused";
        registry.register(name, refused, self.connections_refused.clone());
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
struct End {
    code: Code,
    /// Whether pressmark said so, and not what is below it.
    is_ours: bool,
}

/// One request. It is counted as cancelled if it goes before it has ended.
#[derive(Debug)]
pub(super) struct Call {
    metrics: RequestMetrics,
    method: &'static Method,
    begun: Instant,
    received: AtomicU64,
    sent: AtomicU64,
    end: Mutex<Option<End>>,
    /// Names the request in the log.
    span: tracing::Span,
    /// Its span, if the request is traced.
    traced: Option<Traced>,
}

impl Call {
    pub(super) fn begin(
        metrics: &RequestMetrics,
        method: &'static Method,
        traced: Option<Traced>,
    ) -> Self {
        let metrics = metrics.clone();
        metrics.started.get_or_create(&labels(method)).inc();
        Self {
            metrics,
            method,
            begun: Instant::now(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            end: Mutex::new(None),
            span: tracing::Span::current(),
            traced,
        }
    }

    pub(super) fn received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }

    /// The first end counts.
    pub(super) fn ended(&self, status: &Status) {
        let end = End {
            code: status.code(),
            is_ours: !status.details().is_empty(),
        };
        let mut known = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert(end);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (code, is_ours) = end.map_or((Code::Cancelled, false), |end| (end.code, end.is_ours));
        let elapsed = self.begun.elapsed();
        if let Some(traced) = self.traced.take() {
            traced.end(code);
        }
        let method = labels(self.method);
        let metrics = &self.metrics;
        let add = |family: &Family<MethodLabels, Counter>, count: &AtomicU64| {
            let count = count.load(Ordering::Relaxed);
            family.get_or_create(&method).inc_by(count);
        };
        add(&metrics.received, &self.received);
        add(&metrics.sent, &self.sent);
        let durations = metrics.durations.get_or_create(&method);
        durations.observe(elapsed.as_secs_f64());
        let outcome = OutcomeLabels {
            grpc_type: method.grpc_type,
            grpc_service: method.grpc_service,
            grpc_method: method.grpc_method,
            grpc_code: code_label(code),
        };
        metrics.handled.get_or_create(&outcome).inc();
        let _named = self.span.enter();
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let (name, code_name) = (self.method.name, code_label(code));
        // What the transport finds wrong with a request is no news for an operator.
        if is_ours && matches!(code, Code::Internal | Code::DataLoss) {
            tracing::warn!(method = name, code = code_name, elapsed_us, "failed");
        } else {
            tracing::debug!(method = name, code = code_name, elapsed_us, "answered");
        }
    }
}

fn labels(method: &Method) -> MethodLabels {
    MethodLabels {
        grpc_type: method.shape.label(),
        grpc_service: method.service,
        grpc_method: method.name,
    }
}

fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
