//! The flags of what browsers reach: the page on the second port, and gRPC-Web on the first.

use std::net::SocketAddr;

use super::Switch;
use super::security::SecurityArgs;
use crate::error::{Error, Reason, Result};
use crate::rpc::Origins;

/// Above these flags in the help.
const BROWSERS: &str = "Browsers";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = BROWSERS)]
pub(super) struct WebArgs {
    /// Whether the address for HTTP also has a page that shows the archive, and its data. With --tokens
    /// they are for those who have a token [default: on, unless other machines reach the address
    /// without TLS or without tokens]
    #[arg(long, value_name = "SWITCH", env = "PRESSMARK_WEB")]
    web: Option<Switch>,
    /// Serve the address for HTTP over TLS too, with the same certificate
    #[arg(long, env = "PRESSMARK_HTTP_TLS")]
    pub(super) http_tls: bool,
    /// Whether browsers may call by gRPC-Web, for which the first address takes HTTP/1.1 as well
    #[arg(
        long,
        value_name = "SWITCH",
        env = "PRESSMARK_GRPC_WEB",
        default_value = "off"
    )]
    grpc_web: Switch,
    /// A site whose pages may do so, such as `https://desk.example`; may be given several times, or
    /// with commas; * for all sites
    #[arg(
        long = "cors-origin",
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "PRESSMARK_CORS_ORIGIN"
    )]
    cors_origins: Vec<String>,
}

impl WebArgs {
    /// The sites that gRPC-Web is spoken with, unless it is not.
    pub(super) fn origins(&self) -> Result<Option<Origins>> {
        match self.grpc_web {
            Switch::On => Origins::parse(&self.cors_origins).map(Some),
            Switch::Off if self.cors_origins.is_empty() => Ok(None),
            Switch::Off => {
                let what = "sites need --grpc-web on, which they are named for";
                Err(Error::field(Reason::ArgumentInvalid, "cors-origin", what))
            }
        }
    }

    /// Whether the page is served on the second address. One that others reach needs what gRPC needs there.
    pub(super) fn page(&self, http: Option<SocketAddr>, security: &SecurityArgs) -> Result<bool> {
        let Some(listen) = http else {
            if self.web == Some(Switch::On) {
                let what = "a page needs an address, which --http-listen gives it";
                return Err(Error::field(Reason::ArgumentInvalid, "web", what));
            }
            return Ok(false);
        };
        let lacks = security.lacks(listen, self.http_tls, "--http-tls");
        match (self.web, lacks) {
            (Some(Switch::Off), _) => Ok(false),
            (_, None) => Ok(true),
            (None, Some(lacks)) => {
                tracing::info!(
                    "{listen} has no page, because other machines reach it and that needs {lacks}"
                );
                Ok(false)
            }
            (Some(Switch::On), Some(lacks)) => {
                let what = format!(
                    "{listen} can be reached from other machines, and a page there needs {lacks}; \
                     --insecure serves it all the same"
                );
                Err(Error::field(Reason::ArgumentInvalid, "web", what))
            }
        }
    }
}
