//! Who sends requests, how requests are named, and who is told of them.

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::watch;

use super::auth::{Credentials, Identity};
use super::browser::Origins;
use super::trace::Traces;

/// The header that names a request, in both directions.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// Bytes of such a name.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Who sent a request, and its name: for the lines that tell who wrote what.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) request_id: Arc<str>,
}

/// Who is answered, and what is told of it.
#[derive(Default)]
pub(super) struct Callers {
    pub(super) access: Option<watch::Receiver<Arc<Credentials>>>,
    pub(super) origins: Option<Origins>,
    pub(super) traces: Option<Traces>,
}

/// The name that a client gave a request, if it is one, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let is_name = |id: &&str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_plain)
    };
    if let Some(id) = given.filter(is_name) {
        return id.into();
    }
    let number = getrandom::u64().unwrap_or_default();
    format!("{number:016x}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_request_has_a_name() {
        assert_eq!(&*request_id(&header("a-1")), "a-1");
        for strange in ["", "a b", &"a".repeat(65)] {
            assert_eq!(request_id(&header(strange)).len(), 16);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
