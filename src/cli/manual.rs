//! `pressmark completions` and `pressmark man`: what shells and readers of manuals take.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::cannot_write;
use super::{Cli, CommandResult, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write the page of every command into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionArgs, out: &mut (dyn Write + Send)) -> CommandResult {
    // The generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pressmark", &mut script);
    out.write_all(&script)?;
    Ok(Outcome::Done)
}

pub(super) fn man(args: &ManArgs, out: &mut (dyn Write + Send)) -> CommandResult {
    let command = Cli::command();
    let Some(folder) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        out.write_all(&page)?;
        return Ok(Outcome::Done);
    };
    let failed = |error| cannot_write(folder, error);
    fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)?;
    Ok(Outcome::Done)
}
