//! Values on disk: files, the threads that write and read them, and figures.
//!
//! ```text
//!  Buffer (core) ── Write ──► spill: serialise ─► pack ─► may it? ─► write ──► Shell::write_ended
//!        └── Read ──► unspill: read, check, decompress ──► Shell::read_ended
//! ```
//!
//! What is serialised already never meets the executor on its way.

mod file;
mod threads;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxidask_wire::compression::Compression;
use oxidask_wire::{Key, Serialized};
use oxidask_worker::memory::{Ticket, Verdict};
use tokio::sync::Semaphore;

use self::file::Packed;
use self::threads::Threads;
use super::executor::{Datum, Executor, Outgoing};
use super::shell::ShellHandle;
use super::store::Read;

pub(super) use self::file::Damage;

/// Values that leave at a time, those included that the executor still has to
/// serialise: a task that holds the interpreter must not keep others from being
/// written. Chosen: what is serialised already is rarely behind so many that are not.
pub(super) const LEAVING_MAX: usize = 8;

/// Values written at a time. Chosen: enough to keep a disk and two cores busy.
const WRITES_MAX: usize = 3;

/// Threads for the disk: one more, so that what a task needs is read at once.
const THREADS: usize = WRITES_MAX + 1;

/// A folder for spilled values. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// Tells files of this worker from those of others that share the folder.
    prefix: String,
    file_next: AtomicU64,
    compression: Option<Compression>,
    threads: Threads,
    writes: Semaphore,
}

/// A file that goes with its last handle.
#[derive(Debug)]
pub(super) struct SpillFile {
    path: PathBuf,
    nbytes: u64,
    threads: Threads,
}

impl SpillFile {
    /// Bytes on disk.
    pub(super) fn nbytes(&self) -> u64 {
        self.nbytes
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        self.threads.spawn(move || {
            // It may have vanished; what cannot be removed goes with the folder.
            let _ = fs::remove_file(path);
        });
    }
}

/// What writing a value took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) nbytes: u64,
    pub(super) serialize: Duration,
    pub(super) compress: Duration,
    pub(super) disk: Duration,
}

/// What came of writing a value.
#[derive(Debug)]
pub(super) enum Written {
    /// It is on disk.
    Done(Arc<SpillFile>, Figures),
    /// It cannot be serialised.
    Unspillable(String),
    /// The disk did not take it.
    Failed(io::Error),
    /// There is no room, or nobody wants it; the buffer knows.
    Refused(Verdict),
}

impl Disk {
    /// Nothing is made before the first value comes.
    pub(super) fn new(folder: PathBuf, prefix: String, compression: Option<Compression>) -> Self {
        Self {
            inner: Arc::new(Inner {
                folder,
                prefix,
                file_next: AtomicU64::new(0),
                compression,
                threads: Threads::new(THREADS),
                writes: Semaphore::new(WRITES_MAX),
            }),
        }
    }

    async fn pack(&self, key: Key, value: Serialized) -> io::Result<Packed> {
        let compression = self.inner.compression;
        let pack = move || Packed::new(&key, &value, compression);
        let packed = self.inner.threads.run(pack).await.ok_or_else(broken)?;
        packed.map_err(io::Error::other)
    }

    async fn write(&self, packed: Packed) -> io::Result<SpillFile> {
        let number = self.inner.file_next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}.spill", self.inner.prefix);
        let path = self.inner.folder.join(name);
        let threads = self.inner.threads.clone();
        let write = move || {
            let mut options = File::options();
            options.write(true).create_new(true);
            // What has the name is whole.
            let part = path.with_extension("part");
            let mut out = options.open(&part).or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    return Err(error);
                }
                fs::create_dir_all(part.parent().unwrap_or(&part))?;
                options.open(&part)
            })?;
            // From here on it is removed whatever happens.
            let mut file = SpillFile {
                path: part,
                nbytes: packed.nbytes(),
                threads,
            };
            packed.write(&mut out)?;
            fs::rename(&file.path, &path)?;
            file.path = path;
            Ok(file)
        };
        let written = self.inner.threads.run(write).await;
        written.unwrap_or_else(|| Err(broken()))
    }

    async fn read(&self, key: Key, file: Arc<SpillFile>) -> Result<Serialized, Damage> {
        let read = move || {
            let mut input = File::open(&file.path)?;
            let nbytes = input.metadata()?.len();
            if nbytes != file.nbytes {
                return Err(Damage::Length);
            }
            file::read(&mut input, nbytes, &key)
        };
        let read = self.inner.threads.run(read).await;
        read.unwrap_or_else(|| Err(broken().into()))
    }

    /// Removes the folder, which nobody else uses any more, and what is left in it.
    pub(super) async fn clear(&self) {
        let (folder, prefix) = (self.inner.folder.clone(), self.inner.prefix.clone());
        let clear = move || {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().starts_with(&prefix) {
                    let _ = fs::remove_file(entry.path());
                }
            }
            // Another worker may share it.
            let _ = fs::remove_dir(&folder);
        };
        self.inner.threads.run(clear).await;
    }
}

