//! The weights of a model folder: safetensors in one file or several, memory-mapped and checked before they are used.

use crate::{
    error::{ModelError, Result, TensorDifference},
    state_dict::Parameter,
};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// The file of a model that has one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The file that says which file holds which tensor, in a model that has several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// How pickled weights end.
const PICKLED: &[&str] = &["bin", "pt", "pth", "ckpt"];
/// Rotary frequencies that old files store; they follow from config.json.
const BUFFER: &str = "rotary_emb.inv_freq";

/// The weights of a folder, mapped but not yet read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    folder: PathBuf,
    files: Vec<MappedFile>,
    /// Which file holds a tensor.
    places: BTreeMap<String, usize>,
    /// Names that the index promises, but its files do not hold.
    absent: Vec<String>,
}

impl Checkpoint {
    /// Maps the folder's files and reads their headers.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint =
            Self { folder: folder.to_owned(), files: Vec::new(), places: BTreeMap::new(), absent: Vec::new() };
        if folder.join(SINGLE).is_file() {
            checkpoint.add(folder.join(SINGLE))?;
        } else if folder.join(INDEX).is_file() {
            let promised = read_index(&folder.join(INDEX))?;
            for file in promised.values().collect::<BTreeSet<_>>() {
                checkpoint.add(folder.join(file))?;
            }
            checkpoint.absent = promised.into_keys().filter(|name| !checkpoint.places.contains_key(name)).collect();
        } else {
            return Err(no_weights(folder));
        }
        Ok(checkpoint)
    }

    /// Whether a folder holds weights of a whole model.
    pub(crate) fn is_in(folder: &Path) -> bool {
        [SINGLE, INDEX].iter().any(|name| folder.join(name).is_file())
    }

    /// Maps one file of a folder.
    pub(crate) fn open_file(folder: &Path, name: &str) -> Result<Self> {
        let mut checkpoint =
            Self { folder: folder.to_owned(), files: Vec::new(), places: BTreeMap::new(), absent: Vec::new() };
        checkpoint.add(folder.join(name))?;
        Ok(checkpoint)
    }

    /// How many rows a tensor has.
    pub(crate) fn rows(&self, name: &str) -> Option<i64> {
        self.info(name).and_then(|(_, info)| shape_of(info).first().copied())
    }

    /// Refuses a folder whose tensors are not exactly `parameters`.
    ///
    /// `tied` is a name that may stand beside them: the head's, in a model whose head is its embedding.
    pub(crate) fn check(&self, parameters: &[Parameter], tied: Option<&str>) -> Result<()> {
        let mut difference = TensorDifference::default();
        let mut unexpected: BTreeSet<&str> = self.places.keys().chain(&self.absent).map(String::as_str).collect();
        for Parameter { name, shape, .. } in parameters {
            unexpected.remove(name.as_str());
            match self.info(name) {
                None => difference.missing.push(name.clone()),
                Some((_, info)) if shape_of(info) != *shape => {
                    difference.misshapen.push((name.clone(), shape_of(info), shape.clone()));
                }
                Some(_) => {}
            }
        }
        let ignored = |name: &&str| name.ends_with(BUFFER) || Some(*name) == tied;
        difference.unexpected = unexpected.into_iter().filter(|name| !ignored(name)).map(str::to_owned).collect();
        if difference.is_empty() {
            return Ok(());
        }
        Err(ModelError::Tensors { folder: self.folder.clone(), difference })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A copy of a tensor as `kind` on `device`, converted while it is read.
    ///
    /// # Panics
    /// When [`contains`](Self::contains) does not hold.
    pub(crate) fn read(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let (file, info) = self.info(name).expect("the names were checked");
        let stored_kind = file.kind(name, info)?;
        let bytes = file.bytes(info);
        let shape = shape_of(info);
        let alignment = stored_kind.elt_size_in_bytes();
        if kind == stored_kind || bytes.as_ptr().align_offset(alignment) != 0 {
            return Ok(Tensor::f_from_data_size(bytes, &shape, stored_kind)?.f_to_device(device)?.f_to_kind(kind)?);
        }
        let strides: Vec<i64> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        // SAFETY: the header was checked: the bytes are aligned and exactly as many as the shape asks for. The view is read
        // once, by a conversion that copies (the kinds differ), and dropped while the map still stands.
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &strides, stored_kind, Device::Cpu) }?;
        Ok(view.f_to_kind(kind)?.f_to_device(device)?)
    }

    /// What a tensor is stored as.
    ///
    /// # Panics
    /// When [`contains`](Self::contains) does not hold.
    pub(crate) fn kind(&self, name: &str) -> Result<Kind> {
        let (file, info) = self.info(name).expect("the names were checked");
        file.kind(name, info)
    }

    /// Whether two tensors hold the same numbers.
    ///
    /// # Panics
    /// When [`contains`](Self::contains) does not hold for both.
    pub(crate) fn holds_alike(&self, a: &str, b: &str) -> Result<bool> {
        let [one, other] = [a, b].map(|name| self.info(name).expect("the names were checked"));
        if self.kind(a)? == self.kind(b)? && one.0.bytes(one.1) == other.0.bytes(other.1) {
            return Ok(true); // nothing had to be converted
        }
        Ok(self.read(a, Kind::Float, Device::Cpu)? == self.read(b, Kind::Float, Device::Cpu)?)
    }

    fn info(&self, name: &str) -> Option<(&MappedFile, &TensorInfo)> {
        let file = &self.files[*self.places.get(name)?];
        Some((file, file.header.info(name)?))
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = MappedFile::open(path)?;
        for name in file.header.offset_keys() {
            self.places.insert(name, self.files.len());
        }
        self.files.push(file);
        Ok(())
    }
}

