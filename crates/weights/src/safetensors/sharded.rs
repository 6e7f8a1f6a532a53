//! [`ShardedWriter`]: several safetensors files and their index, laid out as another checkpoint is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Layout, SafetensorsWriter};
use crate::{TensorInfo, TensorSink, WeightError, Written, atomic};

/// Writes the files of a [`Layout`] one after another, then the index if the layout has one.
#[derive(Debug)]
pub struct ShardedWriter {
    directory: PathBuf,
    layout: Layout,
    plan: Option<HashMap<String, TensorInfo>>,
    /// The file being written.
    open: Option<SafetensorsWriter>,
    shard: usize,
    written: Written,
}

#[derive(Serialize)]
struct IndexFile<'a> {
    metadata: &'a Map<String, Value>,
    weight_map: BTreeMap<&'a str, &'a str>,
}

impl ShardedWriter {
    /// Begins a checkpoint in an existing directory. Tensors have to be written in the order of
    /// [`Layout::tensors`].
    pub fn create(directory: &Path, layout: Layout) -> Self {
        Self { directory: directory.to_owned(), layout, plan: None, open: None, shard: 0, written: Written::default() }
    }

    /// Opens the next file that has something to hold; files without tensors are written on the way.
    fn advance(&mut self) -> Result<(), WeightError> {
        while self.open.is_none() {
            let plan = self.plan.as_ref().ok_or_else(|| WeightError::WrongOrder {
                path: self.directory.clone(),
                what: "written to before its tensors were declared",
            })?;
            let Some(shard) = self.layout.shards.get(self.shard) else {
                return Ok(());
            };
            let target = self.directory.join(&shard.file_name);
            let mut writer = SafetensorsWriter::create(&target, shard.metadata.clone())?;
            let infos: Vec<TensorInfo> = shard.tensors.iter().map(|name| plan[name].clone()).collect();
            writer.declare(&infos)?;
            self.open = Some(writer);
            self.close_whole()?;
        }
        Ok(())
    }

    /// Closes the file that is open if nothing is missing in it.
    fn close_whole(&mut self) -> Result<(), WeightError> {
        if let Some(writer) = self.open.take_if(|writer| writer.is_whole()) {
            let one = writer.close()?;
            self.written.files.extend(one.files);
            self.written.tensors += one.tensors;
            self.written.bytes += one.bytes;
            self.shard += 1;
        }
        Ok(())
    }

    /// Opens the file that `name` goes into, lets `put` write to it, and closes it behind its last tensor.
    fn write_by(
        &mut self,
        name: &str,
        put: impl FnOnce(&mut SafetensorsWriter) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        self.advance()?;
        let Some(writer) = &mut self.open else {
            return Err(WeightError::OutOfTurn {
                path: self.directory.clone(),
                expected: None,
                found: name.to_owned(),
            });
        };
        put(writer)?;
        self.close_whole()
    }

    fn write_index(&self) -> Result<Option<PathBuf>, WeightError> {
        let Some(index) = &self.layout.index else {
            return Ok(None);
        };
        let mut metadata = index.metadata.clone();
        metadata.insert("total_size".to_owned(), self.written.bytes.into());
        let weight_map = self
            .layout
            .shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(|tensor| (tensor.as_str(), shard.file_name.as_str())))
            .collect();
        let file = IndexFile { metadata: &metadata, weight_map };
        let mut text = serde_json::to_string_pretty(&file).expect("invariant: names are JSON");
        text.push('\n');
        let path = self.directory.join(&index.file_name);
        atomic::write_file(&path, |file| file.write_all(text.as_bytes()).map_err(WeightError::io("write", &path)))?;
        Ok(Some(path))
    }
}

impl TensorSink for ShardedWriter {
    fn declare(&mut self, plan: &[TensorInfo]) -> Result<(), WeightError> {
        if self.plan.is_some() {
            return Err(WeightError::WrongOrder { path: self.directory.clone(), what: "declared twice" });
        }
        let planned: BTreeSet<&str> = plan.iter().map(|info| info.name.as_str()).collect();
        let laid_out: BTreeSet<&str> = self.layout.tensors().collect();
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let unplanned = owned(laid_out.difference(&planned).copied().collect());
        let extra = owned(planned.difference(&laid_out).copied().collect());
        if !unplanned.is_empty() || !extra.is_empty() {
            return Err(WeightError::PlanMismatch { path: self.directory.clone(), unplanned, extra });
        }
        self.plan = Some(plan.iter().map(|info| (info.name.clone(), info.clone())).collect());
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        self.write_by(name, |writer| writer.write(name, bytes))
    }

    fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        self.write_by(name, |writer| writer.write_part(name, bytes))
    }

    fn finish(mut self: Box<Self>) -> Result<Written, WeightError> {
        self.advance()?;
        if let Some(writer) = self.open.take() {
            // Says which tensor is due.
            return writer.close();
        }
        let index = self.write_index()?;
        self.written.files.extend(index);
        Ok(self.written)
    }
}
