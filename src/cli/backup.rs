//! `pressmark backup`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::{NewFile, STANDARD, cannot_write, json_line};
use super::{CommandResult, Outcome};
use crate::archive::backup::{Chain, Decoder, Trailer};
use crate::client::{Client, message};
use crate::error::Result;
use crate::rpc::{error_of, proto};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file to write, which must not be there yet; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Back up only the records from this sequence on
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "after")]
    from_sequence: u64,
    /// Back up only what came after this older backup, a file or a folder of them
    #[arg(long, value_name = "BACKUP")]
    after: Option<PathBuf>,
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let older = args.after.map(|older| Chain::read(&[older])).transpose()?;
    let from_sequence = match &older {
        Some(older) => older.last() + 1,
        None => args.from_sequence,
    };
    let request = proto::BackupArchiveRequest { from_sequence };
    let mut pieces = message(client.admin().backup_archive(request).await)?;
    if args.file == Path::new(STANDARD) {
        while let Some(piece) = pieces.message().await.map_err(|status| error_of(&status))? {
            out.write_all(&piece.data)?;
        }
        return Ok(Outcome::Done);
    }
    // Under its own name a backup is always whole and proved.
    let (new, file) = NewFile::create(&args.file)?;
    let failed = |error| cannot_write(&new.unfinished, error);
    let mut file = BufWriter::new(file);
    while let Some(piece) = pieces.message().await.map_err(|status| error_of(&status))? {
        file.write_all(&piece.data).map_err(failed)?;
    }
    let file = file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    let (trailer, bytes) = prove(&new.unfinished)?;
    if let Some(older) = &older {
        older.check_next(&new.unfinished)?;
    }
    new.finish()?;
    let Trailer { last, record_count } = trailer;
    let first = last + 1 - record_count;
    if json {
        let line = json!({
            "record_count": record_count, "first_sequence": first, "last_sequence": last,
            "bytes": bytes,
        });
        json_line(out, &line)?;
    } else if record_count == 0 {
        writeln!(
            out,
            "0 records, nothing came after sequence {last}; {bytes} bytes"
        )?;
    } else {
        writeln!(
            out,
            "{record_count} records, sequences {first} to {last}, {bytes} bytes"
        )?;
    }
    Ok(Outcome::Done)
}

/// Reads a backup to its end, and returns what it ends with and how long it is.
fn prove(file: &Path) -> Result<(Trailer, u64)> {
    let input = BufReader::new(File::open(file).map_err(|error| cannot_write(file, error))?);
    let mut decoder = Decoder::new(input, file.display().to_string())?;
    while decoder.next_entries()?.is_some() {}
    Ok((decoder.trailer(), decoder.bytes()))
}
