//! Values that are read from files, and read again when the files change: certificates and tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::error::{Error, Reason, Result};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a file. One that is larger is not what was meant.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Makes a value of the contents of files.
type Load<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T> + Send + Sync>;

/// Files, and what they mean.
pub(super) struct Reload<T> {
    files: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
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
            contents,
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
                Ok(contents) if contents == self.contents => continue,
                Ok(contents) => {
                    let loaded = (self.load)(&contents);
                    self.contents = contents;
                    loaded
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
