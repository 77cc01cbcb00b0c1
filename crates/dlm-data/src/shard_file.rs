//! A shard's file while it is being made: under a temporary name, hashed as it is written, so that no shard lies in memory.

use crate::{error::Result, source::hex};
use dlm_files::{FileError, TEMPORARY_PREFIX};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The file of a shard that is not finished. Dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct ShardFile {
    temporary: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    size_bytes: u64,
}

impl ShardFile {
    /// Begins the file that will stand at `path`; makes the folder above it.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = folder.join(format!("{TEMPORARY_PREFIX}{name}-{unique}"));
        let file = File::create(&temporary).map_err(failed("write", path))?;
        let (path, file) = (path.to_owned(), BufWriter::with_capacity(1 << 18, file));
        Ok(Self { temporary, path, file, hash: Sha256::new(), size_bytes: 0 })
    }

    /// Puts the file in its place, whole, and gives its size and checksum.
    pub(crate) fn finish(mut self) -> Result<(u64, String)> {
        self.file.flush().map_err(failed("write", &self.path))?;
        dlm_files::write_with(&self.path, |temporary| fs::rename(&self.temporary, temporary))?;
        Ok((self.size_bytes, hex(&self.hash.finalize_reset())))
    }
}

impl Write for ShardFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for ShardFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // it is not there any more when the shard is finished
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}
