//! Files that tell others about this process and are gone when it is.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file that appears whole or not at all, and is removed when this is dropped.
///
/// If another process has put its own file there meanwhile, that one stays.
#[derive(Debug)]
pub(crate) struct PublishedFile {
    path: PathBuf,
    /// Device and inode of what was written.
    identity: (u64, u64),
}

impl PublishedFile {
    /// Writes beside `path` and renames, so that no reader sees half of it.
    pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        let unfinished = path.with_file_name(name);
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(content)?;
            let metadata = file.metadata()?;
            std::fs::rename(&unfinished, path)?;
            Ok((metadata.dev(), metadata.ino()))
        });
        match written {
            Ok(identity) => Ok(Self {
                path: path.to_owned(),
                identity,
            }),
            Err(error) => {
                // What could not be finished helps nobody; it may not even exist.
                let _ = std::fs::remove_file(&unfinished);
                Err(error)
            }
        }
    }
}

impl Drop for PublishedFile {
    fn drop(&mut self) {
        let is_ours = std::fs::metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_ours {
            // Somebody may have removed it a moment ago, which is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_and_then_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scheduler.json");
        let file = PublishedFile::write(&path, b"{}").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_another_process_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let first = PublishedFile::write(&path, b"1").unwrap();
        let second = PublishedFile::write(&path, b"2").unwrap();
        drop(first);
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_folder_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(PublishedFile::write(&folder.path().join("a/b"), b"").is_err());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
