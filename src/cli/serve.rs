//! `pressmark serve`.

mod limits;
mod security;
mod web;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{CommandResult, Outcome, Shared, scrub};
use crate::archive::backup::Follower;
use crate::archive::{Archive, Guard, NearCopies};
use crate::client::search_place;
use crate::error::{Error, Reason, Result};
use crate::rpc::{self, Listeners, ServeOptions, ServiceLimits, Services, Traces};
use crate::search::{Place, Search, SearchGuard};
use crate::store::{self, Locator, StoreOptions};

/// The exit code of a process that a second signal ended at once.
const INTERRUPTED: i32 = 130;

/// File descriptors that connections leave to the archive, the search index, backups and files that are
/// read again; half of all if there are few.
const RESERVED_FILES: u64 = 256;

/// SIGXFSZ, which has this number on all systems that the server runs on.
const SIZE_SIGNAL: i32 = 25;

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
    /// An address for HTTP: /metrics for Prometheus, /healthz and /readyz, and a page in a browser
    #[arg(long, value_name = "ADDR", env = "PRESSMARK_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    /// Seconds that open requests may take to end after the stop
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PRESSMARK_DRAIN_SECONDS",
        default_value_t = 10
    )]
    drain_seconds: u32,
    /// How often to check the whole archive in the background, such as 7d or 12h; 0 for never
    #[arg(
        long,
        value_name = "DURATION",
        env = "PRESSMARK_SCRUB_INTERVAL",
        default_value = "7d",
        value_parser = interval
    )]
    scrub_interval: Duration,
    /// MiB that this check may read in a second; 0 for no limit
    #[arg(
        long,
        value_name = "MIB",
        env = "PRESSMARK_SCRUB_RATE_MIB",
        default_value_t = 16
    )]
    scrub_rate_mib: u32,
    /// Whether to find near copies, which needs a sketch of every article; a change reads the whole
    /// archive once [default: as before, on for a new archive]
    #[arg(long, value_name = "SWITCH", env = "PRESSMARK_NEAR_COPIES")]
    near_copies: Option<Switch>,
    /// Whether to serve full-text search, whose index is kept in the archive's folder
    #[arg(
        long,
        value_name = "SWITCH",
        env = "PRESSMARK_SEARCH",
        default_value = "on"
    )]
    search: Switch,
    /// A folder, better on another disk, into which a backup follows the archive
    #[arg(long, value_name = "DIR", env = "PRESSMARK_BACKUP_TO")]
    backup_to: Option<PathBuf>,
    /// A collector that takes spans of requests by OTLP over gRPC, such as `http://127.0.0.1:4317`
    #[arg(long, value_name = "URL", env = "PRESSMARK_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// The share of requests, from 0 to 1, that begin a trace; those of a trace that a client began
    /// are in it if the client has it recorded
    #[arg(
        long,
        value_name = "SHARE",
        env = "PRESSMARK_OTLP_RATIO",
        default_value_t = 1.0,
        value_parser = share
    )]
    otlp_ratio: f64,
    /// Wait until the process that has the archive open is gone, and then take over; only for archives
    /// in object storage
    #[arg(long, env = "PRESSMARK_STANDBY")]
    standby: bool,
    /// Only read what another server writes, and follow it; only for archives in object storage, any
    /// number of servers for each
    #[arg(
        long,
        env = "PRESSMARK_REPLICA",
        conflicts_with_all = ["standby", "near_copies"]
    )]
    replica: bool,
    #[command(flatten)]
    security: security::SecurityArgs,
    #[command(flatten)]
    web: web::WebArgs,
    #[command(flatten)]
    limits: limits::LimitArgs,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Reads a duration; a bare 0 needs no unit.
fn interval(text: &str) -> Result<Duration, humantime::DurationError> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => humantime::parse_duration(text),
    }
}

/// Reads a number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let share = number.filter(|number| (0.0..=1.0).contains(number));
    share.ok_or_else(|| "it is no number from 0 to 1".to_owned())
}