fn shape_of(info: &TensorInfo) -> Vec<i64> {
    // A checked header holds no size beyond the length of its file.
    info.shape.iter().map(|&size| size as i64).collect()
}

fn no_weights(folder: &Path) -> ModelError {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let pickled = names.filter(|path| path.extension().is_some_and(|e| PICKLED.iter().any(|known| e == *known)));
    let first = pickled.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).min();
    let folder = folder.to_owned();
    match first {
        Some(file) => ModelError::PickledWeights { folder, file },
        None => ModelError::NoWeights { folder },
    }
}

/// Which file holds which tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Map<String, Value>,
    }
    let bytes = fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    let place = |(name, file): (String, Value)| match file.as_str() {
        // A shard lies in the folder itself: other paths could name any file of the machine.
        Some(file) if Path::new(file).file_name() == Some(file.as_ref()) => Ok((name, file.to_owned())),
        _ => Err(ModelError::Value {
            path: path.to_owned(),
            key: format!("weight_map.{name}"),
            found: file.to_string(),
            accepted: "the name of a file beside it".to_owned(),
        }),
    };
    index.weight_map.into_iter().map(place).collect()
}

/// One safetensors file in memory, its header checked.
#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Where the tensors begin.
    start: usize,
}

impl MappedFile {
    fn open(path: PathBuf) -> Result<Self> {
        let read = |source| ModelError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the map is only read. A file that another process cuts meanwhile would end this one with a bus error; model
        // files are replaced as a whole, by renaming, which leaves a map as it was.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (start, header) = read_header(&map).map_err(|reason| ModelError::Damaged { path: path.clone(), reason })?;
        Ok(Self { path, map, header, start })
    }

    /// The bytes of a tensor.
    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.start..][info.data_offsets.0..info.data_offsets.1]
    }

    /// What a tensor is stored as.
    fn kind(&self, name: &str, info: &TensorInfo) -> Result<Kind> {
        match info.dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::BF16 => Ok(Kind::BFloat16),
            Dtype::F16 => Ok(Kind::Half),
            other => {
                let (path, name) = (self.path.clone(), name.to_owned());
                Err(ModelError::StoredKind { path, name, found: other.to_string() })
            }
        }
    }
}

/// The header of a safetensors file and where its data begins.
///
/// `safetensors` checks that tensors follow one another without gaps and are as long as their shapes ask for; left to check is
/// that the file is as long as they are together, without an overflow that a made-up length could cause.
fn read_header(bytes: &[u8]) -> std::result::Result<(usize, Metadata), String> {
    let too_short = || format!("it ends after {} bytes, within its header", bytes.len());
    let (len, rest) = bytes.split_first_chunk::<8>().ok_or_else(too_short)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| too_short())?;
    let json = rest.get(..len).ok_or_else(too_short)?;
    let header: Metadata = serde_json::from_slice(json).map_err(|error| format!("its header is wrong: {error}"))?;
    let (found, expected) = (rest.len() - len, header.data_len());
    if found != expected {
        return Err(format!("it holds {found} bytes of tensors where its header announces {expected}"));
    }
    Ok((8 + len, header))
}
