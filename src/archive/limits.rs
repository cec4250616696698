//! Every limit of the archive and of its service, with the defaults.

use crate::article::{
    AUTHOR_BYTES_MAX, SOURCE_BYTES_MAX, TEXT_BYTES_MAX, TITLE_BYTES_MAX, URL_BYTES_MAX,
};
use crate::error::{Error, Reason, Result};
use crate::record::REASON_BYTES_MAX;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Limits. What a caller sends is checked against them once, at the edge; `GetServerInfo` tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a canonical text.
    pub text_bytes_max: usize,
    /// Bytes of a title.
    pub title_bytes_max: usize,
    /// Bytes of an author.
    pub author_bytes_max: usize,
    /// Bytes of a source.
    pub source_bytes_max: usize,
    /// Bytes of a URL.
    pub url_bytes_max: usize,
    /// Bytes of the reason of a delete.
    pub reason_bytes_max: usize,
    /// Bytes of a message that carries articles to the server.
    pub article_message_bytes_max: usize,
    /// Bytes of any other message to the server.
    pub message_bytes_max: usize,
    /// Bytes of a message that the server sends; the defaults of gRPC clients allow 4 MiB.
    pub response_bytes_max: usize,
    /// Ids in one `FindMissingArticles`.
    pub find_missing_ids_max: usize,
    /// Ids in one `LookupArticles`.
    pub lookup_ids_max: usize,
    /// Hex digits in the shortest prefix that is looked up.
    pub prefix_digits_min: usize,
    /// Sources in one selector.
    pub selector_sources_max: usize,
    /// Articles in a page if the caller does not say.
    pub page_articles_default: usize,
    /// Articles in a page; more are clamped.
    pub page_articles_max: usize,
    /// Articles that one page may read in search of those that match; then it ends early.
    pub page_examined_max: usize,
    /// Bytes of articles in one chunk of a scan, one article aside.
    pub scan_chunk_bytes: usize,
    /// Articles of one URL or body that a page can bring into the order of their dates.
    pub sorted_articles_max: usize,
    /// Bytes of a search query.
    pub search_query_bytes_max: usize,
    /// Hits that can be paged through.
    pub search_hits_max: usize,
    /// Numbers in one timeline.
    pub timeline_buckets_max: usize,
    /// Articles in one group of writes. A batch blocks sled's readers while it is applied.
    pub group_articles_max: usize,
    /// Bytes of records in one group of writes, one article aside.
    pub group_bytes_max: usize,
    /// Articles waiting for the writer; further callers wait.
    pub queue_articles_max: usize,
    /// Bytes of records waiting for the writer; further callers wait.
    pub queue_bytes_max: usize,
    /// Results that one import stream may be ahead of its reader.
    pub import_results_max: usize,
    /// Requests that one connection may have open.
    pub connection_streams_max: u32,
    /// Records in the log from which on a dictionary is trained for those that come.
    pub dictionary_records_min: u64,
    /// Findings that one verify lists; it counts all of them.
    pub verify_findings_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            text_bytes_max: TEXT_BYTES_MAX,
            title_bytes_max: TITLE_BYTES_MAX,
            author_bytes_max: AUTHOR_BYTES_MAX,
            source_bytes_max: SOURCE_BYTES_MAX,
            url_bytes_max: URL_BYTES_MAX,
            reason_bytes_max: REASON_BYTES_MAX,
            article_message_bytes_max: 8 * MIB,
            message_bytes_max: MIB,
            response_bytes_max: 3 * MIB + 512 * KIB,
            find_missing_ids_max: 10_000,
            lookup_ids_max: 1000,
            prefix_digits_min: 8,
            selector_sources_max: 100,
            page_articles_default: 50,
            page_articles_max: 1000,
            page_examined_max: 50_000,
            scan_chunk_bytes: 512 * KIB,
            sorted_articles_max: 10_000,
            search_query_bytes_max: 1024,
            search_hits_max: 10_000,
            timeline_buckets_max: 50_000,
            group_articles_max: 256,
            group_bytes_max: 4 * MIB,
            queue_articles_max: 4096,
            queue_bytes_max: 64 * MIB,
            import_results_max: 1024,
            connection_streams_max: 128,
            dictionary_records_min: 2000,
            verify_findings_max: 1000,
        }
    }
}

impl Limits {
    /// Brings a page size into its range: 0 stands for the default, more than the limit for the limit.
    ///
    /// # Errors
    /// `ArgumentInvalid` if it is negative.
    pub fn page_size(&self, asked: i32) -> Result<usize> {
        match usize::try_from(asked) {
            Ok(0) => Ok(self.page_articles_default),
            Ok(count) => Ok(count.min(self.page_articles_max)),
            Err(_) => {
                let what = format!(
                    "{asked} is negative, it needs 0 to {}",
                    self.page_articles_max
                );
                Err(Error::field(Reason::ArgumentInvalid, "page_size", what))
            }
        }
    }
}
