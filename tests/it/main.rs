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

// What all tests of the library share: makers of articles, and archives on every engine.
#[macro_use]
mod support;
// Abuse: floods, half-open connections and slow readers, and what they do to memory and others.
mod abuse;
// The same by what is sent: claims, bombs and random bytes.
mod abuse_messages;
// Puts: what becomes of an article, what is stored of it, and what is left after close.
mod archive;
// Archives in Azure's object storage.
mod azure;
// Backups: what they hold, that damage is refused, restores into every engine, and followers.
mod backup;
// gRPC-Web: what browsers send, from which sites, and that the limits hold for it.
mod browser;
// Requests that nobody waits for any more, whose work stops.
mod cancel;
// Object storage that three machines would keep: what is left when some of them are gone.
mod ceph;
// The same cluster as the place that an archive moves to.
mod ceph_migrate;
// Replicas of archives there: what they add, and how fresh they are.
mod ceph_replicas;
// The command line: output, exit codes, pipes and signals.
mod cli;
// Real articles, through the command line.
mod corpus;
// Copies of articles: exact and near ones.
mod copies;
// kill -9 and SIGTERM of a server under load.
mod crash;
// Deletes: what goes, what stays, and that nothing half-gone is ever seen.
mod deletes;
// What an operator has: certificates, identities, and the server.
mod desk;
// Clients that know all servers of one archive.
mod endpoints;
// Dictionaries: training, both copies of them, and what is told when both are lost.
mod dictionary;
// A disk without room, without permission, and one that does not sync.
mod disk_full;
// What a naive model of an archive knows of articles, and its filter and sort.
mod facts;
// A store that fails at every write and every read: what clients are told, and what is left.
mod faulty;
// Bytes from strangers and bad disks, against every decoder.
mod fuzz;
// The limits of the service: what is refused, what is cut, and that everybody else is served.
mod guard;
// Data that earlier versions wrote.
mod golden;
// Files of other formats, from the command line: imports, exports and damage.
mod formats;
// The service from grpcurl.
mod grpcurl;
// Limits against clients that mean harm, and that each has a flag and is told.
mod limits;
// Load for tests that break the server under it.
mod load;
// Moving an archive to another place: that all of it arrives, live, after kills, and back.
mod migrate;
// Pages and counts of random articles against a naive model of filter and sort.
mod model;
// Health, figures, log and audit lines, as an operator sees them.
mod operator;
// All operations of the archive in random order against a naive model.
mod operations;
// Groups of puts on their way to a store that takes long to make them durable.
mod pipeline;
// Pages: their tokens, what they may see, and that writers never shift them.
mod paging;
// Power cuts of a disk of the test's own.
mod power_cut;
// Revisions, copies, timelines, searches and changes, from the command line.
mod questions;
// HTTP/2 by hand.
mod raw;
// Reads of single articles, look-ups of many, sources and figures.
mod reads;
// Replicas of an archive: what they read, and how they follow.
mod replica;
// Replicas and their writer as processes, which are killed and stopped.
mod replicas;
// Repair: what is mended, what is set aside and healed, and that load goes on beside it.
mod repair;
// The service as a client sees it.
mod rpc;
// Full-text search, and what becomes of its index.
mod search;
// TLS, identities and roles.
mod security;
// Fixtures: servers in this process and beside it.
mod server;
// What only object storage can do wrong: who has an archive open, and what is asked of it.
mod slate;
// What only sled can do wrong: its files, its locks, and what a kill or a bad disk leaves of them.
mod sled;
// A long time of mixed load, restarts and new certificates.
mod soak;
// The clients of that.
mod soak_load;
// What every storage engine must do.
mod store;
// Counts by date, against a naive count.
mod timeline;
// What no compiler checks.
mod tidy;
// Spans of requests, as a collector gets them.
mod traces;
// Database files that are cut or rot.
mod torn;
// A server under abuse: its memory, and the latency of others.
mod victim;
// Damage: that verify finds it, and that reads of everything else go on.
mod verify;
// Check, repair and scrub as operators meet them: command line, service and server.
mod verify_command;
// The change feed as clients see it.
mod watch;
// The page and its data, over HTTP and in Chromium.
mod web;
