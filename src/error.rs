//! The one error type of the crate: what went wrong, for whom, and what to do about it.
//!
//! A [`Kind`] decides how a caller reacts, a [`Reason`] lets a program tell the cases of one kind
//! apart, and the message names the field, the offending value and the limit for a person.
//! This file knows nothing of gRPC; `rpc::convert` turns an [`Error`] into a status.

pub mod panic;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a caller should react to an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong whatever the archive holds. Mend the named field and send it again.
    InvalidArgument,
    /// The thing asked for is not stored. Check the id; a retry does not help.
    NotFound,
    /// The archive or the place it lives in is not in the state the call needs. The message says
    /// what to change before trying again.
    FailedPrecondition,
    /// A limit was reached. Ask for less, or make room.
    ResourceExhausted,
    /// The archive cannot do it now. Retry with a pause, or restart the server if the message says so.
    Unavailable,
    /// Stored bytes do not match their checksum or id. Restore the named article from a backup.
    DataLoss,
    /// Nobody known asks. Send a token, or a certificate, that the server knows.
    Unauthenticated,
    /// The one who asks may not. Ask whoever runs the server for the role that the message names.
    PermissionDenied,
    /// The time that the caller or the server gave it is over; a write may have been done.
    DeadlineExceeded,
    /// A promise inside pressmark was broken. Report it.
    Internal,
}

