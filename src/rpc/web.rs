//! The page in a browser: read-only, three files that are part of the program, and the data that they
//! draw, as JSON. Whoever may see data here is who may see it over gRPC.

mod data;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::body::Body;

use self::data::Question;
use super::article::Articles;
use super::body::{Pieces, Progress};
use super::gate::{Connection, Door, Shared};
use crate::error::{Error, Kind, Reason, Result};

/// Answers with data that are in memory at a time; more questions wait.
const ANSWERS_MAX: usize = 32;

/// What a browser may do with the page: nothing but these files and these data, no script that is not
/// in the file of scripts, no text that becomes HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The headers of every answer on the second port, which are harmless where they do not matter.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// The files of the page: their paths, their types and what is in them.
const FILES: [(&str, &str, &str); 4] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("web/index.html"),
    ),
    (
        "/style.css",
        "text/css; charset=utf-8",
        include_str!("web/style.css"),
    ),
    (
        "/script.js",
        "text/javascript; charset=utf-8",
        include_str!("web/script.js"),
    ),
    ("/icon.svg", "image/svg+xml", include_str!("web/icon.svg")),
];

/// The media type of data.
const JSON_TYPE: &str = "application/json; charset=utf-8";

/// Who may see data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Those whom the door lets in: who prove by a token, or on a port with TLS by a certificate, who
    /// they are. With TLS a browser also knows that no other site leads it here.
    Known,
    /// Everybody who reaches the port. A browser is only trusted if it asks for an address: a name may
    /// be that of a site of somebody else, which lets it lead here to read what it should not.
    Everybody,
    /// Nobody: gRPC knows its callers by their certificates, and this port sees none.
    Nobody,
}

/// The page.
#[derive(Clone)]
pub(super) struct Web {
    articles: Articles,
    shared: Arc<Shared>,
    audience: Audience,
    places: Arc<Semaphore>,
}

impl Web {
    pub(super) fn new(articles: Articles, shared: Arc<Shared>, audience: Audience) -> Self {
        Self {
            articles,
            shared,
            audience,
            places: Arc::new(Semaphore::new(ANSWERS_MAX)),
        }
    }

    /// Answers if the path is one of the page's.
    pub(super) async fn answer(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        connection: &Arc<Connection>,
    ) -> Option<Response<Body>> {
        let path = uri.path();
        if let Some((_, kind, text)) = FILES.iter().find(|(known, ..)| *known == path) {
            let body = Body::new((*text).to_owned());
            return Some(answer(StatusCode::OK, kind, body));
        }
        if !path.starts_with(data::FOLDER) {
            return None;
        }
        let Some(question) = Question::of_path(path) else {
            let what =
                "there are no such data; the page asks for articles, timeline, sources and search";
            let error = Error::new(Reason::ArgumentInvalid, what);
            return Some(refusal(StatusCode::NOT_FOUND, &error));
        };
        let answered = self.data(question, uri, headers, connection).await;
        let response = answered.unwrap_or_else(|error| refusal(status_of(error.kind()), &error));
        let status = response.status().as_u16();
        self.shared.metrics.asked(question.method(), status);
        Some(response)
    }

    async fn data(
        &self,
        question: Question<'_>,
        uri: &Uri,
        headers: &HeaderMap,
        connection: &Arc<Connection>,
    ) -> Result<Response<Body>> {
        self.check_place(uri, headers)?;
        let door = Door {
            shared: Arc::clone(&self.shared),
            connection: Arc::clone(connection),
        };
        let admission = door.admit(question.method(), headers)?;
        let asking = async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let place = place.map_err(|_| super::convert::shutting_down())?;
            let query = uri.query().unwrap_or_default();
            Ok::<_, Error>((question.ask(&self.articles, query).await?, place))
        };
        let asked = match admission.deadline {
            None => asking.await,
            Some(deadline) => tokio::time::timeout_at(deadline, asking)
                .await
                .unwrap_or_else(|_| {
                    let what = "the time for this question is over";
                    Err(Error::new(Reason::DeadlineExceeded, what))
                }),
        };
        let (value, place) = asked?;
        let shared = &self.shared;
        let patience = shared.limits.request_deadline;
        let progress = Arc::new(Progress::new(patience, shared.now_ms()));
        connection.follow(&progress);
        let text = Bytes::from(value.to_string());
        let body = Pieces::new(text, progress, shared.origin, place);
        Ok(answer(StatusCode::OK, JSON_TYPE, Body::new(body)))
    }

    /// Refuses what another site makes a browser ask.
    fn check_place(&self, uri: &Uri, headers: &HeaderMap) -> Result<()> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(site) = text("sec-fetch-site")
            && !matches!(site, "same-origin" | "none")
        {
            let what = "data are for the page of this server, not for that of another site";
            return Err(Error::new(Reason::OriginRefused, what));
        }
        match self.audience {
            Audience::Known => Ok(()),
            Audience::Nobody => {
                let what = "this server knows its callers by their certificates, which this port \
                            does not see; start it with --tokens, or with --http-tls";
                Err(Error::new(Reason::RoleInsufficient, what))
            }
            Audience::Everybody => {
                let authority = uri.authority().map(http::uri::Authority::as_str);
                let host = authority.or_else(|| text("host")).unwrap_or_default();
                if is_address(host) {
                    return Ok(());
                }
                let what = "this server gives data to whoever reaches it, so that it has to be asked by \
                            its address or as localhost; start it with --tokens to give it a name";
                Err(Error::new(Reason::OriginRefused, what))
            }
        }
    }
}

/// Whether a host, with or without a port, is an address or this machine. No site of somebody else
/// can have such a name.
fn is_address(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']').map(|(address, _)| address);
        return address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_local = name.eq_ignore_ascii_case("localhost");
    is_local || name.parse::<Ipv4Addr>().is_ok()
}

fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidArgument => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::FailedPrecondition => StatusCode::CONFLICT,
        Kind::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::DataLoss | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PermissionDenied => StatusCode::FORBIDDEN,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

fn refusal(status: StatusCode, error: &Error) -> Response<Body> {
    let value = json!({"error": {
        "reason": error.reason().as_str(),
        "field": error.field_name(),
        "message": error.to_string(),
    }});
    let mut response = answer(status, JSON_TYPE, Body::new(value.to_string()));
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Bearer realm=\"pressmark\"");
        headers.insert(header::WWW_AUTHENTICATE, scheme);
    }
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// An answer of the second port, which nobody keeps.
pub(super) fn answer(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in HEADERS {
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_this_machine_are_no_names() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "10.1.2.3:8080",
            "[::1]",
            "[::1]:80",
            "localhost:1",
            "LOCALHOST",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "[evil]:1",
            "localhost.evil.example",
            "1",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn the_files_need_no_exception_from_the_policy() {
        let [(_, _, html), (_, _, style), (_, _, script), (_, _, icon)] = FILES;
        for word in [
            "<style",
            " style=",
            "<script>",
            " onclick",
            " onload",
            "javascript:",
            "http://",
            "https://",
        ] {
            assert!(!html.contains(word), "{word}");
        }
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "setAttribute('style'",
            "srcdoc",
        ] {
            assert!(!script.contains(word), "{word}");
        }
        assert!(!style.contains("url(") && !style.contains("@import"));
        assert!(!icon.contains("<script"));
        for text in [html, style, script, icon] {
            assert!(text.is_ascii() && !text.contains('\t'));
        }
    }
}
