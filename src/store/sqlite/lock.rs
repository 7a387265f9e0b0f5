//! One writer a file, also across processes: an advisory lock on a file beside the database.
//!
//! The kernel gives the lock back when its holder ends, however it ends, so a killed service leaves nothing to clean up. It is not
//! on the database file itself, because closing any handle of that file would drop the POSIX locks SQLite holds on it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Held for as long as it lives.
#[derive(Debug)]
pub(super) struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Creates what is missing and locks it. Returns the path without symbolic links, because two spellings of one file must
    /// meet at one lock.
    ///
    /// # Errors
    /// [`StoreError::InUse`] at once where another writer holds it.
    pub(super) fn acquire(path: &Path) -> Result<(Self, PathBuf), StoreError> {
        let cannot_open = |source| StoreError::Open { path: path.to_owned(), source };
        let path = create(path).map_err(cannot_open)?;
        let mut lock_path = path.clone().into_os_string();
        lock_path.push(".lock");
        // Never removed: whoever unlinked it would let a second writer lock a new file of the same name.
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(lock_path).map_err(cannot_open)?;
        match file.try_lock() {
            Ok(()) => Ok((Self { _file: file }, path)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(cannot_open(source)),
        }
    }
}

/// Whether [`WriterLock::acquire`] could create what is missing and write to it, told without creating the file: by an empty file
/// beside it, or in the nearest folder above that there is, which is removed at once. SQLite needs to create files there anyway.
///
/// # Errors
/// [`StoreError::Open`].
pub(in crate::store) fn check_writable(path: &Path) -> Result<(), StoreError> {
    let check = || -> io::Result<()> {
        match OpenOptions::new().append(true).open(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let folders = path.ancestors().skip(1).map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("."));
        let probe = folder.join(format!(".sluice-check-{}", std::process::id()));
        OpenOptions::new().create_new(true).write(true).open(&probe)?;
        std::fs::remove_file(&probe)
    };
    check().map_err(|source| StoreError::Open { path: path.to_owned(), source })
}

/// Creates the directory and an empty file, which SQLite takes for a new database, and follows symbolic links.
fn create(path: &Path) -> io::Result<PathBuf> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    // It holds customers' data; SQLite gives its log and its index of the log the same mode.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?;
    path.canonicalize()
}
