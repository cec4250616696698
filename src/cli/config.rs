//! The configuration file: its values become the defaults of flags, so that a flag or a variable wins
//! over them, and each is checked as the flag is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};
use toml::{Table, Value};

use super::{CommandResult, Outcome, read_small};
use crate::error::{Error, Reason, Result};

/// The flag and the variable that name the file.
const FLAG: &str = "--config";
const VARIABLE: &str = "PRESSMARK_CONFIG";

/// Commands whose figures are those of `serve`.
const SERVE: &str = "serve";
const CONFIG: &str = "config";

/// What a file says of the place of the archive, which is no default of a flag: a flag or a variable
/// for the one wins over the file's for the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) server: Option<String>,
    pub(super) archive: Option<String>,
}

/// A file that was read.
#[derive(Debug, Default)]
pub(super) struct File {
    path: Option<PathBuf>,
    pub(super) places: Places,
    /// The flags that it names, each with its command, or none if it is a flag of all.
    keys: BTreeSet<(Option<String>, String)>,
}

/// Finds the file that the arguments or the variable name.
pub(super) fn path(arguments: impl IntoIterator<Item = OsString>) -> Option<PathBuf> {
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        if argument == FLAG {
            return arguments.next().map(PathBuf::from);
        }
        let text = argument.to_string_lossy();
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    super::variable(VARIABLE).map(PathBuf::from)
}

/// Reads a file into the defaults of a command line.
///
/// # Errors
/// `FileFailed`, or `ArgumentInvalid` naming the key: one that no flag has, or a value that is none.
pub(super) fn apply(path: Option<&Path>, mut command: Command) -> Result<(Command, File)> {
    let Some(path) = path else {
        return Ok((command, File::default()));
    };
    let text = read_small(path)?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let what = format!("{}: {error}", path.display());
        Error::field(Reason::ArgumentInvalid, "config", what.trim_end()).with_source(error)
    })?;
    let mut file = File {
        path: Some(path.to_owned()),
        ..File::default()
    };
    for (key, value) in table {
        match (key.as_str(), value) {
            ("server", Value::String(server)) => file.places.server = Some(server),
            ("archive", Value::String(archive)) => file.places.archive = Some(archive),
            (_, Value::Table(flags)) => {
                if command.find_subcommand(&key).is_none() {
                    return Err(unknown(path, &key));
                }
                for (flag, value) in flags {
                    // `config` shows what `serve` would do.
                    let commands = [key.as_str(), CONFIG];
                    let count = if key == SERVE { 2 } else { 1 };
                    for name in commands.into_iter().take(count) {
                        let name_of_key = format!("{key}.{flag}");
                        let edit = |sub| set(sub, path, &name_of_key, &flag, &value);
                        command = edit_subcommand(command, name, edit)?;
                    }
                    file.keys.insert((Some(key.clone()), flag));
                }
            }
            (_, value) => {
                command = set(command, path, &key, &key, &value)?;
                file.keys.insert((None, key));
            }
        }
    }
    Ok((command, file))
}

fn edit_subcommand(
    command: Command,
    name: &str,
    edit: impl FnOnce(Command) -> Result<Command>,
) -> Result<Command> {
    let mut failed = None;
    let command = command.mut_subcommand(name, |sub| {
        edit(sub.clone()).unwrap_or_else(|error| {
            failed = Some(error);
            sub
        })
    });
    failed.map_or(Ok(command), Err)
}

/// Makes a value the default of a flag.
fn set(command: Command, path: &Path, name: &str, flag: &str, value: &Value) -> Result<Command> {
    let id = flag_of(&command, flag).ok_or_else(|| unknown(path, name))?;
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(is_on) => Ok(is_on.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
            let what = format!("{}: {value} is no value of a flag", path.display());
            Err(Error::field(Reason::ArgumentInvalid, name, what))
        }
    };
    let values = if let Value::Array(values) = value {
        values.iter().map(text).collect::<Result<Vec<_>>>()?
    } else {
        vec![text(value)?]
    };
    Ok(command.mut_arg(id, |arg| arg.default_values(values)))
}

