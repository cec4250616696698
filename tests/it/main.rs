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

// Real articles, through the command line.
mod corpus;
// kill -9 and SIGTERM of a server under load.
mod crash;
// The service from grpcurl.
mod grpcurl;
// Load for tests that break the server under it.
mod load;
// Power cuts of a disk of the test's own.
mod power_cut;
// The service as a client sees it.
mod rpc;
// Fixtures: servers in this process and beside it.
mod server;
// What no compiler checks.
mod tidy;
