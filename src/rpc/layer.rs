//! Mends what tonic answers by itself, so that clients see one kind of error.
//!
//! A request above the transport's limit is refused before our codec sees it, with `OUT_OF_RANGE` or
//! `RESOURCE_EXHAUSTED` and no details; one that is cut, or cannot be decompressed, with `INTERNAL`, though
//! it is the client's mistake. What is ours has details, and is left as it is.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::convert::status_of;
use crate::error::{Error, Reason};

/// How the transport's messages begin about what it cannot read.
const UNREADABLE: [&str; 2] = ["Error decompressing", "Unexpected EOF"];

/// A service whose refusals of the transport have the form of all others.
#[derive(Clone, Debug)]
pub(super) struct Mended<S>(pub(super) S);

impl<S: NamedService> NamedService for Mended<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Mended<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let response = response.await?;
            match Status::from_header_map(response.headers()) {
                Some(status) => Ok(mended(&status).map_or(response, Status::into_http)),
                None => Ok(response),
            }
        })
    }
}

/// Gives a refusal of the transport its code and details.
pub(super) fn mend(status: &Status) -> Status {
    mended(status).unwrap_or_else(|| status.clone())
}

/// The same, or nothing if there is nothing to mend.
fn mended(status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let (code, message) = (status.code(), status.message());
    let is_unreadable = || UNREADABLE.iter().any(|text| message.starts_with(text));
    let reason = if matches!(code, Code::OutOfRange | Code::ResourceExhausted) {
        Reason::MessageTooLarge
    } else if code == Code::Internal && is_unreadable() {
        // A message that says it is compressed where no encoding was named has to be `INTERNAL`, as
        // gRPC has it.
        Reason::MessageMalformed
    } else {
        return None;
    };
    Some(status_of(&Error::new(reason, message)))
}