fn flag_of(command: &Command, flag: &str) -> Option<Id> {
    let mut flags = command.get_arguments().filter(|arg| is_setting(arg));
    let arg = flags.find(|arg| arg.get_long() == Some(flag))?;
    Some(arg.get_id().clone())
}

/// Whether a flag can stand in the file.
fn is_setting(arg: &Arg) -> bool {
    let not_in_a_file = ["config", "help", "version"];
    arg.get_long()
        .is_some_and(|long| !not_in_a_file.contains(&long))
}

fn unknown(path: &Path, key: &str) -> Error {
    let what = format!(
        "{}: no flag has this name; keys are flags without their dashes, those of one command in a \
         table of its name",
        path.display()
    );
    Error::field(Reason::ArgumentInvalid, key, what)
}

/// Prints what `serve` would do, as a file of this form, and where each value is from.
pub(super) fn print(
    command: &Command,
    matches: &ArgMatches,
    file: &File,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let Some((_, sub)) = matches.subcommand() else {
        return Ok(Outcome::Done);
    };
    if let Some(path) = &file.path {
        writeln!(out, "# {}", path.display())?;
    }
    let shared: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| is_setting(arg))
        .collect();
    for arg in &shared {
        let long = arg.get_long().unwrap_or_default();
        let place = match long {
            "server" => Some(&file.places.server),
            "archive" => Some(&file.places.archive),
            _ => None,
        };
        match place {
            Some(place) => print_place(long, sub, arg, place.as_deref(), out)?,
            None => print_flag(None, arg, sub, file, out)?,
        }
    }
    writeln!(out, "\n[{SERVE}]")?;
    let own = command.find_subcommand(SERVE);
    for arg in own.into_iter().flat_map(Command::get_arguments) {
        let is_shared = shared.iter().any(|known| known.get_id() == arg.get_id());
        if is_setting(arg) && !is_shared {
            print_flag(Some(SERVE), arg, sub, file, out)?;
        }
    }
    Ok(Outcome::Done)
}

/// Prints `server` or `archive`, whose variables are not those of their flags.
fn print_place(
    long: &str,
    matches: &ArgMatches,
    arg: &Arg,
    in_file: Option<&str>,
    out: &mut (dyn Write + Send),
) -> Result<(), super::Failure> {
    let variable_name = format!("PRESSMARK_{}", long.to_uppercase());
    let flag: Option<&String> = matches.get_one(arg.get_id().as_str());
    let variable = super::variable(&variable_name);
    let (value, source) = match (flag, variable, in_file) {
        (Some(value), _, _) => (value.clone(), "flag".to_owned()),
        (None, Some(value), _) => (value, variable_name),
        (None, None, Some(value)) => (value.to_owned(), "file".to_owned()),
        (None, None, None) => {
            writeln!(out, "# {long} is not set")?;
            return Ok(());
        }
    };
    writeln!(out, "{long} = {}  # {source}", Value::String(value))?;
    Ok(())
}

fn print_flag(
    table: Option<&str>,
    arg: &Arg,
    matches: &ArgMatches,
    file: &File,
    out: &mut (dyn Write + Send),
) -> Result<(), super::Failure> {
    let long = arg.get_long().unwrap_or_default();
    let id = arg.get_id().as_str();
    let raw = matches.get_raw(id).into_iter().flatten();
    let values: Vec<Value> = raw.map(value_of).collect();
    let value = match values.as_slice() {
        [] => {
            writeln!(out, "# {long} is not set")?;
            return Ok(());
        }
        [value] => value.clone(),
        _ => Value::Array(values),
    };
    let key = (table.map(str::to_owned), long.to_owned());
    let source = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => "flag".to_owned(),
        Some(ValueSource::EnvVariable) => {
            let name = arg.get_env().map(OsStr::to_string_lossy);
            name.unwrap_or_default().into_owned()
        }
        _ if file.keys.contains(&key) => "file".to_owned(),
        _ => "default".to_owned(),
    };
    writeln!(out, "{long} = {value}  # {source}")?;
    Ok(())
}

/// A value as the file would have it.
fn value_of(text: &OsStr) -> Value {
    let text = text.to_string_lossy();
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => Value::Integer(number),
        (_, Ok(is_on)) => Value::Boolean(is_on),
        _ => Value::String(text.into_owned()),
    }
}
