//! `pressmark serve`.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{CommandResult, Outcome, Shared};
use crate::archive::{Archive, Limits};
use crate::error::{Error, Reason, Result};
use crate::rpc::{self, ServeOptions};
use crate::store;

/// The exit code of a process that a second signal ended at once.
const INTERRUPTED: i32 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The address to listen on; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        env = "PRESSMARK_LISTEN",
        default_value = "127.0.0.1:50051"
    )]
    listen: SocketAddr,
    /// Seconds that open requests may take to end after the stop
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PRESSMARK_DRAIN_SECONDS",
        default_value_t = 10
    )]
    drain_seconds: u32,
}

pub(super) async fn run(
    args: Args,
    shared: &Shared,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let locator = shared.locator()?;
    let stop = stop_signal()?;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        let what = format!("cannot listen on {}", args.listen);
        Error::field(Reason::FileFailed, "listen", what).with_source(error)
    })?;
    let address = listener.local_addr()?;
    let store = store::open(&locator, shared.store_options()).await?;
    let (archive, guard) = Archive::open(store, Limits::default()).await?;
    let stats = archive.stats().await?;
    tracing::info!(
        articles = stats.totals.article_count,
        open_ms = stats.store.open_micros / 1000,
        "opened {locator}"
    );
    writeln!(out, "pressmark serves {locator} on http://{address}")?;
    out.flush()?;
    let options = ServeOptions {
        drain: Duration::from_secs(args.drain_seconds.into()),
    };
    let served = rpc::serve(archive, listener, stop, options).await;
    guard.close().await?;
    served?;
    tracing::info!("stopped, everything acknowledged is on disk");
    Ok(Outcome::Done)
}

/// Completes at the first SIGTERM or Ctrl-C; the second one ends the process at once, which loses
/// nothing that was acknowledged.
fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    let failed = |error| Error::new(Reason::Internal, "cannot wait for signals").with_source(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(INTERRUPTED);
        });
    })
}
