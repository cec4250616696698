//! The command line: one file per command. Results go to stdout, everything else to stderr.

mod articles;
mod backup;
mod config;
mod copies;
mod examples;
mod export;
mod heal;
mod import;
mod manual;
mod migrate;
mod objects;
mod output;
mod restore;
mod revisions;
mod scrub;
mod search;
mod select;
mod serve;
mod shared;
mod timeline;
mod token;
mod verify;
mod watch;

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::shared::{LogFormat, Shared, read_small, variable};
use crate::client::{Client, Target};
use crate::error::{self, Error, Reason, Result};
use crate::store::StoreOptions;

/// The exit code of a command that did its work and found something wrong.
const FOUND: u8 = 1;

/// The exit code of a command that failed.
const FAILED: u8 = 2;

/// An archive for news articles, named by the BLAKE3 hash of their text.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an archive over gRPC until SIGTERM or Ctrl-C
    #[command(after_help = examples::SERVE)]
    Serve(serve::Args),
    /// Store files in the canonical layout; `-` is standard input
    #[command(after_help = examples::PUT)]
    Put(articles::PutArgs),
    /// Print the canonical text of an article
    #[command(after_help = examples::GET)]
    Get(articles::GetArgs),
    /// List articles without their bodies
    #[command(after_help = examples::LIST)]
    List(select::ListArgs),
    /// Stream articles; with --json, whole ones
    #[command(after_help = examples::SCAN)]
    Scan(select::ScanArgs),
    /// Count articles
    #[command(after_help = examples::COUNT)]
    Count(select::CountArgs),
    /// Print which of the ids in a file, or on standard input, are not stored
    #[command(after_help = examples::MISSING)]
    Missing(articles::MissingArgs),
    /// Import articles from files of many formats: Markdown, JSON, CSV, Parquet, feeds, HTML, WARC
    #[command(after_help = examples::IMPORT)]
    Import(import::Args),
    /// Write articles into a tree of Markdown, or into a file of JSON Lines, CSV, Parquet, WARC or RSS
    #[command(after_help = examples::EXPORT)]
    Export(export::Args),
    /// List the sources and their figures
    #[command(after_help = examples::SOURCES)]
    Sources,
    /// List the articles at a URL, the first stored first, or show what changed between two
    #[command(after_help = examples::REVISIONS)]
    Revisions(revisions::Args),
    /// List the copies of an article: the same body, and bodies with small edits
    #[command(after_help = examples::COPIES)]
    Copies(copies::Args),
    /// Print every change of the archive as it comes, from any sequence on
    #[command(after_help = examples::WATCH)]
    Watch(watch::Args),
    /// Draw how many articles were published when
    #[command(after_help = examples::TIMELINE)]
    Timeline(timeline::Args),
    /// Find articles by their words
    #[command(after_help = examples::SEARCH)]
    Search(search::Args),
    /// Throw the search index away and build it anew
    #[command(after_help = examples::REINDEX)]
    Reindex,
    /// Delete an article for good; a tombstone with the reason stays
    #[command(after_help = examples::DELETE)]
    Delete(articles::DeleteArgs),
    /// Check the whole archive, and with --repair mend it
    #[command(after_help = examples::VERIFY)]
    Verify(verify::Args),
    /// Write a backup of the archive, or of what came since an older one, into a file
    #[command(after_help = examples::BACKUP)]
    Backup(backup::Args),
    /// Restore backups into an archive that no server has open
    #[command(after_help = examples::RESTORE)]
    Restore(restore::Args),
    /// Move an archive to another place or engine while it is in use, and switch over to it
    #[command(after_help = examples::MIGRATE)]
    Migrate(migrate::Args),
    /// Store articles again, from backups, whose records were damaged and set aside
    #[command(after_help = examples::HEAL)]
    Heal(heal::Args),
    /// Show what the archive holds and what the server did since it started
    #[command(after_help = examples::STATS)]
    Stats,
    /// Keep the file of those whom a server knows: their names, roles and hashes of tokens
    #[command(after_help = examples::TOKEN)]
    Token(token::Args),
    /// Print what `serve` would do with the same flags, and where each value is from
    #[command(after_help = examples::CONFIG)]
    Config(serve::Args),
    /// Print what makes a shell complete this program's commands and flags
    #[command(after_help = examples::COMPLETIONS)]
    Completions(manual::CompletionArgs),
    /// Print this program's manual page, or write the pages of all commands
    #[command(after_help = examples::MAN)]
    Man(manual::ManArgs),
}

