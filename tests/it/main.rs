//! The integration tests, one binary. This file holds only what belongs where; a test of a bug is
//! named for it. Every archive test ends in `TestArchive::finish`, which verifies the archive.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may stop at once, prints for a person, and has no callers outside"
)]

// What all tests share: makers of articles, archives on every engine. Not a single assertion of its own.
#[macro_use]
mod support;
// The archive as its users see it, but for pages: puts, deletes, reads, look-ups, figures.
mod archive;
// Pages and counts against a naive model, their tokens, and pages under writers.
mod paging;
// What every storage engine must do, and what only sled can do wrong.
mod store;
// Damage: that verify finds it, and that reads survive it.
mod verify;