/// What exactly happened, for programs: upper snake case on the wire, stable across releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A field of an article breaks its rule.
    ArticleInvalid,
    /// The id sent with an article is not the hash of its canonical text.
    IdMismatch,
    /// An argument breaks its rule.
    ArgumentInvalid,
    /// An id prefix fits several articles.
    PrefixAmbiguous,
    /// A page token was cut, changed or made by something else.
    PageTokenInvalid,
    /// A page token belongs to another selector or order.
    PageTokenMismatch,
    /// A protobuf message cannot be decoded.
    MessageMalformed,
    /// A protobuf message is larger than its limit.
    MessageTooLarge,
    /// The headers of a request are larger than their limit.
    HeadersTooLarge,
    /// No article has this id, prefix or URL.
    ArticleNotFound,
    /// The article was deleted; its tombstone says when and why.
    ArticleDeleted,
    /// The article's record was damaged and set aside; storing the article again heals it.
    ArticleQuarantined,
    /// A page would have to sort more rows than the limit allows.
    TooManyToSort,
    /// A timeline would have more numbers than the limit allows.
    TooManyBuckets,
    /// Near copies are asked for and the archive does without them.
    NearCopiesOff,
    /// The server does without full-text search.
    SearchOff,
    /// The search index has not caught up with what is asked for.
    SearchBehind,
    /// The search index cannot be read or written; it is built anew.
    SearchFailed,
    /// Another process holds the archive.
    ArchiveLocked,
    /// The archive was written by a version of pressmark that this one cannot read.
    FormatUnsupported,
    /// The archive cannot be opened because its files are damaged.
    ArchiveDamaged,
    /// A restore into the archive was not finished; run it again.
    RestoreUnfinished,
    /// A migration into the archive was interrupted; run it again, it goes on where it was.
    MigrationUnfinished,
    /// The archive takes no more writes: it was moved to the place that the message names.
    ArchiveMoved,
    /// A backup was cut, changed or is no backup.
    BackupDamaged,
    /// A backup does not go on where the archive, or the backup before it, ends.
    BackupMismatch,
    /// The storage engine found its own files damaged while it read.
    StoreDamaged,
    /// A log record does not match its checksum or its id.
    RecordDamaged,
    /// A log record is intact and cannot be read, because both copies of the dictionary that it was
    /// compressed with are lost.
    DictionaryLost,
    /// An index row names a log record that is not there or differs.
    IndexDamaged,
    /// A write failed, so the archive accepts no more of them until it is opened again.
    WritesStopped,
    /// The disk has too little room for a write; nothing was written.
    DiskFull,
    /// Another process took the archive over, so this one answers no more for it.
    WriterReplaced,
    /// The process only reads the archive; another one writes it.
    NotTheWriter,
    /// The replica has not heard of its archive's writer for longer than it may.
    ReplicaBehind,
    /// The archive does not reach to the sequence that the request asks for.
    SequenceAhead,
    /// The object storage does not do what keeps an archive from losing articles.
    StorageUnfit,
    /// The storage engine failed to read.
    StoreFailed,
    /// The server is stopping.
    ShuttingDown,
    /// The server cannot be reached or broke the connection off.
    ServerUnreachable,
    /// A file of the caller cannot be read or written.
    FileFailed,
    /// The server wants to know who asks, and was sent neither a token nor a certificate.
    CredentialsMissing,
    /// The server does not know the token or the certificate that was sent.
    CredentialsUnknown,
    /// The method is for another role.
    RoleInsufficient,
    /// The web site that sends the request from a browser is none that the server answers.
    OriginRefused,
    /// The caller sends more requests in a second than it may.
    RateExceeded,
    /// The server has as many requests or streams open as it takes.
    TooManyRequests,
    /// The writer's queue was full for as long as a put may wait for a place.
    QueueFull,
    /// The time for the request is over.
    DeadlineExceeded,
    /// The client of a stream sent nothing for too long.
    StreamIdle,
    /// A bug.
    Internal,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 51] = [
        Self::ArticleInvalid,
        Self::IdMismatch,
        Self::ArgumentInvalid,
        Self::PrefixAmbiguous,
        Self::PageTokenInvalid,
        Self::PageTokenMismatch,
        Self::MessageMalformed,
        Self::MessageTooLarge,
        Self::HeadersTooLarge,
        Self::ArticleNotFound,
        Self::ArticleDeleted,
        Self::ArticleQuarantined,
        Self::TooManyToSort,
        Self::TooManyBuckets,
        Self::NearCopiesOff,
        Self::SearchOff,
        Self::SearchBehind,
        Self::SearchFailed,
        Self::ArchiveLocked,
        Self::FormatUnsupported,
        Self::ArchiveDamaged,
        Self::RestoreUnfinished,
        Self::MigrationUnfinished,
        Self::ArchiveMoved,
        Self::BackupDamaged,
        Self::BackupMismatch,
        Self::StoreDamaged,
        Self::RecordDamaged,
        Self::DictionaryLost,
        Self::IndexDamaged,
        Self::WritesStopped,
        Self::DiskFull,
        Self::WriterReplaced,
        Self::NotTheWriter,
        Self::ReplicaBehind,
        Self::SequenceAhead,
        Self::StorageUnfit,
        Self::StoreFailed,
        Self::ShuttingDown,
        Self::ServerUnreachable,
        Self::FileFailed,
        Self::CredentialsMissing,
        Self::CredentialsUnknown,
        Self::RoleInsufficient,
        Self::OriginRefused,
        Self::RateExceeded,
        Self::TooManyRequests,
        Self::QueueFull,
        Self::DeadlineExceeded,
        Self::StreamIdle,
        Self::Internal,
    ];

    /// Reads the name on the wire.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ArticleInvalid => "ARTICLE_INVALID",
            Self::IdMismatch => "ID_MISMATCH",
            Self::ArgumentInvalid => "ARGUMENT_INVALID",
            Self::PrefixAmbiguous => "PREFIX_AMBIGUOUS",
            Self::PageTokenInvalid => "PAGE_TOKEN_INVALID",
            Self::PageTokenMismatch => "PAGE_TOKEN_MISMATCH",
            Self::MessageMalformed => "MESSAGE_MALFORMED",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::HeadersTooLarge => "HEADERS_TOO_LARGE",
            Self::ArticleNotFound => "ARTICLE_NOT_FOUND",
            Self::ArticleDeleted => "ARTICLE_DELETED",
            Self::ArticleQuarantined => "ARTICLE_QUARANTINED",
            Self::TooManyToSort => "TOO_MANY_TO_SORT",
            Self::TooManyBuckets => "TOO_MANY_BUCKETS",
            Self::NearCopiesOff => "NEAR_COPIES_OFF",
            Self::SearchOff => "SEARCH_OFF",
            Self::SearchBehind => "SEARCH_BEHIND",
            Self::SearchFailed => "SEARCH_FAILED",
            Self::ArchiveLocked => "ARCHIVE_LOCKED",
            Self::FormatUnsupported => "FORMAT_UNSUPPORTED",
            Self::ArchiveDamaged => "ARCHIVE_DAMAGED",
            Self::RestoreUnfinished => "RESTORE_UNFINISHED",
            Self::MigrationUnfinished => "MIGRATION_UNFINISHED",
            Self::ArchiveMoved => "ARCHIVE_MOVED",
            Self::BackupDamaged => "BACKUP_DAMAGED",
            Self::BackupMismatch => "BACKUP_MISMATCH",
            Self::StoreDamaged => "STORE_DAMAGED",
            Self::RecordDamaged => "RECORD_DAMAGED",
            Self::DictionaryLost => "DICTIONARY_LOST",
            Self::IndexDamaged => "INDEX_DAMAGED",
            Self::WritesStopped => "WRITES_STOPPED",
            Self::DiskFull => "DISK_FULL",
            Self::WriterReplaced => "WRITER_REPLACED",
            Self::NotTheWriter => "NOT_THE_WRITER",
            Self::ReplicaBehind => "REPLICA_BEHIND",
            Self::SequenceAhead => "SEQUENCE_AHEAD",
            Self::StorageUnfit => "STORAGE_UNFIT",
            Self::StoreFailed => "STORE_FAILED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::ServerUnreachable => "SERVER_UNREACHABLE",
            Self::FileFailed => "FILE_FAILED",
            Self::CredentialsMissing => "CREDENTIALS_MISSING",
            Self::CredentialsUnknown => "CREDENTIALS_UNKNOWN",
            Self::RoleInsufficient => "ROLE_INSUFFICIENT",
            Self::OriginRefused => "ORIGIN_REFUSED",
            Self::RateExceeded => "RATE_EXCEEDED",
            Self::TooManyRequests => "TOO_MANY_REQUESTS",
            Self::QueueFull => "QUEUE_FULL",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::StreamIdle => "STREAM_IDLE",
            Self::Internal => "INTERNAL",
        }
    }

    /// The kind that every error of this reason has.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::ArticleInvalid
            | Self::IdMismatch
            | Self::ArgumentInvalid
            | Self::PrefixAmbiguous
            | Self::PageTokenInvalid
            | Self::PageTokenMismatch
            | Self::MessageMalformed => Kind::InvalidArgument,
            Self::ArticleNotFound | Self::ArticleDeleted => Kind::NotFound,
            Self::ArchiveLocked
            | Self::NotTheWriter
            | Self::StorageUnfit
            | Self::FormatUnsupported
            | Self::RestoreUnfinished
            | Self::MigrationUnfinished
            | Self::BackupMismatch
            | Self::NearCopiesOff
            | Self::SearchOff
            | Self::FileFailed => Kind::FailedPrecondition,
            Self::MessageTooLarge
            | Self::HeadersTooLarge
            | Self::TooManyToSort
            | Self::TooManyBuckets
            | Self::RateExceeded
            | Self::DiskFull => Kind::ResourceExhausted,
            Self::WritesStopped
            | Self::ArchiveMoved
            | Self::WriterReplaced
            | Self::ReplicaBehind
            | Self::SequenceAhead
            | Self::StoreFailed
            | Self::SearchBehind
            | Self::SearchFailed
            | Self::ShuttingDown
            | Self::TooManyRequests
            | Self::QueueFull
            | Self::StreamIdle
            | Self::ServerUnreachable => Kind::Unavailable,
            Self::CredentialsMissing | Self::CredentialsUnknown => Kind::Unauthenticated,
            Self::RoleInsufficient | Self::OriginRefused => Kind::PermissionDenied,
            Self::DeadlineExceeded => Kind::DeadlineExceeded,
            Self::ArchiveDamaged
            | Self::ArticleQuarantined
            | Self::BackupDamaged
            | Self::StoreDamaged
            | Self::RecordDamaged
            | Self::DictionaryLost
            | Self::IndexDamaged => Kind::DataLoss,
            Self::Internal => Kind::Internal,
        }
    }
}

