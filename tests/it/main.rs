//! The integration tests, one binary. This file holds only what belongs where; a test of a bug is
//! named for it. Every archive test ends in `TestArchive::finish`, which verifies the archive.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may stop at once, prints for a person, and has no callers outside"
)]

// What all tests share: makers of articles, and archives on every engine.
#[macro_use]
mod support;
// Puts: what becomes of an article, what is stored of it, and what is left after close.
mod archive;
// Deletes: what goes, what stays, and that nothing half-gone is ever seen.
mod deletes;
// Pages and counts of random articles against a naive model of filter and sort.
mod model;
// Pages: their tokens, what they may see, and that writers never shift them.
mod paging;
// Reads of single articles, look-ups of many, sources and figures.
mod reads;
// What only sled can do wrong: its files, its locks, and what a kill or a bad disk leaves of them.
mod sled;
// What every storage engine must do.
mod store;
// Damage: that verify finds it, and that reads of everything else go on.
mod verify;
