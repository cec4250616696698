//! All integration tests, in one binary.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking, and its helpers are documented where they are not plain"
)]

// The service as a client sees it.
mod rpc;
// Fixtures: servers in this process and beside it.
mod server;
