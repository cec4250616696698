//! A line of the log for every write, with who asked for it. Only servers that know who asks write
//! them, under the target `audit`.

use tonic::Request;

use super::caller::Caller;
use super::proto;
use crate::archive::{Put, PutOutcome};

/// Who sent a request.
pub(super) fn caller<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get().cloned()
}

/// Tells of an article that was stored. A duplicate is no write.
pub(super) fn stored(caller: Option<&Caller>, put: &Put) {
    let outcome = match put.outcome {
        PutOutcome::Created => "created",
        PutOutcome::Revision { .. } => "revision",
        PutOutcome::Duplicate | PutOutcome::Deleted => return,
    };
    line(caller, |identity, request| {
        tracing::info!(
            target: "audit",
            identity,
            request,
            outcome,
            id = %put.id,
            sequence = put.sequence,
            "stored"
        );
    });
}

/// Tells of a delete.
pub(super) fn deleted(caller: Option<&Caller>, deleted: &proto::DeleteArticleResponse) {
    if deleted.outcome() != proto::DeleteOutcome::Deleted {
        return;
    }
    line(caller, |identity, request| {
        tracing::info!(
            target: "audit",
            identity,
            request,
            id = deleted.id,
            sequence = deleted.sequence,
            reason = deleted.reason,
            "deleted"
        );
    });
}

/// Tells of a search index that was asked to be built anew.
pub(super) fn rebuilds(caller: Option<&Caller>) {
    line(caller, |identity, request| {
        tracing::info!(target: "audit", identity, request, "rebuilds the search index");
    });
}

/// Tells of an archive that was left for a place, or taken back.
pub(super) fn moved(caller: Option<&Caller>, to: &str) {
    line(caller, |identity, request| {
        tracing::info!(target: "audit", identity, request, to, "moved the archive");
    });
}

/// Tells of a repair that was asked for.
pub(super) fn repairs(caller: Option<&Caller>) {
    line(caller, |identity, request| {
        tracing::info!(target: "audit", identity, request, "repairs");
    });
}

/// Whether lines are written for a caller.
pub(super) fn is_known(caller: Option<&Caller>) -> bool {
    caller.is_some_and(|caller| caller.identity.is_some())
}

fn line(caller: Option<&Caller>, write: impl FnOnce(&str, &str)) {
    if let Some(Caller {
        identity: Some(identity),
        request_id,
    }) = caller
    {
        write(&identity.name, request_id);
    }
}
