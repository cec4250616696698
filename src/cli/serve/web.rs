//! The flags of what browsers reach: the page on the second port, and gRPC-Web on the first.

use super::Switch;
use crate::error::{Error, Reason, Result};
use crate::rpc::Origins;

/// Above these flags in the help.
const BROWSERS: &str = "Browsers";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = BROWSERS)]
pub(super) struct WebArgs {
    /// Whether the address for HTTP also has a page that shows the archive, and its data. With --tokens
    /// they are for those who have a token
    #[arg(
        long,
        value_name = "SWITCH",
        env = "PRESSMARK_WEB",
        default_value = "on"
    )]
    web: Switch,
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

    /// Whether the second port has the page.
    pub(super) fn page(&self) -> bool {
        self.web == Switch::On
    }
}
