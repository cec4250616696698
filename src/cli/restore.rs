//! `pressmark restore`.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::output::json_line;
use super::{CommandResult, Outcome, Shared, complain};
use crate::archive::backup::Chain;
use crate::archive::{Archive, Limits};
use crate::error::{Error, Reason};
use crate::store::{self, Locator};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Backup files in order, or folders that `serve --backup-to` wrote
    #[arg(required = true, value_name = "BACKUP")]
    backups: Vec<PathBuf>,
}

pub(super) async fn run(
    args: Args,
    shared: &Shared,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    if shared.server.is_some() {
        let what = "a backup is restored into an archive that no server has open; name it with \
                    --archive";
        return Err(Error::field(Reason::ArgumentInvalid, "server", what).into());
    }
    let locator = shared.locator()?;
    let chain = tokio::task::spawn_blocking(move || Chain::read(&args.backups)).await;
    let chain = chain.map_err(|panic| {
        Error::new(Reason::Internal, "reading backups panicked").with_source(panic)
    })??;
    if let Some(file) = chain.unfinished() {
        complain(&format!(
            "{} has no end yet, it is used up to sequence {}",
            file.display(),
            chain.last()
        ));
    }
    if chain.unproved_bytes() > 0 {
        complain(&format!(
            "it is damaged behind that; {} bytes of it cannot be proved and are left out",
            chain.unproved_bytes()
        ));
    }
    let store = store::open(&locator, shared.store_options()?).await?;
    let (archive, guard) = Archive::open_to_restore(store, Limits::default()).await?;
    let restored = archive.restore(&chain).await;
    drop(archive);
    let closed = guard.close().await;
    let summary = restored?;
    closed?;
    if matches!(locator, Locator::Folder(_)) && summary.restored_count > 0 {
        // sled reads at open all that was written since the last one; better now than at the start
        // of the server.
        store::open(&locator, shared.store_options()?)
            .await?
            .close()
            .await?;
    }
    if shared.json {
        let line = json!({
            "restored_count": summary.restored_count, "already_there": summary.present_count,
            "last_sequence": summary.last,
        });
        json_line(out, &line)?;
    } else {
        writeln!(
            out,
            "{} records restored, {} already there, the archive ends at sequence {}",
            summary.restored_count, summary.present_count, summary.last
        )?;
    }
    Ok(match chain.unproved_bytes() {
        0 => Outcome::Done,
        _ => Outcome::Found,
    })
}
