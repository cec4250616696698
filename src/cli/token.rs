//! `pressmark token`: keeps the file of those whom a server knows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::output::{cannot_write, json_line};
use super::{CommandResult, Outcome};
use crate::article::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::rpc::{Credentials, Role};

/// Nobody but its owner has to read it.
const FILE_MODE: u32 = 0o600;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file of identities, which `serve --tokens` reads
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "PRESSMARK_TOKENS",
        default_value = "pressmark-tokens.toml"
    )]
    tokens: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Add an identity, and print its token, which cannot be shown again
    Add {
        /// Its name, which stands in every line of the log that tells of its writes
        name: String,
        /// What it may do: a reader reads, a writer stores as well, an admin deletes, checks, repairs and
        /// backs up as well
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// It proves itself by a certificate with this subject, such as `C=NL, O=Gazette, CN=importer`,
        /// and gets no token
        #[arg(long, value_name = "SUBJECT")]
        certificate: Option<String>,
    },
    /// List the identities
    List,
    /// Remove an identity; servers know within two seconds
    Revoke {
        /// Its name
        name: String,
    },
}

pub(super) fn run(args: &Args, json: bool, out: &mut (dyn Write + Send)) -> CommandResult {
    let path = &args.tokens;
    // Held until the end, so that of two that change the file neither takes the other's change back.
    let _turn = match &args.action {
        Action::List => None,
        Action::Add { .. } | Action::Revoke { .. } => Some(turn(path)?),
    };
    let mut known = read(path, &args.action)?;
    match &args.action {
        Action::Add {
            name,
            role,
            certificate: Some(subject),
        } => {
            known.add_certificate(name, *role, subject, now()?)?;
            write(path, &known)?;
        }
        Action::Add {
            name,
            role,
            certificate: None,
        } => {
            let token = known.add_token(name, *role, now()?)?;
            write(path, &known)?;
            if json {
                let line = serde_json::json!({ "name": name, "role": role, "token": token });
                json_line(out, &line)?;
            } else {
                writeln!(out, "{token}")?;
            }
        }
        Action::Revoke { name } => {
            known.revoke(name)?;
            write(path, &known)?;
        }
        Action::List => {
            for listed in known.list() {
                if json {
                    json_line(out, &listed)?;
                    continue;
                }
                let subject = listed.subject.map(|subject| format!("  {subject}"));
                writeln!(
                    out,
                    "{:<6}  {:<11}  {}  {}{}",
                    listed.role.to_string(),
                    listed.kind,
                    listed.created_at,
                    listed.name,
                    subject.unwrap_or_default()
                )?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn now() -> Result<Timestamp> {
    Timestamp::from_clock(SystemTime::now())
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// Waits until no other process changes the file. The lock is on its folder, because the file itself is
/// replaced.
fn turn(path: &Path) -> Result<File> {
    let folder = folder_of(path);
    let lock = || {
        let folder = File::open(folder)?;
        folder.lock()?;
        Ok(folder)
    };
    lock().map_err(|error: io::Error| {
        let what = format!("cannot lock the folder {}", folder.display());
        Error::new(Reason::FileFailed, what).with_source(error)
    })
}

fn read(path: &Path, action: &Action) -> Result<Credentials> {
    let begins = matches!(action, Action::Add { .. });
    match fs::read_to_string(path) {
        Ok(text) => Credentials::parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound && begins => Ok(Credentials::default()),
        Err(error) => {
            let what = format!("cannot read {}", path.display());
            Err(Error::new(Reason::FileFailed, what).with_source(error))
        }
    }
}

/// Replaces the file in one step, so that a server never reads half of it.
fn write(path: &Path, known: &Credentials) -> Result<()> {
    let text = known.to_text()?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let replace = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut file = options.mode(FILE_MODE).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(folder_of(path))?.sync_all()
    };
    replace().map_err(|error| cannot_write(path, error))
}
