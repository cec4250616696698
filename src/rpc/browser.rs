//! gRPC from browsers: gRPC-Web is translated before the limits see a request, and an answer after
//! them, so that they hold for it as for every other. Which sites a browser may come from, the operator
//! says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::util::BoxCloneService;
use tower::{Layer, Service};
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::Url;

use super::gate::Gate;
use super::headers::MIN_SEQUENCE;
use crate::error::{Error, Reason, Result, excerpt};

/// How long a browser remembers what a site may send.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

/// The headers of requests that the server, or gRPC-Web, knows what to do with.
const REQUEST_HEADERS: [&str; 11] = [
    "authorization",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    MIN_SEQUENCE,
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-request-id",
    "x-user-agent",
];

/// The headers of answers that a script may read.
const ANSWER_HEADERS: [&str; 5] = [
    "grpc-encoding",
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "x-request-id",
];

/// The sites whose pages may call the server from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Absent if every site may.
    listed: Option<Arc<[HeaderValue]>>,
}

impl Origins {
    /// Reads origins, such as `https://desk.example`, or one `*` for all.
    ///
    /// # Errors
    /// `ArgumentInvalid`, naming `cors-origin`, if one is no origin, or `*` is not alone.
    pub fn parse(texts: &[String]) -> Result<Self> {
        if let [all] = texts
            && all == "*"
        {
            return Ok(Self { listed: None });
        }
        let listed: Result<Vec<HeaderValue>> = texts.iter().map(|text| origin(text)).collect();
        Ok(Self {
            listed: Some(listed?.into()),
        })
    }

    /// Refuses what a browser sends for a site that is not listed. Without this a site whose name leads
    /// to this server, which a browser then takes for the site's own, would be answered.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<()> {
        let (Some(listed), Some(origin)) = (&self.listed, headers.get(header::ORIGIN)) else {
            return Ok(());
        };
        if listed.contains(origin) {
            return Ok(());
        }
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let what = format!(
            "the site {} is not one of those that --cors-origin names",
            excerpt(&origin)
        );
        Err(Error::new(Reason::OriginRefused, what))
    }

    fn allowed(&self) -> AllowOrigin {
        match &self.listed {
            None => AllowOrigin::any(),
            Some(listed) => AllowOrigin::list(listed.iter().cloned()),
        }
    }
}

fn origin(text: &str) -> Result<HeaderValue> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    let is_origin = url.is_some_and(|url| url.origin().ascii_serialization() == text);
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| {
        let what = format!(
            "{} is no origin, which has a scheme, a host, and a port unless it is the usual one, as in \
             https://desk.example; a single * stands for all of them",
            excerpt(text)
        );
        Error::field(Reason::ArgumentInvalid, "cors-origin", what)
    })
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services of one connection as they meet the network.
#[derive(Clone)]
pub(super) enum Front {
    /// For gRPC alone.
    Plain(Gate),
    /// For gRPC and gRPC-Web.
    Web(BoxCloneService<Request<Body>, Response<Body>, Infallible>),
}

impl Front {
    pub(super) fn new(gate: Gate, origins: Option<&Origins>) -> Self {
        let Some(origins) = origins else {
            return Self::Plain(gate);
        };
        let cors = CorsLayer::new()
            .allow_origin(origins.allowed())
            .allow_methods([Method::POST])
            .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
            .expose_headers(ANSWER_HEADERS.map(HeaderName::from_static))
            .max_age(PREFLIGHT_AGE);
        let translated = GrpcWebLayer::new().layer(gate);
        Self::Web(BoxCloneService::new(cors.layer(translated)))
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self {
            Self::Plain(gate) => gate.poll_ready(context),
            Self::Web(service) => service.poll_ready(context),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        match self {
            Self::Plain(gate) => gate.call(request),
            Self::Web(service) => service.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_origins() -> Result<()> {
        let some = |text: &str| Origins::parse(&[text.to_owned()]);
        let mut headers = HeaderMap::new();
        for text in ["https://desk.example", "http://localhost:8080", "*"] {
            some(text)?.check(&headers)?;
        }
        headers.insert(
            header::ORIGIN,
            HeaderValue::from_static("https://desk.example"),
        );
        some("https://desk.example")?.check(&headers)?;
        some("*")?.check(&headers)?;
        for other in [
            "http://desk.example",
            "https://desk.example:8443",
            "https://evil.example",
        ] {
            assert!(some(other)?.check(&headers).is_err(), "{other}");
        }
        assert!(Origins::parse(&[])?.check(&headers).is_err());
        for wrong in [
            "",
            "desk.example",
            "https://desk.example/",
            "https://desk.example:443",
            "HTTPS://desk.example",
            "file:///x",
            "null",
            "https://a b",
        ] {
            assert!(some(wrong).is_err(), "{wrong}");
        }
        assert!(Origins::parse(&["*".into(), "https://desk.example".into()]).is_err());
        Ok(())
    }
}