/// An error with its kind, reason and the facts a caller needs.
///
/// Cheap to clone, because one failed group of writes answers every caller in it.
#[derive(Clone, Debug)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    reason: Reason,
    field: Option<String>,
    resource: Option<String>,
    message: String,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error; the message is lower case, has no final dot and names value and limit.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                reason,
                field: None,
                resource: None,
                message: message.into(),
                retry_after: None,
                source: None,
            }),
        }
    }

    /// Makes an error about one field of the caller's input. The message starts with the field's name.
    #[must_use]
    pub fn field(reason: Reason, field: impl Into<String>, message: impl fmt::Display) -> Self {
        let field = field.into();
        let mut error = Self::new(reason, format!("{field}: {message}"));
        error.edit().field = Some(field);
        error
    }

    /// Names the article, file or archive that the error is about.
    #[must_use]
    pub fn with_resource(mut self, resource: impl Into<String>) -> Self {
        self.edit().resource = Some(resource.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_advice(mut self, advice: &str) -> Self {
        let message = &mut self.edit().message;
        message.push_str("; ");
        message.push_str(advice);
        self
    }

    /// Says after what time it is worth while to try again.
    #[must_use]
    pub fn with_retry_after(mut self, pause: Duration) -> Self {
        self.edit().retry_after = Some(pause);
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit().source = Some(Arc::new(source));
        self
    }

    /// Prefixes the field, so that the message of a nested value names the whole path.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        let inner = self.edit();
        if let Some(field) = &mut inner.field {
            let path = format!("{parent}.{field}");
            inner.message.replace_range(..field.len(), &path);
            *field = path;
        }
        self
    }

    /// How to react.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.inner.reason.kind()
    }

    /// What exactly happened.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.inner.reason
    }

    /// The field of the input that is wrong, where there is one.
    #[must_use]
    pub fn field_name(&self) -> Option<&str> {
        self.inner.field.as_deref()
    }

    /// The article, file or archive concerned, where there is one.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        self.inner.resource.as_deref()
    }

    /// After what time to try again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// The text for a person, without the chain of causes.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    fn edit(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.inner)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        // Some causes tell their own causes, some do not; nothing is told twice.
        let mut told = String::new();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            let text = next.to_string();
            if !told.contains(&text) {
                write!(f, ": {text}")?;
                told.push_str(&text);
            }
            cause = next.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

/// Shortens a value for an error message: enough to recognise it, never a whole article.
#[must_use]
pub fn excerpt(value: &str) -> String {
    const EXCERPT_CHARS_MAX: usize = 60;
    let mut shown: String = value.chars().take(EXCERPT_CHARS_MAX).collect();
    if shown.len() < value.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_field_names_its_whole_path() {
        let error = Error::field(Reason::ArticleInvalid, "title", "is empty").within("article");
        assert_eq!(error.field_name(), Some("article.title"));
        assert_eq!(error.message(), "article.title: is empty");
    }

    #[test]
    fn display_prints_the_chain_of_causes() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(Reason::StoreFailed, "cannot read").with_source(cause);
        assert_eq!(error.to_string(), "cannot read: disk on fire");
        let error = Error::new(Reason::WritesStopped, "no more").with_source(error);
        assert_eq!(error.to_string(), "no more: cannot read: disk on fire");
    }

    #[test]
    fn an_excerpt_is_short_and_escaped() {
        assert_eq!(excerpt("a\nb"), "\"a\\nb\"");
        assert!(excerpt(&"x".repeat(1000)).len() < 70);
    }
}