pub(super) async fn run(
    args: Args,
    shared: &Shared,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let mut options = options(&args)?;
    args.security.check(args.listen)?;
    if let Some(address) = args.http_listen {
        args.security.check_http(address, args.web.http_tls)?;
    }
    rpc::check_files(&options).await?;
    let locator = shared.locator()?;
    let mut store_options = shared.store_options()?;
    let mut stop = Box::pin(stop_signal()?);
    if args.standby {
        tracing::info!("waiting to take over {locator}");
        tokio::select! {
            () = &mut stop => return Ok(Outcome::Done),
            waited = store::wait_for_turn(&locator, &store_options) => waited?,
        }
    }
    // At the limit of a file's size a write is to fail, not to end the process.
    let _size_signal = signal(SignalKind::from_raw(SIZE_SIGNAL)).map_err(no_signals)?;
    let Listeners { grpc, http } = listeners(&args).await?;
    let address = grpc.local_addr()?;
    // Sockets that systemd opened may be elsewhere than the flag says.
    args.security.check(address)?;
    let http_address = http.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some(address) = http_address {
        args.security.check_http(address, args.web.http_tls)?;
    }
    options.page = http_address.is_some() && args.web.page();
    store_options.objects.name = address.to_string();
    let index = search_place(&locator, &store_options);
    let (archive, guard) = tokio::select! {
        // Only a standby may be at this for long.
        () = &mut stop, if args.standby => return Ok(Outcome::Done),
        // On the heap, as all that goes on meanwhile is in one future.
        opened = Box::pin(open_archive(&args, &locator, store_options)) => opened?,
    };
    let files_max = raise_file_limit();
    let (search, search_guard) = open_search(args.search, &archive, index)?.unzip();
    let stopping = CancellationToken::new();
    let follower = match &args.backup_to {
        Some(folder) => {
            let follower = Follower::open(&archive, folder).await?;
            Some(tokio::spawn(follower.run(stopping.clone())))
        }
        None => None,
    };
    let stats = archive.stats().await?;
    tracing::info!(
        articles = stats.totals.article_count,
        open_ms = stats.store.open_micros / 1000,
        "opened {locator}"
    );
    announce(&locator, (address, http_address), &options, out)?;
    let listeners = Listeners { grpc, http };
    tell_systemd(NotifyState::Ready);
    options.limits = within_files(options.limits, files_max);
    let traces = options.traces.clone();
    let scrub = begin_scrub(&args, &archive);
    let loading = tokio::spawn(load_digests(archive.clone()));
    let services = Services {
        archive: archive.clone(),
        search,
    };
    let mut replaced = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            error = archive.replaced() => replaced = Some(error),
        }
    };
    let served = rpc::serve(services, listeners, stop, options).await;
    tell_systemd(NotifyState::Stopping);
    loading.abort();
    if let Some(scrub) = scrub {
        // It only reads, and begins anew at the next start.
        scrub.abort();
    }
    // What was acknowledged last goes into the backup as well.
    stopping.cancel();
    if let Some(follower) = follower
        && let Ok(Err(error)) = follower.await
    {
        tracing::error!(%error, "the backup lacks what came last");
    }
    if let Some(search) = search_guard
        && let Err(error) = search.close().await
    {
        tracing::error!(%error, "the search index ends badly");
    }
    let closed = guard.close().await;
    if let Some(traces) = traces {
        traces.close().await;
    }
    if let Some(error) = replaced {
        return Err(error.into());
    }
    closed?;
    served?;
    tracing::info!("stopped, everything acknowledged is on disk");
    Ok(Outcome::Done)
}

/// What the flags say of serving, but for the page.
fn options(args: &Args) -> Result<ServeOptions> {
    let traces = args.otlp_endpoint.as_deref();
    let traces = traces.map(|endpoint| Traces::open(endpoint, args.otlp_ratio));
    Ok(ServeOptions {
        drain: Duration::from_secs(args.drain_seconds.into()),
        limits: args.limits.service(),
        tls: args.security.tls()?,
        credentials: args.security.tokens.clone(),
        page: false,
        http_tls: args.web.http_tls,
        grpc_web: args.web.origins()?,
        traces: traces.transpose()?,
    })
}

/// Says where the server is, as the first lines that it prints.
fn announce(
    locator: &Locator,
    (grpc, http): (SocketAddr, Option<SocketAddr>),
    options: &ServeOptions,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let scheme = |has_tls| if has_tls { "https" } else { "http" };
    let first = scheme(options.tls.is_some());
    writeln!(out, "pressmark serves {locator} on {first}://{grpc}")?;
    if let Some(http) = http {
        let second = scheme(options.http_tls);
        writeln!(out, "its figures are on {second}://{http}/metrics")?;
        if options.page {
            writeln!(out, "its page is on {second}://{http}/")?;
        }
    }
    out.flush()
}