impl Command {
    /// Whether the command makes sense on an archive that is not there yet. For the others a
    /// mistyped folder is an error and not an empty archive.
    fn begins_archive(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Put(_) | Self::Import(_))
    }

    /// Whether the command may open an archive whose figures are damaged.
    fn repairs(&self) -> Option<&verify::Args> {
        let Self::Verify(args) = self else {
            return None;
        };
        args.repair.then_some(args)
    }

    /// What is logged unless `PRESSMARK_LOG` says otherwise.
    fn log_level(&self) -> &'static str {
        if matches!(self, Self::Serve(_)) {
            "info,rustls=error,slatedb=warn"
        } else {
            "warn"
        }
    }
}

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Found,
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    Error(Error),
    /// Nobody reads what is printed any more, which is no failure.
    ClosedPipe,
    /// Whoever started it stopped it, and was told what that means.
    Interrupted,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ClosedPipe;
        }
        Self::Error(
            Error::new(Reason::FileFailed, "cannot write to standard output").with_source(error),
        )
    }
}

/// How long a thread that may wait is kept without work. Each keeps memory that it may need again, which
/// comes back when it ends.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

type CommandResult = Result<Outcome, Failure>;

/// Runs the command that the arguments name, and returns the exit code: 0 done, 1 something was
/// found or refused, 2 failed.
#[must_use]
pub fn main() -> ExitCode {
    let (cli, matches, file) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return fail(&error),
    };
    let filter = EnvFilter::try_from_env("PRESSMARK_LOG")
        .unwrap_or_else(|_| EnvFilter::new(cli.command.log_level()));
    let colours = output::is_coloured(&io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours);
    match cli.shared.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::new(Reason::Internal, "no runtime").with_source(error)),
    };
    let mut out = io::BufWriter::new(io::stdout());
    let result = if matches!(cli.command, Command::Config(_)) {
        config::print(&Cli::command(), &matches, &file, &mut out)
    } else {
        runtime.block_on(run(cli, &mut out))
    };
    let result = result.and_then(|outcome| Ok(out.flush().map(|()| outcome)?));
    // A thread that waits for standard input must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(Outcome::Done) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(FOUND),
        Err(Failure::Interrupted) => ExitCode::from(FAILED),
        Err(Failure::Error(error)) => fail(&error),
    }
}

/// Reads the configuration file and then the arguments, for which it has the defaults. A mistake in
/// the arguments ends the process, as the library for them does it.
fn parse() -> Result<(Cli, ArgMatches, config::File)> {
    let path = config::path(std::env::args_os().skip(1));
    let (mut command, file) = config::apply(path.as_deref(), Cli::command())?;
    let matches = command.get_matches_mut();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.shared.in_file = file.places.clone();
    Ok((cli, matches, file))
}

/// Makes one line of the log of a panic. Those that are caught and answered are told by their answers.
fn log_panic(panic: &PanicHookInfo<'_>) {
    const MESSAGE_CHARS_MAX: usize = 200;
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("no message");
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    let place = panic.location().map(ToString::to_string);
    if error::panic::is_expected() {
        tracing::debug!(place, message, "a panic of the storage engine was caught");
    } else {
        tracing::error!(
            place,
            message,
            "a promise inside pressmark was broken; report this"
        );
    }
}

fn fail(error: &Error) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(FAILED)
}

/// Prints a line for the person at the terminal.
#[expect(clippy::print_stderr, reason = "the one place that does")]
fn complain(line: &str) {
    eprintln!("pressmark: {line}");
}

