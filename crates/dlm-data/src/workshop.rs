//! The output folder while data is being prepared: new files are made aside and put in place at the end.

use crate::{
    error::{DataError, Result, reading},
    journal::{JOURNAL, Journal, Origin, READY},
    manifest::{MANIFEST, Manifest, Split},
    prepare::Existing,
    source::QUARANTINE,
};
use dlm_files::FileError;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The folder inside the output folder in which everything is made. Where it stands, the output folder is ours.
pub(crate) const ASIDE: &str = ".preparing";
/// The file in it that the process at work holds locked.
const LOCK: &str = "lock";

/// An output folder that is being written to.
///
/// Dropped before delivery, as when the process is killed, it leaves what was there before, and aside what was finished.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: PathBuf,
    aside: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Takes possession of an output folder.
    pub(crate) fn claim(folder: &Path, holds_data: bool, existing: Existing) -> Result<Self> {
        let occupied = |holds: &str| {
            Err(DataError::Occupied { path: folder.to_owned(), holds: holds.to_owned(), foreign: !holds_data })
        };
        let aside = folder.join(ASIDE);
        if holds_data && existing == Existing::Refuse {
            return occupied("data that was prepared by another pipeline or from other input");
        }
        if !holds_data && !aside.exists() && !is_empty(folder)? {
            return occupied("files that are no prepared data");
        }
        fs::create_dir_all(&aside).map_err(failed("create", folder))?;
        let path = aside.join(LOCK);
        let lock = File::create(&path).map_err(failed("write", &path))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(DataError::Busy { path: folder.to_owned() }),
            // A file system without locks is no reason to stop.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { folder: folder.to_owned(), aside, _lock: lock })
    }

    /// What a killed preparation of this origin had finished. Everything else that it left is removed.
    pub(crate) fn journal(&self, origin: &Origin) -> Result<Option<Journal>> {
        let journal = Journal::find(&self.aside, origin);
        let entries = fs::read_dir(&self.aside).map_err(reading(&self.aside))?;
        for entry in entries {
            let entry = entry.map_err(reading(&self.aside))?;
            let name = entry.file_name();
            let is_side = [Split::Train, Split::Validation].iter().any(|split| name == split.folder());
            let keep = name == LOCK || (journal.is_some() && (is_side || name == JOURNAL));
            if !keep {
                remove(&entry.path())?;
            }
        }
        Ok(journal)
    }

    /// Whether there is anything to go on from.
    pub(crate) fn has_journal(&self) -> bool {
        self.aside.join(JOURNAL).exists()
    }

    /// The manifest of a preparation of this origin that was killed when all was made and being put in place.
    pub(crate) fn undelivered(&self, origin: &Origin) -> Option<Manifest> {
        let text = fs::read(self.aside.join(READY)).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        origin.is_of(&manifest).then_some(manifest)
    }

    /// Removes what a preparation left that was killed after everything was in place.
    pub(crate) fn sweep(folder: &Path) {
        if let Ok(lock) = File::open(folder.join(ASIDE).join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(folder.join(ASIDE)); // it does no harm where it is
        }
    }

    /// Where the new files are made.
    pub(crate) fn path(&self) -> &Path {
        &self.aside
    }

    /// Puts the new files in place of the old ones, the manifest last. Killed in between, it can be done again.
    pub(crate) fn deliver(self, manifest: &Manifest) -> Result<()> {
        dlm_files::write(&self.aside.join(READY), &manifest.to_json())?;
        // The old manifest goes first: what is half replaced must not look complete.
        let path = self.folder.join(MANIFEST);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error).into()),
            _ => {}
        }
        let wanted = |name: &str| match name {
            QUARANTINE => manifest.sources.iter().any(|source| source.quarantined > 0),
            name => name != Split::Validation.folder() || manifest.validation.is_some(),
        };
        for name in contents() {
            let (made, place) = (self.aside.join(name), self.folder.join(name));
            if made.exists() || !wanted(name) {
                remove(&place)?;
            }
            if made.exists() && wanted(name) {
                fs::rename(&made, &place).map_err(failed("write", &place))?;
            }
        }
        dlm_files::write(&path, &manifest.to_json())?;
        self.discard();
        Ok(())
    }

    /// Removes what was made aside, and the folder if it holds nothing else.
    pub(crate) fn discard(self) {
        // Nothing more can be done about a failure here, and the next preparation clears up.
        let _ = fs::remove_dir_all(&self.aside);
        let _ = fs::remove_dir(&self.folder); // only if it is empty
    }
}

/// The folders and the file that a preparation makes.
fn contents() -> [&'static str; 4] {
    [Split::Train.folder(), Split::Validation.folder(), "tokenizer", QUARANTINE]
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error).into()),
        _ => Ok(()),
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(!folder.exists() || fs::read_dir(folder).map_err(reading(folder))?.next().is_none())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}
