//! [`Checkpoint`]: the weights of a model directory, mapped into memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    ops::Range,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Index, Layout, ShardInfo, header};
use crate::{MappedBytes, TensorInfo, TensorSource, WeightError, mapped};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// One safetensors file, or several joined by an index. Opening reads headers only.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Arc<Mmap>>,
    layout: Layout,
    infos: Vec<TensorInfo>,
    places: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    info: usize,
    file: usize,
    range: Range<usize>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a directory (`model.safetensors`, else `model.safetensors.index.json`, else its only safetensors file), a
    /// safetensors file, or an index file.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let metadata = fs::metadata(path).map_err(WeightError::io("open", path))?;
        if !metadata.is_dir() {
            return if path.extension() == Some(OsStr::new("json")) { Self::sharded(path) } else { Self::single(path) };
        }
        if path.join(SINGLE).exists() {
            return Self::single(&path.join(SINGLE));
        }
        if path.join(INDEX).exists() {
            return Self::sharded(&path.join(INDEX));
        }
        Self::single(&only_file(path)?)
    }

    /// The file or directory that holds the weights.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, their tensors in file order, and their metadata.
    pub fn shards(&self) -> &[ShardInfo] {
        &self.layout.shards
    }

    /// Files and index: what a [`super::ShardedWriter`] needs to write the same again.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn single(path: &Path) -> Result<Self, WeightError> {
        let mut checkpoint = Self::empty(path, None);
        checkpoint.add(path, &file_name(path))?;
        Ok(checkpoint)
    }

    fn sharded(path: &Path) -> Result<Self, WeightError> {
        let text = fs::read(path).map_err(WeightError::io("read", path))?;
        let index: RawIndex = serde_json::from_slice(&text)
            .map_err(|error| WeightError::IndexMalformed { path: path.to_owned(), reason: error.to_string() })?;
        if index.weight_map.is_empty() {
            return Err(WeightError::IndexMalformed {
                path: path.to_owned(),
                reason: "its `weight_map` names no tensor".to_owned(),
            });
        }
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &index.weight_map {
            if !is_plain_name(shard) {
                return Err(WeightError::ShardOutside {
                    index: path.to_owned(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
            shards.entry(shard).or_default().push(tensor);
        }

        let directory = path.parent().unwrap_or(Path::new(""));
        let joined = Index { file_name: file_name(path), metadata: index.metadata.unwrap_or_default() };
        let mut checkpoint = Self::empty(directory, Some(joined));
        for (file, (shard, tensors)) in shards.iter().enumerate() {
            let shard_path = directory.join(shard);
            if !shard_path.exists() {
                return Err(WeightError::ShardMissing {
                    index: path.to_owned(),
                    shard: (*shard).to_owned(),
                    tensors: tensors.len(),
                });
            }
            checkpoint.add(&shard_path, shard)?;
            if let Some(absent) =
                tensors.iter().find(|&&tensor| checkpoint.places.get(tensor).is_none_or(|place| place.file != file))
            {
                return Err(WeightError::NotInShard {
                    index: path.to_owned(),
                    tensor: (*absent).to_owned(),
                    shard: (*shard).to_owned(),
                });
            }
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path, index: Option<Index>) -> Self {
        Self {
            path: path.to_owned(),
            files: Vec::new(),
            layout: Layout { shards: Vec::new(), index },
            infos: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Maps a file and takes over its tensors.
    fn add(&mut self, path: &Path, name: &str) -> Result<(), WeightError> {
        let map = mapped::map(path)?;
        let header = header::parse(path, &map)?;
        let file = self.files.len();
        let mut tensors = Vec::with_capacity(header.entries.len());
        for entry in header.entries {
            let tensor = entry.info.name.clone();
            let place = Place { info: self.infos.len(), file, range: entry.begin..entry.end };
            if let Some(first) = self.places.insert(tensor.clone(), place) {
                return Err(WeightError::Duplicate {
                    tensor,
                    first: self.layout.shards.get(first.file).map_or(name, |shard| &shard.file_name).to_owned(),
                    second: name.to_owned(),
                });
            }
            self.infos.push(entry.info);
            tensors.push(tensor);
        }
        self.files.push(Arc::new(map));
        self.layout.shards.push(ShardInfo { file_name: name.to_owned(), tensors, metadata: header.metadata });
        Ok(())
    }

    fn place(&self, name: &str) -> Result<&Place, WeightError> {
        self.places.get(name).ok_or_else(|| WeightError::Missing {
            tensor: name.to_owned(),
            place: format!("`{}`", self.path.display()),
        })
    }
}

impl TensorSource for Checkpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).map(|place| &self.infos[place.info])
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightError> {
        let place = self.place(name)?;
        Ok(Cow::Borrowed(&self.files[place.file][place.range.clone()]))
    }

    fn mapped(&self, name: &str) -> Option<MappedBytes> {
        let place = self.places.get(name)?;
        Some(MappedBytes::new(&self.files[place.file], place.range.clone()))
    }

    fn release(&self, name: &str) {
        if let Ok(place) = self.place(name) {
            mapped::give_back(&self.files[place.file], &place.range);
        }
    }
}

/// The only safetensors file of a directory.
fn only_file(directory: &Path) -> Result<PathBuf, WeightError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    let ends_with = |ends: &[&str]| -> Vec<String> {
        names.iter().filter(|name| ends.iter().any(|end| name.ends_with(end))).cloned().collect()
    };
    let files = ends_with(&[".safetensors"]);
    match files.as_slice() {
        [only] => Ok(directory.join(only)),
        [] => Err(WeightError::NoWeights { path: directory.to_owned(), pickles: ends_with(&[".bin", ".pt", ".pth"]) }),
        _ => Err(WeightError::Unindexed { path: directory.to_owned(), files }),
    }
}

/// Whether a shard's name stays inside the directory: one component, on any system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', '\0'])
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
