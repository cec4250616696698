//! The limits of the service around the archive, with the defaults. Those of the archive and of
//! messages are [`crate::archive::Limits`].

use std::time::Duration;

/// What the service takes from all clients together, and from each. Whatever is above a limit is
/// refused at once, with UNAVAILABLE or `RESOURCE_EXHAUSTED` and the time to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Connections; those above it are closed as soon as they are made.
    pub connections_max: u32,
    /// Requests with one answer that are worked on at a time.
    pub requests_max: u32,
    /// Streams open at a time: scans, watches, imports, checks, backups.
    pub streams_max: u32,
    /// Bytes of requests that are in memory at a time, those of 64 KiB and less aside; more wait.
    pub request_bytes_in_flight_max: u32,
    /// Requests in a second from one identity, or from one address if nobody has to say who he is; 0
    /// for no limit. As many may come at once.
    pub requests_per_second_max: u32,
    /// Time for a request with one answer, unless the client gives it less.
    pub request_deadline: Duration,
    /// How long a stream may wait for its client, to send or to take. Zero for ever. A message that was
    /// begun, and an answer that is no stream, has to pass within the time of a request.
    pub stream_idle_max: Duration,
    /// The age at which a connection is asked to end, its streams untouched. Zero for never.
    pub connection_age_max: Duration,
    /// How long a connection may be silent until it has to prove that its client is there. Zero for ever.
    pub keepalive_interval: Duration,
    /// Bytes of the headers of a request.
    pub header_bytes_max: u32,
    /// How long a put may wait for a place in the writer's queue.
    pub queue_wait_max: Duration,
    /// How far a replica may be behind before it says that it should get no requests.
    pub staleness_max: Duration,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            requests_max: 1024,
            streams_max: 512,
            request_bytes_in_flight_max: 256 * 1024 * 1024,
            requests_per_second_max: 0,
            request_deadline: Duration::from_secs(60),
            stream_idle_max: Duration::from_secs(600),
            connection_age_max: Duration::ZERO,
            keepalive_interval: Duration::from_secs(60),
            header_bytes_max: 16 * 1024,
            queue_wait_max: Duration::from_secs(10),
            staleness_max: Duration::from_secs(10),
        }
    }
}
