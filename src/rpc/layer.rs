//! Mends what tonic answers by itself, so that clients see one kind of error.
//!
//! A request above the transport's limit is refused before our codec sees it, with `OUT_OF_RANGE` and
//! no details; gRPC's own meaning of that is `RESOURCE_EXHAUSTED`. Nothing of ours uses `OUT_OF_RANGE`.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::convert::status_of;
use crate::error::{Error, Reason};

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
                Some(status) if status.code() == Code::OutOfRange => Ok(mend(&status).into_http()),
                _ => Ok(response),
            }
        })
    }
}

/// Gives a refusal of the transport its code and details.
pub(super) fn mend(status: &Status) -> Status {
    if status.code() == Code::OutOfRange {
        status_of(&Error::new(Reason::MessageTooLarge, status.message()))
    } else {
        status.clone()
    }
}
