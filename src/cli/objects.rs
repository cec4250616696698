//! The flags of archives in object storage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shared::read_small;
use crate::error::{Error, Reason, Result};
use crate::store::{Credentials, ObjectOptions};

/// Above these flags in the help of every command.
const OBJECTS: &str = "Archives in object storage";

/// What a lease needs at least: three signs within it, each of which is a request.
const LEASE_MIN: Duration = Duration::from_millis(100);

/// A look takes several requests.
const POLL_MIN: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ObjectArgs {
    /// The URL of the object storage, if it is not the provider's own; credentials come from the
    /// variables that the provider's tools use, such as `AWS_ACCESS_KEY_ID`
    #[arg(long, global = true, help_heading = OBJECTS, value_name = "URL", env = "PRESSMARK_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    /// The region of the bucket
    #[arg(long, global = true, help_heading = OBJECTS, value_name = "REGION", env = "PRESSMARK_S3_REGION")]
    s3_region: Option<String>,
    /// A file with the id of a key of S3 and its secret, a line each, instead of the variables
    #[arg(long, global = true, help_heading = OBJECTS, value_name = "FILE", env = "PRESSMARK_S3_CREDENTIALS")]
    s3_credentials: Option<PathBuf>,
    /// How long puts are gathered before one request makes them durable: less is answered sooner, and
    /// costs more requests
    #[arg(
        long,
        global = true,
        help_heading = OBJECTS,
        value_name = "DURATION",
        env = "PRESSMARK_FLUSH_INTERVAL",
        default_value = "50ms",
        value_parser = humantime::parse_duration
    )]
    flush_interval: Duration,
    /// How long the process that has the archive open has to be silent until another takes it over
    #[arg(
        long,
        global = true,
        help_heading = OBJECTS,
        value_name = "DURATION",
        env = "PRESSMARK_WRITER_LEASE",
        default_value = "3s",
        value_parser = humantime::parse_duration
    )]
    writer_lease: Duration,
    /// How often a replica looks what the server that writes has written: more often is fresher, and
    /// costs more requests
    #[arg(
        long,
        global = true,
        help_heading = OBJECTS,
        value_name = "DURATION",
        env = "PRESSMARK_POLL_INTERVAL",
        default_value = "500ms",
        value_parser = humantime::parse_duration
    )]
    poll_interval: Duration,
    /// A folder for what can be made anew: copies of what was read, and the search index, without
    /// which there is no search
    #[arg(long, global = true, help_heading = OBJECTS, value_name = "DIR", env = "PRESSMARK_LOCAL_DIR")]
    pub(super) local_dir: Option<PathBuf>,
    /// MiB that the copies may take
    #[arg(
        long,
        global = true,
        help_heading = OBJECTS,
        value_name = "MIB",
        env = "PRESSMARK_LOCAL_CACHE_MIB",
        default_value_t = 4096
    )]
    local_cache_mib: u32,
}

impl ObjectArgs {
    pub(super) fn options(&self) -> Result<ObjectOptions> {
        let too_short = |field: &str, least: Duration| {
            let what = format!("is shorter than {}", humantime::format_duration(least));
            Err(Error::field(Reason::ArgumentInvalid, field, what))
        };
        if self.flush_interval.is_zero() {
            return too_short("flush-interval", Duration::from_millis(1));
        }
        if self.poll_interval < POLL_MIN {
            return too_short("poll-interval", POLL_MIN);
        }
        if self.writer_lease < LEASE_MIN {
            return too_short("writer-lease", LEASE_MIN);
        }
        let credentials = self
            .s3_credentials
            .as_deref()
            .map(credentials)
            .transpose()?;
        let bytes = u64::from(self.local_cache_mib) * 1024 * 1024;
        Ok(ObjectOptions {
            endpoint: self.s3_endpoint.clone(),
            region: self.s3_region.clone(),
            credentials,
            flush_interval: self.flush_interval,
            lease: self.writer_lease,
            poll_interval: self.poll_interval,
            cache: self.local_dir.clone().map(|folder| (folder, bytes)),
            ..ObjectOptions::default()
        })
    }
}

/// Reads a key from a file.
fn credentials(path: &Path) -> Result<Credentials> {
    let text = read_small(path)?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if let (Some(key_id), Some(secret), None) = (lines.next(), lines.next(), lines.next()) {
        return Ok(Credentials {
            key_id: key_id.to_owned(),
            secret: secret.to_owned(),
        });
    }
    let what = format!(
        "{} does not hold two lines, an id and a secret",
        path.display()
    );
    Err(Error::field(
        Reason::ArgumentInvalid,
        "s3-credentials",
        what,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_two_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            credentials(&path)
        };
        let key = read("id\n secret \n\n").unwrap();
        assert_eq!((key.key_id.as_str(), key.secret.as_str()), ("id", "secret"));
        assert!(!format!("{key:?}").contains("secret\""), "{key:?}");
        for wrong in ["", "id", "id\nsecret\nmore"] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.field_name(), Some("s3-credentials"), "{wrong:?}");
        }
    }
}
