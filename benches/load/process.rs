//! A server process and all that it started, watched from outside.

use std::collections::HashMap;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use std::os::unix::fs::MetadataExt;

/// Clock ticks in a second of `/proc/<pid>/stat`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// A process with its children. Dropping it kills it.
pub struct Process {
    pub child: Child,
    peak: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

impl Process {
    pub fn watch(child: Child) -> Self {
        let (peak, ended) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (highest, stop, id) = (Arc::clone(&peak), Arc::clone(&ended), child.id());
        let sampler = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                highest.fetch_max(memory_bytes(id), Ordering::Relaxed);
                std::thread::park_timeout(SAMPLE_INTERVAL);
            }
        });
        Self {
            child,
            peak,
            ended,
            sampler: Some(sampler),
        }
    }

    /// CPU that it and its children used up to now, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        family(self.child.id()).into_iter().map(cpu_seconds).sum()
    }

    /// Bytes that it and its children sent to the disk up to now.
    pub fn written_bytes(&self) -> u64 {
        let written = |id| {
            let io = std::fs::read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
            field(&io, "write_bytes:")
        };
        family(self.child.id()).into_iter().map(written).sum()
    }

    pub fn memory_bytes(&self) -> u64 {
        memory_bytes(self.child.id())
    }

    /// The most memory that was seen since the last call.
    pub fn take_peak(&self) -> u64 {
        self.peak
            .swap(0, Ordering::Relaxed)
            .max(self.memory_bytes())
    }

    pub fn kill(&mut self) {
        for id in family(self.child.id()).into_iter().rev() {
            signal(id, rustix::process::Signal::KILL);
        }
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self, signal_number: rustix::process::Signal) {
        signal(self.child.id(), signal_number);
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            sampler.thread().unpark();
            sampler.join().unwrap();
        }
        if self.child.try_wait().unwrap().is_none() {
            self.kill();
        }
    }
}

fn signal(id: u32, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(id.cast_signed()).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(id, signal);
}

/// CPU that this process used up to now, in seconds.
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id())
}

fn cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The second field, the program's name in brackets, may hold spaces.
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return 0.0;
    };
    let times = fields.split(' ').skip(11).take(4);
    let ticks: f64 = times.map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    ticks / TICKS_PER_SECOND
}

/// Memory of a process and its children; what they share counts once.
fn memory_bytes(id: u32) -> u64 {
    let family = family(id);
    if let [only] = family.as_slice() {
        let status = std::fs::read_to_string(format!("/proc/{only}/status")).unwrap_or_default();
        return field(&status, "VmRSS:") * 1024;
    }
    let share = |id| {
        let memory = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"));
        field(&memory.unwrap_or_default(), "Pss:") * 1024
    };
    family.into_iter().map(share).sum()
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    figure.map_or(0, |figure| figure.parse().unwrap())
}

/// A process and all below it.
fn family(id: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        let parent = fields.and_then(|fields| fields.split(' ').nth(1)?.parse().ok());
        children
            .entry(parent.unwrap_or_default())
            .or_default()
            .push(id);
    }
    let mut family = vec![id];
    let mut next = 0;
    while let Some(id) = family.get(next) {
        family.extend(children.remove(id).unwrap_or_default());
        next += 1;
    }
    family
}

/// Bytes that the files of a folder take, as `du` counts them.
pub fn disk_bytes(folder: &Path) -> u64 {
    let files = walkdir::WalkDir::new(folder).into_iter();
    let blocks = files.flatten().filter_map(|file| file.metadata().ok());
    blocks.map(|file| file.blocks()).sum::<u64>() * 512
}
