//! How SlateDB is set up for an archive.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
#[expect(
    deprecated,
    reason = "the writer's copies are kept by the same, through its settings"
)]
use slatedb::cached_object_store::CachedObjectStore;
use slatedb::config::{
    CompactorOptions, DbReaderOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions,
    ObjectStoreCacheOptions, Settings, SstBlockSize,
};
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::db_cache::{DbCache, SplitCache};

use super::super::ObjectOptions;
use super::probe::Probed;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What one request reads of a table at least: some compressed articles, or very many index rows.
pub(super) const BLOCK: SstBlockSize = SstBlockSize::Block16Kib;

/// Rows are gathered in memory up to this size before they become a table. What is larger makes fewer
/// tables, but takes longer to read again after a crash.
const TABLE_BYTES: usize = 32 * MIB;

/// Bytes of rows in memory at which writers wait. SlateDB's own default is a GiB.
const UNFLUSHED_BYTES_MAX: usize = 192 * MIB;

/// Tables that wait to be merged before writers wait. A read looks into each, but the filters of most
/// of them answer from memory; a long import is not to stand still for every merge.
const YOUNG_TABLES_MAX: usize = 24;

/// How often is looked whether another process has taken the archive over.
const MANIFEST_POLL: Duration = Duration::from_secs(1);

/// How long files that nothing refers to any more are kept. A process that is stopped for as long and
/// then goes on could take an old file's name for free, if storage does not update under a condition;
/// there they are kept for longer than a stopped process is left alone.
const UNUSED_AGE: Duration = Duration::from_secs(60 * 60);
const UNUSED_AGE_UNCONDITIONAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Files of rows that are in tables by now; nothing but a crash at this moment needs them.
const LOG_AGE: Duration = Duration::from_secs(10 * 60);

/// Bytes of one file of the copies on a local disk.
const CACHE_PART_BYTES: usize = MIB;

/// Bytes of filters and indexes of tables in memory, as a multiple of those of blocks: a look that
/// does not find them there reads far more than the block that it wants. They take about 20 bytes an
/// article.
const META_CACHE_FACTOR: u64 = 8;

pub(super) fn settings(options: &ObjectOptions, probed: Probed) -> Settings {
    Settings {
        flush_interval: Some(options.flush_interval),
        manifest_poll_interval: MANIFEST_POLL,
        l0_sst_size_bytes: TABLE_BYTES,
        max_unflushed_bytes: UNFLUSHED_BYTES_MAX,
        l0_max_ssts: YOUNG_TABLES_MAX,
        l0_max_ssts_per_key: YOUNG_TABLES_MAX,
        compactor_options: Some(CompactorOptions::default()),
        object_store_cache_options: cache(options),
        garbage_collector_options: Some(garbage(probed)),
        ..Settings::default()
    }
}

/// How an archive is followed.
pub(super) fn of_replica(options: &ObjectOptions) -> DbReaderOptions {
    DbReaderOptions {
        manifest_poll_interval: options.poll_interval,
        ..DbReaderOptions::default()
    }
}

/// Object storage with copies on the local disk, if there is a folder for them. Readers of a replica
/// come and go, and each would have its own.
#[expect(
    deprecated,
    reason = "the writer's copies are kept by the same, through its settings"
)]
pub(super) async fn with_copies(
    storage: Arc<dyn ObjectStore>,
    options: &ObjectOptions,
) -> Result<Arc<dyn ObjectStore>, slatedb::Error> {
    let cache = cache(options);
    let Some(folder) = cache.root_folder else {
        return Ok(storage);
    };
    let copies = CachedObjectStore::builder(folder, storage)
        .with_max_cache_size_bytes(cache.max_cache_size_bytes)
        .with_part_size_bytes(cache.part_size_bytes);
    Ok(copies.build().await?)
}

fn cache(options: &ObjectOptions) -> ObjectStoreCacheOptions {
    let (folder, bytes) = options.cache.clone().unzip();
    ObjectStoreCacheOptions {
        root_folder: folder.map(|folder| folder.join("objects")),
        max_cache_size_bytes: bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        part_size_bytes: CACHE_PART_BYTES,
        cache_on_flush: true,
        ..ObjectStoreCacheOptions::default()
    }
}

fn garbage(probed: Probed) -> GarbageCollectorOptions {
    let older_than = |min_age| {
        Some(GarbageCollectorDirectoryOptions {
            min_age,
            ..GarbageCollectorDirectoryOptions::default()
        })
    };
    let metadata_age = if probed.updates_conditionally {
        UNUSED_AGE
    } else {
        UNUSED_AGE_UNCONDITIONAL
    };
    GarbageCollectorOptions {
        manifest_options: older_than(metadata_age),
        compactions_options: older_than(metadata_age),
        compacted_options: older_than(UNUSED_AGE),
        wal_options: older_than(LOG_AGE),
        // An empty file that a new writer left where the old one would write next. While it is there
        // the old one cannot go on, however long it was stopped.
        wal_fence_options: None,
        detach_options: None,
        boundary_files_enabled: probed.updates_conditionally,
        ..GarbageCollectorOptions::default()
    }
}

/// What is kept in memory of tables: so many bytes of blocks, and their filters and indexes.
pub(super) fn memory(block_bytes: u64) -> Arc<dyn DbCache> {
    let cache = |max_capacity| -> Option<Arc<dyn DbCache>> {
        let options = MokaCacheOptions {
            max_capacity,
            ..MokaCacheOptions::default()
        };
        Some(Arc::new(MokaCache::new_with_opts(options)))
    };
    let split = SplitCache::new()
        .with_block_cache(cache(block_bytes))
        .with_meta_cache(cache(block_bytes.saturating_mul(META_CACHE_FACTOR)));
    Arc::new(split.build())
}
