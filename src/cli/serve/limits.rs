//! The flags of the limits: each is told by `GetServerInfo`.

use std::time::Duration;

use super::interval;
use crate::archive::Limits;
use crate::rpc::ServiceLimits;

/// Above these flags in the help.
const LIMITS: &str = "Limits";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = LIMITS)]
pub(super) struct LimitArgs {
    /// Connections; those above it are closed as soon as they are made
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_CONNECTIONS_MAX",
        default_value_t = 4096
    )]
    connections_max: u32,
    /// Requests and streams that one connection may have open; more wait at the client
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_CONNECTION_STREAMS_MAX",
        default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    connection_streams_max: u32,
    /// Requests with one answer that are worked on at a time
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_REQUESTS_MAX",
        default_value_t = 1024
    )]
    requests_max: u32,
    /// Streams open at a time: scans, watches, imports, checks, backups
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_STREAMS_MAX",
        default_value_t = 512
    )]
    streams_max: u32,
    /// MiB of a message that carries articles
    #[arg(
        long,
        value_name = "MIB",
        env = "PRESSMARK_MESSAGE_MIB_MAX",
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(4..=64)
    )]
    message_mib_max: u16,
    /// MiB of messages above 64 KiB that are in memory at a time; more wait
    #[arg(
        long,
        value_name = "MIB",
        env = "PRESSMARK_REQUEST_MIB_IN_FLIGHT_MAX",
        default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(8..=2048)
    )]
    request_mib_in_flight_max: u16,
    /// Requests in a second from one identity, or from one address if nobody has to say who he is; 0
    /// for no limit
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_REQUESTS_PER_SECOND_MAX",
        default_value_t = 0
    )]
    requests_per_second_max: u32,
    /// Time for a request with one answer, unless the client gives it less
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_REQUEST_DEADLINE",
        default_value = "60s",
        value_parser = humantime::parse_duration
    )]
    request_deadline: Duration,
    /// How long a stream may wait for its client, to send or to take; 0 for ever
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_STREAM_IDLE_MAX",
        default_value = "10m",
        value_parser = interval
    )]
    stream_idle_max: Duration,
    /// The age at which a connection is asked to end, its streams untouched; 0 for never
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_CONNECTION_AGE_MAX",
        default_value = "0",
        value_parser = interval
    )]
    connection_age_max: Duration,
    /// How long a connection may be silent until its client has to answer a ping, for which it has 20 s;
    /// 0 for ever
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_KEEPALIVE_INTERVAL",
        default_value = "60s",
        value_parser = interval
    )]
    keepalive_interval: Duration,
    /// KiB of the headers of a request
    #[arg(
        long,
        value_name = "KIB",
        env = "PRESSMARK_HEADER_KIB_MAX",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    header_kib_max: u16,
    /// Articles that wait for the writer; more callers wait
    #[arg(
        long,
        value_name = "COUNT",
        env = "PRESSMARK_QUEUE_ARTICLES_MAX",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    queue_articles_max: u32,
    /// How long a put may wait for a place among them
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_QUEUE_WAIT_MAX",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    queue_wait_max: Duration,
    /// How far a replica may be behind before it says that it is not ready
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_STALENESS_MAX",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    staleness_max: Duration,
}

impl LimitArgs {
    /// Those of the archive and of messages.
    pub(super) fn archive(&self) -> Limits {
        let widen = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        Limits {
            article_message_bytes_max: usize::from(self.message_mib_max) * 1024 * 1024,
            connection_streams_max: self.connection_streams_max,
            queue_articles_max: widen(self.queue_articles_max),
            ..Limits::default()
        }
    }

    /// Those of the service.
    pub(super) fn service(&self) -> ServiceLimits {
        ServiceLimits {
            connections_max: self.connections_max,
            requests_max: self.requests_max,
            streams_max: self.streams_max,
            request_bytes_in_flight_max: u32::from(self.request_mib_in_flight_max) * 1024 * 1024,
            requests_per_second_max: self.requests_per_second_max,
            request_deadline: self.request_deadline,
            stream_idle_max: self.stream_idle_max,
            connection_age_max: self.connection_age_max,
            keepalive_interval: self.keepalive_interval,
            header_bytes_max: u32::from(self.header_kib_max) * 1024,
            queue_wait_max: self.queue_wait_max,
            staleness_max: self.staleness_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        limits: LimitArgs,
    }

    #[test]
    fn the_flags_have_the_defaults_of_the_library() {
        let limits = Program::parse_from(["pressmark"]).limits;
        assert_eq!(limits.archive(), Limits::default());
        assert_eq!(limits.service(), ServiceLimits::default());
    }
}