async fn run(cli: Cli, out: &mut (dyn Write + Send)) -> CommandResult {
    let Cli { shared, command } = cli;
    if let Command::Completions(args) = &command {
        return manual::completions(args, out);
    }
    if let Command::Man(args) = &command {
        return manual::man(args, out);
    }
    if let Command::Token(args) = &command {
        return token::run(args, shared.json, out);
    }
    if let Command::Serve(args) = command {
        return serve::run(args, &shared, out).await;
    }
    if let Command::Restore(args) = command {
        return restore::run(args, &shared, out).await;
    }
    if let Command::Migrate(args) = command {
        return Box::pin(migrate::run(args, &shared, out)).await;
    }
    if let Command::Import(args) = &command
        && args.is_dry()
    {
        return import::dry_run(args, shared.json, out).await;
    }
    let mut target = shared.target(command.begins_archive())?;
    if let (Target::Archive(locator, options), Some(verify)) = (&target, command.repairs()) {
        let options = StoreOptions {
            accept_loss: verify.accept_loss,
            ..options.clone()
        };
        target = Target::DamagedArchive(locator.clone(), options);
    }
    let searches = matches!(command, Command::Search(_) | Command::Reindex);
    if let (Target::Archive(locator, options), true) = (&target, searches) {
        target = Target::SearchedArchive(locator.clone(), options.clone());
    }
    let client = Client::connect(&target).await?;
    let result = run_on(command, &client, shared.json, out).await;
    let closed = client.close().await;
    let outcome = result?;
    closed?;
    Ok(outcome)
}

/// Runs a command that needs an archive.
async fn run_on(
    command: Command,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    match command {
        // These have no client and were run before.
        Command::Serve(_)
        | Command::Restore(_)
        | Command::Migrate(_)
        | Command::Token(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man(_) => Ok(Outcome::Done),
        Command::Put(args) => articles::put(args, client, json, out).await,
        Command::Get(args) => articles::get(args, client, json, out).await,
        Command::List(args) => select::list(args, client, json, out).await,
        Command::Scan(args) => select::scan(args, client, json, out).await,
        Command::Count(args) => select::count(args, client, json, out).await,
        Command::Missing(args) => articles::missing(args, client, json, out).await,
        Command::Import(args) => import::run(args, client, json, out).await,
        Command::Export(args) => export::run(args, client, json, out).await,
        Command::Sources => select::sources(client, json, out).await,
        Command::Revisions(args) => revisions::run(args, client, json, out).await,
        Command::Copies(args) => copies::run(args, client, json, out).await,
        Command::Watch(args) => watch::run(args, client, json, out).await,
        Command::Timeline(args) => timeline::run(args, client, json, out).await,
        Command::Search(args) => search::search(args, client, json, out).await,
        Command::Reindex => search::reindex(client, json, out).await,
        Command::Delete(args) => articles::delete(args, client, json, out).await,
        Command::Verify(args) => verify::run(args, client, json, out).await,
        Command::Backup(args) => backup::run(args, client, json, out).await,
        Command::Heal(args) => heal::run(args, client, json, out).await,
        Command::Stats => articles::stats(client, json, out).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a line as a shell gives them, up to a pipe or a remark.
    fn words(line: &str) -> Vec<String> {
        let line = line.split_once("  ").map_or(line, |(line, _)| line);
        let mut words = Vec::new();
        let mut quoted = None;
        for part in line.split(' ') {
            if quoted.is_none() && matches!(part, "|" | ">" | "<") {
                break;
            }
            let quote = part.chars().next().filter(|c| "'\"".contains(*c));
            let bare = part.trim_matches(['\'', '"']);
            match (quoted, words.last_mut()) {
                (Some(_), Some(word)) => *word = format!("{word} {bare}"),
                _ => words.push(bare.to_owned()),
            }
            if let Some(quote) = quoted.or(quote) {
                quoted = (!part.ends_with(quote)).then_some(quote);
            }
        }
        words
    }

    #[test]
    fn every_command_has_examples_that_it_takes() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.starts_with("Examples:\n"), "{name}: {help}");
            let mut count = 0;
            for line in help
                .lines()
                .filter_map(|line| line.split_once("pressmark "))
            {
                let words = [vec!["pressmark".to_owned()], words(line.1)].concat();
                let parsed = Cli::try_parse_from(&words);
                assert!(parsed.is_ok(), "{words:?}: {parsed:?}");
                count += 1;
            }
            assert!(count > 0, "{name}");
        }
    }
}
