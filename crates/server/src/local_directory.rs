//! The folder in which a worker keeps its files: `distributed.diskutils`.
//!
//! All workers of a machine share a folder, `dask-scratch-space`. Each has its own in
//! there and holds a lock beside it, `NAME.dirlock`; a folder whose lock nobody holds
//! was left by a worker that is gone, and the next worker removes it. Locks and names
//! are stock's, so that stock's workers and ours clean up after each other.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tracing::{debug, error, info};

use crate::config::{Config, ConfigError};

const LOGGER: &str = "distributed.diskutils";

/// Ends the names of lock files.
const LOCK_SUFFIX: &str = ".dirlock";

/// Names tried for a new folder. Chosen: a clash of eight random letters is a wonder.
const ATTEMPTS: usize = 100;

/// A worker's own folder; removed when this is dropped.
#[derive(Debug)]
pub struct LocalDirectory {
    path: PathBuf,
    /// Held as long as the folder is ours; `None` without
    /// `distributed.worker.use-file-locking`.
    lock: Option<(PathBuf, File)>,
}

/// There can be no folder for a worker.
#[derive(Debug, thiserror::Error)]
pub enum LocalDirectoryError {
    /// A configuration value is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system refuses.
    #[error(
        "cannot make a folder for the worker's files in `{}`: {source}; \
         --local-directory chooses another place",
        path.display()
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where workers have their folders: `--local-directory`, else `temporary-directory`,
/// else the system's folder for temporary files; in it, `dask-scratch-space`.
///
/// # Errors
/// `temporary-directory` is no text.
pub fn workspace(given: Option<&Path>, config: &Config) -> Result<PathBuf, ConfigError> {
    const NAME: &str = "dask-scratch-space";
    let folder = match given {
        Some(path) => path.to_owned(),
        None => match config.optional_text("temporary-directory")? {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            Some(_) | None => std::env::temp_dir(),
        },
    };
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    if folder.to_string_lossy().contains(NAME) {
        return Ok(folder);
    }
    Ok(folder.join(NAME))
}

impl LocalDirectory {
    /// Makes a folder in `workspace`, and removes those there that nobody uses.
    ///
    /// # Errors
    /// See [`LocalDirectoryError`].
    pub fn create(workspace: &Path, config: &Config) -> Result<Self, LocalDirectoryError> {
        let is_locking = config.bool("distributed.worker.use-file-locking")?;
        let failed = |source| LocalDirectoryError::Io {
            path: workspace.to_owned(),
            source,
        };
        let workspace = writable(workspace).map_err(failed)?;
        if is_locking {
            purge(&workspace);
        }
        let path = new_folder(&workspace).map_err(failed)?;
        let mut directory = Self { path, lock: None };
        if is_locking {
            directory.lock(&workspace).map_err(failed)?;
        }
        Ok(directory)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, so that nobody takes the folder for a stale one meanwhile.
    fn lock(&mut self, workspace: &Path) -> io::Result<()> {
        let global = open_lock(&workspace.join("global.lock"))?;
        global.lock()?;
        let path = lock_path(&self.path);
        let file = open_lock(&path)?;
        file.lock()?;
        self.lock = Some((path, file));
        Ok(())
    }
}

impl Drop for LocalDirectory {
    fn drop(&mut self) {
        remove(&self.path);
        if let Some((path, file)) = self.lock.take() {
            drop(file);
            remove_file(&path);
        }
    }
}

/// Removes the folder of a worker that has died, with its lock.
pub(crate) fn remove_abandoned(path: &Path) {
    remove(path);
    remove_file(&lock_path(path));
}

/// The folder itself if it is there or can be made, and can be written to; else one
/// for this user alone, as stock's.
fn writable(workspace: &Path) -> io::Result<PathBuf> {
    let mut own = workspace.as_os_str().to_owned();
    own.push(format!("-{}", rustix::process::getuid().as_raw()));
    let mut refused = None;
    for folder in [workspace, Path::new(&own)] {
        fs::create_dir_all(folder)?;
        let probe = folder.join(format!(".probe-{}-{}", std::process::id(), letters()));
        match File::create_new(&probe) {
            Ok(_) => {
                remove_file(&probe);
                return Ok(folder.to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::PermissionDenied.into()))
}

fn new_folder(workspace: &Path) -> io::Result<PathBuf> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let path = workspace.join(format!("worker-{}", letters()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
}

/// Eight random letters and digits, as Python's `mkdtemp` appends.
fn letters() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut number = crate::worker::random();
    let mut letters = String::new();
    for _ in 0..8 {
        letters.push(char::from(LETTERS[(number % 32) as usize]));
        number /= 32;
    }
    letters
}

/// Removes folders whose lock nobody holds. Whoever else is at it has the job.
fn purge(workspace: &Path) {
    // A lock file that was made and not locked yet is not stale: it is made under
    // the global lock.
    let Some(global) = try_lock(&workspace.join("global.lock")) else {
        return;
    };
    let entries = match fs::read_dir(workspace) {
        Ok(entries) => entries,
        Err(error) => {
            error!(
                target: LOGGER,
                "Failed to clean up lingering worker directories in path: {}: {error}",
                workspace.display()
            );
            return;
        }
    };
    let locks: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(LOCK_SUFFIX) && path.is_file())
        .collect();
    drop(global);
    let Some(_purging) = try_lock(&workspace.join("purge.lock")) else {
        return;
    };
    for path in locks {
        let Some(_stale) = try_lock(&path) else {
            continue;
        };
        let text = path.to_string_lossy();
        let folder = Path::new(text.strip_suffix(LOCK_SUFFIX).unwrap_or(&text));
        if folder.exists() {
            info!(
                target: LOGGER,
                "Found stale lock file and directory '{}', purging", folder.display()
            );
            remove(folder);
        }
        remove_file(&path);
    }
}

/// `None` if another process holds it, or if it cannot be opened.
fn try_lock(path: &Path) -> Option<File> {
    let file = match open_lock(path) {
        Ok(file) => file,
        Err(error) => {
            debug!(target: LOGGER, %error, "cannot open `{}`", path.display());
            return None;
        }
    };
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => {
            debug!(target: LOGGER, %error, "cannot lock `{}`", path.display());
            None
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn lock_path(folder: &Path) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(LOCK_SUFFIX);
    path.into()
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            error!(target: LOGGER, "Failed to remove '{}': {error}", folder.display());
        }
        Ok(()) | Err(_) => {}
    }
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            error!(target: LOGGER, "Failed to remove {}: {error}", path.display());
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(workspace: &Path) -> Vec<String> {
        let entries = fs::read_dir(workspace).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("worker-")).collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_there_locked_and_then_gone() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::defaults();
        let workspace = workspace(Some(folder.path()), &config).unwrap();
        assert_eq!(workspace, folder.path().join("dask-scratch-space"));
        let directory = LocalDirectory::create(&workspace, &config).unwrap();
        fs::write(directory.path().join("spilled"), b"x").unwrap();
        assert_eq!(names(&workspace).len(), 2);
        assert!(try_lock(&lock_path(directory.path())).is_none());
        drop(directory);
        assert_eq!(names(&workspace), [""; 0]);
    }

    #[test]
    fn what_nobody_uses_is_removed_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::defaults();
        let used = LocalDirectory::create(folder.path(), &config).unwrap();
        let stale = folder.path().join("worker-stale");
        fs::create_dir(&stale).unwrap();
        fs::write(lock_path(&stale), b"").unwrap();
        let unlocked = folder.path().join("worker-unlocked");
        fs::create_dir(&unlocked).unwrap();
        let next = LocalDirectory::create(folder.path(), &config).unwrap();
        assert!(!stale.exists() && !lock_path(&stale).exists());
        assert!(used.path().exists() && next.path().exists() && unlocked.exists());
    }

    #[test]
    fn without_locks() {
        let folder = tempfile::tempdir().unwrap();
        let key = "distributed.worker.use-file-locking";
        let value = crate::config::Value::Bool(false);
        let config = Config::defaults().with("test", &[(key, value)]);
        let directory = LocalDirectory::create(folder.path(), &config).unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        drop(directory);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn where_no_folder_can_be_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = LocalDirectory::create(&file.join("a"), &Config::defaults()).unwrap_err();
        assert!(error.to_string().contains("--local-directory"), "{error}");
    }
}
