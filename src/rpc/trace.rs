//! Traces: a span for every request, with the names that OpenTelemetry gives to those of RPCs, for a
//! collector. Spans hold no word of an article. A collector that is away costs spans and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter,
};
use tonic::Code;
use tonic::transport::ClientTlsConfig;

use super::methods::Method;
use crate::error::{Error, Reason, Result, excerpt};

/// Spans that wait for the collector; those that come while so many wait are dropped.
const QUEUE_SPANS_MAX: usize = 4096;

/// Spans in one message to the collector.
const BATCH_SPANS_MAX: usize = 512;

/// How long spans wait to be sent together.
const BATCH_DELAY: Duration = Duration::from_secs(2);

/// How long the collector may take to answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last spans may take at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of what is traced.
const SERVICE: &str = "pressmark";

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Prepares to send spans to a collector, which need not be there yet, from within a runtime. With
    /// `https` its certificate has to come from a root of the system. `ratio` is the share of the
    /// traces that begin here; those that a caller began are followed if he follows them.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the URL is none.
    pub fn open(endpoint: &str, ratio: f64) -> Result<Self> {
        let is_url = url::Url::parse(endpoint)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !is_url {
            let what = format!(
                "{} is not http://HOST:PORT or https://HOST:PORT",
                excerpt(endpoint)
            );
            return Err(Error::field(Reason::ArgumentInvalid, "otlp-endpoint", what));
        }
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(SEND_TIMEOUT);
        if endpoint.starts_with("https") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter.build().map_err(|error| {
            let what = format!("{} cannot be used", excerpt(endpoint));
            Error::field(Reason::ArgumentInvalid, "otlp-endpoint", what).with_source(error)
        })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS_MAX)
            .with_max_export_batch_size(BATCH_SPANS_MAX)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(Told::of(exporter))
            .with_batch_config(batches)
            .build();
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok(Self { provider, tracer })
    }

    /// Sends what is left, for a while.
    pub async fn close(self) {
        let closing = move || self.provider.shutdown_with_timeout(CLOSE_TIMEOUT);
        let closed = tokio::task::spawn_blocking(closing).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(%error, "the collector lacks the last spans");
        }
    }

    /// Begins the span of a request, unless it is none that is followed. Whether the server lives is
    /// asked all the time, and nobody looks at that.
    pub(super) fn begin(
        &self,
        method: &'static Method,
        request_id: &str,
        headers: &HeaderMap,
    ) -> Option<Traced> {
        method.role?;
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let name = method.full_name();
        let span = self
            .tracer
            .span_builder(name.clone())
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system.name", "grpc"),
                KeyValue::new("rpc.method", name),
                KeyValue::new("pressmark.request_id", request_id.to_owned()),
            ])
            .start_with_context(&self.tracer, &parent);
        span.is_recording().then_some(Traced(span))
    }
}

/// The span of a request.
#[derive(Debug)]
pub(super) struct Traced(Span);

impl Traced {
    /// The id of the trace that it is in.
    pub(super) fn trace_id(&self) -> String {
        self.0.span_context().trace_id().to_string()
    }

    /// Ends it with what the request was answered with.
    pub(super) fn end(mut self, code: Code) {
        let name = code_name(code);
        self.0
            .set_attribute(KeyValue::new("rpc.response.status_code", name));
        if code != Code::Ok {
            self.0.set_attribute(KeyValue::new("error.type", name));
        }
        if is_fault(code) {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}

/// Whether a code tells of a fault of the server, and not of the request.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The name of a code in the specification of gRPC.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The headers of a request as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// An exporter that tells once when spans begin to be lost, and once when they arrive again.
#[derive(Debug)]
struct Told {
    inner: opentelemetry_otlp::SpanExporter,
    is_failing: AtomicBool,
}

impl Told {
    fn of(inner: opentelemetry_otlp::SpanExporter) -> Self {
        let is_failing = AtomicBool::new(false);
        Self { inner, is_failing }
    }
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match (&result, was_failing) {
            (Err(error), false) => {
                tracing::warn!(%error, "the collector takes no spans, they are lost");
            }
            (Ok(()), true) => tracing::info!("the collector takes spans again"),
            (Ok(()), false) | (Err(_), true) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
