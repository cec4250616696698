//! The gRPC service: converts messages to calls of the archive and back. The page in a browser asks the
//! same methods. Knows no store, no key and no record. With the client, the only place that names tonic.

mod admin;
mod article;
mod audit;
mod auth;
mod body;
mod browser;
mod caller;
mod connection;
mod convert;
mod frames;
mod gate;
mod headers;
mod import;
pub mod json;
mod layer;
mod limits;
mod methods;
mod observe;
mod pages;
mod questions;
mod reload;
mod replica;
mod server;
mod tls;
mod trace;
mod verify;
mod watch;
mod web;
mod wire;

use std::pin::Pin;

use futures_util::Stream;

pub use self::auth::{Credentials, Identity, Listed, Role};
pub use self::browser::Origins;
pub use self::convert::{article_of, error_of, fields_message, status_of, timestamp_of};
pub use self::headers::MIN_SEQUENCE;
pub use self::limits::ServiceLimits;
pub use self::methods::is_read;
pub use self::server::{
    CONNECTION_WINDOW_BYTES, Listeners, STREAM_WINDOW_BYTES, ServeOptions, Services, check_files,
    serve, serve_pipe,
};
pub use self::tls::TlsFiles;
pub use self::trace::Traces;
pub use self::wire::ImportArticlesRequest;

/// What a streaming method answers with.
type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

/// The messages, clients and server traits that the protos define.
pub mod proto {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::as_conversions,
        clippy::wildcard_enum_match_arm,
        clippy::allow_attributes_without_reason,
        missing_docs,
        unreachable_pub,
        reason = "generated from the protos, whose comments are checked by a test"
    )]

    tonic::include_proto!("pressmark.v1");
}

/// The descriptors of the protos and all that they import, for reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/pressmark.descriptors.bin"));
