//! Replicas: stores that only read what another process writes, and follow it.

use std::sync::Arc;
use std::time::Instant;

use super::{Locator, SlateReplica, Store, StoreOptions};
use crate::error::{Error, Reason, Result};

/// How far a replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Goes up whenever there may be more to read than before.
    pub number: u64,
    /// Whatever was durable at this moment can be read.
    pub complete_to: Instant,
}

/// Opens an archive's store to read it while another process writes it.
///
/// # Errors
/// `ArgumentInvalid` if it is not in object storage, where alone others can read it; `FileFailed` if
/// there is no archive; `StoreFailed`, `ArchiveDamaged`.
pub async fn open_replica(locator: &Locator, options: &StoreOptions) -> Result<Arc<dyn Store>> {
    match locator {
        Locator::Objects(objects) => Ok(Arc::new(SlateReplica::open(objects, options).await?)),
        Locator::Folder(_) | Locator::Memory => {
            let what = format!("cannot follow {locator}: only object storage is shared by servers");
            Err(Error::field(Reason::ArgumentInvalid, "replica", what))
        }
    }
}
