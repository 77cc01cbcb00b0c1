//! The list of finished shards of a preparation that is not finished, and where it stood when the last of them was.

use crate::{
    checkpoint::Checkpoint,
    error::Result,
    manifest::{Manifest, ShardInfo, Split},
    shard::file_hash,
};
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, fs, path::Path};

/// The journal's name in the folder in which everything is made.
pub(crate) const JOURNAL: &str = "journal.json";
/// The manifest's name there, once everything is made.
pub(crate) const READY: &str = "ready.json";

/// What has to be equal for finished shards to count: the same program, pipeline and input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    pub(crate) dlm: String,
    pub(crate) pipeline_hash: String,
    pub(crate) input_fingerprint: String,
}

/// What a killed preparation leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(crate) origin: Origin,
    pub(crate) train: Vec<ShardInfo>,
    pub(crate) validation: Vec<ShardInfo>,
    pub(crate) checkpoint: Checkpoint,
}

impl Origin {
    pub(crate) fn new(pipeline_hash: &str, input_fingerprint: &str) -> Self {
        Self {
            dlm: env!("CARGO_PKG_VERSION").to_owned(),
            pipeline_hash: pipeline_hash.to_owned(),
            input_fingerprint: input_fingerprint.to_owned(),
        }
    }

    /// Whether a manifest is of this origin.
    pub(crate) fn is_of(&self, manifest: &Manifest) -> bool {
        manifest.pipeline_hash == self.pipeline_hash && manifest.input_fingerprint == self.input_fingerprint
    }
}

impl Journal {
    /// The journal in a folder, if it is of this origin and all its shards are there as it says. What is not in it is no
    /// finished shard and is removed.
    pub(crate) fn find(folder: &Path, origin: &Origin) -> Option<Self> {
        let text = fs::read(folder.join(JOURNAL)).ok()?;
        let journal: Self = serde_json::from_slice(&text).ok()?;
        let is_whole = |shard: &ShardInfo| {
            let path = folder.join(&shard.path);
            let size = fs::metadata(&path).is_ok_and(|file| file.len() == shard.size_bytes);
            size && file_hash(&path).is_ok_and(|hash| hash == shard.sha256)
        };
        let counts = journal.origin == *origin && journal.shards().all(is_whole);
        (counts && journal.sweep(folder).is_ok()).then_some(journal)
    }

    /// Puts the journal in its place, whole.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).expect("a journal is made of texts and numbers");
        Ok(dlm_files::write(&folder.join(JOURNAL), &text)?)
    }

    fn shards(&self) -> impl Iterator<Item = &ShardInfo> {
        self.train.iter().chain(&self.validation)
    }

    /// Removes shards that were finished after the journal was written, and halves of shards.
    fn sweep(&self, folder: &Path) -> std::io::Result<()> {
        let known: HashSet<_> = self.shards().map(|shard| folder.join(&shard.path)).collect();
        for split in [Split::Train, Split::Validation] {
            let side = folder.join(split.folder());
            if !side.exists() {
                continue;
            }
            for entry in fs::read_dir(side)? {
                let path = entry?.path();
                if !known.contains(&path) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}