async fn open_archive(
    args: &Args,
    locator: &Locator,
    options: StoreOptions,
) -> Result<(Archive, Guard)> {
    let limits = args.limits.archive();
    if args.replica {
        let store = store::open_replica(locator, &options).await?;
        return Archive::open_replica(store, limits).await;
    }
    let store = loop {
        match store::open(locator, options.clone()).await {
            // The writer was only slow, and gave a sign after all.
            Err(error) if args.standby && error.reason() == Reason::ArchiveLocked => {
                tracing::info!(%error, "waiting on");
                store::wait_for_turn(locator, &options).await?;
            }
            opened => break opened?,
        }
    };
    match args.near_copies {
        None => Archive::open(store, limits).await,
        Some(Switch::On) => Archive::open_with(store, limits, NearCopies::On).await,
        Some(Switch::Off) => Archive::open_with(store, limits, NearCopies::Off).await,
    }
}

/// Full-text search with its index at a place, if it is wanted and there is one.
fn open_search(
    switch: Switch,
    archive: &Archive,
    place: Option<Place>,
) -> Result<Option<(Search, SearchGuard)>> {
    match (switch, place) {
        (Switch::On, Some(place)) => Search::open(archive.clone(), place).map(Some),
        (Switch::On, None) => {
            tracing::info!("no search: its index needs a folder that --local-dir names");
            Ok(None)
        }
        (Switch::Off, _) => Ok(None),
    }
}

/// Begins the checks in the background, unless they are off.
fn begin_scrub(args: &Args, archive: &Archive) -> Option<JoinHandle<()>> {
    let schedule = scrub::Schedule {
        interval: args.scrub_interval,
        bytes_per_second_max: u64::from(args.scrub_rate_mib) * 1024 * 1024,
    };
    // A replica could not keep what it found.
    let is_on = !args.scrub_interval.is_zero() && !args.replica;
    is_on.then(|| tokio::spawn(scrub::run(archive.clone(), schedule)))
}

/// The sockets that systemd opened, the first for gRPC and the second for HTTP, or else those that
/// the flags name.
async fn listeners(args: &Args) -> Result<Listeners> {
    let mut inherited = ListenFd::from_env();
    let grpc = take(&mut inherited, 0)?;
    let http = take(&mut inherited, 1)?;
    let grpc = match grpc {
        Some(socket) => socket,
        None => listen("listen", args.listen).await?,
    };
    let http = match (http, args.http_listen) {
        (None, Some(address)) => Some(listen("http-listen", address).await?),
        (socket, _) => socket,
    };
    Ok(Listeners { grpc, http })
}

/// A socket that was handed over, if there are so many.
fn take(inherited: &mut ListenFd, number: usize) -> Result<Option<TcpListener>> {
    if number >= inherited.len() {
        return Ok(None);
    }
    let taken = inherited.take_tcp_listener(number).and_then(|socket| {
        let listener = socket.map(|socket| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        });
        listener.transpose()
    });
    taken.map_err(|error| {
        let what = format!("socket {number} that was handed over does not listen for TCP");
        Error::new(Reason::FileFailed, what).with_source(error)
    })
}

/// Tells systemd, if it asked for it.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told how the server is");
    }
}

async fn listen(field: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let what = format!("cannot listen on {address}");
        Error::field(Reason::FileFailed, field, what).with_source(error)
    })
}

/// Reads what the first timeline would otherwise wait for; if that fails, the timeline will tell.
async fn load_digests(archive: Archive) {
    if let Err(error) = archive.load_digests().await {
        tracing::warn!(%error, "the digests of the articles cannot be read");
    }
}

/// Every connection takes a file descriptor, of which most systems give a process 1,024 until it asks.
/// Returns how many it may have.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// Takes no more connections than there are file descriptors for: whoever connects must not keep the
/// archive from opening its files.
fn within_files(limits: ServiceLimits, files_max: u64) -> ServiceLimits {
    let room = files_max - RESERVED_FILES.min(files_max / 2);
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    if room < limits.connections_max {
        tracing::warn!(
            files_max,
            connections_max = room,
            asked = limits.connections_max,
            "the process may have too few files open for so many connections"
        );
    }
    ServiceLimits {
        connections_max: limits.connections_max.min(room),
        ..limits
    }
}

fn no_signals(error: std::io::Error) -> Error {
    Error::new(Reason::Internal, "cannot wait for signals").with_source(error)
}

/// Completes at the first SIGTERM or Ctrl-C; the second one ends the process at once, which loses
/// nothing that was acknowledged.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
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
