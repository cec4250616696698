//! Values that are read from files, and read again when the files change: certificates and tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::error::{Error, Reason, Result};

/// How often the files are looked at. A change counts when it is seen twice in a row: whoever writes a
/// file in place leaves it empty, or half written, for a moment.
const INTERVAL: Duration = Duration::from_millis(500);

/// Bytes of a file. One that is larger is not what was meant.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Makes a value of the contents of files.
type Load<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T> + Send + Sync>;

/// Files, and what they mean.
pub(super) struct Reload<T> {
    files: Vec<PathBuf>,
    looks: Looks,
    load: Load<T>,
    current: watch::Sender<Arc<T>>,
}

impl<T> Reload<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// `FileFailed` naming a file that cannot be read; those of `load`.
    pub(super) async fn open(
        files: Vec<PathBuf>,
        load: impl Fn(&[Vec<u8>]) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let contents = read(&files).await?;
        let (current, _) = watch::channel(Arc::new(load(&contents)?));
        let load = Box::new(load);
        Ok(Self {
            files,
            looks: Looks {
                known: contents,
                seen: None,
            },
            load,
            current,
        })
    }

    /// What the files say now.
    pub(super) fn current(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Looks after the files for ever. A file that is unreadable or wrong changes nothing: what was
    /// read last stays in force, and the log tells why.
    pub(super) async fn follow(mut self) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = String::new();
        loop {
            interval.tick().await;
            let changed = match read(&self.files).await {
                Ok(contents) => {
                    if self.looks.are_same(contents) {
                        continue;
                    }
                    (self.load)(&self.looks.known)
                }
                Err(error) => Err(error),
            };
            match changed {
                Ok(value) => {
                    complaint.clear();
                    self.current.send_replace(Arc::new(value));
                    tracing::info!(files = ?self.files, "changed files are in force");
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        tracing::error!(%error, files = ?self.files, "what was read before stays in force");
                        complaint = text;
                    }
                }
            }
        }
    }
}

/// What the files were when they were looked at.
struct Looks {
    /// What counts.
    known: Vec<Vec<u8>>,
    /// What the last look saw, if that was something else.
    seen: Option<Vec<Vec<u8>>>,
}

impl Looks {
    /// Looks once more. Returns whether what counts is the same as before.
    fn are_same(&mut self, contents: Vec<Vec<u8>>) -> bool {
        let is_seen = self.seen.as_ref() == Some(&contents);
        if contents == self.known {
            self.seen = None;
            return true;
        }
        if is_seen {
            self.known = contents;
            self.seen = None;
        } else {
            self.seen = Some(contents);
        }
        !is_seen
    }
}

async fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let mut contents = Vec::with_capacity(files.len());
    for file in files {
        let failed = |error| {
            let what = format!("cannot read {}", file.display());
            Error::new(Reason::FileFailed, what).with_source(error)
        };
        let bytes = tokio::fs::metadata(file).await.map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            let what = format!(
                "{} has {bytes} bytes, at most {FILE_BYTES_MAX} are read",
                file.display()
            );
            return Err(Error::new(Reason::FileFailed, what));
        }
        contents.push(tokio::fs::read(file).await.map_err(failed)?);
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_just_being_written_changes_nothing() {
        let file = |text: &str| vec![text.as_bytes().to_vec()];
        let mut looks = Looks {
            known: file("old"),
            seen: None,
        };
        // Whether the value changed, look by look.
        let looked = ["old", "", "old", "", "new", "ne", "new", "new", "new"];
        let changed = looked.map(|text| !looks.are_same(file(text)));
        assert_eq!(
            changed,
            [false, false, false, false, false, false, false, true, false]
        );
        assert_eq!(looks.known, file("new"));
    }
}
