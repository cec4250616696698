//! The flags of every command: where the archive is, and what proves to a server who asks.

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::config;
use super::objects::ObjectArgs;
use crate::client::{SERVERS_MAX, Server, Target};
use crate::error::{Error, Reason, Result};
use crate::store::{Locator, StoreOptions};

/// Above the flags of every command in its help.
const SHARED: &str = "Flags of every command";

/// The variables that stand for `--server` and `--archive`.
const SERVER_VARIABLE: &str = "PRESSMARK_SERVER";
const ARCHIVE_VARIABLE: &str = "PRESSMARK_ARCHIVE";

/// Flags of every command.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Shared {
    /// The server to talk to. Of several of one archive, separated by commas, the client finds out
    /// which is the writer, and reads from the replicas [env: `PRESSMARK_SERVER`] [default: `http://127.0.0.1:50051`]
    #[arg(long, global = true, help_heading = SHARED, value_name = "URL,...")]
    pub(super) server: Option<String>,
    /// The archive to serve, or to open in this process while no server has it open: a folder,
    /// a place in object storage such as `s3://bucket/prefix`, or `memory:` [env: `PRESSMARK_ARCHIVE`] [default of serve: ./pressmark-data]
    #[arg(long, global = true, help_heading = SHARED, value_name = "LOCATOR")]
    archive: Option<String>,
    /// A file with the token that the server knows; `-` is standard input
    #[arg(long, global = true, help_heading = SHARED, value_name = "FILE", env = "PRESSMARK_TOKEN")]
    token: Option<PathBuf>,
    /// Roots in PEM of the server's certificate, instead of those of the system
    #[arg(long, global = true, help_heading = SHARED, value_name = "FILE", env = "PRESSMARK_CA")]
    ca: Option<PathBuf>,
    /// The certificate in PEM by which the server knows who asks
    #[arg(
        long,
        global = true,
        help_heading = SHARED,
        value_name = "FILE",
        env = "PRESSMARK_CERT",
        requires = "key"
    )]
    cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(
        long,
        global = true,
        help_heading = SHARED,
        value_name = "FILE",
        env = "PRESSMARK_KEY",
        requires = "cert"
    )]
    key: Option<PathBuf>,
    /// Wait until the server's archive has come to this sequence, such as that of your own put, for
    /// most of a minute; for replicas
    #[arg(long, global = true, help_heading = SHARED, value_name = "SEQUENCE")]
    wait_for: Option<u64>,
    /// MiB of index pages that an archive opened in this process keeps in memory, counted as they
    /// are on disk; in memory they take several times as much
    #[arg(
        long,
        global = true,
        help_heading = SHARED,
        value_name = "MIB",
        env = "PRESSMARK_CACHE_MIB",
        default_value_t = 32
    )]
    cache_mib: u32,
    #[command(flatten)]
    pub(super) objects: ObjectArgs,
    /// A file of TOML with values of flags, over which flags and variables win
    #[arg(
        long,
        global = true,
        help_heading = SHARED,
        value_name = "FILE",
        env = "PRESSMARK_CONFIG"
    )]
    config: Option<PathBuf>,
    /// What the file says of server and archive.
    #[arg(skip)]
    pub(super) in_file: config::Places,
    /// How the log on standard error is written
    #[arg(
        long,
        global = true,
        help_heading = SHARED,
        value_name = "FORMAT",
        env = "PRESSMARK_LOG_FORMAT",
        default_value = "text"
    )]
    pub(super) log_format: LogFormat,
    /// Print one JSON object a line
    #[arg(long, global = true, help_heading = SHARED)]
    pub(super) json: bool,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Shared {
    pub(super) fn store_options(&self) -> Result<StoreOptions> {
        Ok(StoreOptions {
            cache_bytes: u64::from(self.cache_mib) * 1024 * 1024,
            accept_loss: false,
            objects: self.objects.options()?,
        })
    }

    pub(super) fn target(&self, begins_archive: bool) -> Result<Target> {
        // A flag wins over both variables, which clap would not tell apart from flags.
        let (server, archive) = match (&self.server, &self.archive) {
            (None, None) => match (variable(SERVER_VARIABLE), variable(ARCHIVE_VARIABLE)) {
                (None, None) => (self.in_file.server.clone(), self.in_file.archive.clone()),
                variables => variables,
            },
            flags => (flags.0.clone(), flags.1.clone()),
        };
        match (server, archive) {
            (Some(_), Some(_)) => Err(Error::field(
                Reason::ArgumentInvalid,
                "server",
                "both a server and an archive are named, by flags or by PRESSMARK_SERVER and \
                 PRESSMARK_ARCHIVE; name one",
            )),
            (None, Some(_)) if self.wait_for.is_some() => {
                let what = "a server is waited for, and an archive that is opened here has no other writer";
                Err(Error::field(Reason::ArgumentInvalid, "wait-for", what))
            }
            (None, Some(archive)) => {
                let locator = archive.parse()?;
                if let Locator::Folder(folder) = &locator
                    && !begins_archive
                    && !folder.exists()
                {
                    let what = format!("no archive is at {archive}; put or import begins one");
                    return Err(Error::new(Reason::FileFailed, what).with_resource(archive));
                }
                Ok(Target::Archive(locator, self.store_options()?))
            }
            (Some(server), None) => self.named(&server),
            (None, None) => self.named("http://127.0.0.1:50051"),
        }
    }

    /// Whether a flag names a server or an archive.
    pub(super) fn names_archive(&self) -> bool {
        self.server.is_some() || self.archive.is_some()
    }

    /// The archive that an argument names: the URL of a server, or a locator.
    pub(super) fn target_at(&self, place: &str) -> Result<Target> {
        if ["http://", "https://"]
            .iter()
            .any(|scheme| place.starts_with(scheme))
        {
            return self.named(place);
        }
        Ok(Target::Archive(place.parse()?, self.store_options()?))
    }

    /// A server or several, and what proves to them who asks.
    fn named(&self, servers: &str) -> Result<Target> {
        let urls: Vec<String> = servers
            .split(',')
            .map(|url| url.trim().to_owned())
            .collect();
        if urls.len() > SERVERS_MAX {
            let what = format!("names {} servers, more than {SERVERS_MAX}", urls.len());
            return Err(Error::field(Reason::ArgumentInvalid, "server", what));
        }
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_small).transpose();
        let identity = match (read(&self.cert)?, read(&self.key)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => None,
        };
        let token = read(&self.token)?.map(|token| token.trim().to_owned());
        let public = urls.iter().find(|url| !is_secret(url) && !is_local(url));
        if let (Some(url), Some(_)) = (public, &token) {
            let what = format!("is not sent to {url}, where others could read it; use https");
            return Err(Error::field(Reason::ArgumentInvalid, "token", what));
        }
        Ok(Target::Server(Server {
            urls,
            token,
            roots: read(&self.ca)?,
            identity,
            min_sequence: self.wait_for,
        }))
    }

    pub(super) fn locator(&self) -> Result<Locator> {
        let named = self.archive.clone().or_else(|| variable(ARCHIVE_VARIABLE));
        let named = named.or_else(|| self.in_file.archive.clone());
        named.as_deref().unwrap_or("./pressmark-data").parse()
    }
}

/// Whether what is sent to a URL is encrypted. All but https is not, whatever a scheme is called.
fn is_secret(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| url.scheme() == "https")
}

/// Whether a URL stays on this machine.
fn is_local(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else {
        return false;
    };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Reads a file of a token, certificate or key, or standard input.
pub(super) fn read_small(path: &Path) -> Result<String> {
    let read = if path == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| {
        let what = format!("cannot read {}", path.display());
        Error::new(Reason::FileFailed, what).with_source(error)
    })
}

/// A variable that is set and not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
