//! Files that are whole or absent: write to a temporary name, sync, rename.
//!
//! Whoever reads a path written here sees the old content or the new one, never half of it, whenever the writer was killed.
//! What a kill leaves behind is a temporary name that begins with `.tmp-`; [`remove_leftovers`] sweeps it up.
//!
//! ```
//! let folder = std::env::temp_dir().join(format!("dlm-files-doc-{}", std::process::id()));
//! dlm_files::write(&folder.join("config.json"), b"{}")?;
//! assert_eq!(std::fs::read(folder.join("config.json"))?, b"{}");
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What begins every temporary name.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// A file or folder that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`: {}", path.display(), reason(source))]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Says in words what an operating system says in numbers.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "no space is left on the device".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotFound => "no such file or folder".to_owned(),
        _ => error.to_string(),
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { action, path: path.to_owned(), source }
}

/// Writes `content` to `path`, whole or not at all; makes the folders above it.
///
/// # Errors
/// [`FileError`] with the path that could not be written.
pub fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_with(path, |temporary| fs::write(temporary, content))
}

/// Lets `fill` write a temporary file beside `path`, then puts it in its place; makes the folders above it.
///
/// # Errors
/// [`FileError`] when a folder cannot be made, or when `fill`, the sync or the rename fails; nothing is left behind.
pub fn write_with(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), FileError> {
    let temporary = temporary_beside(path)?;
    let written = fill(&temporary)
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path));
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
        failed("write", path)(source)
    })
}

/// A folder under construction: filled under a temporary name, then put in its place by [`finish`](Self::finish).
///
/// Dropped without that, it is removed.
#[derive(Debug)]
pub struct NewFolder {
    temporary: PathBuf,
    destination: PathBuf,
    finished: bool,
}

impl NewFolder {
    /// Begins the folder that will stand at `path`.
    ///
    /// # Errors
    /// [`FileError`] when the temporary folder cannot be made.
    pub fn begin(path: &Path) -> Result<Self, FileError> {
        let temporary = temporary_beside(path)?;
        fs::create_dir(&temporary).map_err(failed("create", path))?;
        Ok(Self { temporary, destination: path.to_owned(), finished: false })
    }

    /// Where to put the files meanwhile.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs what the folder holds and renames it to its name, replacing what stood there.
    ///
    /// # Errors
    /// [`FileError`] when a sync or the rename fails.
    pub fn finish(mut self) -> Result<(), FileError> {
        sync_tree(&self.temporary).map_err(failed("write", &self.destination))?;
        // A folder cannot be renamed onto a full one: the old one steps aside first and goes last.
        let old = temporary_beside(&self.destination)?;
        let replaces = self.destination.exists();
        if replaces {
            fs::rename(&self.destination, &old).map_err(failed("replace", &self.destination))?;
        }
        fs::rename(&self.temporary, &self.destination).map_err(failed("write", &self.destination))?;
        self.finished = true;
        sync_folder(&self.destination).map_err(failed("write", &self.destination))?;
        if replaces {
            fs::remove_dir_all(&old).map_err(failed("remove", &old))?;
        }
        Ok(())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temporary); // nothing more can be done about it here
        }
    }
}

/// Removes temporary files and folders that killed writers left in `folder`; a folder that is not there has none.
///
/// Only for a folder that no other process writes to.
///
/// # Errors
/// [`FileError`] when the folder cannot be read or a leftover cannot be removed.
pub fn remove_leftovers(folder: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("read", folder))?,
    };
    for entry in entries {
        let path = entry.map_err(failed("read", folder))?.path();
        let temporary = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY_PREFIX));
        if temporary {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

fn temporary_beside(path: &Path) -> Result<PathBuf, FileError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let parent = parent_of(path);
    fs::create_dir_all(parent).map_err(failed("create", parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Ok(parent.join(format!("{TEMPORARY_PREFIX}{name}-{unique}")))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename last: the entry lives in the folder, which has to reach the disk as well.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(parent_of(path))?.sync_all()
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_keeps_the_old_content_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write(&path, b"old").unwrap();
        let error = write_with(&path, |temporary| {
            fs::write(temporary, b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("no space is left"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_new_folder_replaces_the_old_one_only_when_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        let first = NewFolder::begin(&path).unwrap();
        fs::write(first.path().join("old"), b"").unwrap();
        first.finish().unwrap();

        drop(NewFolder::begin(&path).unwrap());
        assert_eq!(names(&path), ["old"]);

        let second = NewFolder::begin(&path).unwrap();
        fs::write(second.path().join("new"), b"").unwrap();
        second.finish().unwrap();
        assert_eq!(names(&path), ["new"]);
        assert_eq!(names(folder.path()), ["checkpoint-1"]);
    }

    #[test]
    fn leftovers_of_a_killed_writer_are_swept_up() {
        let folder = tempfile::tempdir().unwrap();
        std::mem::forget(NewFolder::begin(&folder.path().join("checkpoint-2")).unwrap());
        fs::write(folder.path().join("metrics.jsonl"), b"").unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["metrics.jsonl"]);
        remove_leftovers(&folder.path().join("absent")).unwrap();
    }
}