fn broken() -> io::Error {
    io::Error::other("a thread for the disk panicked")
}

/// Writes one value. `is_direct`: it is not in the buffer yet.
pub(super) async fn spill(
    handle: &ShellHandle,
    disk: &Disk,
    key: &Key,
    datum: Arc<Datum>,
    ticket: Ticket,
    is_direct: bool,
) -> Written {
    let begun = Instant::now();
    let serialized = match serialized(&*handle.executor, key, datum).await {
        Ok(serialized) => serialized,
        Err(text) => return Written::Unspillable(text),
    };
    let serialize = begun.elapsed();
    let _slot = disk.inner.writes.acquire().await;
    let begun = Instant::now();
    let packed = match disk.pack(key.clone(), serialized).await {
        Ok(packed) => packed,
        Err(error) => return Written::Failed(error),
    };
    let compress = begun.elapsed();
    let nbytes = packed.nbytes();
    let own_key = (!is_direct).then(|| key.clone());
    let verdict = handle.call(move |shell| shell.prepared(own_key.as_ref(), ticket, nbytes));
    // The worker may have closed.
    let verdict = verdict.await.unwrap_or(Verdict::Gone);
    if verdict != Verdict::Write {
        return Written::Refused(verdict);
    }
    let begun = Instant::now();
    match disk.write(packed).await {
        Ok(file) => {
            let figures = Figures {
                nbytes,
                serialize,
                compress,
                disk: begun.elapsed(),
            };
            Written::Done(Arc::new(file), figures)
        }
        Err(error) => Written::Failed(error),
    }
}

/// Copies of more bytes are made where nobody waits. Chosen: what takes longer than to
/// hand it over.
const COPIED_NBYTES_MAX: usize = 64 << 10;

/// The serialised form, if that takes no executor.
pub(super) async fn serialize(datum: &Arc<Datum>) -> Option<Serialized> {
    if datum.copied_nbytes() <= COPIED_NBYTES_MAX {
        return datum.serialize();
    }
    let datum = datum.clone();
    let serialized = tokio::task::spawn_blocking(move || datum.serialize()).await;
    serialized.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The serialised form, by the default families; an error says why there is none.
async fn serialized(
    executor: &dyn Executor,
    key: &Key,
    datum: Arc<Datum>,
) -> Result<Serialized, String> {
    let serialized = match serialize(&datum).await {
        Some(serialized) => serialized,
        None => {
            let value = Outgoing {
                key: key.clone(),
                datum,
                is_actor: false,
            };
            let mut values = executor.serialize(vec![value], None).await;
            values.pop().ok_or("the executor does not answer")?
        }
    };
    let family = serialized.serializer().map_err(|error| error.to_string())?;
    if family.as_deref() == Some("error") {
        let text = serialized.frames.iter();
        let text = text.map(|frame| String::from_utf8_lossy(frame)).collect();
        return Err(text);
    }
    Ok(serialized)
}

/// Reads one value back and tells the shell.
pub(super) async fn unspill(handle: ShellHandle, read: Read) {
    let begun = Instant::now();
    let value = read.disk.read(read.key.clone(), read.file.clone()).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (nbytes, r#type) = (read.nbytes, read.r#type.clone());
    let value = value.map(|value| Arc::new(Datum::serialized(value, nbytes, r#type)));
    let ended = handle.call(move |shell| shell.read_ended(&read, value, seconds));
    // The worker may have closed.
    let _ = ended.await;
}
