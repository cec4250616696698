//! Opens the object storage that a locator names, and finds out whether an archive is there.
//!
//! Credentials, and whatever the flags do not say, come from the variables that the tools of each
//! provider use, such as `AWS_ACCESS_KEY_ID`, `AWS_REGION` and `AWS_ENDPOINT_URL`. All objects of an
//! archive have names below its prefix:
//!
//! ```text
//! prefix/writer    who has it open (see `lease.rs`)
//! prefix/probe/    what is tried before it is opened (see `probe.rs`)
//! prefix/db/       the files of SlateDB, of which the first is in manifest/
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use tokio_rustls::rustls::crypto::ring;

use super::super::{Credentials, ObjectOptions, Objects, Provider};
use super::lease::{self, Lease};
use super::probe;
use super::requests::{Counted, Counts};
use crate::error::{Error, Reason, Result};

/// Where SlateDB has its files.
const DATABASE: &str = "db";

/// Where it keeps what it has, before anything else.
const MANIFESTS: &str = "manifest";

/// How long one request is tried again. SlateDB tries for ever, but the first requests of an open are
/// to fail while somebody still looks.
const RETRIES_MAX: usize = 4;
const RETRY_TIME_MAX: Duration = Duration::from_secs(10);

/// How long one request may take. The largest are parts of some MiB.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// The storage of one archive, for whoever opens, awaits or follows it.
pub(super) struct Place {
    /// What it is called in errors.
    pub(super) name: String,
    /// What the names of all its objects begin with.
    pub(super) prefix: Path,
    /// What the names of the files of SlateDB begin with.
    pub(super) database: Path,
    pub(super) storage: Arc<dyn ObjectStore>,
    pub(super) counts: Arc<Counts>,
    pub(super) lease: Lease,
}

impl Place {
    /// Opens the storage of an archive. Sends nothing yet.
    pub(super) fn open(place: &Objects, options: &ObjectOptions) -> Result<Self> {
        let name = place.to_string();
        let (storage, counts) = Counted::new(open(place, options)?);
        let prefix = Path::from(place.prefix.as_str());
        let lease = Lease::new(storage.clone(), &prefix, name.clone(), options)?;
        Ok(Self {
            name,
            database: prefix.clone().join(DATABASE),
            prefix,
            storage,
            counts,
            lease,
        })
    }

    /// Whether an archive is there.
    ///
    /// # Errors
    /// `StoreFailed` if the storage cannot be reached.
    pub(super) async fn has_archive(&self) -> Result<bool> {
        let first = self.storage.list(Some(&self.manifests())).try_next().await;
        Ok(first.map_err(|error| self.unreadable(error))?.is_some())
    }

    /// Makes sure that an archive is there, or nothing that a new one would be mixed up with.
    ///
    /// # Errors
    /// `FileFailed` with what is there; `StoreFailed` if the storage cannot be reached.
    pub(super) async fn check_place(&self) -> Result<()> {
        if self.has_archive().await? {
            return Ok(());
        }
        let mut objects = self.storage.list(Some(&self.prefix));
        while let Some(object) = objects
            .try_next()
            .await
            .map_err(|error| self.unreadable(error))?
        {
            if self.is_archives(&object.location) {
                continue;
            }
            // Another process may have begun one meanwhile.
            if self.has_archive().await? {
                return Ok(());
            }
            let what = format!(
                "{} has other objects, such as {}, and no archive; name an empty place",
                self.name, object.location
            );
            return Err(Error::new(Reason::FileFailed, what).with_resource(&self.name));
        }
        Ok(())
    }

    /// Whether an object is an archive's, though none has been there yet.
    fn is_archives(&self, location: &Path) -> bool {
        let Some(mut parts) = location.prefix_match(&self.prefix) else {
            return false;
        };
        match (parts.next(), parts.next()) {
            // Some tools make an empty object so that a prefix looks like a folder.
            (None, _) => true,
            (Some(first), None) => first.as_ref() == lease::OBJECT,
            (Some(first), Some(_)) => {
                first.as_ref() == probe::FOLDER || location.prefix_matches(&self.manifests())
            }
        }
    }

    fn manifests(&self) -> Path {
        self.database.clone().join(MANIFESTS)
    }

    fn unreadable(&self, error: object_store::Error) -> Error {
        let what = format!("cannot read from {}", self.name);
        Error::new(Reason::StoreFailed, what).with_source(error)
    }
}

fn open(place: &Objects, options: &ObjectOptions) -> Result<Arc<dyn ObjectStore>> {
    // The client of the requests takes the process's choice, and fails without one. Whatever was
    // chosen before is as good.
    let _ = ring::default_provider().install_default();
    let opened = match place.provider {
        Provider::S3 => s3(place, options),
        Provider::Google => google(place, options),
        Provider::Azure => azure(place, options),
        Provider::Folder => return folder(place),
    };
    opened.map_err(|error| {
        let what = format!("cannot make requests to {place}");
        Error::field(Reason::ArgumentInvalid, "archive", what).with_source(error)
    })
}

fn s3(place: &Objects, options: &ObjectOptions) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&place.bucket)
        .with_retry(retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(Credentials { key_id, secret }) = &options.credentials {
        builder = builder
            .with_access_key_id(key_id)
            .with_secret_access_key(secret);
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let builder = builder.with_client_options(client(endpoint.as_deref()));
    Ok(Arc::new(builder.build()?))
}

fn google(place: &Objects, options: &ObjectOptions) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&place.bucket)
        .with_client_options(client(options.endpoint.as_deref()))
        .with_retry(retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(place: &Objects, options: &ObjectOptions) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&place.bucket)
        .with_client_options(client(options.endpoint.as_deref()))
        .with_retry(retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Arc::new(builder.build()?))
}

fn folder(place: &Objects) -> Result<Arc<dyn ObjectStore>> {
    let failed = || Error::new(Reason::FileFailed, format!("cannot open {place}"));
    std::fs::create_dir_all(&place.bucket).map_err(|error| failed().with_source(error))?;
    let folder = LocalFileSystem::new_with_prefix(&place.bucket)
        .map_err(|error| failed().with_source(error))?;
    // Off by default, and without it nothing is durable.
    Ok(Arc::new(folder.with_fsync(true)))
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIME_MAX,
    }
}

/// Encryption is given up only for an address that says so.
fn client(endpoint: Option<&str>) -> ClientOptions {
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout(REQUEST_TIME_MAX)
        .with_connect_timeout(CONNECT_TIME_MAX)
}
