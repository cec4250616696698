//! The flags of TLS and of identities, and the refusal to serve a network without them.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::{Error, Reason, Result};
use crate::rpc::TlsFiles;

/// Above these flags in the help.
const SECURITY: &str = "Security";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = SECURITY)]
pub(super) struct SecurityArgs {
    /// The server's certificate in PEM, with those between it and the root; read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "PRESSMARK_TLS_CERT",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "PRESSMARK_TLS_KEY",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// Roots of clients' certificates in PEM. Without --tokens every connection needs one, and may then
    /// do everything; with --tokens its subject has to stand there
    #[arg(
        long,
        value_name = "FILE",
        env = "PRESSMARK_TLS_CLIENT_CA",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,
    /// The file of identities that `pressmark token` keeps; read again when it changes
    #[arg(long, value_name = "FILE", env = "PRESSMARK_TOKENS")]
    pub(super) tokens: Option<PathBuf>,
    /// Serve a network without TLS, or without knowing who asks
    #[arg(long, env = "PRESSMARK_INSECURE")]
    insecure: bool,
}

impl SecurityArgs {
    /// The files of TLS, if there are any. A file of configuration can name some of them alone.
    pub(super) fn tls(&self) -> Result<Option<TlsFiles>> {
        let client_roots = self.tls_client_ca.clone();
        match (&self.tls_cert, &self.tls_key, &client_roots) {
            (Some(certificate), Some(key), _) => Ok(Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_roots,
            })),
            (None, None, None) => Ok(None),
            _ => {
                let what = "TLS needs --tls-cert and --tls-key, and one of them is missing";
                Err(Error::field(Reason::ArgumentInvalid, "tls-cert", what))
            }
        }
    }

    /// Refuses an address of the second port that others can reach, unless it has TLS and knows who asks.
    pub(super) fn check_http(&self, listen: SocketAddr, has_tls: bool) -> Result<()> {
        let Some(lacks) = self.lacks(listen, has_tls, "--http-tls") else {
            return Ok(());
        };
        let what = format!(
            "{listen} can be reached from other machines, and HTTP there needs {lacks}; --insecure \
             serves it all the same"
        );
        Err(Error::field(Reason::ArgumentInvalid, "http-listen", what))
    }

    /// Refuses an address that others can reach while they could read or change everything.
    pub(super) fn check(&self, listen: SocketAddr) -> Result<()> {
        let Some(lacks) = self.lacks(listen, self.tls_cert.is_some(), "--tls-cert, --tls-key")
        else {
            return Ok(());
        };
        let what = format!(
            "{listen} can be reached from other machines, and that needs {lacks}; --insecure serves \
             it all the same"
        );
        Err(Error::field(Reason::ArgumentInvalid, "listen", what))
    }

    /// What an address lacks that others can reach, unless nothing is asked of it. Its TLS comes from
    /// these flags.
    pub(super) fn lacks(&self, listen: SocketAddr, has_tls: bool, flags: &str) -> Option<String> {
        if listen.ip().to_canonical().is_loopback() || self.insecure {
            return None;
        }
        let knows_callers = self.tokens.is_some() || self.tls_client_ca.is_some();
        match (has_tls, knows_callers) {
            (true, true) => None,
            (false, true) => Some(format!("{flags}, without which tokens can be read")),
            (true, false) => {
                let what = "--tokens or --tls-client-ca, without which everybody may do everything";
                Some(what.to_owned())
            }
            (false, false) => Some(format!("{flags} and --tokens")),
        }
    }
}
